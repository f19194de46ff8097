"""Converts between runs and checkpoints of MaxText, Paxml and Hugging Face.

    python -m maxfdl.convert --from=CHECKPOINT --to=RUN_DIR
    python -m maxfdl.convert --from=CHECKPOINT --to=FOLDER --format=hugging_face
    python -m maxfdl.convert --from=RUN_DIR --to=FOLDER --format=maxtext_nnx

`--from` is any of them; `--format` says what `--to` becomes. Between runs, MaxText and
Paxml, whose one model is GPT-3, parameters, moments and step are converted, or with
`--parameters_only` the parameters alone; MaxText's layers are scanned unless
`--noscanned` is given. Arrays are read and written one at a time, but for the state of
a run, which is held.

A run that is made has the weights at step 0, or MaxText's state at its step;
`--fiddler` and `--fdl_set` change its graph, and
`maxfdl.launch --fdl_config_file=RUN_DIR/config.json --run_dir=RUN_DIR` trains on.

    python -m maxfdl.convert --from_hf=FOLDER --to=RUN_DIR
    python -m maxfdl.convert --from_run=RUN_DIR --to_hf=FOLDER --source=FOLDER

say which kind each is. To Hugging Face go the weights that the newest checkpoint of a
run evaluates, an average if it keeps one. Tokenizer, chat template and generation files
are those that the run keeps, unless `--source` names a folder to take them from.
"""

import shlex
import sys
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError, did_you_mean
from maxfdl.paths import AnyPath, as_path

FLAGS = flags.FLAGS

_FORMATS = ("run", "hugging_face", "maxtext_linen", "maxtext_nnx", "paxml")

for name, what in {
    "from": "Checkpoint of MaxText, model folder of Hugging Face, or run directory.",
    "from_hf": "Model folder to read.",
    "to": "Folder to make of it.",
    "from_run": "Run directory to read.",
    "to_hf": "Model folder to make of it.",
    "source": "Model folder to copy tokenizer and generation files from; default: those"
    " that the run keeps.",
    "maxtext_config": "JSON or YAML file of what MaxText ran with, where no config.json"
    " beside its checkpoint says it.",
}.items():
    if name not in FLAGS:
        flags.DEFINE_string(name, None, what)
if "format" not in FLAGS:
    formats = ", ".join(_FORMATS)
    flags.DEFINE_string("format", None, f"What --to becomes: {formats}.")
if "scanned" not in FLAGS:
    flags.DEFINE_bool("scanned", True, "Stack MaxText's layers.")
    flags.DEFINE_bool("parameters_only", False, "Leave out optimizer and step.")
if "allow_non_finite" not in FLAGS:
    flags.DEFINE_bool(
        "allow_non_finite", False, "Let weights pass that are NaN or infinite."
    )


def main(argv: list[str]) -> None:
    if FLAGS.format is not None and FLAGS.format not in _FORMATS:
        raise UserError(
            f"--format ({FLAGS.format}) must be one of {', '.join(_FORMATS)}."
            f"{did_you_mean(FLAGS.format, _FORMATS)}"
        )
    ways = ("from", "from_hf", "to", "from_run", "to_hf")
    values: dict[str, Any] = {name: FLAGS[name].value for name in ways}
    given = {name: value for name, value in values.items() if value is not None}
    match sorted(given):
        case ["from", "to"]:
            source, kind = given["from"], _kind_of(as_path(given["from"]))
            target, format = given["to"], FLAGS.format or "run"
        case ["from_hf", "to"]:
            source, kind = given["from_hf"], "hugging_face"
            target, format = given["to"], FLAGS.format or "run"
        case ["from_run", "to_hf"]:
            source, kind = given["from_run"], "run"
            target, format = given["to_hf"], FLAGS.format or "hugging_face"
        case _:
            raise UserError(
                "give --from_hf=FOLDER and --to=RUN_DIR, or --from_run=RUN_DIR and"
                " --to_hf=FOLDER, or --from=FOLDER and --to=FOLDER with --format."
            )
    to_checkpoint = format.startswith(("maxtext", "paxml"))
    way = kind, "maxtext" if to_checkpoint else format
    if way not in _WAYS:
        raise UserError(
            f"{source} is a {kind.replace('_', ' ')} already; give another --format."
        )
    _WAYS[way](source, target)


