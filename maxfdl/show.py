"""Shows what an experiment is: `python -m maxfdl.show experiments.llama2_nnx`.

Prints the model with every parameter's shape, sharding and bytes, the totals of
parameters, FLOPs and state, and in what products are computed. Allocates nothing. The
mesh is the experiment's, on the devices that are here or, if it names more, on as many
as it names. Mutations and values may follow, as for `maxfdl.launch`.

With `--sharding` it prints where every parameter, array of optimizer state and pinned
activation lies instead, and what each device holds of it. With `--memory` it estimates
what a device holds at the moment of a step that needs the most memory, by what that is
for. With `--devices=N` the mesh is laid out on N devices, which need not be here; with
`--memory --topology=v5e:4x4`, on those of a slice of TPUs (`--num_slices` slices), as
for `maxfdl.aot`, which finds the exact figures in minutes.

`python -m maxfdl.show --models` prints the published models instead.
"""

import dataclasses
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.report import json_file, topology

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(json_file)
flags.adopt_module_key_flags(topology)

# This module may be imported under two names (`python -m` makes one `__main__`).
if "models" not in FLAGS:
    flags.DEFINE_bool("models", False, "Print a table of the published models.")
    flags.DEFINE_bool("sharding", False, "Print where every array lies on the mesh.")
    flags.DEFINE_bool("memory", False, "Estimate the memory that a step needs.")
    flags.DEFINE_integer(
        "devices", None, "Lay the mesh out on so many devices.", lower_bound=1
    )


def main(argv: list[str]) -> None:
    _refuse_meaningless_flags()
    if FLAGS.models:
        return _show_models()
    config = commandline.config_from_flags()

    import jax

    from maxfdl import graph
    from maxfdl.report.attention import attention_of
    from maxfdl.report.facts import facts_of
    from maxfdl.report.modules import modules_of
    from maxfdl.report.pipelines import pipelines_of
    from maxfdl.report.products import products_of, products_text
    from maxfdl.report.text import summary, tree

    here, platform = jax.device_count(), jax.default_backend()
    experiment, on = graph.build(config), FLAGS.devices or here
    if FLAGS.sharding:
        return _show_sharding(experiment, on)
    if FLAGS.memory:
        return _show_memory(experiment)
    facts = facts_of(experiment, on)
    modules = list(modules_of(config.model))
    attention = attention_of(config)
    print(f"{config.name}\n")
    print("\n".join(tree(modules, facts.parameters)), end="\n\n")
    print("\n".join(summary(facts, attention, platform, here)))
    pipelines = pipelines_of(config)
    for sentence in pipelines:
        print(f"pipeline: {sentence}")
    products = products_of(config)
    if products.keys() != {config.model.dtype}:
        print(f"products: {products_text(products)}")
    json_file.write_if_asked(
        {
            "name": config.name,
            "platform": platform,
            "devices_here": here,
            "attention": attention,
            "pipelines": pipelines,
            "products": products,
            **facts.as_json(),
            "modules": [dataclasses.asdict(module) for module in modules],
        }
    )


def _refuse_meaningless_flags() -> None:
    """Raises UserError for flags that would do nothing."""
    topology.check_flags()
    if FLAGS.topology is not None and not FLAGS.memory:
        raise UserError("--topology has no meaning without --memory; add that.")
    for name, other in (("sharding", "memory"), ("topology", "devices")):
        if FLAGS[name].value and FLAGS[other].value:
            raise UserError(
                f"--{name} and --{other} exclude each other; leave one out."
            )


def _show_memory(experiment: Any) -> None:
    import jax

    from maxfdl.report.ahead import program_of
    from maxfdl.report.facts import planned_program
    from maxfdl.report.memory import text
    from maxfdl.report.memory.estimate import estimate_on

    devices = topology.devices()
    if devices is not None:
        program = program_of(experiment, devices)
    else:
        devices = jax.devices()
        program = planned_program(experiment, FLAGS.devices or len(devices))
    found = estimate_on(experiment.name, program, devices[0])
    print("\n".join(text.lines(found)))
    json_file.write_if_asked(found.as_json())


def _show_sharding(experiment: Any, num_devices: int) -> None:
    from maxfdl.report import shardings

    sharding, places = shardings.places_of(experiment, num_devices)
    mesh = dict(sharding.mesh.shape)
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items())
    across = " and ".join(experiment.mesh.across)
    of_slices = f", {across} across slices" if across else ""
    print(f"{experiment.name}\n")
    print(f"mesh: {axes} = {sharding.mesh.size} devices{of_slices}\n")
    print("\n".join(shardings.table(places)))
    json_file.write_if_asked(
        {
            "name": experiment.name,
            "mesh": mesh,
            "arrays": [dataclasses.asdict(place) for place in places],
        }
    )


def _show_models() -> None:
    from maxfdl.report import zoo

    rows = []

    def each_row():
        for name in zoo.MODELS:
            rows.append(zoo.row_of(name))
            yield rows[-1]

    for line in zoo.lines(each_row()):
        print(line, flush=True)
    json_file.write_if_asked({"models": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
    commandline.run(main)
