"""Rules between the fields of one layer, checked on the graph before it is built."""


def check_attention(node):
    if node.num_kv_heads < 1 or node.num_heads % node.num_kv_heads:
        yield (
            f"Attention num_heads ({node.num_heads}) must be a multiple of num_kv_heads"
            f" ({node.num_kv_heads})."
        )
    if node.head_dim < 2 or node.head_dim % 2:
        yield f"Attention head_dim ({node.head_dim}) must be even to be rotated."


def check_stack(node):
    if node.repeats < 1:
        yield f"Stack repeats ({node.repeats}) must be at least 1; drop the stack."
    if not node.layers:
        yield "Stack layers must name at least one layer."


def check_dropout(node):
    if not 0.0 <= node.rate < 1.0:
        yield f"Dropout rate ({node.rate}) must be at least 0 and below 1."
