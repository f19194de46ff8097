"""Injects faults, and exits with 1 if one of them does harm.

python -m tests.faults --kills=200                 200 kills and the damage matrix
python -m tests.faults --kills=200 --folder=KEPT   goes on where it was interrupted
"""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import random
import sys
import tempfile

from tests.faults import start, storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all kinds together")
    parser.add_argument("--kinds", default=",".join(storm.KINDS), help="with commas")
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps runs and results")
    parser.add_argument("--damage", default=True, action=argparse.BooleanOptionalAction)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or pathlib.Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _compile_once(folder)
        start.import_all()
        kinds = asked.kinds.split(",")
        each = -(-asked.kills // len(kinds))
        bad = sum(_storm(kind, each, asked.steps, folder) for kind in kinds)
        if asked.damage:  # last, for it makes this process use its devices
            bad += sum(_damage(kind, asked.steps, folder) for kind in kinds)
    sys.exit(bool(bad))


def _compile_once(folder: pathlib.Path) -> None:
    """Lets every start find the programs that the first has compiled."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _alone(kind: str, steps: int, folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{kind}_{steps}_steps"


def _storm(kind: str, kills: int, steps: int, folder: pathlib.Path) -> int:
    """Kills runs of a kind until `kills` are done, those of earlier calls included, and
    returns how much harm was done."""
    alone, file = _alone(kind, steps, folder), folder / f"{kind}_storms.jsonl"
    storm.run_alone(kind, steps, alone)
    lines = file.read_text().splitlines() if file.exists() else []
    total = storm.Storm()
    for line in lines:
        total += storm.Storm(**json.loads(line))
    chance = random.Random(f"{kind} {len(lines)}")
    for found in storm.storms(kind, kills - total.kills, steps, alone, chance):
        total += found
        with file.open("a") as results:
            print(json.dumps(dataclasses.asdict(found)), file=results)
    counts = dataclasses.asdict(total).items()
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts)
    print(f"{kind}: {said} (saves every {storm.EVERY} steps)", flush=True)
    return total.bad


def _damage(kind: str, steps: int, folder: pathlib.Path) -> int:
    """Damages the newest checkpoint of a run, and returns how often that did harm."""
    from maxfdl.hush import hush
    from tests.faults.damage import Damaged

    hush("orbax", "tensorstore", "uvloop")
    logging.getLogger("asyncio").disabled = True  # of reads that failed, each a page
    checkpoints = _alone(kind, steps, folder) / "checkpoints"
    with tempfile.TemporaryDirectory() as copies:
        found = Damaged(checkpoints, pathlib.Path(copies)).matrix()
    said = ", ".join(f"{count} {what}" for what, count in found.items())
    print(f"{kind}: damages of the newest step: {said}", flush=True)
    return found["silently wrong"]


if __name__ == "__main__":
    main()
