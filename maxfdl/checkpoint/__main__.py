"""Looks at checkpoints, compares them, and times how fast they are.

    maxfdl checkpoint list RUN              steps, sizes, whether each is whole
    maxfdl checkpoint verify RUN [STEP]     reads every array; exits with 1 on damage
    maxfdl checkpoint inspect RUN [STEP]    arrays: shape, type, norm, not finite
    maxfdl checkpoint compare A B           like diff(1): exits with 0, 1 or 2
    maxfdl checkpoint params-only RUN [STEP] --to=NEW_RUN
    maxfdl checkpoint prune RUN --keep=2
    maxfdl checkpoint bench                 beside Orbax alone

RUN, A and B are the directory of a run, of its checkpoints, or of one step. Without
STEP, `verify` takes all steps and the others take the newest.
"""

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError, did_you_mean
from maxfdl.files import folder_replaced
from maxfdl.paths import as_path, fetched

FLAGS = flags.FLAGS
DAMAGED = DIFFERENT = 1

# This module may be imported under two names (`python -m` makes one `__main__`).
if "atol" not in FLAGS:
    flags.DEFINE_float("atol", 0.0, "compare: largest difference that is none.", 0.0)
    flags.DEFINE_integer("keep", None, "prune: number of newest steps that stay.", 1)
    flags.DEFINE_bool("dry_run", False, "prune: only say what would go.")
    flags.DEFINE_bool("verify", None, "list: read arrays of every size, or of none.")
    flags.DEFINE_integer("megabytes", 256, "bench: size of the state.", 1)
    flags.DEFINE_integer("times", 5, "bench: how often each kind is measured.", 1)
    flags.DEFINE_string(
        "folder", None, "bench: where it writes; default: the temporary."
    )
if "run_dir" not in FLAGS:
    flags.DEFINE_string("run_dir", None, "Directory of a run.")
if "to" not in FLAGS:
    flags.DEFINE_string("to", None, "params-only: the run directory to make.")

_READ_AT_ONCE = 1 << 30
"""Bytes of a step up to which `list` reads it."""


def main(argv: list[str]) -> int | None:
    """Runs the command that the first word names, and returns its exit code."""
    words = argv[1:]
    if not words:
        raise UserError(f"checkpoint needs a command: {', '.join(_COMMANDS)}.")
    name, words = words[0], words[1:]
    if name not in _COMMANDS:
        raise UserError(
            f"no command {name!r}.{did_you_mean(name, _COMMANDS)} There are:"
            f" {', '.join(_COMMANDS)}."
        )
    if FLAGS.run_dir is not None:
        words = [FLAGS.run_dir, *words]
    command, usage, least, most = _COMMANDS[name]
    if not least <= len(words) <= most:
        raise UserError(f"usage: maxfdl checkpoint {name} {usage}".rstrip() + ".")
    return command(*words)


def _list(folder: str) -> int:
    from maxfdl.checkpoint.on_disk import all_steps
    from maxfdl.sharding.room import size_text

    damaged = 0
    for each in all_steps(folder):
        size = each.num_bytes
        read = size <= _READ_AT_ONCE if FLAGS.verify is None else FLAGS.verify
        problem = _problem(each.check if read else lambda each=each: each.record)
        damaged += problem is not None
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.saved_at))
        state = "verified" if read else "record whole, arrays not read (--verify)"
        print(f"{each.step:>10}  {size_text(size):>10}  {saved}  {problem or state}")
    return DAMAGED if damaged else 0


def _verify(folder: str, step: str | None = None) -> int:
    from maxfdl.checkpoint.on_disk import all_steps, one_step

    steps = all_steps(folder) if step is None else [one_step(folder, _number(step))]
    damaged = 0
    for each in steps:
        problem = _problem(each.check)
        damaged += problem is not None
        print(f"step {each.step}: {problem or 'every bit is as it was written'}")
    return DAMAGED if damaged else 0


def _problem(check: Callable[[], object]) -> str | None:
    """Returns what `check` raises, in a line."""
    try:
        check()
    except UserError as error:
        return str(error).removesuffix(".")
    return None


def _inspect(folder: str, step: str | None = None) -> None:
    from maxfdl.checkpoint.on_disk import one_step, values
    from maxfdl.checkpoint.record import FORMAT_VERSION
    from maxfdl.report.text import aligned
    from maxfdl.sharding.room import size_text

    found = one_step(folder, None if step is None else _number(step))
    record = found.record
    rows, elements, size, not_finite = [], 0, 0, 0
    for path, (shape, dtype) in record.structure.items():
        array = found.array(path)
        seen = values(array)
        norm = "" if seen.norm is None else f"norm {seen.norm:.6g}"
        bad = f"{seen.not_finite:,} not finite" if seen.not_finite else ""
        rows.append([path, str([*shape]), dtype, norm, bad])
        elements, size = elements + array.size, size + array.nbytes
        not_finite += seen.not_finite
    wrote = ", ".join(f"{name} {v}" for name, v in record.versions.items() if v)
    print(f"step {record.step}, format {FORMAT_VERSION}, written by {wrote}")
    print("\n".join(aligned(rows)))
    bad = f", {not_finite:,} of them not finite" if not_finite else ""
    print(f"{len(rows)} arrays, {elements:,} elements, {size_text(size)}{bad}")


