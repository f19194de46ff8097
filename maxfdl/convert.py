"""Converts between model folders of Hugging Face and run directories.

    python -m maxfdl.convert --from_hf=FOLDER --to=RUN_DIR
    python -m maxfdl.convert --from_run=RUN_DIR --to_hf=FOLDER --source=FOLDER

The first makes a run whose step 0 has the weights; `--fiddler` and `--fdl_set` change
its graph, and `maxfdl.launch --fdl_config_file=RUN_DIR/config.json --run_dir=RUN_DIR`
trains on. The second writes the weights that the newest checkpoint of a run evaluates,
an average if it keeps one. Tokenizer, chat template and generation files are those that
the run keeps, unless `--source` names a folder to take them from.
"""

import pathlib
import shlex
import sys

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError

FLAGS = flags.FLAGS

for name, what in {
    "from_hf": "Model folder to read.",
    "to": "Run directory to make of it.",
    "from_run": "Run directory to read.",
    "to_hf": "Model folder to make of it.",
    "source": "Model folder to copy tokenizer and generation files from; default: those"
    " that the run keeps.",
}.items():
    if name not in FLAGS:
        flags.DEFINE_string(name, None, what)
if "allow_non_finite" not in FLAGS:
    flags.DEFINE_bool(
        "allow_non_finite", False, "Let weights pass that are NaN or infinite."
    )


def main(argv: list[str]) -> None:
    ways = ("from_hf", "to", "from_run", "to_hf")
    given = {name for name in ways if getattr(FLAGS, name) is not None}
    if given == {"from_hf", "to"}:
        _to_run(FLAGS.from_hf, FLAGS.to)
    elif given == {"from_run", "to_hf"}:
        _to_hugging_face(FLAGS.from_run, FLAGS.to_hf, FLAGS.source)
    else:
        raise UserError(
            "give --from_hf=FOLDER and --to=RUN_DIR, or --from_run=RUN_DIR and"
            " --to_hf=FOLDER."
        )


def _to_run(folder: str, run_dir: str) -> None:
    FLAGS.fdl_config = f"fdl_configs.hugging_face.fine_tuning(folder={folder!r})"
    config = commandline.config_from_flags()

    from maxfdl import graph, hf
    from maxfdl.data import TextData
    from maxfdl.run.directory import RunDirectory
    from maxfdl.tensors.weights import read_weights
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
        variables = read_weights(
            hf.Folder(folder),
            trainer.model,
            program.sharding,
            allow_non_finite=FLAGS.allow_non_finite,
        )
        state = program.start_from(variables)
        checkpointer = experiment.checkpoint(directory=directory.checkpoints)
        data = experiment.make_data(trainer.model)
        if isinstance(data, TextData):
            directory.write_tokenizer(data.tokenizer)
        checkpointer.save(
            0,
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
    print(f"{directory.path} holds the weights of {folder} at step 0")


def _to_hugging_face(run_dir: str, folder: str, source: str | None) -> None:
    from maxfdl import hf
    from maxfdl.run.directory import TOKENIZER
    from maxfdl.saved_run import read_run

    allowed = FLAGS.allow_non_finite
    run = read_run(pathlib.Path(run_dir), FLAGS.trust, allowed)
    kept = pathlib.Path(run_dir) / TOKENIZER
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


if __name__ == "__main__":
    commandline.run(main)
