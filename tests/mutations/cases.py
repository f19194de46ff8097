"""How the laws try each mutation. A new mutation needs an entry in `CASES`."""

import dataclasses
from collections.abc import Callable

import fiddle as fdl

from maxfdl.data import Synthetic
from maxfdl.graph.expression import parse_call
from maxfdl.graph.names import mutations
from maxfdl.graph.resolve import mutate
from maxfdl.layers.execution import Unroll
from maxfdl.layers.pipeline import Pipeline
from maxfdl.model import LinenModel
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.sharding.mesh import MeshShape
from maxfdl.train.auxiliary import BatchBalance, SequenceBalance
from maxfdl.train.trainer import Trainer

MUTATIONS = sorted(mutations())
OF_ROUTERS = ("router_losses", "selection_bias")
"""Those whose result is valid only where the model has routers that they act on."""
OF_EXPERTS = ("capacity", "dropless")
"""Those that a model without experts refuses."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One mutation on trial.

    Args:
      call: What to apply, as `--fiddler` takes it.
      decides: What it is that the mutation decides. Of two that decide the same, the
        later wins; any others commute.
      undo: From the graph as it was, the call that brings it back.
    """

    call: str
    decides: str
    undo: Callable[[fdl.Buildable], str]


def _family(cfg: fdl.Buildable) -> str:
    return "to_linen" if fdl.get_callable(cfg.backend) is LinenModel else "to_nnx"


def _execution(cfg: fdl.Buildable) -> str:
    execution = cfg.model.decoder.stacks[0].execution
    if fdl.get_callable(execution) is Pipeline:
        fields = execution.__arguments__.items()
        return f"pipeline({', '.join(f'{name}={value}' for name, value in fields)})"
    if fdl.get_callable(execution) is Unroll:
        return "unroll_layers"
    return f"scan_layers(unroll={execution.unroll})"


def _remat(cfg: fdl.Buildable) -> str:
    return f"remat(policy={cfg.model.decoder.stacks[0].remat})"


def _mesh(cfg: fdl.Buildable) -> str:
    axes = [field.name for field in dataclasses.fields(MeshShape)]
    return f"mesh({', '.join(f'{axis}={getattr(cfg.mesh, axis)}' for axis in axes)})"


def _trainer(cfg: fdl.Buildable) -> str:
    trainer = cfg.trainer
    if fdl.get_callable(trainer) is Trainer:
        return "use_standard_trainer"
    outer, streaming = trainer.outer, trainer.streaming
    return (
        f"use_diloco(num_replicas={trainer.num_replicas},"
        f" sync_period={trainer.sync_period}, learning_rate={outer.learning_rate},"
        f" momentum={outer.rule.momentum}, nesterov={outer.rule.nesterov},"
        f" average={trainer.average}, fragments={streaming.fragments},"
        f" order={streaming.order}, overlap={streaming.overlap}, mix={streaming.mix},"
        f" eager={streaming.eager})"
    )


def _accumulation(cfg: fdl.Buildable) -> str:
    steps = getattr(cfg.trainer.gradients, "steps", 1)
    return f"gradient_accumulation(steps={steps})"


def _router_losses(cfg: fdl.Buildable) -> str:
    kinds = {SequenceBalance: "sequence_balance", BatchBalance: "batch_balance"}
    terms = {
        kinds.get(fdl.get_callable(term), "z"): term.coefficient
        for term in cfg.loss.auxiliary
    }
    arguments = ",".join(f"{name}={value}" for name, value in terms.items())
    return f"router_losses({arguments})"


def _selection_bias(cfg: fdl.Buildable) -> str:
    updates = cfg.trainer.updates
    return f"selection_bias(rate={updates[0].rate if updates else 0.0})"


def _rule(cfg: fdl.Buildable) -> str:
    rule = cfg.optimizer.rule
    return f"use_adamw(b1={rule.b1}, b2={rule.b2}, epsilon={rule.epsilon})"


def _schedule(cfg: fdl.Buildable) -> str:
    schedule = cfg.optimizer.schedule
    assert fdl.get_callable(schedule) is WarmupCosine
    fields = "".join(f", {k}={v}" for k, v in schedule.__arguments__.items())
    return f"use_schedule(kind=cosine{fields})"


def _text(cfg: fdl.Buildable) -> str:
    if fdl.get_callable(cfg.data) is Synthetic:
        rows = cfg.data.__arguments__.get("documents_per_row", 1)
        return f"synthetic(documents_per_row={rows})"
    return "python_source"


