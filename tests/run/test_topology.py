"""Names of topologies: what is refused, and how. Compiling for one is slow."""

import importlib.util

import pytest

from maxfdl.errors import UserError
from maxfdl.run.topology import devices_of


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p-128", "must be a TPU generation (v4, v5e, v5p, v6e, tpu7x), a colon,"),
        ("", "must be a TPU generation"),
        ("v5e:", "must be a TPU generation"),
        ("v5e:0x4", "must be a TPU generation"),
        ("v5e:4x4x4", "must have 2 dims, for a slice of v5e is a torus of 2 dims"),
        ("v5p:4x4", "must have 3 dims, .* as in v5p:4x4x4"),
        ("h100:8", "for slices of TPUs only; .* leave --topology out"),
        ("NVIDIA H200", "for slices of TPUs only"),
    ],
)
def test_a_name_that_is_none_is_refused_before_libtpu_is_asked(name, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
        devices_of(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'maxfdl\[tpu\]'"):
        devices_of("v5e:4x4")


@pytest.mark.slow
def test_libtpu_refuses_in_a_sentence_what_no_slice_is():
    pytest.importorskip("libtpu")
    assert len(devices_of("v5e:4x4", num_slices=2)) == 32
    assert len(devices_of("v6e:1x1")) == 1  # a part of a host
    with pytest.raises(UserError, match="v5e:3x5 is refused by libtpu .*; give the"):
        devices_of("v5e:3x5")
