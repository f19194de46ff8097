"""All problems of a graph at once, each with its path and who caused it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol

import fiddle as fdl
import pytest
from flax import nnx as flax_nnx

from maxfdl.errors import ConfigError
from maxfdl.graph import dump_json, load_json, validate
from tests.graph.toys import TRUST, mutations, ops, root
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers


def problems(cfg) -> str:
    with pytest.raises(ConfigError) as error:
        validate(cfg)
    return str(error.value)


class Documents(Protocol):
    """A structural type, whose methods a `str` and a `list` have too."""

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typed:
    """One field of each kind of annotation."""

    i: int = 0
    f: float = 0.0
    b: bool = False
    s: str = ""
    maybe: int | None = None
    word: Literal["a", "b", 1] = "a"
    ints: list[int] = dataclasses.field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    many: tuple[float, ...] = ()
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    fn: Callable[..., Any] | None = None
    op: ops.Dot | None = None
    several: Sequence[ops.Dot] = ()
    layer: Callable[..., layers.Linear] | None = None
    cls: type[ops.Dot] | None = None
    documents: Documents | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "field, value",
    [
        ("i", 3),
        ("f", 3),
        ("f", 0.5),
        ("b", True),
        ("maybe", None),
        ("maybe", 3),
        ("word", "b"),
        ("word", 1),
        ("ints", [1, 2]),
        ("pair", (1, "x")),
        ("many", (1, 2.5)),
        ("table", {"x": 1}),
        ("fn", len),
        ("fn", fdl.Partial(ops.Dot)),
        ("fn", fdl.Config(ops.Dot)),
        ("op", fdl.Config(ops.Dot)),
        ("op", fdl.Config(ops.Fp8Dot)),
        ("several", [fdl.Config(ops.Dot)]),
        ("layer", fdl.Partial(layers.LoraLinear)),
        ("layer", layers.LoraLinear),
        ("cls", ops.Fp8Dot),
        ("documents", fdl.Config(ops.Dot)),
        ("anything", object),
    ],
)
def test_values_that_fit_are_accepted(field, value):
    validate(fdl.Config(Typed, **{field: value}))


@pytest.mark.parametrize(
    "field, value, complaint",
    [
        ("i", "3", "i = '3' is not int"),
        ("i", True, "i = True is not int"),
        ("i", 3.0, "i = 3.0 is not int"),
        ("f", True, "f = True is not float"),
        ("b", 1, "b = 1 is not bool"),
        ("s", None, "s = None is not str"),
        ("maybe", "x", "maybe = 'x' is not int | None"),
        ("word", True, "word = True is not Literal['a', 'b', 1]"),
        ("ints", [1, "x"], "ints[1] = 'x' is not int"),
        ("ints", 3, "ints = 3 is not list[int]"),
        ("pair", (1,), "pair = (1,) is not tuple[int, str]"),
        ("pair", (1, 2), "pair[1] = 2 is not str"),
        ("table", {"x": "y"}, "table['x'] = 'y' is not int"),
        ("fn", 3, "fn = 3 is not Callable[..., Any] | None"),
        ("cls", int, "cls = builtins.int is not type["),
        ("several", "word", "several = 'word' is not Sequence["),
        (
            "several",
            {"a": 1},
            "several = {'a': 1} is not Sequence[Dot]; a no",
        ),
        ("table", [1], "table = [1] is not dict[str, int]"),
        ("layer", ops.Dot, "layer = tests.graph.toys.ops.Dot is not Callable["),
        ("layer", 3, "layer = 3 is not Callable[..., Linear] | None; a node belongs"),
        ("op", "word", "op = 'word' is not Dot | None; a node belongs there: fdl.Conf"),
        ("documents", "word", "documents = 'word' is not Documents | None; a node"),
        ("documents", [1], "documents = [1] is not Documents | None"),
        ("f", math.nan, "f = nan must be finite"),
        ("f", 10**400, "f = 1000"),
        ("many", (1.0, math.inf), "many[1] = inf must be finite"),
        ("anything", -math.inf, "anything = -inf must be finite"),
        ("anything", {"a": [math.nan]}, "anything = {'a': [nan]} must be finite"),
        ("op", fdl.Partial(ops.Dot), "op = Partial(Dot) is a factory, but Dot | None"),
        ("op", fdl.Config(Typed), "op = Config(Typed) is not Dot | None"),
        ("layer", fdl.Partial(ops.Dot), "layer = Partial(Dot) is not Callable["),
        ("layer", fdl.Config(layers.Linear), "layer is a Config of Linear, whose fea"),
    ],
)
def test_values_that_do_not_fit_are_named(field, value, complaint):
    if field == "layer" and isinstance(value, fdl.Config):
        value = fdl.Config(layers.Linear)
        complaint = (
            "layer is a Config of Linear, whose features, rngs the parent passes"
        )
    assert complaint in problems(fdl.Config(Typed, **{field: value}))


def test_all_problems_come_at_once_with_paths_and_lines():
    cfg = small.experiment()
    cfg.steps = "many"
    cfg.model.layers[1].num_heads = None
    del cfg.model.features
    text = problems(cfg)
    assert text.splitlines()[0] == "invalid config:"
    here = r"  (set at tests/graph/test_validate.py:"
    assert f"  steps = 'many' is not int{here}" in text
    assert f"  model.layers[1].num_heads = None is not int{here}" in text
    made = "  (node made at tests/graph/toys/experiments/small.py:"
    assert f"  model.features is required and not set{made}" in text
    assert len(text.splitlines()) == 4


def test_the_line_is_that_of_the_mutation_not_of_our_tools():
    cfg = mutations.enable_fp8(small.experiment(), forward="e3")
    assert "(set at tests/graph/toys/mutations.py:" in problems(cfg)


def test_a_field_of_the_parent_is_refused():
    cfg = small.experiment()
    cfg.model.layers[0].features = 3
    assert (
        "model.layers[0].features is passed by the parent and would be overridden; set"
        " the owning field instead"
    ) in problems(cfg)


def test_rngs_and_linen_names_belong_to_the_parent():
    cfg = small.experiment()
    cfg.model.rngs = None
    assert "model.rngs is passed by the parent" in problems(cfg)
    linen = mutations.to_linen(small.experiment())
    linen.model.name = "mine"
    assert "model.name is passed by the parent" in problems(linen)


def test_a_layer_that_is_built_at_once_is_refused():
    cfg = small.experiment()
    cfg.model.layers[0].q = fdl.Config(layers.Linear)
    assert "whose features, rngs the parent passes; use fdl.Partial" in problems(cfg)


def test_a_callable_layer_is_no_factory():
    """Its instance is callable too, which must not pass for a factory."""

    class Called(flax_nnx.Module):
        def __call__(self, x):
            return x

    assert "is built at once, but" in problems(fdl.Config(Typed, fn=fdl.Config(Called)))


def test_positional_arguments_are_refused():
    def positional(a, /):
        return a

    assert "[0] = 1 is positional; pass it by keyword" in problems(
        fdl.Config(positional, 1)
    )


def test_cross_field_rules_of_the_class_are_asked():
    cfg = small.experiment()
    cfg.model.layers[1].num_heads = 5
    assert problems(cfg) == (
        "invalid config: model.layers[1]: num_heads (5) must be a multiple of"
        " num_kv_heads (2)."
    )


def test_rules_are_not_asked_about_values_of_the_wrong_type():
    cfg = small.experiment()
    cfg.model.layers[0].num_heads = "many"
    assert "multiple" not in problems(cfg)


def test_rules_are_not_asked_about_a_node_with_such_a_value_below_it():
    """The other layer's rule is asked all the same."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ruled:
        layers: Sequence[Callable[..., layers.Attention]]

        @staticmethod
        def check_config(node):
            yield f"{node.layers[0].q.dtype.upper()} is what the rule saw."

    cfg = fdl.Config(Ruled, layers=[small.attention(), small.attention(num_heads=3)])
    cfg.layers[0].q.dtype = "bfloat16"
    assert "BFLOAT16 is what the rule saw." in problems(cfg)
    cfg.layers[0].q.dtype = 3
    text = problems(cfg)
    assert "saw" not in text and "layers[0].q.dtype = 3 is not str" in text
    assert "layers[1]: num_heads (3) must be a multiple" in text


