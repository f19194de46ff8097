"""GPT-3 in Paxml's tree: a folder of zarr arrays that the test itself writes."""

import numpy as np
import pytest
import tensorstore as ts

from maxfdl import graph, maxtext
from maxfdl.errors import UserError
from maxfdl.maxtext.loading import open_folder
from maxfdl.maxtext.saving import moments_of_state, save_as_paxml, write
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.paxml import PaxmlFolder
from tests.maxtext.goldens import Golden

L, D, H, K, F, V, P = 3, 8, 2, 4, 12, 16, 10
"""Layers, width, heads, their width, hidden width, vocabulary, positions."""

LAYER = "params.lm.transformer.repeat.sub.x_layers_0"
SHAPES = {
    "params.lm.softmax.logits_ffn.linear.w": (D, V),
    "params.lm.position_emb.emb_var": (P, D),
    "params.lm.final_ln.scale": (D,),
    "params.lm.final_ln.bias": (D,),
    f"{LAYER}.layer_norm.scale": (L, D),
    f"{LAYER}.layer_norm.bias": (L, D),
    f"{LAYER}.self_attention.combined_qkv.w": (L, 3, D, H, K),
    f"{LAYER}.self_attention.combined_qkv.b": (L, 3, H, K),
    f"{LAYER}.self_attention.post.w": (L, D, H, K),
    f"{LAYER}.self_attention.post.b": (L, D),
    f"{LAYER}.ff_layer.layer_norm.scale": (L, D),
    f"{LAYER}.ff_layer.layer_norm.bias": (L, D),
    f"{LAYER}.ff_layer.ffn_layer1.linear.w": (L, D, F),
    f"{LAYER}.ff_layer.ffn_layer1.bias.b": (L, F),
    f"{LAYER}.ff_layer.ffn_layer2.linear.w": (L, F, D),
    f"{LAYER}.ff_layer.ffn_layer2.bias.b": (L, D),
}


def arrays() -> dict[str, np.ndarray]:
    """Returns the training state after 7 steps, by the name of each folder."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    state = {f"mdl_vars.{name}": draw(shape) for name, shape in SHAPES.items()}
    for name, shape in SHAPES.items():
        group = f"p#{L}#i-1_2" if name.startswith(LAYER) else "no_prefix_2"
        for moment in ("m", "v"):
            state[f"opt_states_0.{group}.{moment}.{name}"] = np.square(draw(shape))
    seven = np.asarray(7, np.int32)
    return state | {"step": seven, "opt_states_0.no_prefix_0.count": seven}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("paxml") / "checkpoint_00000007"
    for name, values in arrays().items():
        store = {"driver": "file", "path": f"{path}/{name}"}
        spec = {"driver": "zarr", "kvstore": store, "dtype": values.dtype.name}
        spec["metadata"] = {"shape": list(values.shape)}
        ts.open(spec, create=True).result().write(values).result()
    return path


def test_the_arithmetic_of_each_array(folder):
    loaded, theirs = maxtext.load(folder), arrays()
    params = loaded.variables["params"]
    layer = params["decoder"]["stacks_0"]["layers_0"]
    qkv = theirs[f"mdl_vars.{LAYER}.self_attention.combined_qkv.w"]
    for i, part in enumerate(("query", "key", "value")):
        ours = layer["attention"][part]["kernel"]
        np.testing.assert_array_equal(ours, qkv[:, i])
    post = theirs[f"mdl_vars.{LAYER}.self_attention.post.w"]
    out = layer["attention"]["out"]["kernel"]
    np.testing.assert_array_equal(out, np.moveaxis(post, 1, -1))
    softmax = theirs["mdl_vars.params.lm.softmax.logits_ffn.linear.w"]
    np.testing.assert_array_equal(params["embedding"]["table"], softmax.T)
    norm = theirs[f"mdl_vars.{LAYER}.ff_layer.layer_norm.scale"]
    np.testing.assert_array_equal(layer["mlp_norm"]["offset"], norm)
    assert loaded.state is not None and int(loaded.state["step"]) == 7


def test_weights_and_moments_keep_their_bits_in_both_directions(folder, tmp_path):
    lazy = open_folder(PaxmlFolder(folder))
    layout = CheckpointLayout("linen", scanned=False)
    write(tmp_path / "linen", lazy.config, lazy.variables, lazy.moments, 7, layout)
    back = open_folder(MaxTextFolder(tmp_path / "linen"))
    there = tmp_path / "paxml"
    save_as_paxml(there, back.config, back.variables, back.moments, back.step)
    written, expected = PaxmlFolder(there).items, arrays()
    assert {str(key[0]) for key in written.arrays()} == expected.keys()
    for name, values in expected.items():
        found = written.read((name,))
        assert found.dtype == values.dtype and found.tobytes() == values.tobytes()


def test_the_gpt3_of_maxtext_becomes_one_of_paxml_with_its_state(tmp_path):
    golden = Golden("gpt3_linen024_adampax")
    loaded = maxtext.load(golden.path)
    assert loaded.state is not None
    moments = moments_of_state(graph.build(loaded.config), loaded.state)
    save_as_paxml(tmp_path, loaded.config, loaded.variables, moments, 3)
    again = open_folder(PaxmlFolder(tmp_path))
    kernel = again.moments["nu"]["decoder"]["stacks_0"]["layers_0"]["mlp"]["up"]
    ours = moments["nu"]["decoder"]["stacks_0"]["layers_0"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel["kernel"].read(), ours)
    assert again.step == 3


def test_another_network_is_refused(tmp_path):
    loaded = maxtext.load(Golden("llama2_linen024_param_only").path)
    with pytest.raises(UserError, match="this network is a llama2"):
        save_as_paxml(tmp_path, loaded.config, loaded.variables, None, 0)
