"""Which rows of a table apply where, on small trees made by hand."""

import numpy as np
import pytest

from fdl_configs.families import FAMILIES
from maxfdl.errors import UserError
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.ops.state import StateDeclaration
from maxfdl.tensors.arrays import Arrays
from maxfdl.tensors.hugging_face.defaults import DEFAULTS
from maxfdl.tensors.names import TABLES
from maxfdl.tensors.table import NameTable, Row, bind, canonical_names, why_left_out
from tests.layers.families import CASES

BUFFERS, OTHERS = "buffers", "other modalities"
LATER = "modules that predict later tokens"
LAYER = "model.layers.{layer}."
NORM = Parameter((4,), ("norm",), Constant(1.0), "scale")
KERNEL = Parameter((4, 6), ("embed", "mlp"), Constant(), "kernel", 1)
EXPERTS = Parameter((2, 4, 6), ("experts", "embed", "mlp"), Constant(), "kernel", 1, 1)


def leaves(**layers):
    """Returns a norm outside, and parameters of layers by `stack_layer`."""
    found = {("params", ("final_norm", "scale")): NORM}
    for place, (repeats, parameters) in layers.items():
        stack, layer = place.removeprefix("at_").split("_")
        prefix = ("decoder", f"stacks_{stack}", f"layers_{layer}")
        for path, parameter in parameters.items():
            collection, _, rest = path.rpartition(":")
            key = collection or "params", (*prefix, *rest.split("/"))
            found[key] = parameter.stacked(repeats)
    return found


def table(*rows, **fields):
    final = Row("model.norm.weight", "final_norm/scale")
    return NameTable(("toy",), (final, *rows), **fields)


def bound(*rows, **layers):
    """Returns what each of their tensors fills: path inside the layers, and index."""
    return {
        name: [("/".join(slot.path[1:]), slot.index) for slot in binding.slots]
        for binding in bind(table(*rows), leaves(**layers))
        for name in binding.theirs
        if name != "model.norm.weight"
    }


def test_layers_are_counted_over_repeats_and_stacks():
    norm = {"norm/scale": NORM}
    found = bound(
        Row(f"{LAYER}norm.weight", "norm/scale"),
        at_0_0=(2, norm),
        at_0_1=(2, norm),
        at_1_0=(1, norm),
    )
    places = {name: places for name, (places,) in found.items()}
    assert places == {
        "model.layers.0.norm.weight": ("stacks_0/layers_0/norm/scale", (0,)),
        "model.layers.1.norm.weight": ("stacks_0/layers_1/norm/scale", (0,)),
        "model.layers.2.norm.weight": ("stacks_0/layers_0/norm/scale", (1,)),
        "model.layers.3.norm.weight": ("stacks_0/layers_1/norm/scale", (1,)),
        "model.layers.4.norm.weight": ("stacks_1/layers_0/norm/scale", (0,)),
    }


def test_ten_stacks_and_more_come_in_the_order_of_their_numbers():
    norm = {"norm/scale": NORM}
    places = {f"at_{i}_0": (1, norm) for i in range(11)}
    found = bound(Row(f"{LAYER}norm.weight", "norm/scale"), **places)
    (last,) = found["model.layers.10.norm.weight"]
    assert last == ("stacks_10/layers_0/norm/scale", (0,))


def test_each_expert_is_a_tensor_of_theirs():
    row = Row(f"{LAYER}experts.{{expert}}.up.weight", "experts/up/kernel")
    found = bound(row, at_0_0=(2, {"experts/up/kernel": EXPERTS}))
    assert {name: index for name, ((_, index),) in found.items()} == {
        f"model.layers.{layer}.experts.{expert}.up.weight": (layer, expert)
        for layer in range(2)
        for expert in range(2)
    }
    bindings = bind(table(row), leaves(at_0_0=(2, {"experts/up/kernel": EXPERTS})))
    (ours,) = bindings[1].to_ours([np.zeros((6, 4))], {})
    assert ours.shape == (4, 6)