CASES = {
    "average_weights": Case(
        call="average_weights(decay=0.9)",
        decides="average of weights",
        undo=lambda cfg: "average_weights(decay=0.0)",
    ),
    "batch_ramp_up": Case(
        call="batch_ramp_up(start=2, steps=8)",
        decides="sizes of batches",
        undo=lambda cfg: "batch_ramp_up(start=0, steps=0)",
    ),
    "capacity": Case(
        call="capacity(factor=1.5)",
        decides="room of experts",
        undo=lambda cfg: "dropless",
    ),
    "compute_dtype": Case(
        call="compute_dtype(dtype=bfloat16)",
        decides="type of activations",
        undo=lambda cfg: f"compute_dtype(dtype={cfg.model.dtype})",
    ),
    "context_parallel": Case(
        call="context_parallel(kind=ulysses)",
        decides="attention over a cut sequence",
        undo=lambda cfg: "context_parallel(kind=ring)",
    ),
    "dequantize_weights": Case(
        call="dequantize_weights",
        decides="storage of kernels",
        undo=lambda cfg: "dequantize_weights",
    ),
    "disable_fp8": Case(
        call="disable_fp8", decides="products", undo=lambda cfg: "disable_fp8"
    ),
    "dropless": Case(
        call="dropless(room_factor=1.5)",
        decides="room of experts",
        undo=lambda cfg: "dropless",
    ),
    "enable_fp8": Case(
        call="enable_fp8", decides="products", undo=lambda cfg: "disable_fp8"
    ),
    "freeze": Case(
        call="freeze(roles=('embedding',), paths=('final_norm',))",
        decides="what is trained",
        undo=lambda cfg: "unfreeze",
    ),
    "gradient_accumulation": Case(
        call="gradient_accumulation(steps=2)",
        decides="microbatches",
        undo=_accumulation,
    ),
    "learning_rate_by_role": Case(
        call="learning_rate_by_role(embedding=3.0, bias=0.5)",
        decides="learning rates of roles",
        undo=lambda cfg: "learning_rate_by_role",
    ),
    "loss_scale": Case(
        call="loss_scale(initial=1024.0, growth_interval=2)",
        decides="scale of the loss",
        undo=lambda cfg: "loss_scale(initial=0.0)",
    ),
    **{
        name: Case(
            call=name,
            decides="how narrow parameters take updates",
            undo=lambda cfg: "nearest_rounding",
        )
        for name in ("master_weights", "nearest_rounding", "stochastic_rounding")
    },
    "mesh": Case(call="mesh(data=2, fsdp=2, tensor=2)", decides="mesh", undo=_mesh),
    "moment_storage": Case(
        call="moment_storage(kind=eight_bit, block_size=64)",
        decides="bytes of moments",
        undo=lambda cfg: "moment_storage(kind=float32)",
    ),
    "multi_token_prediction": Case(
        call="multi_token_prediction(depth=2)",
        decides="tokens beyond the next",
        undo=lambda cfg: "multi_token_prediction(depth=0)",
    ),
    "offload_activations": Case(
        call="offload_activations(save=('query', 'key'))",
        decides="remat",
        undo=_remat,
    ),
    "offload_optimizer": Case(
        call="offload_optimizer",
        decides="memory of the optimizer's state",
        undo=lambda cfg: "offload_optimizer(memory=device)",
    ),
    "offload_parameters": Case(
        call="offload_parameters",
        decides="memory of parameters",
        undo=lambda cfg: "offload_parameters(memory=device)",
    ),
    "param_dtype": Case(
        call="param_dtype(dtype=bfloat16)",
        decides="type of parameters",
        undo=lambda cfg: f"param_dtype(dtype={cfg.model.param_dtype})",
    ),
    "pipeline": Case(
        call="pipeline(stages=2, microbatches=2)",
        decides="execution",
        undo=_execution,
    ),
    "quantize": Case(
        call="quantize(format=int8, backward=True, rounding=stochastic)",
        decides="products",
        undo=lambda cfg: "quantize(format=none)",
    ),
    "quantize_cache": Case(
        call="quantize_cache",
        decides="storage of caches",
        undo=lambda cfg: "quantize_cache(format=None)",
    ),
    "quantize_weights": Case(
        call="quantize_weights(format=int4, group=16)",
        decides="storage of kernels",
        undo=lambda cfg: "dequantize_weights",
    ),
    "remat": Case(call="remat(policy=full)", decides="remat", undo=_remat),
    "router_losses": Case(
        call="router_losses(sequence_balance=1e-4,batch_balance=0.02,z=1e-3)",
        decides="auxiliary losses",
        undo=_router_losses,
    ),
    "scan_layers": Case(
        call="scan_layers(unroll=2)", decides="execution", undo=_execution
    ),
    "selection_bias": Case(
        call="selection_bias(rate=1e-3)",
        decides="updates of the layers' state",
        undo=_selection_bias,
    ),
    "emergency_checkpoints": Case(
        call="emergency_checkpoints(every=5)",
        decides="what is saved on local disks",
        undo=lambda cfg: "emergency_checkpoints(every=0)",
    ),
    "go_back": Case(
        call="go_back(steps=2)",
        decides="what follows rejected steps",
        undo=lambda cfg: "go_back(times=0)",
    ),
    "skip_spikes": Case(
        call="skip_spikes(window=16)",
        decides="which steps count",
        undo=lambda cfg: "skip_spikes(window=0)",
    ),
    "stop_at_loss": Case(
        call="stop_at_loss(loss=1.5)",
        decides="when to end",
        undo=lambda cfg: "stop_at_loss(loss=None)",
    ),
    "to_linen": Case(call="to_linen", decides="family", undo=_family),
    "to_nnx": Case(call="to_nnx", decides="family", undo=_family),
    "unfreeze": Case(
        call="unfreeze", decides="what is trained", undo=lambda cfg: "unfreeze"
    ),
    "unroll_layers": Case(call="unroll_layers", decides="execution", undo=_execution),
    **{
        name: Case(call=call, decides="update rule", undo=_rule)
        for name, call in {
            "use_adafactor": "use_adafactor",
            "use_adam_pax": "use_adam_pax",
            "use_adamw": "use_adamw(b2=0.99)",
            "use_lion": "use_lion",
            "use_muon": "use_muon(coefficients=dion)",
            "use_muonclip": "use_muonclip(threshold=50.0)",
            "use_schedule_free": "use_schedule_free(b1=0.95)",
            "use_sgd": "use_sgd(momentum=0.9)",
        }.items()
    },
    "use_diloco": Case(
        call="use_diloco(num_replicas=1, sync_period=3, average=tokens)",
        decides="trainer",
        undo=_trainer,
    ),
    "use_standard_trainer": Case(
        call="use_standard_trainer", decides="trainer", undo=_trainer
    ),
    "use_schedule": Case(
        call="use_schedule(kind=wsd, peak=5e-4, decay_steps=2, shape=one_minus_sqrt)",
        decides="learning rate by step",
        undo=_schedule,
    ),
    "vocab_tiling": Case(
        call="vocab_tiling(num_tiles=4)",
        decides="tiles of the loss",
        undo=lambda cfg: "vocab_tiling(num_tiles=1)",
    ),
    "weight_decay": Case(
        call="weight_decay(rate=0.05, embedding=0.0, scale=1.0)",
        decides="weight decay",
        undo=lambda cfg: f"weight_decay(rate={cfg.optimizer.weight_decay.rate})",
    ),
    **{
        name: Case(call=call, decides="text", undo=_text)
        for name, call in {
            "king_james": "king_james",
            "python_source": "python_source",
            "synthetic": "synthetic(documents_per_row=2)",
            "text_files": "text_files(files='notes/*.jsonl', field=body)",
        }.items()
    },
    "zero1": Case(
        call="zero1",
        decides="place of the optimizer's state",
        undo=lambda cfg: "zero1(optimizer=replicated)",
    ),
}

NOT_COMMUTING: dict[frozenset[str], str] = {}
"""Pairs that decide different things and yet do not commute, with the reason."""


def case(name: str) -> Case:
    assert name in CASES, (
        f"maxfdl.mutations.{name} has no entry in tests/mutations/cases.py; add a"
        " call to try, what it decides, and the call that undoes it."
    )
    return CASES[name]


def apply(cfg: fdl.Buildable, *calls: str) -> fdl.Buildable:
    """Returns `cfg` after `calls`, spelled as on the command line."""
    for call in calls:
        cfg = mutate(cfg, parse_call(call))
    return cfg
