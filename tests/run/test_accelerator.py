"""What the checks of an accelerator find, on a CPU and with faults put in."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from fdl_configs.models.catalogue import MODELS
from maxfdl import graph
from maxfdl.bench import make_experiment
from maxfdl.errors import UserError
from maxfdl.ops import attention as attention_op
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import SlidingWindow
from maxfdl.run.accelerator import (
    attention,
    fp8,
    losses,
    offload,
    probes,
    report,
    speed,
    suite,
)
from maxfdl.run.accelerator.attention_cases import CASES, inputs_of
from maxfdl.run.accelerator.check import Bench, Outcome
from maxfdl.run.accelerator.processes import in_this_process
from maxfdl.run.benchmark import Figures, Spread

CASE = {case.name: case for case in CASES}
FIGURES = Figures(
    first_step_seconds=60.0,
    trace_seconds=3.0,
    compile_seconds=31.4,
    step_seconds=Spread(median=0.4, p10=0.39, p90=0.41),
    cpu_seconds_per_step=0.01,
    tokens_per_second=40_960.0,
    model_tflops_per_second=380.0,
    mfu=0.384,
    peak_bytes=44 * 2**30,
    peak_bytes_from="device",
    dispatch_microseconds=90.0,
)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    """tokamax looks for its flags in the command line, and this one is pytest's."""
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture(scope="module")
def on_a_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        patch.setattr(speed, "STEPS", 2)
        return list(suite.run(make_experiment, in_this_process, minutes=8))


@pytest.mark.slow
def test_everything_runs_on_a_cpu_too(on_a_cpu):
    statuses = {outcome.name: outcome.status for outcome in on_a_cpu}
    assert statuses == {
        "device": "measured",
        "attention/window/cudnn": "skipped",
        "attention/window/tokamax": "passed",
        "attention/cache/cudnn": "skipped",
        "attention/cache/tokamax": "refused",
        "attention/soft_cap/cudnn": "skipped",
        "attention/soft_cap/tokamax": "passed",
        "attention/latent/cudnn": "skipped",
        "attention/latent/tokamax": "passed",
        "losses/llama2_smoke": "passed",
        "losses/mixtral": "passed",
        "losses/gemma2": "passed",
        "offload/optimizer": "passed",
        "offload/activations": "passed",
        "product": "measured",
        "llama/batch_4": "measured",
        "fp8/product": "measured",
    }


@pytest.mark.slow
def test_the_text_says_what_was_done_and_why_not(on_a_cpu):
    text = {outcome.name: outcome.text for outcome in on_a_cpu}
    assert text["attention/window/cudnn"] == "cuDNN needs a GPU, and this is a cpu"
    assert re.match(
        r"error of \w+ \d\.\de-0\d \(\d\.\d\d times that of xla in bfloat16\), .+ ms"
        r" \(xla .+\)",
        text["attention/window/tokamax"],
    )
    assert text["attention/cache/tokamax"] == (
        "the attention op takes plain XLA for this"
    )
    assert re.match(
        r"20 losses, 6.1925 to 1.5138, within \d.\de-\d\d of those stored from a CPU",
        text["losses/llama2_smoke"],
    )
    assert text["product"].startswith("512^3 in bfloat16: ")
    assert text["llama/batch_4"].endswith("% of the product")
    assert text["fp8/product"].startswith("512^3 with gradients: ")


@pytest.mark.slow
def test_the_figures_are_json(on_a_cpu):
    figures = json.loads(json.dumps(report.as_json(on_a_cpu, 9.0), allow_nan=False))
    assert figures["device"]["platform"] == "cpu" and figures["failed"] == []
    assert figures["device"]["packages"]["jax"] == jax.__version__
    by_name = {check["name"]: check["figures"] for check in figures["checks"]}
    assert len(by_name["losses/gemma2"]["losses"]) == 20
    llama, product = by_name["llama/batch_4"], by_name["product"]
    assert llama["share_of_product"] == pytest.approx(
        llama["model_tflops_per_second"] / product["tflops_per_second"]
    )


