"""Which parameters are frozen, by role and by path, and the two parts of a tree."""

import jax
import numpy as np
import pytest

from maxfdl.errors import UserError
from maxfdl.layers.frozen import Frozen, frozen, joined, trained
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant

KERNEL = Parameter((2, 3), ("embed", "mlp"), Constant(), "kernel", 1)
SCALE = Parameter((2,), ("norm",), Constant(1.0), "scale")


def layer():
    return {"query": {"kernel": KERNEL, "bias": SCALE}, "norm": {"scale": SCALE}}


def parameters():
    return {
        "embedding": {"table": KERNEL},
        "decoder": {
            "stacks_0": {"layers_0": layer(), "layers_1": layer()},
            "stacks_10": {"layers_0": layer()},
        },
        "head": {"kernel": KERNEL},
    }


def paths_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path) for path, _ in leaves}


def frozen_by(**fields):
    marked = Frozen(**fields).marked(parameters())
    return paths_of(frozen(marked, marked))


@pytest.mark.parametrize(
    ("path", "count", "example"),
    [
        ("embedding", 1, "embedding/table"),
        ("decoder", 9, "decoder/stacks_10/layers_0/norm/scale"),
        ("decoder.stacks[0]", 6, "decoder/stacks_0/layers_1/query/bias"),
        ("decoder.stacks[10].layers[0].query", 2, "decoder/stacks_10/layers_0/query/bias"),  # noqa: E501
        ("decoder.stacks[*].layers[0].norm", 2, "decoder/stacks_0/layers_0/norm/scale"),
        ("decoder.*.*.query.kernel", 3, "decoder/stacks_0/layers_0/query/kernel"),
        ("decoder.stacks", 9, "decoder/stacks_10/layers_0/norm/scale"),
        ("decoder.stacks.layers[1]", 3, "decoder/stacks_0/layers_1/query/bias"),
        ("**.query", 6, "decoder/stacks_0/layers_0/query/bias"),
        ("**.kernel", 4, "head/kernel"),
    ],
)  # fmt: skip
def test_a_path_selects_all_that_lies_below_it(path, count, example):
    found = frozen_by(paths=(path,))
    assert len(found) == count and example in found


def test_roles_and_exceptions_combine():
    assert len(frozen_by(roles=("kernel",))) == 5
    everything = dict(roles=("kernel", "scale"))
    assert frozen_by(**everything, trained_paths=("head", "**.norm")) == {
        "embedding/table",
        *(
            f"decoder/{place}/query/{name}"
            for place in (
                "stacks_0/layers_0",
                "stacks_0/layers_1",
                "stacks_10/layers_0",
            )
            for name in ("kernel", "bias")
        ),
    }
    kernels = frozen_by(paths=("decoder",), trained_roles=("scale",))
    assert {path.rpartition("/")[2] for path in kernels} == {"kernel"}


def test_a_type_is_that_of_what_is_frozen_alone():
    marked = Frozen(paths=("head",), dtype="bfloat16").marked(parameters())
    assert marked["head"]["kernel"].dtype == "bfloat16"
    assert marked["embedding"]["table"].dtype is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"paths": ("embeding",)}, r"\[embeding\] must match.*mean 'embedding'"),
        ({"paths": ("decoder.stacks[1]",)}, r"mean .*'decoder.stacks\[10\]'"),
        ({"paths": ("head",), "trained_paths": ("tail",)}, r"\[tail\] must match"),
        ({"roles": ("bias",)}, r"\[bias\] must be .* which has kernel, scale"),
        ({"roles": ("kernel", "scale")}, "leaves no parameter to train"),
        ({"paths": ("**",)}, "leaves no parameter to train"),
    ],
)
def test_what_selects_nothing_or_everything_is_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        frozen_by(**fields)


def test_the_two_parts_make_the_whole():
    marked = Frozen(paths=("head", "**.norm")).marked(parameters())
    values = jax.tree.map(lambda p: np.zeros(p.shape), marked)
    one, other = trained(marked, values), frozen(marked, values)
    assert "head" not in one and not paths_of(one) & paths_of(other)
    assert jax.tree.structure(joined(one, other)) == jax.tree.structure(values)
    assert trained(parameters(), values).keys() == values.keys()
    assert frozen(parameters(), values) == {}