def _kind_of(path: AnyPath) -> str:
    """Returns what a folder is.

    Raises:
      UserError: If it is nothing that can be converted.
    """
    from maxfdl.run.directory import CHECKPOINTS, CONFIG_JSON
    from maxfdl.tensors.maxtext.reading import is_checkpoint

    if is_checkpoint(path):
        return "maxtext"
    if (path / CHECKPOINTS).is_dir():
        return "run"
    if (path / CONFIG_JSON).is_file():
        return "hugging_face"
    raise UserError(
        f"--from ({path}) must be a checkpoint of MaxText or Paxml, a model folder of"
        " Hugging Face or the directory of a run."
    )


def _hugging_face_to_run(folder: str, run_dir: str) -> None:
    default = f"fdl_configs.hugging_face.fine_tuning(folder={folder!r})"

    def state(program: Any) -> Any:
        from maxfdl import hf
        from maxfdl.tensors.weights import read_weights

        variables = read_weights(
            hf.Folder(folder),
            program.trainer.model,
            program.sharding,
            allow_non_finite=FLAGS.allow_non_finite,
        )
        return program.start_from(variables)

    FLAGS.fdl_config = default
    _make_run(run_dir, folder, state)


def _maxtext_to_run(folder: str, run_dir: str) -> None:
    arguments = f"folder={folder!r}, options_file={FLAGS.maxtext_config!r}"
    if FLAGS.fdl_config is None and FLAGS.fdl_config_file is None:
        FLAGS.fdl_config = f"fdl_configs.maxtext.fine_tuning({arguments})"

    def state(program: Any) -> Any:
        from maxfdl.run.maxtext_state import maxtext_state
        from maxfdl.tensors.maxtext.reading import read_maxtext

        found = _maxtext(folder)
        if found.layout.whole and not FLAGS.parameters_only:
            return maxtext_state(program, found)
        variables = read_maxtext(
            found,
            program.trainer.model,
            program.sharding,
            allow_non_finite=FLAGS.allow_non_finite,
        )
        return program.start_from(variables)

    _make_run(run_dir, folder, state)


def _make_run(run_dir: str, folder: str, make_state: Any) -> None:
    """Makes a run directory of the graph that the flags name, with a first state."""
    config = commandline.config_from_flags()

    from maxfdl import graph
    from maxfdl.data import TextData
    from maxfdl.run.directory import RunDirectory
    from maxfdl.train.program import Program

    if config.checkpoint is None:
        raise UserError("a run without checkpoint cannot hold weights.")
    directory = RunDirectory(run_dir)
    directory.lock()
    try:
        if directory.has_results():
            raise UserError(f"{directory.path} holds a run; give another --to.")
        graph_json = graph.dump_json(config, trust=tuple(FLAGS.trust))
        experiment = graph.build(config)
        trainer = experiment.make_trainer(experiment.make_sharding())
        program = Program(trainer, experiment.batch_size, experiment.sequence_length)
        program.check_memory()
        state = make_state(program)
        step = int(state["step"])
        checkpointer = experiment.checkpoint(directory=directory.checkpoints)
        data = experiment.make_data(trainer.model)
        if isinstance(data, TextData):
            directory.write_tokenizer(data.tokenizer)
        checkpointer.save(
            step,
            state,
            data.train(),
            graph_json,
            allow_non_finite=FLAGS.allow_non_finite,
        )
        checkpointer.close()
        directory.write(
            config_json=graph_json,
            config_text=graph.as_text(config),
            command=shlex.join(["python", "-m", "maxfdl.convert", *sys.argv[1:]])
            + "\n",
        )
    finally:
        directory.unlock()
    print(f"{directory.path} holds the weights of {folder} at step {step}")


