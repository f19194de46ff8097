"""Each layout against indices written out, and both ways against each other."""

import jax
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.tensors.layouts import Alternating, AsDeclared, Depthwise, Fused


def declare(shape, contracted=0, batched=0, role=None):
    role = role or ("kernel" if contracted else "bias")
    axes = ("embed",) * len(shape)
    return Parameter(shape, axes, Constant(), role, contracted, batched)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


D, H, K, G, E, F = 5, 4, 3, 2, 2, 6

CASES = {
    "kernel to heads": (AsDeclared(), [declare((D, H, K), 1)], [(H * K, D)]),
    "kernel from heads": (AsDeclared(), [declare((H, K, D), 2)], [(D, H * K)]),
    "bias": (AsDeclared(), [declare((H, K))], [(H * K,)]),
    "embedding": (AsDeclared(), [declare((D, H), role="embedding")], [(D, H)]),
    "as it lies": (AsDeclared(False), [declare((D, H, K), 1)], [(D, H * K)]),
    "experts": (AsDeclared(), [declare((E, D, F), 1, 1)], [(E, F, D)]),
    "biases of experts": (AsDeclared(), [declare((E, F), batched=1)], [(E, F)]),
    "fused": (
        Fused(),
        [declare((D, H, K), 1), declare((D, G, K), 1), declare((D, G, K), 1)],
        [((H + 2 * G) * K, D)],
    ),
    "fused as it lies": (
        Fused(transposed=False),
        [declare((D, H, K), 1), declare((D, H, K), 1)],
        [(D, 2 * H * K)],
    ),
    "fused biases": (Fused(), [declare((H, K)), declare((G, K))], [((H + G) * K,)]),
    "fused experts as they lie": (
        Fused(transposed=False),
        [declare((E, D, F), 1, 1), declare((E, D, F), 1, 1)],
        [(E, D, 2 * F)],
    ),
    "fused by head": (
        Fused(groups="heads"),
        [declare((D, H, K), 1), declare((D, H, 2 * K), 1)],
        [(H * 3 * K, D)],
    ),
    "fused by group of heads": (
        Fused(groups="groups"),
        [declare((D, G, K), 1), declare((D, H, K), 1)],
        [((G + H) * K, D)],
    ),
    "depthwise": (
        Depthwise(),
        [declare((D, G, K), 1), declare((D, H, K), 1)],
        [((G + H) * K, 1, D)],
    ),
    "to a number": (AsDeclared(), [declare((D,), 1)], [(1, D)]),
    "alternating": (
        Alternating(transposed=False),
        [declare((E, D, F), 1, 1), declare((E, D, F), 1, 1)],
        [(E, D, 2 * F)],
    ),
    "alternating biases": (
        Alternating(),
        [declare((E, F), batched=1), declare((E, F), batched=1)],
        [(E, 2 * F)],
    ),
    "alternating rows": (
        Alternating(),
        [declare((D, F), 1), declare((D, F), 1)],
        [(2 * F, D)],
    ),
}
CONFIG = {"heads": H, "groups": G}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_together_change_nothing(case):
    layout, declared, shapes = CASES[case]
    theirs = [numbers(*shape) for shape in shapes]
    ours = layout.to_ours(theirs, declared, CONFIG)
    assert [x.shape for x in ours] == [each.shape for each in declared]
    for x, back in zip(theirs, layout.to_theirs(ours, declared, CONFIG), strict=True):
        np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_known_without_values(case):
    layout, declared, shapes = CASES[case]
    ours = [jax.ShapeDtypeStruct(each.shape, "float32") for each in declared]
    theirs = jax.eval_shape(lambda xs: layout.to_theirs(xs, declared, CONFIG), ours)
    assert [x.shape for x in theirs] == shapes


def ours_of(case):
    layout, declared, shapes = CASES[case]
    theirs = [numbers(*shape) for shape in shapes]
    return layout.to_ours(theirs, declared, CONFIG), theirs[0]


def test_a_kernel_to_heads_is_transposed():
    (kernel,), weight = ours_of("kernel to heads")
    assert kernel[1, 2, 0] == weight[2 * K, 1]


def test_a_kernel_from_heads_is_transposed():
    (kernel,), weight = ours_of("kernel from heads")
    assert kernel[2, 1, 4] == weight[4, 2 * K + 1]


def test_a_kernel_of_experts_is_transposed_one_by_one():
    (kernel,), weight = ours_of("experts")
    assert kernel[1, 2, 3] == weight[1, 3, 2]


def test_fused_parts_come_one_after_the_other():
    (query, key, value), weight = ours_of("fused")
    assert query[1, 2, 0] == weight[2 * K, 1]
    assert key[1, 1, 2] == weight[H * K + K + 2, 1]
    assert value[1, 0, 1] == weight[(H + G) * K + 1, 1]


def test_fused_parts_that_lie_as_ours_are_cut_in_the_last_dim():
    (query, key), weight = ours_of("fused as it lies")
    assert key[1, 2, 0] == weight[1, H * K + 2 * K]
    assert query[1, 2, 0] == weight[1, 2 * K]
    (gate, up), weight = ours_of("fused experts as they lie")
    assert gate[1, 2, 3] == weight[1, 2, 3]
    assert up[1, 2, 3] == weight[1, 2, F + 3]


def test_parts_fused_by_head_take_turns():
    (key, value), weight = ours_of("fused by head")
    assert key[1, 2, 0] == weight[2 * 3 * K, 1]
    assert value[1, 2, 4] == weight[2 * 3 * K + K + 4, 1]


def test_parts_of_different_numbers_of_heads_take_turns_by_group():
    (query, value), weight = ours_of("fused by group of heads")
    group = (1 + H // G) * K
    assert query[1, 1, 2] == weight[group + 2, 1]
    assert value[1, 3, 2] == weight[group + K + K + 2, 1]


def test_channels_of_depthwise_kernels_come_one_after_the_other():
    (query, value), weight = ours_of("depthwise")
    assert query[3, 1, 2] == weight[K + 2, 0, 3]
    assert value[3, 1, 2] == weight[G * K + K + 2, 0, 3]


def test_alternating_outputs_are_even_and_odd():
    (gate, up), weight = ours_of("alternating")
    assert gate[1, 2, 3] == weight[1, 2, 6]
    assert up[1, 2, 3] == weight[1, 2, 7]
    (gate, up), weight = ours_of("alternating rows")
    assert up[2, 3] == weight[7, 2]
