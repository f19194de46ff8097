"""Faults injected on purpose: `python -m tests.faults --kills=200`.

Runs are killed while they train and save, and must go on as if nothing had happened.
Every file of a checkpoint is damaged in turn, and no damage may give other values.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from maxfdl.checkpoint.on_disk import StepOnDisk, all_steps, differences, one_step
from maxfdl.errors import UserError
from maxfdl.hush import hush

EVERY = 3
"""Steps from one save to the next."""

KINDS = {
    "standard": (),
    "accumulated": ("gradient_accumulation(steps=2)",),
    "offloaded": ("offload_optimizer",),
    "diloco": ("use_diloco(num_replicas=2, sync_period=4)",),
    "fp8": ("enable_fp8(recipe=delayed)",),
}
"""Mutations of the runs that are killed."""


def delete(path: pathlib.Path) -> None:
    path.unlink()


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: pathlib.Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    position = len(content) // 2 if position is None else position
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


@dataclasses.dataclass
class Storm:
    """What a run went through.

    Args:
      kills: How often it was killed.
      unrestorable: Kills after which no step was whole.
      most_lost: The most steps that a kill took back.
      wrong_losses: Steps whose loss is not, to the last bit, that of a run that nobody
        killed.
    """

    kills: int = 0
    unrestorable: int = 0
    most_lost: int = 0
    wrong_losses: int = 0


def launched(kind: str, steps: int, run_dir: pathlib.Path) -> subprocess.Popen:
    """Starts a run, or goes on with it."""
    words = ["experiments.llama2_smoke", *KINDS[kind], f"steps={steps}"]
    words += [f"checkpoint.every_steps={EVERY}", "trainer.log_every=1"]
    words += ["trainer.sample_tokens=0", f"--run_dir={run_dir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "maxfdl.launch", *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(run_dir: pathlib.Path) -> dict[int, float]:
    """Returns what a run has logged so far, by step; not a line that was cut short."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    found = map(json.loads, lines)
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def storm(kind: str, kills: int, folder: pathlib.Path, seed: int = 0) -> Storm:
    """Kills a run again and again, lets it end, and compares it with one left alone."""
    chance, found, run_dir = random.Random(seed), Storm(), folder / kind
    steps = 4 * EVERY * (kills + 1)
    while found.kills < kills:
        process = launched(kind, steps, run_dir)
        reached = _killed(process, run_dir, chance)
        if reached is None:
            break  # it came to its end
        found.kills += 1
        whole = [each.step for each in all_or_none(run_dir) if is_whole(each)]
        found.unrestorable += not whole and reached > 2 * EVERY
        found.most_lost = max(found.most_lost, reached - max(whole, default=0))
    _finished(launched(kind, steps, run_dir))
    alone = folder / f"{kind}_alone"
    _finished(launched(kind, steps, alone))
    ended, expected = losses(run_dir), losses(alone)
    wrong = [step for step in expected if ended.get(step) != expected[step]]
    found.wrong_losses = len(wrong)
    return found


def _killed(
    process: subprocess.Popen, run_dir: pathlib.Path, chance: random.Random
) -> int | None:
    """Kills a run some steps after it began, and returns the last that it logged."""
    began = max(losses(run_dir), default=0)
    target = began + chance.randint(1, 3 * EVERY)
    while process.poll() is None and max(losses(run_dir), default=0) < target:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.05))
    if process.poll() is not None:
        _finished(process)
        return None
    process.kill()
    process.communicate()
    return max(losses(run_dir), default=0)


def _finished(process: subprocess.Popen) -> None:
    _, error = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}: {error}")


def all_or_none(run_dir: pathlib.Path) -> list[StepOnDisk]:
    try:
        return all_steps(str(run_dir))
    except UserError:
        return []


def is_whole(step: StepOnDisk) -> bool:
    try:
        step.check()
    except UserError:
        return False
    return True


def damages(size: int) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Yields what is done to a file of so many bytes, with a name."""
    yield from (("delete", delete), ("truncate", truncate), ("empty", empty))
    positions = sorted({i * size // 25 for i in range(25)} if size else ())
    for at in positions:
        yield f"bit flip at {at}", lambda path, at=at: flip_a_bit(path, at)


def damage_matrix(run_dir: pathlib.Path, folder: pathlib.Path) -> dict[str, int]:
    """Damages every file of the newest step of a run in every way.

    Returns:
      How many damages were `noticed`, were `harmless` (every array has every bit), and
      were `silently wrong`.
    """
    step = one_step(str(run_dir))
    found = {"noticed": 0, "harmless": 0, "silently wrong": 0}
    files = [path for path in step.path.rglob("*") if path.is_file()]
    for file, number in zip(files, itertools.count(), strict=False):
        for _, damage in damages(file.stat().st_size):
            copy = folder / f"copy{number}" / step.path.name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(step.path, copy)
            damage(copy / file.relative_to(step.path))
            found[_outcome(step, StepOnDisk(copy))] += 1
    return found


def _outcome(step: StepOnDisk, damaged: StepOnDisk) -> str:
    try:
        damaged.check()
        is_same = not [*differences(step, damaged)]
    except UserError:
        return "noticed"
    return "harmless" if is_same else "silently wrong"


def main() -> None:
    hush("orbax", "tensorstore", "uvloop")
    logging.getLogger("asyncio").disabled = True  # of reads that failed, each a page
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all runs together")
    parser.add_argument("--kinds", default=",".join(KINDS), help="names, with commas")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    each = -(-asked.kills // len(kinds))
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind in kinds:
            found = storm(kind, each, folder, asked.seed)
            bad += found.unrestorable + found.wrong_losses
            print(
                f"{kind}: {found.kills} kills, {found.unrestorable} unrestorable,"
                f" {found.wrong_losses} wrong losses, at most {found.most_lost} steps"
                f" lost (saves every {EVERY})",
                flush=True,
            )
            matrix = damage_matrix(folder / kind, folder)
            bad += matrix["silently wrong"]
            counts = ", ".join(f"{count} {what}" for what, count in matrix.items())
            print(f"{kind}: damages of the newest step: {counts}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
