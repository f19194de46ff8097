"""Checkpoints are written back as MaxText wrote them."""

import pytest

from maxfdl import maxtext
from tests.maxtext.comparing import differences
from tests.maxtext.goldens import NAMES, QUICK, Golden, with_slow


@pytest.mark.parametrize("name", with_slow(NAMES, QUICK))
def test_a_checkpoint_is_written_back_with_the_same_tree_and_bytes(name, tmp_path):
    golden = Golden(name)
    loaded = maxtext.load(golden.path)
    maxtext.save(
        tmp_path,
        loaded.config,
        loaded.variables,
        loaded.state,
        layout=golden.config["library"],
    )
    again = maxtext.MaxTextFolder(tmp_path)
    assert not differences(again.items, maxtext.MaxTextFolder(golden.path).items)
    assert maxtext.load(tmp_path).config.model == loaded.config.model
