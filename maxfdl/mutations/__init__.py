"""Mutations: pure functions from graph to graph, the vocabulary of `--fiddler`.

A mutation and its inverse share a file, and so do those that decide one thing. Each
returns a new graph and leaves its input alone; doing it twice is doing it once. Those
that change a network change `model`; with `under`, that at another path.
"""

from maxfdl.mutations.average_weights import average_weights
from maxfdl.mutations.context_parallel import context_parallel
from maxfdl.mutations.course import batch_ramp_up, stop_at_loss
from maxfdl.mutations.diloco import use_diloco, use_standard_trainer
from maxfdl.mutations.dispatch import capacity, dropless
from maxfdl.mutations.dtypes import compute_dtype, param_dtype
from maxfdl.mutations.emergency_checkpoints import emergency_checkpoints
from maxfdl.mutations.execution import pipeline, scan_layers, unroll_layers
from maxfdl.mutations.family import to_linen, to_nnx
from maxfdl.mutations.fp8 import disable_fp8, enable_fp8
from maxfdl.mutations.freeze import freeze, unfreeze
from maxfdl.mutations.gradient_accumulation import gradient_accumulation
from maxfdl.mutations.guards import go_back, loss_scale, skip_spikes
from maxfdl.mutations.mesh import mesh
from maxfdl.mutations.moments import moment_storage
from maxfdl.mutations.multi_token_prediction import multi_token_prediction
from maxfdl.mutations.narrow_updates import (
    master_weights,
    nearest_rounding,
    stochastic_rounding,
)
from maxfdl.mutations.optimizers import (
    use_adafactor,
    use_adam_pax,
    use_adamw,
    use_lion,
    use_muon,
    use_muonclip,
    use_schedule_free,
    use_sgd,
)
from maxfdl.mutations.placement import offload_optimizer, offload_parameters, zero1
from maxfdl.mutations.quantize import quantize
from maxfdl.mutations.quantize_cache import quantize_cache
from maxfdl.mutations.quantize_weights import dequantize_weights, quantize_weights
from maxfdl.mutations.rates import learning_rate_by_role, use_schedule, weight_decay
from maxfdl.mutations.remat import offload_activations, remat
from maxfdl.mutations.router_losses import router_losses, selection_bias
from maxfdl.mutations.text import king_james, python_source, synthetic, text_files
from maxfdl.mutations.vocab_tiling import vocab_tiling

__all__ = [
    "average_weights",
    "batch_ramp_up",
    "capacity",
    "compute_dtype",
    "context_parallel",
    "dequantize_weights",
    "disable_fp8",
    "dropless",
    "emergency_checkpoints",
    "enable_fp8",
    "freeze",
    "go_back",
    "gradient_accumulation",
    "king_james",
    "learning_rate_by_role",
    "loss_scale",
    "master_weights",
    "mesh",
    "moment_storage",
    "multi_token_prediction",
    "nearest_rounding",
    "offload_activations",
    "offload_optimizer",
    "offload_parameters",
    "param_dtype",
    "pipeline",
    "python_source",
    "quantize",
    "quantize_cache",
    "quantize_weights",
    "remat",
    "router_losses",
    "scan_layers",
    "selection_bias",
    "skip_spikes",
    "stochastic_rounding",
    "stop_at_loss",
    "synthetic",
    "text_files",
    "to_linen",
    "to_nnx",
    "unfreeze",
    "unroll_layers",
    "use_adafactor",
    "use_adam_pax",
    "use_adamw",
    "use_diloco",
    "use_lion",
    "use_muon",
    "use_muonclip",
    "use_schedule",
    "use_schedule_free",
    "use_sgd",
    "use_standard_trainer",
    "vocab_tiling",
    "weight_decay",
    "zero1",
]
