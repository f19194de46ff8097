"""`python -m maxfdl.quantize`: what it writes, says and refuses."""

import numpy as np
import pytest

from maxfdl import convert, quantize
from maxfdl.run.directory import CHECKPOINTS
from maxfdl.tensors.safetensors import TensorWriter
from tests import goldens
from tests.commands import Caller, complaint
from tests.hf.test_quantizing import files, tensors_of

FOLDER = goldens.FOLDER / "llama3"


@pytest.fixture
def call(monkeypatch, capsys):
    return Caller(monkeypatch, capsys)


def test_a_folder_and_a_run_with_its_weights_give_the_same_files(call, tmp_path):
    run, of_folder, of_run = (tmp_path / name for name in ("run", "folder", "of_run"))
    done = call(quantize.main, f"--from_hf={FOLDER}", f"--to={of_folder}",
                "--format=int4")  # fmt: skip
    size = (of_folder / "model.safetensors").stat().st_size
    told = f"{of_folder} holds the weights of {FOLDER} as int4, {size:,} bytes\n"
    assert done == (0, told, "")
    stored = tensors_of(of_folder).stored("model.layers.0.mlp.up_proj.weight")
    assert stored is not None and stored.codec.codes.bits == 4
    assert call(convert.main, f"--from_hf={FOLDER}", f"--to={run}")[0] == 0
    done = call(quantize.main, f"--from_run={run}", f"--to={of_run}", "--format=int4")
    assert done[::2] == (0, "")
    assert files(of_run) == files(of_folder)
    data = max((run / CHECKPOINTS).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    done = call(quantize.main, f"--from_run={run}", f"--to={of_run}", "--format=int8")
    assert complaint(done).startswith("Checkpoint step 0 in ")
    assert "is damaged" in complaint(done) and files(of_run) == files(of_folder)


def test_codes_are_chosen_by_data_that_flags_change(call, tmp_path):
    flags = (f"--from_hf={FOLDER}", "--format=int4")
    assert call(quantize.main, *flags, f"--to={tmp_path / 'nearest'}")[0] == 0
    done = call(quantize.main, *flags, f"--to={tmp_path / 'gptq'}",
                "--calibrate_steps=1", "--fdl_set=batch_size=1",
                "--fdl_set=sequence_length=16")  # fmt: skip
    assert done[::2] == (0, "")
    nearest, chosen = (tensors_of(tmp_path / name) for name in ("nearest", "gptq"))
    for name in nearest.names():
        same = np.array_equal(nearest.read(name), chosen.read(name))
        assert same == (nearest.stored(name) is None), name


def test_ctrl_c_leaves_nothing_behind(call, tmp_path, monkeypatch):
    target, write = tmp_path / "out", TensorWriter.write

    def interrupted(writer, name, values):
        if name.endswith("layers.2.mlp.up_proj.weight_packed"):
            raise KeyboardInterrupt
        write(writer, name, values)

    monkeypatch.setattr(TensorWriter, "write", interrupted)
    flags = (f"--from_hf={FOLDER}", f"--to={target}", "--format=int8")
    code, out, error = call(quantize.main, *flags)
    assert (code, out) == (130, "") and "Traceback" not in error
    assert not target.exists()


def test_a_typo_in_a_format_is_one_sentence_and_leaves_nothing(call, tmp_path):
    target = tmp_path / "out"
    done = call(quantize.main, f"--from_hf={FOLDER}", f"--to={target}", "--format=int5")
    assert complaint(done) == (
        "format (int5) must be one of int8, int4, fp8, fp8_block, mxfp4. Did you mean"
        " 'int8' or 'int4'?"
    )
    assert not target.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--format=int8",), "give --from_hf=FOLDER or --from_run=RUN_DIR, --to"),
        (("--from_hf=x", "--from_run=y", "--to=z", "--format=int8"), "give --from_hf"),
        (("--from_hf=gone", "--to=z", "--format=int8"), "gone must be a folder with a"),
        (("--from_hf={}", "--to={}", "--format=int8"), "--to ({}) is what is read"),
        (
            ("--from_hf={}", "--to=z", "--format=int8", "--block_size=32"),
            "block_size (32) must be positive, and belongs to int4 and fp8_block",
        ),
        (("--from_hf={}", "--to=run", "--format=int8"), "--to (run) holds a run; give"),
        (
            ("--from_hf={}", "--to=z", "--format=int8", "--fdl_set=batch_size=2"),
            "--fdl_set has no meaning here: a graph is changed for the data that a",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(flags, problem, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / CHECKPOINTS).mkdir(parents=True)
    done = call(quantize.main, *(each.format(FOLDER) for each in flags))
    assert complaint(done).startswith(problem.format(FOLDER))
    assert not (tmp_path / "z").exists()