def test_a_row_applies_where_its_paths_are():
    dense = Row(f"{LAYER}up.weight", "mlp/up/kernel")
    both = Row(f"{LAYER}both.weight", ("mlp/up/kernel", "mlp/gate/kernel"))
    found = bound(
        dense,
        both,
        at_0_0=(1, {"mlp/up/kernel": KERNEL}),
        at_1_0=(1, {"mlp/up/kernel": KERNEL, "mlp/gate/kernel": KERNEL}),
    )
    assert list(found) == [
        "model.layers.0.up.weight",
        "model.layers.1.up.weight",
        "model.layers.1.both.weight",
    ]


def test_a_row_may_ask_for_what_tells_kinds_of_layers_apart():
    found = bound(
        Row(f"{LAYER}full.weight", "out/kernel", beside="gate/kernel"),
        Row(f"{LAYER}linear.weight", "out/kernel", beside="decay/kernel"),
        Row(f"{LAYER}gate.weight", "gate/kernel"),
        Row(f"{LAYER}decay.weight", "decay/kernel"),
        at_0_0=(1, {"out/kernel": KERNEL, "decay/kernel": KERNEL}),
        at_0_1=(1, {"out/kernel": KERNEL, "gate/kernel": KERNEL}),
    )
    assert list(found) == [
        "model.layers.0.linear.weight",
        "model.layers.0.decay.weight",
        "model.layers.1.full.weight",
        "model.layers.1.gate.weight",
    ]


def test_state_is_filled_too():
    found = bind(
        table(Row(f"{LAYER}bias", "router/bias", state=True)),
        leaves(at_0_0=(1, {"state:router/bias": NORM})),
    )
    (slot,) = found[-1].slots
    assert slot.collection == "state" and slot.path[-2:] == ("router", "bias")


def test_a_parameter_without_a_row_is_refused():
    message = "toy has no tensor for decoder/stacks_0/layers_0/lora/a; save the run"
    with pytest.raises(UserError, match=message):
        bind(table(), leaves(at_0_0=(1, {"lora/a": NORM})))


def test_state_that_layers_write_needs_no_tensor_and_starts_as_declared():
    seen = StateDeclaration((), (), initial=7.0, merge="max")
    with_seen = leaves(at_0_0=(2, {"state:query/dot_x": seen}))
    (binding,) = bind(table(), with_seen)
    assert binding.theirs == ("model.norm.weight",)
    read_only = StateDeclaration((), ())
    with pytest.raises(UserError, match="no tensor for .*/query/scale; save the run"):
        bind(table(), leaves(at_0_0=(2, {"state:query/scale": read_only})))

    arrays = Arrays(with_seen, CASES["RMSNorm"].model("nnx"), None)
    arrays.fill(binding.slots[0], np.ones(4, np.float32))
    tree = arrays.nested()["state"]["decoder"]["stacks_0"]["layers_0"]["query"]
    np.testing.assert_array_equal(tree["dot_x"], [7.0, 7.0])


def test_names_are_found_under_their_other_spellings():
    wanted = {"model.norm.weight", "lm_head.weight"}
    for given in (
        ["model.norm.weight", "lm_head.weight"],
        ["norm.weight", "lm_head.weight"],
        ["language_model.model.norm.weight", "language_model.lm_head.weight"],
        ["model.language_model.norm.weight", "lm_head.weight"],
    ):
        spelled = canonical_names([*given, "other"], table(), wanted)
        assert spelled == dict(zip(sorted(wanted, reverse=True), given, strict=True))


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", {}, BUFFERS),
        ("model.layers.0.mask", {}, BUFFERS),
        ("vision_tower.layers.0.weight", {}, OTHERS),
        ("model.vision_tower.layers.0.weight", {}, OTHERS),
        ("lm_head.weight", {}, None),
        ("model.layers.3.norm.weight", {}, None),
        ("model.layers.3.norm.weight", {"num_nextn_predict_layers": 1}, LATER),
        ("model.layers.2.norm.weight", {"num_nextn_predict_layers": 1}, None),
        ("mtp.norm.weight", {}, LATER),
    ],
)
def test_what_may_be_left_over_has_a_reason(name, config, why):
    config = {"num_hidden_layers": 3} | config
    toy = table(ignored=(r"\.mask$",), later="^mtp")
    assert why_left_out(name, toy, config) == why


def test_every_model_type_has_one_table():
    claimed = [each for table in TABLES.values() for each in table.model_types]
    assert sorted(claimed) == sorted(DEFAULTS)


def test_every_family_has_one_table():
    assert FAMILIES.keys() == TABLES.keys()
