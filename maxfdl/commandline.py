"""The flags that all commands share, and how a command runs.

A command names a graph, changes it and uses it:

    python -m maxfdl.launch --fdl_config=experiments.llama2_nnx --fiddler=to_linen
        --fdl_set=steps=50

Underneath are Fiddle's flags. The phases are always: config, mutations, tags, file of
overrides, values; inside a phase the order of the command line holds. `to_linen` and
`steps=50` may also stand alone, and `--fdl.steps=50` is `--fdl_set=steps=50`. A first
argument that stands alone is the config, if no flag names one.
"""

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from absl import app, flags, logging
from fiddle import absl_flags as fiddle_flags

from maxfdl.errors import ConfigError, UserError, did_you_mean
from maxfdl.run.processes import same_run
from maxfdl.run.processes.ending import failing_once, finish, together
from maxfdl.run.processes.peers import Peers
from maxfdl.run.processes.same_run import GRAPH, software
from maxfdl.terminal import session

FLAGS = flags.FLAGS

# Fiddle defines fdl_config, fdl_config_file, fiddler, fdl_set, fdl_tags_set, fdl_help.
_SHARED = (
    "fdl_config",
    "fdl_config_file",
    "fiddler",
    "fdl_tags_set",
    "fdl_overrides",
    "fdl_set",
    "fdl_help",
    "trust",
)
_ASSIGNMENT = re.compile(
    r"""[A-Za-z_]\w*(\.\w+|\[-?\d+\]|\['[^']*'\]|\["[^"]*"\])*=.*""", re.DOTALL
)

# This module may be imported under two names (`python -m` makes one `__main__`).
if "fdl_overrides" not in FLAGS:
    flags.DEFINE_multi_string(
        "fdl_overrides",
        [],
        "A .py file whose get_config() returns an ml_collections.ConfigDict of graph"
        " paths and values.",
    )
    flags.DEFINE_multi_string(
        "trust",
        [],
        "A package that configs, mutations and saved graphs may come from, besides"
        " experiments, fdl_configs and maxfdl. Its code will run.",
    )


def config_from_flags(mutations: Sequence[str] = ()) -> Any:
    """Returns the validated graph that the command line asks for.

    With `--fdl_help`, prints what there is to choose from and exits.

    Args:
      mutations: Calls to make after those of the command line, before its values.

    Raises:
      UserError: If there is no config, or anything about it is wrong.
    """
    from maxfdl.graph import validate  # imports JAX, so not before flags are parsed

    if FLAGS.fdl_help:
        _print_help()
    cfg = _graph(mutations)
    if cfg is None:
        raise ConfigError(
            "no config is named; pass --fdl_config=experiments.NAME (--fdl_help lists"
            " them)."
        )
    return validate(cfg)


def _graph(mutations: Sequence[str] = ()) -> Any:
    """The graph after all directives, or None if no flag names one."""
    bases = [*_base_directives()]
    if not bases:
        return None
    if len(bases) > 1:
        raise ConfigError(
            "--fdl_config and --fdl_config_file are two configs; keep one."
        )
    flag = fiddle_flags.FiddleFlag(
        name="graph",
        default=None,
        default_module=cast(Any, _Namespace(tuple(FLAGS.trust))),
        parser=flags.ArgumentParser(),
        serializer=None,
        help_string="",
    )
    flag.parse([*bases, *_change_directives(mutations)])
    return flag.value


def _base_directives() -> list[str]:
    named = [FLAGS.fdl_config, FLAGS.fdl_config_file]
    calls = zip(("config", "saved"), named, strict=True)
    return [f"config:{fn}({str(text)!r})" for fn, text in calls if text is not None]


def _change_directives(mutations: Sequence[str]) -> list[str]:
    return [f"fiddler:{change}({text!r})" for change, text in _changes(mutations)]


