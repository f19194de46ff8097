"""Shows what an experiment is: `python -m maxfdl.show experiments.llama2_nnx`.

Prints the model with every parameter's shape, sharding and bytes, and the totals of
parameters, FLOPs and state. Allocates nothing. The mesh is the experiment's, on the
devices that are here or, if it names more, on as many as it names. Mutations and
values may follow, as for `maxfdl.launch`.
"""

import dataclasses

from absl import flags

from maxfdl import commandline
from maxfdl.report import json_file

flags.adopt_module_key_flags(json_file)


def main(argv: list[str]) -> None:
    config = commandline.config_from_flags()

    import jax

    from maxfdl import graph
    from maxfdl.report.attention import attention_of
    from maxfdl.report.facts import facts_of
    from maxfdl.report.modules import modules_of
    from maxfdl.report.text import summary, tree

    here, platform = jax.device_count(), jax.default_backend()
    facts = facts_of(graph.build(config), here)
    modules = list(modules_of(config.model))
    attention = attention_of(config)
    print(f"{config.name}\n")
    print("\n".join(tree(modules, facts.parameters)), end="\n\n")
    print("\n".join(summary(facts, attention, platform, here)))
    json_file.write_if_asked(
        {
            "name": config.name,
            "platform": platform,
            "devices_here": here,
            "attention": attention,
            **facts.as_json(),
            "modules": [dataclasses.asdict(module) for module in modules],
        }
    )


if __name__ == "__main__":
    commandline.run(main)
