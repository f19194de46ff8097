"""Between the forms and layouts of one network, weights keep their bits."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from fdl_configs.maxtext import experiment, published_network
from maxfdl import hf, maxtext
from maxfdl.errors import UserError
from maxfdl.maxtext.loading import open_folder
from maxfdl.maxtext.saving import save, write
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.on_disk import OnDisk
from tests.maxtext import tiny
from tests.maxtext.comparing import differences
from tests.maxtext.goldens import Golden
from tests.maxtext.test_loading import logits_of

SAME_AS = {"mistral": "llama2"}  # without a window, its layers are those of Llama


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def opened(folder, network):
    """Returns the variables in a folder as those of a network, read."""
    found = MaxTextFolder(folder)
    config = experiment(found.options)
    config.model = network
    lazy = open_folder(found, config)
    return jax.tree.map(
        lambda leaf: leaf.read() if isinstance(leaf, OnDisk) else leaf, lazy.variables
    )


@pytest.mark.parametrize("name", tiny.OPTIONS)
def test_weights_go_through_all_layouts_and_back(name, tmp_path, capsys):
    network = tiny.published(name)
    weights = tiny.variables(tiny.model(network))
    save(tmp_path / "linen", network, weights, layout="linen")
    found = MaxTextFolder(tmp_path / "linen")
    block = tiny.options(name)["decoder_block"]
    assert found.options["decoder_block"] == SAME_AS.get(block, block)
    lazy = open_folder(found)
    write(
        tmp_path / "nnx",
        lazy.config,
        lazy.variables,
        None,
        0,
        CheckpointLayout("nnx", scanned=False),
    )
    equal(opened(tmp_path / "nnx", network), weights)
    again = open_folder(MaxTextFolder(tmp_path / "nnx"))
    hf.save(tmp_path / "hf", again.config.model, again.variables)
    hf.save(tmp_path / "expected", network, weights)
    pair = [
        load_file(tmp_path / each / "model.safetensors") for each in ("hf", "expected")
    ]
    equal(*pair)
    assert "rounded" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.OPTIONS)
def test_both_forms_of_a_network_give_the_same_logits(name, tmp_path):
    network = tiny.published(name)
    model = tiny.model(network)
    weights = tiny.variables(model)
    if "rounded" in tiny.in_maxtext_form(name).head.__arguments__:
        table = weights["params"]["embedding"]["table"]
        weights["params"]["embedding"]["table"] = table.astype("bfloat16").astype(
            "float32"
        )
    save(tmp_path, network, weights)
    loaded = maxtext.load(tmp_path)
    batch = Golden("llama2_nnx025_scan").batch("packed_")
    batch = {key: value[:, :8] for key, value in batch.items()}
    batch["tokens"] = batch["tokens"] % 32
    ours = logits_of(model, weights, batch)
    np.testing.assert_allclose(
        logits_of(loaded.model, loaded.variables, batch), ours, atol=2e-4
    )


def test_weights_that_are_rounded_are_told(tmp_path, capsys):
    options = {**tiny.options("llama2"), "head_dim": 8}
    network = published_network(options)
    save(tmp_path, network, tiny.variables(tiny.model(network)))
    assert "query/kernel were rounded" in capsys.readouterr().err


def test_a_checkpoint_of_linen_becomes_one_of_nnx_with_its_state(tmp_path):
    golden = Golden("llama2_linen024_scan")
    lazy = open_folder(MaxTextFolder(golden.path))
    for name, layout in {
        "nnx": CheckpointLayout("nnx", scanned=False),
        "linen": CheckpointLayout("linen", scanned=True),
    }.items():
        write(
            tmp_path / name,
            lazy.config,
            lazy.variables,
            lazy.moments,
            lazy.step,
            layout,
        )
        lazy = open_folder(MaxTextFolder(tmp_path / name))
    folders = (MaxTextFolder(tmp_path / "linen"), MaxTextFolder(golden.path))
    assert not differences(*(each.items for each in folders))


def test_a_folder_that_is_none_of_maxtext_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="must be a checkpoint of MaxText"):
        maxtext.load(tmp_path)


def test_orbax_restores_what_is_written(tmp_path):
    golden = Golden("llama2_nnx025_muon")
    lazy = open_folder(MaxTextFolder(golden.path))
    layout = CheckpointLayout("nnx", scanned=True)
    write(tmp_path, lazy.config, lazy.variables, lazy.moments, lazy.step, layout)
    items = tmp_path / "checkpoint" / "items"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(items).item_metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        restored = checkpointer.restore(
            items, ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    found = MaxTextFolder(golden.path).items
    for key in found.arrays():
        leaf = restored
        for part in key:
            leaf = leaf[part]
        if key[-1] != "key":  # of a random stream, which has a type of its own
            np.testing.assert_array_equal(leaf, found.read(key))