def _compare(old: str, new: str) -> int:
    from maxfdl.checkpoint.on_disk import differences, one_step

    compared: list[str] = []
    lines = [*differences(one_step(old), one_step(new), FLAGS.atol, compared.append)]
    beyond = f" (--atol={FLAGS.atol:g})" if FLAGS.atol else ""
    print("\n".join(lines) or f"all {len(compared)} arrays are equal{beyond}")
    return DIFFERENT if lines else 0


def _params_only(folder: str, step: str | None = None) -> None:
    if FLAGS.to is None:
        raise UserError("params-only needs --to=RUN_DIR, the run directory to make.")
    from maxfdl import graph
    from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
    from maxfdl.run.directory import TOKENIZER, RunDirectory
    from maxfdl.saved_run import read_evaluated

    number = None if step is None else _number(step)
    config, number, state = read_evaluated(as_path(folder), FLAGS.trust, number)
    directory = RunDirectory(FLAGS.to)
    directory.lock()
    try:
        if directory.has_results():
            raise UserError(f"{directory.path} holds a run; give another --to.")
        config_json = graph.dump_json(config, trust=tuple(FLAGS.trust))
        words = ["python", "-m", "maxfdl.checkpoint", *sys.argv[1:]]
        directory.write(
            config_json=config_json,
            config_text=graph.as_text(config),
            command=shlex.join(words) + "\n",
        )
        kept = as_path(folder) / TOKENIZER
        if kept.is_dir():
            with folder_replaced(directory.path / TOKENIZER) as copy:
                shutil.copytree(fetched(kept), copy, dirs_exist_ok=True)
        checkpointer = Checkpointer(directory=directory.checkpoints)
        checkpointer.save(number, state, NoData(), config_json, allow_non_finite=True)
        checkpointer.close()
    finally:
        directory.unlock()
    print(f"{directory.path} holds the weights of {folder} at step {number}")


def _prune(folder: str) -> None:
    if FLAGS.keep is None:
        raise UserError("prune needs --keep=N, the number of newest steps that stay.")
    from maxfdl.checkpoint.on_disk import all_steps
    from maxfdl.run.directory import CHECKPOINTS, RunDirectory
    from maxfdl.sharding.room import size_text

    path = as_path(folder)
    if not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} must be the directory of a run.")
    directory = RunDirectory(path)
    directory.lock()
    try:
        steps = all_steps(folder)
        kept, old = steps[-FLAGS.keep :], steps[: -FLAGS.keep]
        if old and all(_problem(each.check) for each in kept):
            raise UserError(
                f"none of the newest {len(kept)} steps of {folder} is whole; nothing is"
                " removed, for an older one may be needed."
            )
        for each in old:
            verb = "would remove" if FLAGS.dry_run else "removed"
            size = size_text(each.num_bytes)
            if not FLAGS.dry_run:
                each.remove()
            print(f"{verb} step {each.step} ({size})")
        print(f"what stays: {', '.join(str(each.step) for each in kept)}")
    finally:
        directory.unlock()


def _bench() -> None:
    from maxfdl.checkpoint import timing
    from maxfdl.run.runtime import start

    start(compilation_cache=False)
    folder = as_path(FLAGS.folder or tempfile.gettempdir())
    size = FLAGS.megabytes * 10**6
    try:
        found = timing.measure(size, FLAGS.times, folder)
    except OSError as error:
        raise UserError(
            f"bench cannot write to {folder} ({error.strerror}); give another --folder."
        ) from error
    print(f"{FLAGS.megabytes} MB of random numbers, median of {FLAGS.times}, {folder}")
    print(
        f"{'':<12}{'blocked':>9}{'saved':>9}{'restored':>9}{'written':>12}{'read':>12}"
    )
    for name, each in found.items():
        seconds = [timing.median(each, f) for f in ("blocked", "saved", "restored")]
        speeds = [size / seconds[1] / 1e6, size / seconds[2] / 1e6]
        print(
            f"{name:<12}"
            + "".join(f"{each:>8.3f}s" for each in seconds)
            + "".join(f"{each:>7.0f} MB/s" for each in speeds)
        )
    ratios = [timing.ratio(found, f) for f in ("blocked", "saved", "restored")]
    print(f"{'ratio':<12}" + "".join(f"{each:>9.2f}" for each in ratios))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"STEP ({text!r}) must be a number, as `list` shows them.")
    return int(text)


_COMMANDS: dict[str, tuple[Callable[..., int | None], str, int, int]] = {
    "list": (_list, "RUN", 1, 1),
    "verify": (_verify, "RUN [STEP]", 1, 2),
    "inspect": (_inspect, "RUN [STEP]", 1, 2),
    "compare": (_compare, "A B [--atol=X]", 2, 2),
    "params-only": (_params_only, "RUN [STEP] --to=NEW_RUN", 1, 2),
    "prune": (_prune, "RUN --keep=N", 1, 1),
    "bench": (_bench, "[--megabytes=N] [--times=N] [--folder=DIR]", 0, 0),
}
"""By name: the function, its usage, and how many words it takes, at least and most."""


if __name__ == "__main__":
    commandline.run(main, takes_config=False)
