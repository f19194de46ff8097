"""Compares checkpoints of MaxText array by array, as Orbax and TensorStore see them."""

from maxfdl.tensors.maxtext.items import Items


def differences(one: Items, other: Items) -> list[str]:
    """Returns lines on what differs between two trees: keys, kinds, types, bytes."""
    mine, theirs = one.entries, other.entries
    lines = [f"only in one: {key}" for key in mine.keys() ^ theirs.keys()]
    for key in mine.keys() & theirs.keys():
        if mine[key].kind != theirs[key].kind:
            lines.append(f"{key}: {mine[key].kind} and {theirs[key].kind}")
        elif mine[key].is_array:
            a, b = one.read(key), other.read(key)
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                lines.append(f"{key}: {a.dtype}{a.shape} and {b.dtype}{b.shape}")
    return sorted(lines)
