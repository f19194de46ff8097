"""A run whose directory, data and exports are in a bucket."""

import json
import pathlib

import pytest

from maxfdl import graph
from maxfdl.bucket import BucketPath
from maxfdl.checkpoint.steps import steps_in
from maxfdl.data.sources import Files
from maxfdl.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer
from maxfdl.errors import UserError
from maxfdl.run.directory import RunDirectory
from maxfdl.run.lock import Lease, _process_table
from maxfdl.run.loop import RunOptions, run
from maxfdl.tensors.staging import swapped_in
from maxfdl.train.metrics import MetricWriter
from tests import tiny

QUICK = {"every": 0.02, "patience": 0.3, "settle": 0.01}


def test_a_directory_keeps_what_a_run_leaves(cloud):
    directory = RunDirectory(f"{cloud.root}/runs/tiny")
    assert directory.config_json() is None and not directory.has_results()
    directory.write(config_json='{"a": 1}', config_text="a", command="launch")
    for _ in range(2):  # the second start writes it anew
        directory.write_tokenizer(ByteTokenizer())
    assert directory.config_json() == '{"a": 1}'
    kept = HuggingFaceTokenizer(str(directory.path / "tokenizer" / "tokenizer.json"))
    assert kept.encode_document("text").tolist() == (
        ByteTokenizer().encode_document("text").tolist()
    )


def test_metrics_grow_and_are_cut_where_a_run_goes_on(cloud):
    path = cloud.root / "run"
    for first in (0, 2):
        writer = MetricWriter(directory=path)
        writer.truncate_after(first)
        for step in range(first + 1, 4):
            writer.write(step, {"loss": step / 2})
        writer.close()
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert (path / "tensorboard").is_dir()


def test_metrics_that_cannot_be_uploaded_are_one_sentence(cloud, monkeypatch):
    monkeypatch.setattr("maxfdl.files.UPLOAD_SECONDS", 0.0)
    writer = MetricWriter(False, directory=cloud.at("closed/run"))
    with pytest.raises(UserError, match="cannot be written to .*permission denied"):
        writer.write(1, {"loss": 1.0})
        writer.close()


def test_a_lease_keeps_others_out_until_its_process_ends(cloud, capsys, monkeypatch):
    monkeypatch.setattr("maxfdl.run.lock._has_ended", lambda found: False)
    first, second = (Lease(cloud.root, **QUICK) for _ in range(2))
    first.take()
    monkeypatch.setattr("maxfdl.run.lock._this_process", lambda: "process 2 on other")
    with pytest.raises(UserError, match="is in use by process [0-9]+ on .* since"):
        second.take()
    first._ended.set()  # killed: nothing is given back
    first._thread.join()
    second.take()
    assert "looking for 0 seconds whether that run goes on" in capsys.readouterr().err
    assert RunDirectory(cloud.root).holder() == "process 2 on other"
    second.give_back()
    assert RunDirectory(cloud.root).holder() is None


def test_a_lease_that_was_taken_over_ends_its_process(cloud, capsys):
    lost = []
    lease = Lease(cloud.root, **QUICK, on_loss=lambda: lost.append(True))
    lease.take()
    (cloud.root / "run.lock").write_text("process 2 on other\n")
    lease._thread.join(10)
    assert lost and "taken over by another run" in capsys.readouterr().err
    lease.give_back()
    assert (cloud.root / "run.lock").is_file()


def test_a_store_out_of_reach_at_the_end_is_no_failure(cloud, monkeypatch):
    lease = Lease(cloud.root, **QUICK)
    lease.take()
    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "read_bytes", _out_of_reach)
        lease.give_back()
    assert RunDirectory(cloud.root).holder()


def _out_of_reach(path):
    raise OSError(5, "the store does not answer", str(path))


def test_a_lease_of_a_dead_process_of_this_machine_is_void_at_once(cloud, capsys):
    for table, waits in ((_process_table(), False), ("another container", True)):
        (cloud.root / "run.lock").write_text(f"process 4194303 on here\n{table}\n")
        lease = Lease(cloud.root, **QUICK)
        lease.take()
        lease.give_back()
        assert ("looking" in capsys.readouterr().err) == waits


def test_an_export_replaces_an_older_one_and_its_config_comes_last(cloud):
    folder = cloud.root / "model"
    for name in ("config.json", "model-1-of-2.safetensors", "notes.txt"):
        (folder / name).write_text("old")
    cloud.store.requests.clear()
    with swapped_in(
        folder, ("config.json", "*.safetensors"), last="config.json"
    ) as new:
        (new / "config.json").write_text("new")
        (new / "model.safetensors").write_text("new")
    found = {path.name: path.read_text() for path in folder.files()}
    assert found == {
        "config.json": "new",
        "model.safetensors": "new",
        "notes.txt": "old",
    }
    with pytest.raises(UserError, match="cannot be written .*permission denied"):
        with swapped_in(cloud.at("closed/m"), ("*",), last="config.json") as new:
            (new / "config.json").write_text("new")


def test_data_is_read_from_a_bucket(cloud):
    for name in ("a", "b"):
        (cloud.root / "data" / f"{name}.txt").write_text(f"text {name}")
    by_name = Files((f"{cloud.root}/data/b.txt",))
    by_glob = Files((f"{cloud.root}/data/*.txt",))
    assert [*by_name] == ["text b"] and [*by_glob] == ["text a", "text b"]
    with pytest.raises(UserError, match="matches no file"):
        len(Files((f"{cloud.root}/data/*.jsonl",)))
    with pytest.raises(UserError, match="must be a file, but there is none"):
        len(Files((f"{cloud.root}/data/c.txt",)))
    assert isinstance(by_glob._opened[0].file.path, pathlib.Path)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gs"], indirect=True)
def test_a_run_trains_stops_and_goes_on_in_a_bucket(cloud):
    config = tiny.experiment()
    config.steps, config.checkpoint.every_steps = 4, 2
    config.trainer.log_every, config.trainer.eval_batches = 1, 0
    directory = RunDirectory(cloud.root / "run")
    for stop_at in (3, None):
        options = RunOptions(graph_json=graph.dump_json(config), stop_at=stop_at)
        state = run(graph.build(graph.validate(config)), directory, options)
    assert int(state["step"]) == 4 and steps_in(directory.checkpoints) == [2, 3, 4]
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
