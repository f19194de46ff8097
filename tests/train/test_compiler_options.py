"""Options of the compiler by device."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.train import compiler_options as module
from maxfdl.train.compiler_options import compiler_options
from tests import tiny

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"
GATHERS = "xla_enable_async_all_gather"


def mesh(kind, devices):
    device = types.SimpleNamespace(device_kind=kind)
    return types.SimpleNamespace(devices=np.array([device] * devices), size=devices)


def test_several_nvidia_gpus_hide_collectives_behind_products(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert compiler_options(mesh("NVIDIA H100 80GB HBM3", 8)) == {SCHEDULER: True}
    assert compiler_options(mesh("NVIDIA H100 80GB HBM3", 1)) == {}
    assert compiler_options(mesh("cpu", 8)) == {}


def test_several_tpus_gather_weights_beside_products(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_spmd_threshold_for_windowed=1")
    for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite"):
        assert compiler_options(mesh(kind, 8))[GATHERS] is True
    assert compiler_options(mesh("TPU v5", 1)) == {}


def test_what_the_user_sets_for_libtpu_counts(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{GATHERS}=false")
    assert GATHERS not in compiler_options(mesh("TPU v5", 8))


@pytest.mark.parametrize("flag", [f"--{SCHEDULER}=false", f"--{SCHEDULER}"])
def test_what_the_user_sets_in_xla_flags_counts(monkeypatch, flag):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_autotune_level=2 {flag}")
    assert compiler_options(mesh("NVIDIA H200", 8)) == {}


def test_the_user_may_keep_them_in_a_file(monkeypatch, tmp_path):
    file = tmp_path / "flags.txt"
    file.write_text(f"--xla_gpu_autotune_level=2\n--{SCHEDULER}=false\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    assert compiler_options(mesh("NVIDIA H200", 8)) == {}


def test_this_version_of_xla_knows_every_option():
    lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(()))
    for kind, _, options in module._TABLE:
        if kind == "TPU":  # tests/sharding/test_fsdp.py compiles for some
            continue
        lowered.compile(compiler_options=options)


def test_the_step_is_compiled_with_them(monkeypatch):
    monkeypatch.setattr(module, "_TABLE", (("cpu", 1, {"xla_no_such_option": True}),))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        tiny.program(tiny.experiment()).compile_step()
