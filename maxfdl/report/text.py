"""The facts of an experiment as lines that a person reads."""

from collections.abc import Iterable, Sequence

from maxfdl.report.facts import Facts, ParameterFacts, ReplicaFacts, Spec
from maxfdl.report.modules import Module
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.room import size_text


def tree(modules: Sequence[Module], parameters: Iterable[ParameterFacts]) -> list[str]:
    """Returns the modules as an indented tree, each with its own parameters.

    A parameter's line has its shape, type, logical dims, sharding and the bytes that
    one device holds.
    """
    owned: dict[str, list[ParameterFacts]] = {module.path: [] for module in modules}
    for parameter in parameters:
        owned[_owner(parameter.path, owned)].append(parameter)
    rows: list[list[str]] = []
    for module in modules:
        depth = module.path.count("/") + 1 if module.path else 0
        settings = [f"{name}={value}" for name, value in module.fields.items()]
        head = f"{module.name}: {module.class_name}"
        rows.append(["  " * depth + "  ".join([head, *settings])])
        indent = "  " * (depth + 1)
        for parameter in owned[module.path]:
            name = parameter.path.removeprefix(module.path).lstrip("/")
            rows.append([indent + name, *_columns(parameter)])
    return aligned(rows)


def summary(facts: Facts, attention: Sequence[str], platform: str, here: int):
    """Returns the totals, a line each."""
    roles = facts.num_parameters_by_role.items()
    state = facts.state_bytes_per_device
    frozen = facts.num_frozen_parameters
    of_which = f", of which {frozen:,} are frozen" if frozen else ""
    on_host = sum(facts.state_bytes_on_host.values())
    beside = f", and {size_text(on_host)} on its host" if on_host else ""
    axes = " x ".join(f"{name} {size}" for name, size in facts.mesh.items())
    parts = ", ".join(
        f"{name} {size_text(state[name])}"
        for name in ("params", "masters", "optimizer", "replicas", "outer")
        if name in state and (state[name] or name != "masters")
    )
    return [
        f"parameters: {facts.num_parameters:,}"
        f" ({', '.join(f'{count:,} {role}' for role, count in roles)}){of_which}",
        f"FLOPs: {facts.flops_per_token:,.0f} per token forward and backward (causal"
        " attention counted half)",
        f"mesh: {axes} = {devices_text(facts.num_devices)} ({here} {platform} here)",
        f"state per device: {size_text(sum(state.values()))} ({parts}){beside}",
        *_replicas(facts.replicas, facts.mesh.get(REPLICA, 1)),
        f"batch: {facts.batch_size} x {facts.sequence_length} ="
        f" {facts.tokens_per_step:,} tokens a step, sharded"
        f" {spec_text(facts.batch_sharding)}",
        f"attention: {', '.join(attention) or 'none'} ({platform})",
    ]


def _replicas(facts: ReplicaFacts | None, groups: int) -> list[str]:
    """Returns a line on the replicas of DiLoCo, if it trains any, in `groups` groups of
    devices."""
    if facts is None:
        return []
    parts = ", ".join(
        f"{name} {size_text(size)}"
        for name in ("params", "masters", "optimizer", "errors", "eager")
        if (size := facts.bytes_per_device[name])
    )
    return [
        f"replicas: {facts.count}, of which a device has {facts.count // groups}"
        f" ({parts}); each sends {size_text(round(facts.bytes_sent_per_step))} per step"
        " on average"
    ]


def spec_text(spec: Spec) -> str:
    """Returns `P(None, 'fsdp')`."""
    return f"P({', '.join(map(repr, spec))})"


def _owner(path: str, modules: Iterable[str]) -> str:
    """Returns the innermost module that holds the parameter."""
    holders = [m for m in modules if not m or path.startswith(f"{m}/")]
    return max(holders, key=len)


def _columns(parameter: ParameterFacts) -> list[str]:
    return [
        str(list(parameter.shape)),
        parameter.dtype,
        ", ".join(parameter.axes),
        spec_text(parameter.sharding),
        size_text(parameter.bytes_per_device),
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    """Returns lines with columns as wide as their widest; lone cells are left alone."""
    table = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        row[0]
        if len(row) == 1
        else "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def devices_text(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
