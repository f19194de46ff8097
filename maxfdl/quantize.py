"""Stores the kernels of a model in few bits, as a model folder of Hugging Face.

    python -m maxfdl.quantize --from_hf=FOLDER --to=FOLDER --format=int4
    python -m maxfdl.quantize --from_run=RUN_DIR --to=FOLDER --format=fp8_block
    python -m maxfdl.quantize --from_hf=FOLDER --to=FOLDER --format=int4
        --calibrate_steps=16 --fiddler='text_files(notes/*.txt)'

Formats are `int8`, `int4`, `fp8`, `fp8_block` and `mxfp4`: see
`maxfdl.tensors.hugging_face.quantization.formats.plan`. Of a folder, one tensor after
the other is read, stored and written; of a run, one kernel of one layer
(checkpoints of earlier versions hold all layers of a stack in one chunk, and are read
so). Its weights are those that the newest checkpoint evaluates; where that is an
average, all are read. Embedding, head, routers and norms stay in their type.
transformers reads the folder, and so do `--from_hf` and `hf.load`.

With `--calibrate_steps`, codes are chosen by GPTQ for the inputs that products have on
as many batches of data. Those are of the run's own data, or for a folder of the data of
`experiments.fine_tune`, which `--fiddler` and `--fdl_set` change.
"""

import pathlib

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path

FLAGS = flags.FLAGS

for name, what in {
    "from_hf": "Model folder to read.",
    "from_run": "Run directory to read.",
    "to": "Where to write: a model folder, or a run directory.",
    "format": "How kernels are stored: int8, int4, fp8, fp8_block or mxfp4.",
}.items():
    if name not in FLAGS:
        flags.DEFINE_string(name, None, what)
if "block_size" not in FLAGS:
    flags.DEFINE_integer(
        "block_size",
        None,
        "Weights that share a scale, in int4 and fp8_block; default 128.",
    )
if "calibrate_steps" not in FLAGS:
    flags.DEFINE_integer(
        "calibrate_steps",
        None,
        "Batches of data to choose codes by, with GPTQ; default: the nearest codes.",
        lower_bound=1,
    )
_CHANGES = ("fiddler", "fdl_set", "fdl_tags_set", "fdl_overrides")


def main(argv: list[str]) -> None:
    given = [name for name in ("from_hf", "from_run") if getattr(FLAGS, name)]
    if len(given) != 1 or not FLAGS.to or not FLAGS.format:
        raise UserError(
            "give --from_hf=FOLDER or --from_run=RUN_DIR, --to=FOLDER and"
            " --format=NAME."
        )
    from maxfdl.tensors.hugging_face.quantization.formats import check_format

    check_format(FLAGS.format, FLAGS.block_size)  # before a run is read
    _check_changes()
    source, target = (as_path(x) for x in (getattr(FLAGS, given[0]), FLAGS.to))
    _check_target(source, target)
    of_folder = given == ["from_hf"]
    (_of_folder if of_folder else _of_run)(source, target)
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    print(f"{target} holds the weights of {source} as {FLAGS.format}, {size:,} bytes")


def _check_changes() -> None:
    """Refuses to ignore flags that name or change a graph."""
    strange = ["fdl_config", "fdl_config_file"]
    if FLAGS.from_run or FLAGS.calibrate_steps is None:
        strange += _CHANGES
    for flag in strange:
        if FLAGS[flag].present:
            raise UserError(
                f"--{flag} has no meaning here: a graph is changed for the data that a"
                " folder is calibrated with; give --fiddler or --fdl_set beside"
                " --from_hf and --calibrate_steps."
            )


def _check_target(source: AnyPath, target: AnyPath) -> None:
    """Refuses to lose what is in `target`."""
    from maxfdl.run.directory import CHECKPOINTS

    if _is_same(source, target):
        raise UserError(f"--to ({target}) is what is read; give another folder.")
    if (target / CHECKPOINTS).is_dir():
        raise UserError(f"--to ({target}) holds a run; give another folder.")


def _is_same(source: AnyPath, target: AnyPath) -> bool:
    if isinstance(source, pathlib.Path) and isinstance(target, pathlib.Path):
        return target.exists() and source.exists() and target.samefile(source)
    return source == target


def _of_folder(source: AnyPath, target: AnyPath) -> None:
    from maxfdl import hf

    config = None
    if FLAGS.calibrate_steps is not None:
        folder = str(source)
        FLAGS.fdl_config = f"fdl_configs.hugging_face.fine_tuning(folder={folder!r})"
        config = commandline.config_from_flags()
    hf.quantize(
        source,
        target,
        FLAGS.format,
        block_size=FLAGS.block_size,
        calibrate_steps=FLAGS.calibrate_steps,
        config=config,
    )


def _of_run(source: AnyPath, target: AnyPath) -> None:
    from maxfdl import hf
    from maxfdl.run.directory import TOKENIZER
    from maxfdl.saved_run import read_run

    calibrates = FLAGS.calibrate_steps is not None
    run = read_run(source, FLAGS.trust, one_by_one=not calibrates)
    kept = source / TOKENIZER
    hf.save(
        target,
        run.config,
        run.variables,
        tokenizer=kept if kept.is_dir() else None,
        format=FLAGS.format,
        block_size=FLAGS.block_size,
        calibrate_steps=FLAGS.calibrate_steps,
    )


if __name__ == "__main__":
    commandline.run(main)
