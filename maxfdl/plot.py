"""Draws metrics of runs: `python -m maxfdl.plot runs/a runs/b --x=bytes`.

Each run is a curve in one SVG picture, which browsers show.
"""

import functools

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path

FLAGS = flags.FLAGS

# This module may be imported under two names (`python -m` makes one `__main__`).
if "metric" not in FLAGS:
    flags.DEFINE_string("metric", "loss", "What is drawn, as `metrics.jsonl` names it.")
    flags.DEFINE_enum(
        "x",
        "steps",
        ["steps", "tokens", "bytes"],
        "Over what: steps, tokens seen, or bytes sent between replicas.",
    )
    flags.DEFINE_bool("log_x", False, "Whether the x axis is logarithmic.")
    flags.DEFINE_string("out", "plot.svg", "The file that is written.")

_LABELS = {
    "steps": "steps",
    "tokens": "tokens seen",
    "bytes": "bytes that a replica has sent",
}


def main(argv: list[str]) -> None:
    folders = [as_path(name) for name in argv[1:]]
    if not folders:
        raise UserError("plot needs the directory of at least one run.")
    from maxfdl.report.chart import chart
    from maxfdl.report.curves import read_curve  # imports JAX: after flags are checked

    curves = [
        read_curve(
            folder,
            FLAGS.metric,
            FLAGS.x,
            functools.partial(_bytes_of_gradients, folder),
        )
        for folder in folders
    ]
    if not any(x > 0 or not FLAGS.log_x for c in curves for x, _ in c.points):
        raise UserError(
            f"no point of {FLAGS.metric} can be drawn: its values are not finite"
            " numbers, or lie at 0 on a logarithmic axis (--log_x)."
        )
    picture = chart(curves, _LABELS[FLAGS.x], FLAGS.metric, log_x=FLAGS.log_x)
    try:
        as_path(FLAGS.out).write_text(picture, "utf-8")
    except OSError as error:
        raise UserError(
            f"--out={FLAGS.out} cannot be written ({error.strerror}); give a file in a"
            " directory that exists."
        ) from None
    print(f"{FLAGS.metric} of {len(curves)} runs is drawn in {FLAGS.out}")


def _bytes_of_gradients(folder: AnyPath) -> int:
    """Returns the float32 bytes of all trained parameters of a run."""
    import jax

    from maxfdl import graph
    from maxfdl.layers.frozen import trained
    from maxfdl.run.directory import RunDirectory
    from maxfdl.saved_graph import saved_graph

    config = saved_graph(RunDirectory(folder), FLAGS.trust)
    if config is None:
        raise UserError(f"{folder} has no config.json, which --x=bytes needs.")
    parameters = trained(graph.build(config).make_model().parameters())
    return sum(4 * parameter.size for parameter in jax.tree.leaves(parameters))


if __name__ == "__main__":
    commandline.run(main, takes_config=False)
