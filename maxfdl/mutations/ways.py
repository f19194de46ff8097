"""Which mutation or experiment sets each kind of node, for error messages.

They are shown to a user who sets such a field to a word, a number or a list.
"""

from maxfdl.data import Data, Source, Tokenizer
from maxfdl.layers import linen, nnx
from maxfdl.layers.cache import CacheFormat
from maxfdl.layers.execution import Execution
from maxfdl.layers.frozen import Frozen
from maxfdl.ops.codec import Codec, Simulated
from maxfdl.ops.context_parallel import ContextParallel
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.dot import MatrixProduct
from maxfdl.ops.experts import Dispatch
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.product import Ends
from maxfdl.ops.recipe import Recipe
from maxfdl.optim.schedules import Schedule
from maxfdl.optim.transforms import UpdateRule, WeightDecay
from maxfdl.sharding.mesh import MeshShape
from maxfdl.train.auxiliary import AuxiliaryLoss
from maxfdl.train.exchange import Exchange
from maxfdl.train.fragments import Streaming
from maxfdl.train.gradients import Gradients
from maxfdl.train.guard import Guard
from maxfdl.train.outer import Outer
from maxfdl.train.placement import Placement
from maxfdl.train.trainer import Trainer
from maxfdl.train.updates import Update

_DATA = "the mutation text_files(files=...), king_james, python_source or synthetic"
_PRODUCTS = "the mutation enable_fp8(recipe=...) or quantize(format=...)"
_MODEL = "the experiment experiments.pretrain(model=...)"

WAYS: dict[type, str] = {
    Tokenizer: "the experiment experiments.pretrain(model=..., tokenizer=...)",
    Source: "the mutation text_files(files=...), king_james or python_source",
    Data: _DATA,
    nnx.Transformer: _MODEL,
    linen.Transformer: _MODEL,
    Execution: "the mutation scan_layers, unroll_layers or pipeline(stages=...)",
    CrossEntropy: "the mutation vocab_tiling(num_tiles=...)",
    MatrixProduct: _PRODUCTS,
    GroupedProduct: _PRODUCTS,
    Recipe: _PRODUCTS,
    Ends: "the mutation enable_fp8 or quantize(first_layers=..., last_layers=...)",
    CacheFormat: "the mutation quantize_cache(format=...)",
    Codec: "the mutation quantize_weights(format=...)",
    Simulated: "the mutation quantize_weights(simulate=True)",
    UpdateRule: "the mutation use_adafactor, use_adam_pax, use_adamw, use_lion,"
    " use_muon, use_muonclip, use_schedule_free or use_sgd",
    Schedule: "the mutation use_schedule(kind=...)",
    WeightDecay: "the mutation weight_decay(rate=...)",
    ContextParallel: "the mutation context_parallel(kind=...)",
    Dispatch: "the mutation capacity(factor=...) or dropless",
    MeshShape: "the mutation mesh(data=..., fsdp=..., tensor=..., ...)",
    AuxiliaryLoss: "the mutation router_losses(...)",
    Gradients: "the mutation gradient_accumulation(steps=...)",
    Guard: "the mutation skip_spikes",
    Trainer: "the mutation use_diloco(num_replicas=..., sync_period=...)"
    " or use_standard_trainer",
    Outer: "the mutation use_diloco(learning_rate=..., momentum=...)",
    Exchange: "the mutation use_diloco(exchange=...)",
    Streaming: "the mutation use_diloco(fragments=..., overlap=..., mix=...)",
    Placement: "the mutation zero1, offload_optimizer or offload_parameters",
    Frozen: "the mutation freeze(roles=...) or freeze(paths=...)",
    Update: "the mutation average_weights or selection_bias(rate=...)",
}