# Attention.


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_programs_for_cudnn_can_be_made_without_a_card(case, monkeypatch):
    """JAX asks for the versions of cuDNN and of the card, and refuses shapes, before
    the driver is needed."""
    for name, value in (
        ("check_cudnn_version", 91400),
        ("check_compute_capability", True),
        ("is_cuda_compute_capability_equal", False),
    ):
        monkeypatch.setattr(
            fused_attention_stablehlo, name, lambda *args, value=value: value
        )
    lower = lambda implementation: (  # noqa: E731
        attention.trace(case, implementation, inputs_of(case, 128))
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    if case.is_cached:
        assert lower("cudnn") == lower("xla")
    elif case.is_packed:
        with pytest.raises(UserError, match=r"\(cudnn\) has no "):
            lower("cudnn")
    else:
        kernel = "__cudnn$fmhaSoftmax"
        assert attention._kernels(lower("cudnn")) == [kernel, f"{kernel}Backward"]


def test_rows_hold_documents_padding_and_caches_with_empty_slots():
    mask = inputs_of(CASE["packed"], 128).mask
    assert np.unique(mask.queries.segment_ids).tolist() == [0, 1, 2, 3]
    assert np.all(mask.dense().any(axis=-1))  # not even padding sees nothing
    seen = inputs_of(CASE["cache"], 128).mask.dense().sum(axis=-1)
    assert seen[:, 0].tolist() == [1, 65, 128, 128]
    seen = inputs_of(CASE["window_cache"], 128).mask.dense().sum(axis=-1)
    assert seen[:, 0].tolist() == [1, 38, 38, 38]


def test_no_gradient_comes_from_padding():
    inputs = inputs_of(CASE["packed"], 128)
    is_padding = inputs.mask.queries.segment_ids == 0
    assert np.any(is_padding)
    assert not np.any(inputs.upstream_BTHV[is_padding])


def with_kernel(monkeypatch, kernel):
    monkeypatch.setitem(attention_op.KERNELS, "tokamax", kernel)
    return attention.compare(CASE["window"], "tokamax", Bench(None, "cpu"))


def test_a_window_that_is_one_too_wide_fails(monkeypatch):
    def wider(q, k, v, mask, sinks, sharding, **kwargs):
        rule = SlidingWindow(mask.rule.window + 1)
        mask = dataclasses.replace(mask, rule=rule)
        return attention_op._attend_xla(q, k, v, mask, sinks, **kwargs)

    outcome = with_kernel(monkeypatch, wider)
    assert outcome.status == "failed" and "at most 4 is allowed" in outcome.text
    assert outcome.figures["times_the_error_of_xla"] > 10


def test_a_wrong_gradient_of_one_token_fails(monkeypatch):
    @jax.custom_vjp
    def broken(x):
        return x

    broken.defvjp(lambda x: (x, None), lambda _, dx: (dx.at[0, 5].multiply(1.2),))

    def kernel(q, *args, sharding, **kwargs):
        return attention_op._attend_xla(broken(q), *args, **kwargs)

    outcome = with_kernel(monkeypatch, kernel)
    assert outcome.status == "failed" and outcome.text.startswith("error of dq")


def test_numbers_that_are_not_finite_fail(monkeypatch):
    def kernel(*args, sharding, **kwargs):
        return attention_op._attend_xla(*args, **kwargs).at[0, 3].set(jnp.nan)

    outcome = with_kernel(monkeypatch, kernel)
    assert outcome.status == "failed" and "(inf times" in outcome.text
    json.dumps(report.as_json([outcome], 1.0), allow_nan=False)


def declining(*args, **kwargs):
    raise NotImplementedError("only for sm90\nand more")


def test_what_a_kernel_declines_is_refused_with_its_words(monkeypatch):
    outcome = with_kernel(monkeypatch, declining)
    assert outcome.status == "refused"
    assert outcome.text == (
        "DotProductAttention implementation (tokamax) cannot run here (only for sm90);"
        " use xla."
    )


def test_what_auto_takes_must_not_be_declined(monkeypatch):
    """Or training fails where nobody asked for the kernel."""
    monkeypatch.setattr(
        DotProductAttention,
        "resolve",
        lambda op, *args, **kwargs: op.implementation.replace("auto", "tokamax"),
    )
    outcome = with_kernel(monkeypatch, declining)
    assert outcome.status == "failed"
    assert outcome.text.endswith("; and auto takes it here")


# Training.


def test_another_loss_fails(monkeypatch):
    stored = list(losses.STORED["gemma2"])
    trained = [*stored[:7], stored[7] * (1 + 3e-5), *stored[8:]]
    fake = dataclasses.make_dataclass("Fake", ["losses"])(trained)
    monkeypatch.setattr(losses, "train", lambda *args, **kwargs: fake)
    outcome = losses.compare("gemma2", Bench(make_experiment, "gpu"))
    assert outcome.status == "failed" and "within 3.0e-05" in outcome.text
    trained[3] = float("nan")
    outcome = losses.compare("gemma2", Bench(make_experiment, "gpu"))
    assert outcome.status == "failed" and "within inf" in outcome.text


MIB = 2**20
RUN = offload._Run(
    losses=[2.0, 1.0],
    device=900 * MIB,
    host=0,
    state_on_host=0,
    in_use=600 * MIB,
)
MOVED = RUN._replace(
    device=600 * MIB, host=400 * MIB, state_on_host=400 * MIB, in_use=200 * MIB
)


@pytest.mark.parametrize(
    ("what", "after", "status"),
    [
        ("optimizer", MOVED, "passed"),
        ("activations", MOVED._replace(state_on_host=0, in_use=600 * MIB), "passed"),
        ("optimizer", MOVED._replace(losses=[2.0, 1.1]), "failed"),
        ("optimizer", MOVED._replace(state_on_host=0), "failed"),
        ("optimizer", MOVED._replace(in_use=600 * MIB), "failed"),
        ("optimizer", MOVED._replace(device=900 * MIB), "failed"),
        ("activations", MOVED._replace(device=900 * MIB), "failed"),
        ("activations", MOVED._replace(host=0), "failed"),
    ],
)
def test_offloading_must_empty_the_device_and_keep_the_losses(
    monkeypatch, what, after, status
):
    runs = iter([RUN, after])
    monkeypatch.setattr(offload, "_run", lambda make, graph: next(runs))
    outcome = offload.compare(what, Bench(make_experiment, "gpu"))
    assert outcome.status == status, outcome.text


def test_the_graphs_of_a_card_are_what_they_say():
    for name, expression in speed.GRAPHS.items():
        config = graph.validate(graph.resolve(expression))
        assert config.batch_size == int(name.split("_")[1])
        assert (config.sequence_length, config.model.dtype) == (4096, "bfloat16")
        assert config.model.decoder == remat_of(config, MODELS["llama3_2_1b"].make())
    assert graph.validate(graph.resolve("fdl_configs.bench.deep")).checkpoint is None
    for expression in fp8.GRAPHS.values():
        config = graph.validate(graph.resolve(f"{expression}+enable_fp8"))
        assert (config.sequence_length, config.model.dtype) == (4096, "bfloat16")


def remat_of(config, model):
    """Returns the decoder of `model` with the remat of `config`."""
    for stack, like in zip(
        model.decoder.stacks, config.model.decoder.stacks, strict=True
    ):
        if "remat" in like.__arguments__:
            stack.remat = like.remat
    return model.decoder


# Speed.


def measured(monkeypatch, module, figures):
    monkeypatch.setattr(module, "measure_graph", lambda graph, bench: figures)
    earlier = {"product": Outcome("measured", "", {"tflops_per_second": 760.0})}
    return Bench(make_experiment, "gpu", earlier)


def test_a_step_is_stated_as_a_share_of_the_product(monkeypatch):
    bench = measured(monkeypatch, speed, FIGURES)
    outcome = speed.train_llama("batch_4", bench)
    assert outcome.text == (
        "41k tokens/s, 380 model TFLOP/s, MFU 38.4%, peak 44 GiB, compiled in 31 s,"
        " 50.0% of the product"
    )
    assert outcome.figures["share_of_product"] == 0.5
    assert outcome.figures["graph"] == speed.GRAPHS["batch_4"]


def test_a_step_in_fp8_is_stated_in_times_of_bfloat16():
    faster = dataclasses.replace(
        FIGURES, tokens_per_second=1.25 * FIGURES.tokens_per_second
    )
    outcome = fp8.compared("a graph", FIGURES, faster)
    assert outcome.status == "measured"
    assert outcome.text.startswith("1.25 times bfloat16: 51.2k tokens/s, ")
    assert outcome.figures["times_bfloat16"] == 1.25


@pytest.mark.parametrize(("gemms", "status"), [(3, "passed"), (1, "failed")])
def test_products_in_fp8_must_be_those_of_cublas_on_a_gpu(monkeypatch, gemms, status):
    text = f'custom_call_target="{fp8.FP8_GEMM}" ' * gemms
    monkeypatch.setattr(fp8, "_timed", lambda dot, size: (1e-3, text))
    outcome = fp8.multiply(Bench(None, "gpu"))
    assert outcome.status == status
    assert outcome.text.startswith(f"{gemms} of 3 products call __cublas$lt$matmul$f8")


def test_the_smallest_batch_must_fit_in_80_gb(monkeypatch):
    def too_large(graph, bench):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")

    monkeypatch.setattr(speed, "measure_graph", too_large)

    def found(name, memory):
        device = Outcome("measured", "", {"memory_bytes": memory})
        return speed.train_llama(name, Bench(None, "gpu", {"device": device}))

    text = "does not fit: RESOURCE_EXHAUSTED: Out of memory"
    assert found("batch_4", 60 * 2**30) == Outcome("failed", text)
    assert found("batch_4", 18 * 2**30) == Outcome("refused", text)
    assert found("batch_8", 60 * 2**30) == Outcome("refused", text)


def test_flags_are_tried_on_the_fastest_llama_after_those_of_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=2")
    checks = {check.name: check for check in probes.checks("gpu")}
    check = checks["flags/no_triton_gemm"]
    assert check.is_alone and check.environment == {
        "XLA_FLAGS": "--xla_gpu_autotune_level=2 --xla_gpu_enable_triton_gemm=false"
    }
    assert probes.checks("cpu") == []

    bench = measured(monkeypatch, probes, FIGURES)
    assert check.run(bench).status == "skipped"
    for name, speed_ in (("llama/batch_4", 40_000.0), ("llama/batch_8", 39_000.0)):
        figures = {"tokens_per_second": speed_, "graph": name}
        bench.earlier[name] = Outcome("measured", "", figures, name=name)
    outcome = check.run(bench)
    assert outcome.text.startswith(
        "--xla_gpu_enable_triton_gemm=false helps: 1.024 times the speed of"
        " llama/batch_4, 41k tokens/s"
    )


# The whole.


def test_without_a_device_nothing_else_is_tried():
    def runner(checks, bench):
        yield checks[0].named(Outcome("failed", "no driver"))

    (outcome,) = suite.run(make_experiment, runner, minutes=8)
    assert (outcome.name, outcome.status) == ("device", "failed")


def test_sections_share_the_time_and_each_may_use_what_is_left():
    seen = {}

    def runner(checks, bench):
        seen.update(bench.last_starts)
        device = {"platform": "gpu"}
        for check in checks:
            yield check.named(Outcome("measured", "", device))

    names = [o.name for o in suite.run(make_experiment, runner, minutes=8)]
    starts = [seen[section.name] for section in suite.SECTIONS]
    assert starts == sorted(starts)
    assert starts[-1] - starts[0] == pytest.approx(8 * 60 * 0.75, abs=1)
    assert len(names) == len(set(names)) == 1 + 26 + 3 + 2 + 1 + 3 + 3 + 4
    assert max(map(len, names)) <= report._NAME


def test_a_section_that_there_is_not_is_one_sentence():
    with pytest.raises(
        UserError, match="^--accelerator_only=losess is no section. Did"
    ):
        next(suite.run(make_experiment, in_this_process, minutes=8, only=["losess"]))


def test_lines_and_summary_read():
    passed = Outcome("passed", "all of it", name="losses/mixtral", seconds=12.34)
    failed = Outcome("failed", "5 times", name="attention/window/cudnn", seconds=1.0)
    assert report.line(passed) == (
        "passed    losses/mixtral                  12.3 s  all of it"
    )
    assert report.summary([passed, failed], 73.4) == (
        "2 checks in 1m13s: 1 passed, 0 measured, 0 refused, 0 skipped, 1 failed"
        " (attention/window/cudnn)"
    )
