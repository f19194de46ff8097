"""`python -m maxfdl.plot RUN ...`."""

import json
import re
import xml.etree.ElementTree

import pytest

from experiments import llama2_smoke
from maxfdl import graph
from maxfdl.plot import main
from tests.commands import Caller, complaint

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def plot(monkeypatch, capsys):
    """Calls the command; returns code, output, errors."""
    call = Caller(monkeypatch, capsys)
    return lambda *args: call(main, *map(str, args), takes_config=False)


@pytest.fixture
def runs(tmp_path):
    """One of the standard trainer, and one of replicas that sync every 20 steps."""
    for name in ("standard", "replicas"):
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for step in (10, 20, 30, 40):
            line = {"step": step, "loss": 5.0 - step / 20, "tokens_seen": 64 * step}
            if name == "replicas":
                line["bytes_sent"] = step // 20 * 1000
            lines += [line, {"step": step, "eval_loss": "NaN" if step == 10 else 4.0}]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        json_text = graph.dump_json(llama2_smoke.experiment())
        (folder / "config.json").write_text(json_text)
    return tmp_path / "standard", tmp_path / "replicas"


def curves(file):
    """Returns the points of each curve in the picture, and its words."""
    root = xml.etree.ElementTree.parse(file).getroot()
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    points = [[tuple(map(float, p.split(","))) for p in line] for line in lines]
    return points, [text.text for text in root.iter(f"{SVG}text")]


def test_each_run_is_a_curve_with_its_name(plot, runs, tmp_path):
    file = tmp_path / "plot.svg"
    assert plot(*runs, f"--out={file}")[0] == 0
    points, words = curves(file)
    assert [len(each) for each in points] == [4, 4]
    assert {"standard", "replicas", "steps", "loss"} <= set(words)
    xs, ys = zip(*points[0], strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # down the page, as the loss falls
    gaps = {round(b - a) for a, b in zip(xs, xs[1:], strict=False)}
    assert len(gaps) == 1


def test_bytes_are_those_of_gradients_where_a_run_has_no_replicas(plot, runs, tmp_path):
    file = tmp_path / "plot.svg"
    assert plot(*runs, "--x=bytes", f"--out={file}")[0] == 0
    points, _ = curves(file)
    (first, *_, last), of_replicas = points
    # The standard run spans the axis; the replicas have sent next to nothing.
    assert last[0] - first[0] > 100
    assert max(x for x, _ in of_replicas) - min(x for x, _ in of_replicas) < 1
    assert plot(*runs, "--x=bytes", "--log_x", f"--out={file}")[0] == 0
    logarithmic, _ = curves(file)
    assert [len(each) for each in logarithmic] == [4, 3]


def test_values_that_are_not_finite_are_left_out(plot, runs, tmp_path):
    file = tmp_path / "plot.svg"
    plot(*runs, "--metric=eval_loss", "--x=tokens", f"--out={file}")
    assert [len(each) for each in curves(file)[0]] == [3, 3]


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_refused(
    plot, runs, tmp_path
):
    file, metrics = tmp_path / "plot.svg", runs[0] / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text + '{"step": 50, "lo')
    assert plot(*runs, f"--out={file}")[0] == 0
    assert [len(each) for each in curves(file)[0]] == [4, 4]
    for broken in ('{"step": 50, "lo', "[]", '{"loss": 1}', '{"step": 1, "loss": "a"}'):
        metrics.write_text(f"{text}{broken}\n")
        assert complaint(plot(*runs)).startswith(f"{metrics}:9 is no line of metrics (")


def test_what_cannot_be_drawn_is_refused_in_a_sentence(plot, runs, tmp_path):
    assert complaint(plot()) == "plot needs the directory of at least one run."
    missing = complaint(plot(tmp_path / "no"))
    assert missing.endswith("must be the directory of a run, with its metrics.jsonl.")
    near = complaint(plot(*runs, "--metric=los"))
    assert re.search(r"has no metric 'los'\. Did you mean .?loss", near)
    unwritable = complaint(plot(*runs, f"--out={tmp_path}/no/plot.svg"))
    assert "cannot be written" in unwritable