def test_rules_see_defaults_children_and_none_for_what_is_not_set():
    seen = {}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ruled:
        child: ops.Dot | None = None
        table: dict = dataclasses.field(default_factory=dict)
        size: int = 7

        @staticmethod
        def check_config(node):
            seen.update(child=node.child.forward, table=node.table, size=node.size)
            return ()

    validate(fdl.Config(Ruled, child=fdl.Config(ops.Fp8Dot)))
    assert seen == {"child": "e4m3fn", "table": {}, "size": 7}


def test_parts_check_what_they_need_of_the_rest_of_a_graph_that_holds_all():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Part:
        needs: str

        @classmethod
        def check_in(cls, node, root):
            names = [each.made.__name__ for each in root.others[0].below()]
            if node.needs not in names:
                yield f"Part needs a {node.needs}, and there are {names}."

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Whole:
        holds_all: ClassVar[bool] = True
        part: Part
        others: list

    part = fdl.Config(Part, needs="Fp8Dot")
    others = [fdl.Partial(layers.Linear, dot=fdl.Config(ops.Dot))]
    cfg = fdl.Config(Whole, part=part, others=others)
    assert "part: Part needs a Fp8Dot, and there are ['Linear', 'Dot']." in problems(
        cfg
    )
    others[0].dot = fdl.Config(ops.Fp8Dot)
    validate(cfg)
    validate(part)  # alone, it has nothing to ask


def test_a_shared_node_is_reported_once():
    shared = fdl.Partial(layers.Linear, use_bias=3)
    cfg = small.attention()
    cfg.q = cfg.k = shared
    assert problems(cfg).count("use_bias") == 1


def test_only_a_graph_can_be_validated():
    with pytest.raises(ConfigError, match="must be a graph"):
        validate(3)


def test_a_loaded_graph_is_reported_without_lines():
    cfg = load_json(dump_json(fdl.Config(root.Experiment, steps="x"), TRUST), TRUST)
    assert "steps = 'x' is not int\n" in problems(cfg)
