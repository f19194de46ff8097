"""Runs over text that is not as it should be."""

import json
import sys

import fiddle as fdl
import numpy as np
import pytest
from absl import flags
from jax.experimental import multihost_utils

from experiments import llama2_smoke
from maxfdl import commandline, graph, launch
from maxfdl.data import Files
from maxfdl.errors import UserError
from maxfdl.run import bad_documents
from maxfdl.run.bad_documents import count_bad_documents


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Trains over a file in this process; returns exit code, output and errors."""

    def run(file, *args):
        config = llama2_smoke.experiment()
        config.data.source = fdl.Config(Files, files=(str(file),))
        config.data.shuffle = False
        config.data.interleave = 1
        config.checkpoint.every_steps = 10
        config.trainer.log_every = 10
        saved = tmp_path / "graph.json"
        saved.write_text(graph.dump_json(config))
        command = ["launch.py", f"--fdl_config_file={saved}", "steps=60", *args]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            commandline.run(launch.main)
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_run_goes_on_past_a_bad_line(train, tmp_path):
    """2,000 documents of which line 1,701 is null: it is met after 44 steps."""
    texts = [f"document {i}" if i != 1_700 else None for i in range(2_000)]
    lines = [json.dumps({"text": text}) for text in texts]
    file, directory = tmp_path / "a.jsonl", tmp_path / "run"
    file.write_text("\n".join(lines))
    problem = (
        f"Files.files [{file}] line 1701 must have a string under 'text', but has null"
        " there"
    )
    code, out, errors = train(file, f"--run_dir={directory}")
    assert (code, "step 40/60" in out) == (2, True)
    assert errors.startswith(
        f"error: {problem}; correct that line, or leave it blank, or go on without it"
        " by data.skip_bad=1."
    )
    code, out, errors = train(file, f"--run_dir={directory}", "data.skip_bad=1")
    assert (code, errors) == (0, f"skipped bad document 1 of at most 1: {problem}\n")
    assert "continuing from step 4" in out and "finished 60 steps" in out
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    counts = {x["step"]: x["bad_documents"] for x in lines if "bad_documents" in x}
    assert (counts[50], counts[60]) == (1, 1)


HELD_OUT = "find no token to predict: they are empty, or single tokens"


@pytest.mark.parametrize(
    ("name", "content", "args", "problem"),
    [
        ("one.txt", "hi", ["data.eval_fraction=0"], "holds no document out; set it"),
        ("one.txt", "hi", [], "has 1 document and cannot hold one out; give it more"),
        (
            "held_empty.jsonl",
            # With 20 documents and a twentieth held out, that is the empty one.
            "\n".join(
                json.dumps({"text": "" if i == 10 else f"some text {i} to learn from"})
                for i in range(20)
            ),
            [],
            HELD_OUT,
        ),
        (
            "one.txt",
            "hi",
            [
                "data.eval_fraction=0",
                "trainer.eval_batches=0",
                "trainer.sample_tokens=8",
            ],
            "holds no document out; set it",
        ),
    ],
    ids=["eval_fraction_0", "one document", "held_out_empty", "a sample"],
)
def test_what_cannot_be_evaluated_is_refused_before_the_first_step(
    train, tmp_path, name, content, args, problem
):
    (tmp_path / name).write_text(content)
    code, out, errors = train(tmp_path / name, f"--run_dir={tmp_path}/run", *args)
    assert (code, "step 1/" in out) == (2, False)
    assert errors.startswith("error: TextData") and problem in errors
    assert not list(tmp_path.glob("run/checkpoints/*"))


# Several processes, each of which has met some documents.


@pytest.fixture
def gather(monkeypatch):
    """Returns a function that says what the processes have met."""

    def set_up(*met):
        def process_allgather(array):
            if array.ndim == 0:
                return np.asarray([len(each) for each in met])
            padded = np.full((len(met), array.size), -1)
            for row, each in zip(padded, met, strict=True):
                row[: len(each)] = each
            assert (padded == array).all(axis=1).any()
            return padded

        monkeypatch.setattr(bad_documents.jax, "process_count", lambda: len(met))
        monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)

    return set_up


def test_a_document_that_several_processes_met_counts_once(gather):
    met = [[5, 2], [], [7, 5, 9]]
    gather(*met)
    assert [count_bad_documents(each, skip_bad=4) for each in met] == [4, 4, 4]


def test_more_than_may_be_are_refused_by_every_process(gather):
    met = [[5, 2], [], [7, 5, 9]]
    gather(*met)
    for each in met:
        with pytest.raises(UserError) as error:
            count_bad_documents(each, skip_bad=3)
        assert str(error.value) == (
            "All processes together met 4 bad documents, and data.skip_bad [3] lets"
            " fewer pass; correct those that were named, or set it higher."
        )


def test_no_bad_document_is_zero_everywhere(gather):
    gather([], [])
    assert count_bad_documents([], skip_bad=3) == 0
