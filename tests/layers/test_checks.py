"""Rules between the fields of one layer, in their words."""

import types

import fiddle as fdl
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError
from maxfdl.layers.checks import (
    check_attention,
    check_dropout,
    check_latent_attention,
    check_stack,
)
from maxfdl.layers.execution import SaveNamed
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Causal, Chunked, SlidingWindow
from maxfdl.ops.rope import LongRope, Rope
from tests import tiny

LONG = LongRope(
    short_factors=(1.0, 1.0),
    long_factors=(2.0, 2.0),
    original_length=8,
    attention_factor=1.0,
)
LATENT = dict(rope_dim=8, key=None, value=None)
HEADS = dict(num_heads=4, num_kv_heads=2, head_dim=8)
CUDNN = DotProductAttention("cudnn")

CASES = [
    (check_attention, dict(num_heads=4, num_kv_heads=2, head_dim=8), []),
    (
        check_attention,
        dict(num_heads=6, num_kv_heads=4, head_dim=8),
        ["Attention num_heads (6) must be a multiple of num_kv_heads (4)."],
    ),
    (
        check_attention,
        dict(num_heads=6, num_kv_heads=0, head_dim=7),
        [
            "Attention num_heads (6) must be a multiple of num_kv_heads (0).",
            "Attention head_dim (7) must be even to be rotated.",
        ],
    ),
    (
        check_attention,
        dict(num_heads=4, num_kv_heads=2, head_dim=10**6),
        ["Attention head_dim (1000000) must be at most 65536."],
    ),
    (
        check_attention,
        dict(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(fraction=0.4)),
        [
            "Rope fraction (0.4) must leave an even number of the 8 features of a head"
            " to be rotated, which 3 is not."
        ],
    ),
    (
        check_latent_attention,
        LATENT | dict(rope=LONG),
        [
            "LongRope short_factors (2 of them) must be 4, one for each pair of"
            " features that is rotated."
        ],
    ),
    (check_latent_attention, LATENT | dict(rope=Rope()), []),
    (
        check_latent_attention,
        LATENT
        | dict(rope=Rope(), nope_dim=16, value_dim=16, mask=Causal(), attention=CUDNN),
        [
            "DotProductAttention implementation (cudnn) has no values of width 16"
            " beside keys of 24; use xla or tokamax."
        ],
    ),
    (
        check_attention,
        HEADS | dict(mask=Chunked(64), attention=CUDNN),
        [
            "DotProductAttention implementation (cudnn) has no Chunked mask; use xla or"
            " tokamax."
        ],
    ),
    (
        check_attention,
        HEADS | dict(mask=Causal(), sinks=object(), attention=CUDNN),
        [
            "DotProductAttention implementation (cudnn) has no attention sinks; use"
            " xla or tokamax."
        ],
    ),
    (check_attention, HEADS | dict(mask=SlidingWindow(4), attention=CUDNN), []),
    (
        check_attention,
        HEADS
        | dict(mask=Chunked(4), sinks=object(), attention=DotProductAttention("auto")),
        [],
    ),
    (check_stack, dict(layers=[1], repeats=1, execution=None), []),
    (
        check_stack,
        dict(layers=[1], repeats=10**9, execution=None),
        ["Stack repeats (1000000000) must be at most 10000."],
    ),
    (
        check_stack,
        dict(layers=[], repeats=0, execution=None),
        [
            "Stack repeats (0) must be at least 1; drop the stack.",
            "Stack layers must name at least one layer.",
        ],
    ),
    (check_dropout, dict(rate=0.0), []),
    (
        check_dropout,
        dict(rate=1.0),
        ["Dropout rate (1.0) must be at least 0 and below 1."],
    ),
]


@pytest.mark.parametrize(("check", "fields", "problems"), CASES)
def test_says_what_is_wrong(check, fields, problems):
    assert list(check(types.SimpleNamespace(**fields))) == problems


def test_a_tensor_to_keep_that_no_layer_gives_is_refused_with_those_there_are():
    config = tiny.experiment()
    remat = fdl.Config(SaveNamed, save=("query",), offload=("router_logits",))
    config.model.decoder.stacks[0].remat = remat
    with pytest.raises(ConfigError) as error:
        graph.validate(config)
    assert str(error.value).startswith(
        "invalid config: model.decoder: SaveNamed names router_logits, which no layer"
        " in the stacks of this model gives; they give attention_out, "
    )
    remat.offload = ("layer_in",)
    graph.validate(config)
