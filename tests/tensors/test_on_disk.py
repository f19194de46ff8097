"""Arrays on disk are read when they are wanted, and no more often than needed."""

import collections

import jax

from maxfdl import hf
from maxfdl.tensors.on_disk import OnDisk
from tests.hf.variants import loaded


def test_a_folder_is_written_with_each_array_read_once(tmp_path):
    config, variables = loaded("deepseek_v3").config, loaded("deepseek_v3").variables
    reads = collections.Counter()

    def on_disk(path, leaf):
        name = jax.tree_util.keystr(path)

        def read():
            reads[name] += 1
            return leaf

        return OnDisk(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), read)

    there = jax.tree_util.tree_map_with_path(on_disk, variables)
    hf.save(tmp_path / "there", config, there, format="int8")
    hf.save(tmp_path / "here", config, variables, format="int8")
    assert set(reads.values()) == {1} and len(reads) == len(jax.tree.leaves(variables))
    for file in ("config.json", "model.safetensors"):
        there, here = (tmp_path / name / file for name in ("there", "here"))
        assert there.read_bytes() == here.read_bytes()