def _run_to_hugging_face(run_dir: str, folder: str) -> None:
    from maxfdl import hf
    from maxfdl.run.directory import TOKENIZER
    from maxfdl.saved_run import read_run

    allowed, source = FLAGS.allow_non_finite, FLAGS.source
    run = read_run(as_path(run_dir), FLAGS.trust, allowed)
    kept = as_path(run_dir) / TOKENIZER
    hf.save(
        folder,
        run.config,
        run.variables,
        source=source,
        tokenizer=kept if source is None and kept.is_dir() else None,
        allow_non_finite=allowed,
    )
    print(f"{folder} holds the weights of {run_dir} at step {run.step}")
    if run.config.model.later_tokens:
        print("the modules that predict later tokens are left out")


def _maxtext_to_hugging_face(source: str, folder: str) -> None:
    from fdl_configs.maxtext import published
    from maxfdl import hf
    from maxfdl.maxtext.loading import open_parameters

    found = _maxtext(source)
    network = published(found)
    hf.save(
        folder,
        network,
        open_parameters(found, network),
        source=FLAGS.source,
        allow_non_finite=FLAGS.allow_non_finite,
    )
    print(f"{folder} holds the weights of {source}")


def _maxtext_to_maxtext(source: str, folder: str) -> None:
    from maxfdl.maxtext.loading import open_folder

    opened = open_folder(_maxtext(source), parameters_only=FLAGS.parameters_only)
    _write_maxtext(
        source, folder, opened.config, opened.variables, opened.moments, opened.step
    )


def _hugging_face_to_maxtext(source: str, folder: str) -> None:
    from maxfdl.hf.loading import open_folder

    opened = open_folder(source)
    _write_maxtext(source, folder, opened.config, opened.variables, None, 0)


def _run_to_maxtext(run_dir: str, folder: str) -> None:
    from maxfdl.maxtext.saving import moments_of_state
    from maxfdl.saved_run import read_run

    path, allowed = as_path(run_dir), FLAGS.allow_non_finite
    if FLAGS.parameters_only:
        run = read_run(path, FLAGS.trust, allowed, one_by_one=True)
        _write_maxtext(run_dir, folder, run.config, run.variables, None, 0)
        return
    run = read_run(path, FLAGS.trust, allowed, whole=True)
    moments = moments_of_state(run.experiment, run.variables)
    _write_maxtext(run_dir, folder, run.config, run.variables, moments, run.step)


def _write_maxtext(
    source: str, folder: str, config: Any, variables: Any, moments: Any, step: int
) -> None:
    from maxfdl.maxtext.saving import save_as_paxml, write
    from maxfdl.tensors.maxtext.layout import CheckpointLayout

    if FLAGS.parameters_only:
        moments, step = None, 0
    what, how = (variables, moments, step), {"allow_non_finite": FLAGS.allow_non_finite}
    if FLAGS.format == "paxml":
        save_as_paxml(folder, config, *what, **how)
    else:
        layout = CheckpointLayout(FLAGS.format.partition("_")[2], FLAGS.scanned)
        write(folder, config, *what, layout, **how)
    told = "the weights" if moments is None else "the training state"
    print(f"{folder} holds {told} of {source}" + (f" at step {step}" if step else ""))


def _maxtext(folder: str) -> Any:
    from maxfdl.tensors.maxtext.folder import read_options
    from maxfdl.tensors.maxtext.reading import folder_at

    file = FLAGS.maxtext_config
    return folder_at(folder, None if file is None else read_options(file))


_WAYS = {
    ("hugging_face", "run"): _hugging_face_to_run,
    ("maxtext", "run"): _maxtext_to_run,
    ("run", "hugging_face"): _run_to_hugging_face,
    ("maxtext", "hugging_face"): _maxtext_to_hugging_face,
    ("maxtext", "maxtext"): _maxtext_to_maxtext,
    ("hugging_face", "maxtext"): _hugging_face_to_maxtext,
    ("run", "maxtext"): _run_to_maxtext,
}
"""What converts each kind of folder to each format."""


if __name__ == "__main__":
    commandline.run(main)
