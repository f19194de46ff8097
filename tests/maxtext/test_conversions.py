"""Between the forms and layouts of one network, weights keep their bits."""

import weakref

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import tests.tiny
from fdl_configs.data import synthetic
from fdl_configs.maxtext import published_network
from fdl_configs.optimizers import adamw
from fdl_configs.runs import pretrain
from maxfdl import hf, maxtext
from maxfdl.errors import UserError
from maxfdl.layers.on_disk import OnDisk
from maxfdl.maxtext.loading import open_folder
from maxfdl.maxtext.saving import save, write
from maxfdl.run.first_state import first_state
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from maxfdl.tensors.maxtext.items import Items
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.reading import (
    MaxTextSource,
    lazy_moments,
    lazy_variables,
    read_count,
)
from maxfdl.tensors.maxtext.writing import MaxTextTarget, write_maxtext
from tests.maxtext import tiny
from tests.maxtext.comparing import differences
from tests.maxtext.goldens import NAMES, Golden, with_slow
from tests.maxtext.test_loading import QUICK, logits_of

WITHOUT_GOLDEN = (
    *("llama3.1", "fused", "qwen2", "gemma2", "deepseek2", "gpt_oss"),
    *("olmo3", "llama4", "qwen3_next"),
)
SAME_AS = {"mistral": "llama2"}  # without a window, its layers are those of Llama


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def run_of(network):
    """Returns a run that trains a network."""
    return pretrain(
        name="tiny",
        model=network,
        data=synthetic(),
        optimizer=adamw(peak=1e-2, warmup_steps=2),
        steps=20,
        batch_size=2,
        sequence_length=8,
    )


def read(tree):
    """Returns a tree whose arrays are read from disk."""
    return jax.tree.map(lambda x: x.read() if isinstance(x, OnDisk) else x, tree)


WITH_STATE = ("llama2", "mixtral", "gemma3", "deepseek3", "gpt3")


@pytest.mark.parametrize("name", with_slow(tiny.OPTIONS, ("llama2", "gpt3")))
def test_weights_go_through_all_layouts_and_back(name, tmp_path, capsys):
    network = tiny.published(name)
    model = tiny.model(network)
    weights, moments, step = tiny.variables(model), None, 0
    if name in WITH_STATE:
        first, second = (tiny.variables(model, seed)["params"] for seed in (1, 2))
        moments, step = {"mu": first, "nu": second}, 7
    linen, nnx = CheckpointLayout("linen", True), CheckpointLayout("nnx", False)
    write(tmp_path / "linen", run_of(network), weights, moments, step, linen)
    found = MaxTextFolder(tmp_path / "linen")
    block = tiny.options(name)["decoder_block"]
    assert found.options["decoder_block"] == SAME_AS.get(block, block)
    lazy = open_folder(found)
    state = lazy.variables, lazy.moments, lazy.step
    write(tmp_path / "nnx", lazy.config, *state, nnx)
    found = MaxTextFolder(tmp_path / "nnx")
    source = MaxTextSource(found, model)
    equal(read(lazy_variables(source, model)), weights)
    if moments:
        equal(read(lazy_moments(source, model)), moments)
        assert read_count(source) == step
    loaded = open_folder(found, parameters_only=True)
    hf.save(tmp_path / "hf", loaded.config.model, loaded.variables)
    hf.save(tmp_path / "expected", network, weights)
    pair = [
        load_file(tmp_path / each / "model.safetensors") for each in ("hf", "expected")
    ]
    equal(*pair)
    assert "rounded" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_GOLDEN)
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


@pytest.mark.parametrize("name", ["llama2_linen024_scan", "deepseek3_nnx025_scan"])
def test_the_training_state_goes_through_all_layouts_and_back(name, tmp_path):
    golden = Golden(name)
    lazy = open_folder(MaxTextFolder(golden.path))
    last = CheckpointLayout(golden.config["library"], scanned=True)
    on_the_way = "nnx" if last.framework == "linen" else "linen"
    for folder, layout in {
        "one": CheckpointLayout(on_the_way, scanned=False),
        "two": last,
    }.items():
        state = lazy.variables, lazy.moments, lazy.step
        write(tmp_path / folder, lazy.config, *state, layout)
        lazy = open_folder(MaxTextFolder(tmp_path / folder))
    items = (MaxTextFolder(tmp_path / "two").items, MaxTextFolder(golden.path).items)
    # Random streams of NNX do not go through Linen, which has none.
    assert not [line for line in differences(*items) if "rngs" not in line]


@pytest.mark.slow
def test_a_run_trains_on_bitwise_after_linen_and_nnx(tmp_path):
    network = tiny.published("llama2")
    config = run_of(network)
    program = tests.tiny.program(config)
    step = jax.jit(program.trainer.step, compiler_options=QUICK)
    batch = {k: v[:, :8] for k, v in Golden(NAMES[0]).batch().items()}
    batch["tokens"], batch["targets"] = batch["tokens"] % 32, batch["targets"] % 32
    state, _ = step(program.init(), batch)
    save(tmp_path / "linen", config, state, state, layout="linen")
    lazy = open_folder(MaxTextFolder(tmp_path / "linen"))
    layout = CheckpointLayout("nnx", scanned=False)
    whole = lazy.variables, lazy.moments, lazy.step
    write(tmp_path / "nnx", lazy.config, *whole, layout)
    again = first_state(program, None, str(tmp_path / "nnx"))
    for _ in range(5):
        state, metrics = step(state, batch)
        again, same = step(again, batch)
        equal(metrics, same)


def test_an_array_is_let_go_before_the_next_is_read(monkeypatch):
    found = MaxTextFolder(Golden("llama2_nnx025_muon").path)
    lazy = open_folder(found)
    last: list[weakref.ref] = []
    read = Items.read

    def watched(items, key):
        assert all(each() is None for each in last), key
        values = read(items, key)
        last[:] = [weakref.ref(values)]
        return values

    monkeypatch.setattr(Items, "read", watched)
    model = tiny.model(lazy.config.model)
    target = MaxTextTarget(model, found.options, found.layout)
    # No folder, as in a process that does not write: TensorStore lets arrays go later.
    write_maxtext(None, target, lazy.variables, lazy.moments, lazy.step, [])
    assert last


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
