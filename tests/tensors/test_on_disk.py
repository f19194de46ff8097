"""Arrays on disk are read when they are wanted, and no more often than needed."""

import collections

import jax
import numpy as np

from maxfdl import hf
from maxfdl.layers.on_disk import OnDisk
from tests.hf.variants import loaded


def test_a_folder_is_written_with_each_array_read_once(tmp_path):
    config, variables = loaded("deepseek_v3").config, loaded("deepseek_v3").variables
    reads = collections.Counter()

    def on_disk(path, leaf):
        name = jax.tree_util.keystr(path)

        def read():
            reads[name] += 1
            return np.asarray(leaf)

        def read_part(i):
            reads[name, i] += 1
            return np.asarray(leaf[i])

        in_parts = name.endswith("['kernel']") and "stacks" in name
        abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return OnDisk(abstract, read, read_part if in_parts else None)

    there = jax.tree_util.tree_map_with_path(on_disk, variables)
    hf.save(tmp_path / "there", config, there, format="int8")
    hf.save(tmp_path / "here", config, variables, format="int8")
    assert set(reads.values()) == {1}
    wholes = [name for name in reads if isinstance(name, str)]
    parts = {name for name, _ in reads.keys() - wholes}
    assert len(wholes) + len(parts) == len(jax.tree.leaves(variables))
    assert parts.isdisjoint(wholes) and len(reads) - len(wholes) > len(parts)
    for file in ("config.json", "model.safetensors"):
        there, here = (tmp_path / name / file for name in ("there", "here"))
        assert there.read_bytes() == here.read_bytes()
