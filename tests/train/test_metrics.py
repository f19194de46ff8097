"""Tests of the files of metrics."""

import json
import math
import resource
import signal
import struct
import subprocess
import sys
import time

import pytest
from tensorboardX.proto import event_pb2

from maxfdl.errors import UserError
from maxfdl.train.metrics import MetricWriter


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads metrics.jsonl."""

    def lines():
        text = (tmp_path / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return lines


def make_writer(directory):
    return MetricWriter(tensorboard=False, directory=directory)


def test_writes_one_object_for_each_step_at_once(tmp_path, read):
    writer = make_writer(tmp_path)
    writer.write(1, {"loss": 2.5, "grad_norm": 1})
    assert read() == [{"step": 1, "loss": 2.5, "grad_norm": 1.0}]
    writer.write(2, {"loss": 2.25})
    assert read()[1] == {"step": 2, "loss": 2.25}
    writer.close()


def test_what_json_cannot_hold_becomes_a_string_that_float_reads(tmp_path, read):
    writer = make_writer(tmp_path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()
    assert read() == [{"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}]
    assert [float(x) for x in ("Infinity", "-Infinity")] == [math.inf, -math.inf]
    assert math.isnan(float("NaN"))


def test_a_resumed_file_reads_as_one_run(tmp_path, read):
    writer = make_writer(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"loss": step})
    writer.close()
    writer = make_writer(tmp_path)
    writer.truncate_after(3)
    writer.write(4, {"loss": 40})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read()] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, read, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    writer = make_writer(tmp_path)
    writer.truncate_after(1)
    writer.write(2, {})
    writer.close()
    assert read() == [{"step": 1}, {"step": 2}]


def test_junk_in_the_file_is_dropped_and_said(tmp_path, read, capsys):
    (tmp_path / "metrics.jsonl").write_text('\0\0\n[1]\n{"step": 1}\n')
    make_writer(tmp_path).truncate_after(1)
    assert read() == [{"step": 1}]
    assert capsys.readouterr().err.count("dropped an unreadable line") == 2


def test_truncating_a_fresh_directory_makes_no_file(tmp_path):
    make_writer(tmp_path).truncate_after(0)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from maxfdl.train.metrics import MetricWriter

writer = MetricWriter(tensorboard=False, directory=sys.argv[1])
for step in range(1, 4):
    writer.write(step, {"loss": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_loses_no_line(tmp_path, read):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert run.returncode == -signal.SIGKILL
    assert [line["step"] for line in read()] == [1, 2, 3]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = make_writer(tmp_path)
    writer.truncate_after(0)
    writer.write(1, {"loss": 1})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="step 1 cannot be written to .*No such file"):
        make_writer(tmp_path / "missing").write(1, {})


def test_writes_tensorboard_events(tmp_path):
    writer = MetricWriter(directory=tmp_path)
    writer.truncate_after(6)
    writer.write(7, {"loss": 2.5, "grad_norm": math.nan})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, start, event = events_of(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, start.session_log.START)
    assert event.step == 7 and event.wall_time == pytest.approx(time.time(), abs=60)
    assert event.summary.value[0].simple_value == 2.5
    assert [value.tag for value in event.summary.value] == ["loss", "grad_norm"]


def events_of(file):
    """Reads TFRecord as TensorFlow describes it: length, crc, data, crc."""
    data, events = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        for part, check in (
            (data[:8], data[8:12]),
            (data[12:][:size], data[12:][size:]),
        ):
            assert struct.unpack("<I", check[:4])[0] == masked(crc32c(part))
        events.append(event_pb2.Event.FromString(data[12:][:size]))
        data = data[16 + size :]
    return events


def masked(crc):
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data):
    """CRC-32C bit by bit, as RFC 3720 has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_continuing_tells_what_was_written_of_the_step(tmp_path):
    writer = make_writer(tmp_path)
    assert writer.truncate_after(3) == set()
    for step in (2, 3, 4):
        writer.write(step, {"loss": step})
    writer.write(3, {"eval_loss": 1.0})
    writer.close()
    assert make_writer(tmp_path).truncate_after(2) == {"step", "loss"}
    writer = make_writer(tmp_path)
    assert writer.truncate_after(3) == set()


@pytest.fixture
def no_more_than():
    """Returns a function that lets no file of this process grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(
    tmp_path, read, no_more_than, capfd, tensorboard
):
    writer = MetricWriter(tensorboard=tensorboard, directory=tmp_path)
    writer.open()
    no_more_than(1000)
    with pytest.raises(UserError, match=r"^Metrics of step \d+ cannot be written to"):
        for step in range(1, 100):
            writer.write(step, {"loss": step})
    writer.close()
    steps = [line["step"] for line in read()]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > 10
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert capfd.readouterr() == ("", "")


def test_importing_it_does_not_import_tensorboardx():
    code = "import sys, maxfdl.train.metrics; assert 'tensorboardX' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
