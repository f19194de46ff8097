"""Two processes, each with a disk of its own, of which one is lost."""

import contextlib
import shutil

import pytest

from tests.run.test_several_processes import (
    Run,
    ends,
    free_port,
    losses,
    wait_for_step,
)

QUICK = ("--fiddler=synthetic", "trainer.eval_batches=0", "metrics.tensorboard=false")
SHARDED = "--fiddler=mesh(fsdp=2,data=1)"
EMERGENCY = "--fiddler=emergency_checkpoints(folder='$DISK',every=1,keep=20)"


def disk(tmp_path, process):
    return tmp_path / f"disk_{process}"


def steps_on(tmp_path, process):
    return {int(p.name): p for p in disk(tmp_path, process).glob("*/process_*/[0-9]*")}


def start(run, tmp_path):
    port = free_port()
    return [
        run.start(
            tmp_path / "run",
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={process}",
            *QUICK,
            SHARDED,
            EMERGENCY,
            "steps=9",
            "checkpoint.every_steps=3",
            "trainer.log_every=1",
            DISK=str(disk(tmp_path, process)),
        )
        for process in range(2)
    ]


@pytest.mark.slow
def test_both_go_on_from_the_disk_that_is_left(tmp_path):
    with contextlib.closing(Run()) as run:
        processes = start(run, tmp_path)
        wait_for_step(processes[0], 8)
        for process in processes:
            process.kill()
            process.wait()
        before = losses(tmp_path / "run")

        shutil.rmtree(disk(tmp_path, 0))
        for step, path in steps_on(tmp_path, 1).items():
            assert {file.name for file in path.iterdir()} == {
                "own.pieces",
                "peer.pieces",
            }
            if step > 5:
                shutil.rmtree(path)
        for step in (tmp_path / "run" / "checkpoints").glob("[0-9]*"):
            if int(step.name) > 3:
                shutil.rmtree(step)

        (code, out, errors), (code_1, _, errors_1) = map(ends, start(run, tmp_path))
    assert (code, errors, code_1, errors_1) == (0, "", 0, "")
    assert "continuing from step 5\n" in out
    after = losses(tmp_path / "run")
    assert list(after) == list(range(1, 10))
    again = {step: loss for step, loss in before.items() if 5 < step}
    assert again and again == {step: after[step] for step in again}
    assert not steps_on(tmp_path, 0) and not steps_on(tmp_path, 1)
