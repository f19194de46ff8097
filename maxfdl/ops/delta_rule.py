"""The gated delta rule: attention of linear cost, by a state that is corrected.

Letters: B rows, T tokens, G key heads, H value heads (a multiple of G), K width of a
query and key, V width of a value; C tokens of a chunk, N chunks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from maxfdl.markers import Operational
from maxfdl.ops.cost import declare_flops
from maxfdl.ops.documents import document_numbers, is_token, places_of_shard
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.mask import Places
from maxfdl.ops.ring import Cut, Ring


@dataclasses.dataclass(frozen=True)
class GatedDeltaRule:
    """A memory per head that forgets, and then learns by its own error.

    With keys and queries of length 1, queries scaled by `1 / sqrt(K)`, and `S` [K, V]:

        S_t = a_t S_{t-1} + k_t u_t^T      u_t = beta_t (v_t - (a_t S_{t-1})^T k_t)
        o_t = S_t^T q_t                    a_t = exp(log_decay_t)

    Yang et al. 2024, https://arxiv.org/abs/2412.06464. A document starts with a state
    of zeros; padding leaves the state as it is. All is float32, the output in the type
    of `v`.

    Several tokens are taken in chunks of C, in which the `u` of all tokens solve one
    triangular system (the WY form of Yang et al. 2024,
    https://arxiv.org/abs/2406.06484), so that only `T / C` steps follow each other.
    This costs `6 K V + C (3 K + 2 V) + C^2 / 3` FLOPs per token and head, what lies
    above the diagonal not counted; a single token costs `6 K V`.

    Args:
      chunk: C, a power of two.
      epsilon: Added to the squared length by which keys and queries are divided.
    """

    chunk: Annotated[int, Operational] = 64
    epsilon: float = 1e-6

    @staticmethod
    def check_config(node):
        if node.chunk < 1 or node.chunk & (node.chunk - 1):
            yield f"GatedDeltaRule chunk ({node.chunk}) must be a power of two."

    def __call__(
        self,
        q_BTGK: Float[Array, "B T G K"],
        k_BTGK: Float[Array, "B T G K"],
        v_BTHV: Float[Array, "B T H V"],
        log_decay_BTH: Float[Array, "B T H"],
        beta_BTH: Float[Array, "B T H"],
        places: Places,
        state_BHKV: Float[Array, "B H K V"] | None = None,
        *,
        sharding: Any | None = None,
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
        """Returns what each token reads, and the state after the last.

        Where a mesh cuts rows along their tokens, each device reads its own as if they
        began with zeros, and what its state adds once the shards before have told it,
        in `log2(n)` exchanges: this doubles the work on the state. `log_decay` is at
        most 0; a state of None is one of zeros.

        Args:
          q_BTGK, k_BTGK, v_BTHV, log_decay_BTH, beta_BTH: As above.
          places: Where the tokens stand.
          state_BHKV: The state that earlier tokens left.
          sharding: Where arrays lie, a `maxfdl.sharding.Sharding`; None on one device.
        """
        rows, tokens, heads, value_width = v_BTHV.shape
        key_width = q_BTGK.shape[-1]
        state = self.empty(k_BTGK, v_BTHV) if state_BHKV is None else state_BHKV
        cut = Cut.of(sharding, heads, heads)
        here = tokens if cut is None else tokens // cut.ring.size
        chunk = min(self.chunk, 2 ** math.ceil(math.log2(here)))
        run = _of_rows(chunk) if cut is None else _of_shards(chunk, cut)
        flops = rows * tokens * heads * _flops(chunk, key_width, value_width)
        per_head, token = heads // q_BTGK.shape[2], is_token(places)[..., None]
        out_BTHV, state = declare_flops(run, flops)(
            jnp.repeat(self._unit(q_BTGK), per_head, 2) / math.sqrt(key_width),
            jnp.repeat(self._unit(k_BTGK), per_head, 2),
            v_BTHV.astype(jnp.float32),
            jnp.where(token, log_decay_BTH.astype(jnp.float32), 0.0),
            jnp.where(token, beta_BTH.astype(jnp.float32), 0.0),
            places,
            state.astype(jnp.float32),
        )
        return out_BTHV.astype(v_BTHV.dtype), state

    @staticmethod
    def empty(
        k_BTGK: Float[Array, "B T G K"], v_BTHV: Float[Array, "B T H V"]
    ) -> Float[Array, "B H K V"]:
        """Returns the state of a document of such keys and values before it begins."""
        rows, _, heads, value_width = v_BTHV.shape
        return jnp.zeros((rows, heads, k_BTGK.shape[-1], value_width), jnp.float32)

    def _unit(self, x):
        x = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return x * lax.rsqrt(square + self.epsilon)


def _flops(chunk: int, key_width: int, value_width: int) -> int:
    """Returns the FLOPs per token and head."""
    step = 6 * key_width * value_width
    if chunk == 1:
        return step
    return step + chunk * (3 * key_width + 2 * value_width) + chunk**2 // 3


def _of_rows(chunk: int):
    def run(q, k, v, log_decay, beta, places, state):
        rule = _one_token if q.shape[1] == 1 else _in_chunks(chunk)
        return rule(q, k, v, log_decay, beta, document_numbers(places), state)

    return run


def _of_shards(chunk: int, cut: Cut):
    """Returns the rule for rows of which each device has a shard."""
    rule, ring = _in_chunks(chunk, cut.ring), cut.ring

    def on_shard(q, k, v, log_decay, beta, places, state):
        document = document_numbers(places_of_shard(places, ring))
        return rule(q, k, v, log_decay, beta, document, state)

    of_heads = PartitionSpec(cut.rows, cut.tokens, cut.heads)
    of_state = PartitionSpec(cut.rows, cut.heads)
    in_specs = (*[of_heads] * 5, cut.places, of_state)
    return cut.run(on_shard, in_specs, (of_heads, of_state))


def _one_token(q, k, v, log_decay, beta, document, state):
    q, k, v, log_decay, beta = (x[:, 0] for x in (q, k, v, log_decay, beta))
    goes_on = document[:, 0, None] == 0
    decay = jnp.where(goes_on, jnp.exp(log_decay), 0.0)
    state = decay[..., None, None] * state
    error = v - jnp.einsum("bhkv,bhk->bhv", state, k)
    state = state + jnp.einsum("bhk,bhv->bhkv", k, beta[..., None] * error)
    return jnp.einsum("bhkv,bhk->bhv", state, q)[:, None], state


def _in_chunks(chunk: int, ring: Ring | None = None):
    """Returns the rule in chunks; `i` is a token of a chunk, `j` one not after it.

    With a ring, the tokens are a shard of a row, and the state that is given counts on
    the first device only.
    """

    def run(q, k, v, log_decay, beta, document, state):
        rows, tokens, heads, width = v.shape
        q, k, v, log_decay, beta = (
            _cut(x, chunk) for x in (q, k, v, log_decay[..., None], beta[..., None])
        )
        document = _cut(document[:, :, None, None], chunk, mode="edge")[..., 0]
        last = jnp.pad(document[:-1, ..., -1:], ((1, 0), (0, 0), (0, 0), (0, 0)))
        goes_on, same = document == last, document[..., None] == document[..., None, :]

        within = jnp.where(same, _decays(log_decay), 0.0)
        since_start = jnp.exp(jnp.cumsum(log_decay, axis=-2))
        since_start = jnp.where(goes_on[..., None], since_start, 0.0)
        until_end = jnp.swapaxes(within[..., -1:, :], -1, -2)

        # u_i = beta_i (v_i - since_start_i S^T k_i - sum_{j<i} within_ij (k_i k_j) u_j)
        similar = jnp.einsum("nbhik,nbhjk->nbhij", k, k)
        solve = _unit_lower_inverse(jnp.tril(beta * within * similar, -1))
        u_of_values = solve @ (beta * v)
        u_of_state = solve @ (beta * since_start * k)
        mixes = within * jnp.einsum("nbhik,nbhjk->nbhij", q, k)

        def step(state, each):
            u_of_values, u_of_state, mixes, q, k, decay = each
            u = u_of_values - u_of_state @ state
            out = q @ state + mixes @ u
            return decay * state + jnp.swapaxes(k, -1, -2) @ u, out

        whole = since_start[..., -1:, :]
        each = u_of_values, u_of_state, mixes, since_start * q, until_end * k, whole
        if ring is None:
            state, out = lax.scan(step, state, each)
        else:
            state, out = _after_others(ring, step, state, each)
        out = out.transpose(1, 0, 3, 2, 4).reshape(rows, -1, heads, width)
        return out[:, :tokens], state

    return run


def _after_others(ring: Ring, step, state, each):
    """Runs the chunks of a shard whose first state is that of the shard before.

    All is linear in that state, `S`: a shard leaves `written + kept S`, and its
    tokens read `out + reads S`. The columns of `kept` and `reads` are found as if
    they were values, from an identity matrix as state, and with nothing written.
    """
    u_of_values, *others = each
    rows, heads, keys, width = state.shape
    nothing = [(0, 0)] * (u_of_values.ndim - 1) + [(0, keys)]
    start = jnp.where(ring.number == 0, state, 0.0)
    identity = jnp.broadcast_to(jnp.eye(keys), (rows, heads, keys, keys))
    last, out = lax.scan(
        step,
        jnp.concatenate([start, identity], axis=-1),
        (jnp.pad(u_of_values, nothing), *others),
    )
    (written, kept), (out, reads) = (
        jnp.split(x, [width], axis=-1) for x in (last, out)
    )
    far = 1
    while far < ring.size:
        # From the first devices on, shards are put together two by two. Zeros come to
        # those without a shard so far back: all is written then, and nothing is kept.
        written_before, kept_before = ring.before((written, kept), far)
        written, kept = written + kept @ written_before, kept @ kept_before
        far *= 2
    is_last = ring.number == ring.size - 1
    state = lax.psum(jnp.where(is_last, written, 0.0), ring.axis)
    return state, out + reads @ ring.before(written)


def _cut(x, chunk: int, mode: str = "constant"):
    """Returns [N, B, H, C, ...] of [B, T, H, ...], filled up at the end."""
    rows, tokens, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -tokens % chunk), (0, 0), (0, 0)), mode=mode)
    return x.reshape(rows, -1, chunk, heads, width).transpose(1, 0, 3, 2, 4)


def _decays(log_decay):
    """Returns what is left at `i` of what was written at `j`, 0 where j > i.

    Each is the sum of its own steps: a difference of sums from the start of the chunk
    would lose what is small beside them, and be NaN where a state was wiped out.
    """
    chunk = log_decay.shape[-2]
    ones = jnp.ones((chunk, chunk), bool)
    steps = jnp.where(jnp.tril(ones, -1), log_decay, 0.0)
    return jnp.where(jnp.tril(ones), jnp.exp(jnp.cumsum(steps, axis=-2)), 0.0)


@jax.custom_vjp
def _unit_lower_inverse(lower):
    """Returns `(1 + lower)^-1` of strictly lower triangular [..., C, C].

    Blocks on the diagonal are inverted two by two: [[a, 0], [c, b]] has the inverse
    [[a', 0], [-b' c a', b']]. The series of powers of `lower` would be shorter to
    write, and lose all digits where keys repeat.
    """
    chunk = lower.shape[-1]
    inverse = jnp.ones((*lower.shape[:-1], 1, 1), lower.dtype)
    size = 1
    while size < chunk:
        pairs = chunk // (2 * size)
        blocks = lower.reshape(*lower.shape[:-2], pairs, 2 * size, pairs, 2 * size)
        blocks = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        corner = -_exact(_exact(second, blocks[..., size:, :size]), first)
        above = jnp.zeros_like(first)
        inverse = jnp.concatenate(
            [
                jnp.concatenate([first, above], axis=-1),
                jnp.concatenate([corner, second], axis=-1),
            ],
            axis=-2,
        )
        size *= 2
    return inverse[..., 0, :, :]


def _inverse_forward(lower):
    inverse = _unit_lower_inverse(lower)
    return inverse, inverse


def _inverse_backward(inverse, cotangent):
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(_exact(_exact(transposed, cotangent), transposed), -1),)


_unit_lower_inverse.defvjp(_inverse_forward, _inverse_backward)


def _exact(a, b):
    """Returns the product in float32, also where a platform would round the factors.

    Errors of an inverse grow from block to block.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def log_decay(
    x: Float[Array, "... H"], log_rate: Float[Array, " H"], bias: Float[Array, " H"]
) -> Float[Array, "... H"]:
    """`-exp(log_rate) softplus(x + bias)`, in float32: at most 0.

    A rate per head times a step length per token, as in Mamba 2 (Dao & Gu 2024,
    https://arxiv.org/abs/2405.21060).
    """
    step = jax.nn.softplus(x.astype(jnp.float32) + bias.astype(jnp.float32))
    return -jnp.exp(log_rate.astype(jnp.float32)) * step


@dataclasses.dataclass(frozen=True)
class LogUniform(Initializer):
    """The logarithm of a number that is uniform between `low` and `high`.

    The rates of decay of Mamba 2 and of Gated DeltaNet start so; the bounds are those
    of transformers 5.23, `Qwen3NextGatedDeltaNet`.
    """

    low: float = 0.01
    high: float = 16.0

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], fan_in: int
    ) -> Float[Array, "..."]:
        span = (self.low, self.high)
        return jnp.log(jax.random.uniform(key, tuple(shape), jnp.float32, *span))