def _changes(mutations: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Returns what the flags change of a graph, in order: a method of `_Namespace`,
    and its argument. More mutations come after those of the flags."""
    phases = (
        ("mutated", [*FLAGS.fiddler, *mutations]),
        ("tagged", FLAGS.fdl_tags_set),
        ("overridden", FLAGS.fdl_overrides),
        ("assigned", FLAGS.fdl_set),
    )
    return [(change, text) for change, texts in phases for text in texts]


def changed_by_flags(cfg: Any) -> Any:
    """Returns the graph `cfg`, such as that of a run, as the command line changes it.

    Raises:
      UserError: If anything about the changes is wrong.
    """
    from maxfdl.graph import validate  # imports JAX, as in `config_from_flags`

    namespace = _Namespace(tuple(FLAGS.trust))
    for change, text in _changes():
        cfg = getattr(namespace, change)(cfg, text)
    return validate(cfg)


def with_values(cfg: Any) -> Any:
    """Returns the graph `cfg` with the values of the command line, not its mutations.

    Raises:
      UserError: If it has no field of such a name, or not for such a value.
    """
    from maxfdl.graph import validate  # imports JAX, as in `config_from_flags`

    namespace = _Namespace(tuple(FLAGS.trust))
    for assignment in FLAGS.fdl_set:
        cfg = namespace.assigned(cfg, assignment)
    return validate(cfg)


class _Namespace:
    """Where Fiddle looks up the functions of its directives: our typed versions.

    Fiddle's own would read values without the field's type, import any module, and
    load any JSON.
    """

    __name__ = "maxfdl.commandline"

    def __init__(self, trust: tuple[str, ...]):
        self.trust = trust

    def config(self, expression: str) -> Any:
        from maxfdl.graph.resolve import resolve

        return resolve(expression, trust=self.trust)

    def saved(self, path: str) -> Any:
        from maxfdl.graph.resolve import load

        return load(path, self.trust)

    def mutated(self, cfg: Any, call: str) -> Any:
        from maxfdl.graph.expression import parse_call
        from maxfdl.graph.resolve import mutate

        return mutate(cfg, parse_call(call), self.trust)

    def tagged(self, cfg: Any, assignment: str) -> Any:
        from maxfdl.graph.overrides import set_tag
        from maxfdl.graph.resolve import split_assignment

        return set_tag(cfg, *split_assignment(assignment))

    def overridden(self, cfg: Any, path: str) -> Any:
        from maxfdl.graph import overrides_from_file, set_value

        for where, value in overrides_from_file(path):
            cfg = set_value(cfg, where, value)
        return cfg

    def assigned(self, cfg: Any, assignment: str) -> Any:
        from maxfdl.graph.overrides import set_value
        from maxfdl.graph.resolve import split_assignment

        return set_value(cfg, *split_assignment(assignment))


def _print_help() -> None:
    from maxfdl.graph.listing import listing

    print(listing(_graph(), tuple(FLAGS.trust)))
    sys.exit(0)


def rewrite(args: list[str], takes_config: bool = True) -> list[str]:
    """Returns `args` with each short spelling as the flag that it stands for.

    Words that stand alone come last, for a command that takes no config.

    Raises:
      UserError: If an argument is none of the spellings.
    """
    out, words, rest = [], [], iter(args)
    for arg in rest:
        if arg == "--":
            raise UserError(
                "'--' has no meaning here; pass flags, mutations and values."
            )
        if arg == "-h":
            out.append("--help")
        elif not arg.startswith("-") and not takes_config:
            words.append(arg)
        elif not arg.startswith("-"):
            out.append(_standing_alone(arg, [*args, *out]))
        elif arg.startswith(("--fdl.", "-fdl.")):
            out.append(f"--fdl_set={arg.partition('.')[2]}")
        elif arg.startswith(("--fdl_tag.", "-fdl_tag.")):
            out.append(f"--fdl_tags_set={arg.partition('.')[2]}")
        else:
            out.append(arg)
            if _takes_next(arg):
                out += [value for value in [next(rest, None)] if value is not None]
    return [*out, *words]


def _takes_next(arg: str) -> bool:
    name = arg.lstrip("-")
    return name in FLAGS and not FLAGS[name].boolean


def _standing_alone(arg: str, others: list[str]) -> str:
    if _ASSIGNMENT.fullmatch(arg):
        return f"--fdl_set={arg}"
    has_config = any(re.match("--?fdl_config(_file)?(=|$)", each) for each in others)
    return f"--fiddler={arg}" if has_config else f"--fdl_config={arg}"


def run(main: Callable[[list[str]], Any], *, takes_config: bool = True) -> None:
    """Runs `main(argv)` as a command, whose exit code it returns; None is 0.

    See `terminal` for how it ends otherwise. One that takes no config finds the words
    that stand alone in `argv`, and has `--trust` alone of the shared flags. Of several
    processes, one that ends early ends them all.
    """
    for name in _SHARED if takes_config else ("trust",):
        # So that --help shows them with the command's own flags.
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])

    def guarded(argv: list[str]) -> Any:
        with session(), failing_once():
            code = main(argv)
            finish()
            return code

    def parse(argv: list[str]) -> list[str]:
        with session(), failing_once():
            return _parse_flags(argv, takes_config)

    with session(), together(sys.argv):
        app.run(guarded, flags_parser=parse)


def _parse_flags(argv: list[str], takes_config: bool) -> list[str]:
    try:
        rest = FLAGS([argv[0], *rewrite(argv[1:], takes_config)])
    except flags.UnrecognizedFlagError as e:
        near = did_you_mean(e.flagname, FLAGS)
        raise UserError(f"unknown flag --{e.flagname}.{near}") from None
    except flags.Error as e:
        raise UserError(str(e)) from None
    except SystemExit:
        sys.exit(0)  # absl exits with 1 after --help
    given = [name for name in _SHARED if name != "trust" and FLAGS[name].present]
    if given and not takes_config:
        raise UserError(f"--{given[0]} has no meaning here.")
    if FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = logging.WARNING  # Orbax tells a page at every save
    return rest


def check_same_run(peers: Peers, cfg: Any, asked: Mapping[str, Any]) -> None:
    """Compares what all processes of a run are about to do.

    Args:
      peers: The other processes, all of which call this.
      cfg: The graph of this process.
      asked: What else it was asked for, by the names of flags.

    Raises:
      UserError: If the processes differ in anything, with the difference.
    """
    from maxfdl import graph

    load = functools.partial(graph.load_json, trust=tuple(FLAGS.trust))
    mine = {
        GRAPH: graph.dump_json(cfg, trust=tuple(FLAGS.trust)),
        **asked,
        **software(),
    }
    same_run.check(peers, mine, lambda old, new: graph.diff(load(old), load(new)))
