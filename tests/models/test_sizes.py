"""Published sizes: as many weights as are published, and as their docstrings say."""

import re

import pytest

from fdl_configs.models.catalogue import MODELS
from maxfdl import graph
from maxfdl.model import NnxModel
from maxfdl.report.zoo import num_parameters

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@pytest.mark.parametrize("name", MODELS)
def test_a_size_has_as_many_weights_as_are_published(name):
    size = MODELS[name]
    count = num_parameters(NnxModel(module=graph.build(size.make())))
    assert re.match(rf"{count:,} parameters\b", size.make.__doc__ or "")
    if isinstance(size.parameters, str):
        number, unit = size.parameters[:-1], size.parameters[-1]
        assert round(count / _UNITS[unit]) == int(number)
    else:
        assert count == size.parameters


def test_every_size_has_another_name():
    assert len({size.make for size in MODELS.values()}) == len(MODELS)
    assert all(name == size.make.__name__ for name, size in MODELS.items())
