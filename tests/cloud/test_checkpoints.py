"""Checkpoints in a bucket: what Orbax and TensorStore write there, and read again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.on_disk import all_steps, differences, one_step
from maxfdl.checkpoint.steps import SET_ASIDE, check_room, remove_unfinished, steps_in
from maxfdl.errors import UserError

ABSTRACT = {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32)}


def state(step):
    return {"w": jnp.arange(32.0).reshape(4, 8) * step}


def save(folder, steps, keep=3):
    checkpointer = Checkpointer(keep=keep, directory=folder)
    for step in steps:
        checkpointer.save(step, state(step), NoData(), "{}")
    checkpointer.close()


def test_steps_are_saved_restored_read_alone_and_pruned(cloud):
    folder = cloud.root / "run" / "checkpoints"
    check_room(folder, ABSTRACT)
    save(folder, (1, 2, 3), keep=2)
    assert steps_in(folder) == [2, 3]
    found = Checkpointer(directory=folder)
    restored = found.restore(3, ABSTRACT, NoData())
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    np.testing.assert_array_equal(found.reader(2, ABSTRACT).read(["w"]), state(2)["w"])

    first, second = all_steps(str(cloud.root / "run"))
    first.check()
    assert first.num_bytes > 100 and first.saved_at > 1e9
    assert len([*differences(first, second)]) == 1
    first.remove()
    assert steps_in(folder) == [3]
    assert one_step(f"{folder}/3").step == 3


def test_what_is_unfinished_damaged_or_left_behind_is_passed_over(cloud, capsys):
    folder = cloud.root / "checkpoints"
    save(folder, (1, 2, 3))
    (folder / "3" / "commit_success.txt").unlink()  # killed before it was whole
    assert steps_in(folder) == [1, 2]
    remove_unfinished(folder)
    assert not (folder / "3").exists()

    (data,) = [path for path in (folder / "2" / "state" / "d").files()][:1]
    content = data.read_bytes()
    data.write_bytes(content[:-40] + bytes(x ^ 1 for x in content[-40:]))
    restored = Checkpointer(directory=folder).restore(2, ABSTRACT, NoData())
    np.testing.assert_array_equal(restored["w"], state(1)["w"])
    assert "step 2 is damaged" in capsys.readouterr().err

    save(folder, (1,))
    assert steps_in(folder) == [1]
    assert (folder / SET_ASIDE / "2" / "_CHECKPOINT_METADATA").is_file()


@pytest.mark.parametrize(
    ("where", "words"),
    [("nowhere", "there is no bucket nowhere"), ("closed", "permission denied")],
)
def test_a_bucket_that_cannot_be_used_is_one_sentence(cloud, where, words):
    folder = cloud.at(f"{where}/run")
    with pytest.raises(UserError, match=f"cannot be written to .*{words}"):
        check_room(folder, ABSTRACT)
