"""Rules between the fields of one layer, checked on the graph before it is built."""

from maxfdl.ops.fused_attention import KERNELS, Demand, refusal
from maxfdl.ops.mask import Band
from maxfdl.ops.product import Ends

MOST_LAYERS = 10_000
"""Layers that a stack may have: unrolled, each takes its time to trace."""


WIDEST_HEAD = 2**16
"""Features that a head may have: their frequencies are computed on the host."""


def check_attention(node):
    if node.num_kv_heads < 1 or node.num_heads % node.num_kv_heads:
        yield (
            f"Attention num_heads ({node.num_heads}) must be a multiple of num_kv_heads"
            f" ({node.num_kv_heads})."
        )
    if node.head_dim < 2 or node.head_dim % 2:
        yield f"Attention head_dim ({node.head_dim}) must be even to be rotated."
    elif node.head_dim > WIDEST_HEAD:
        yield f"Attention head_dim ({node.head_dim}) must be at most {WIDEST_HEAD}."
    else:
        yield from _check_rotation(getattr(node, "rope", None), node.head_dim)
    yield from _check_kernel(node, ("head_dim",), "head_dim")


def check_latent_attention(node):
    if node.rope_dim < 2 or node.rope_dim % 2:
        yield f"LatentAttention rope_dim ({node.rope_dim}) must be even to be rotated."
    elif node.rope_dim > WIDEST_HEAD:
        yield (
            f"LatentAttention rope_dim ({node.rope_dim}) must be at most {WIDEST_HEAD}."
        )
    else:
        yield from _check_rotation(getattr(node, "rope", None), node.rope_dim)
    for name in ("key", "value"):
        if getattr(getattr(node, name), "use_bias", False):
            yield f"LatentAttention {name}.use_bias (True) must be False."
    yield from _check_kernel(node, ("nope_dim", "rope_dim"), "value_dim")


def _check_kernel(node, key_dims, value_dim):
    """Refuses a fused kernel that cannot do what this layer will ask of it.

    The widths of a key, which add up, and of a value are given by their fields.
    """
    name = getattr(getattr(node, "attention", None), "implementation", None)
    if name not in KERNELS:
        return
    # The op itself tells of its soft cap.
    demand = Demand(
        band=Band(chunk=getattr(node.mask, "size", None)),
        has_sinks=getattr(node, "sinks", None) is not None,
        width=sum(getattr(node, dim) for dim in key_dims),
        value_width=getattr(node, value_dim),
    )
    problem = refusal(name, demand)
    yield from [problem] if problem else []


def _check_rotation(rope, width):
    """Rules between a rotary embedding and the width of the heads that it turns."""
    if rope is None or not 0 < rope.fraction <= 1:
        return  # of which the rope's own node tells the second
    turning = int(width * rope.fraction)
    if turning % 2:
        yield (
            f"Rope fraction ({rope.fraction}) must leave an even number of the {width}"
            f" features of a head to be rotated, which {turning} is not."
        )
    factors = getattr(rope, "short_factors", None)
    if factors is not None and len(factors) != turning // 2:
        yield (
            f"LongRope short_factors ({len(factors)} of them) must be"
            f" {turning // 2}, one for each pair of features that is rotated."
        )


def check_transformer(node):
    if node.later_tokens < 0:
        yield f"Transformer later_tokens ({node.later_tokens}) must not be negative."
    elif node.later_tokens and node.later_token is None:
        yield (
            f"Transformer later_tokens ({node.later_tokens}) needs later_token, the"
            " module that predicts one; the mutation multi_token_prediction sets both."
        )


def check_head(node):
    """Logits are formed after the layers have run, by a loss that may cut them."""
    recipe = getattr(node.dot, "recipe", None)
    if recipe is not None and recipe.made.keeps_state():
        yield (
            f"{node.made.__name__} dot.recipe ({recipe.made.__name__}) must be one that"
            " keeps no state between steps; leave the head out, or give it a recipe"
            " that scales by the tensors at hand."
        )


def check_stack(node):
    if node.repeats < 1:
        yield f"Stack repeats ({node.repeats}) must be at least 1; drop the stack."
    if node.repeats > MOST_LAYERS:
        yield f"Stack repeats ({node.repeats}) must be at most {MOST_LAYERS}."
    if not node.layers:
        yield "Stack layers must name at least one layer."
    execution = node.execution
    units = getattr(execution, "stages", 0) * getattr(execution, "repeats", 1)
    if node.repeats < units:
        yield (
            f"Stack repeats ({node.repeats}) must be at least the stages of its"
            f" pipeline, times its repeats ({units}); take fewer stages, or run it by"
            " Scan."
        )


def check_decoder(decoder):
    yield from _check_names_of_remat(decoder)
    yield from _check_ends(decoder)


def _check_ends(decoder):
    """Products must not be other ones in all layers than they are said to be."""
    total = sum(len(stack.layers) * stack.repeats for stack in decoder.stacks)
    ends = [node for node in decoder.below() if node.made is Ends]
    for first, last in dict.fromkeys((each.first, each.last) for each in ends):
        if first + last >= total:
            yield (
                f"Ends first ({first}) and last ({last}) must leave a layer between"
                f" them, of the {total} that the decoder has."
            )


def _check_names_of_remat(decoder):
    """What `remat` names must be a tensor that a layer of some stack gives."""
    remats = [stack.remat for stack in decoder.stacks]
    names = [
        name
        for each in remats
        if hasattr(each, "save")
        for name in (*each.save, *each.offload)
    ]
    given = {name for each in decoder.below() for name in _named_tensors(each)}
    if missing := [name for name in dict.fromkeys(names) if name not in given]:
        yield (
            f"SaveNamed names {', '.join(missing)}, which no layer in the stacks of"
            f" this model gives; they give {', '.join(sorted(given))}."
        )


def _named_tensors(node):
    return getattr(node.made, "named_tensors", ())


def check_dropout(node):
    if not 0.0 <= node.rate < 1.0:
        yield f"Dropout rate ({node.rate}) must be at least 0 and below 1."


def check_convolution(node):
    if node.width < 1:
        yield f"CausalConvolution width ({node.width}) must be at least 1 token."


def check_gated_delta_net(node):
    if node.num_key_heads < 1 or node.num_value_heads % node.num_key_heads:
        yield (
            f"GatedDeltaNet num_value_heads ({node.num_value_heads}) must be a multiple"
            f" of num_key_heads ({node.num_key_heads})."
        )


def check_moe(node):
    if node.shared_gate is not None and node.shared is None:
        yield "MoE shared_gate must be None where shared is: it has nothing to gate."
    routing = node.router.routing
    if routing is None or routing.k is None:
        return  # which the router's own node says
    if routing.k > node.num_experts:
        yield f"TopK k ({routing.k}) must not exceed num_experts ({node.num_experts})."
    limit = routing.limit
    if limit is None or not (limit.groups and limit.kept and limit.best):
        return
    size = node.num_experts // limit.groups
    if node.num_experts % limit.groups:
        yield (
            f"GroupLimit groups ({limit.groups}) must divide num_experts"
            f" ({node.num_experts})."
        )
    elif limit.best > size or routing.k > limit.kept * size:
        yield (
            f"GroupLimit best ({limit.best}) and TopK k ({routing.k}) must not exceed"
            f" the experts of one group ({size}) and of all kept ones"
            f" ({limit.kept * size})."
        )
