"""The reader of compiled programs, on programs whose cost is known."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxfdl.report import hlo

REPEATS, ROWS, WIDTH = 5, 8, 16
WHOLE, CUT = PartitionSpec(), PartitionSpec("batch")


def program_of(function, *args):
    return hlo.read(jax.jit(function).lower(*args).compile().as_text())


def on_mesh(function, out):
    """Returns the program of `function` on float32 [ROWS, WIDTH], cut over `batch`."""
    mesh = Mesh(jax.devices(), ("batch",))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=CUT, out_specs=out, check_vma=False
    )
    sharding = NamedSharding(mesh, CUT)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=sharding)
    return program_of(mapped, x)


def test_a_scan_of_products_counts_every_trip():
    def function(x, kernels):
        return lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    x = jnp.ones((ROWS, WIDTH))
    kernels = jnp.ones((REPEATS, WIDTH, WIDTH))
    once = 2 * ROWS * WIDTH * WIDTH
    assert program_of(function, x, kernels).flops == REPEATS * once
    assert program_of(jax.grad(lambda *a: function(*a).sum()), x, kernels).flops == (
        2 * REPEATS * once
    )


def test_the_factors_of_a_product_have_the_types_that_it_is_given():
    x, kernel = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH), jnp.bfloat16)
    program = jax.jit(lambda x, kernel: x @ kernel.astype(x.dtype)).lower(x, kernel)
    assert hlo.factors(program.compile().as_text()) == [("f32", "f32")]


def test_loops_in_loops_multiply():
    def function(x, kernel):
        def inner(_, x):
            return jnp.tanh(x @ kernel)

        return lax.fori_loop(0, 3, lambda _, x: lax.fori_loop(0, REPEATS, inner, x), x)

    x, kernel = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))
    assert program_of(function, x, kernel).flops == 3 * REPEATS * 2 * ROWS * WIDTH**2


def test_a_sum_in_a_loop_is_told_from_one_after_it():
    def inside(x):
        def body(x, _):
            return jnp.tanh(lax.psum(x, "batch")), None

        return lax.scan(body, x, length=REPEATS)[0]

    def after(x):
        x = lax.scan(lambda x, _: (jnp.tanh(x), None), x, length=REPEATS)[0]
        return lax.psum(x, "batch")

    row = 4 * WIDTH
    (found,) = on_mesh(inside, WHOLE).collectives
    assert found == hlo.Collective("all-reduce", row, 8, times=REPEATS, in_loop=True)
    (found,) = on_mesh(after, WHOLE).collectives
    assert found == hlo.Collective("all-reduce", row, 8, times=1, in_loop=False)


def test_payload_is_the_whole_array_and_wire_what_leaves_a_device():
    def gather(x):
        return lax.all_gather(x, "batch", tiled=True)

    def scatter(x):
        groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
        return lax.psum_scatter(
            x, "batch", scatter_dimension=1, axis_index_groups=groups, tiled=True
        )

    def swap(x):
        return lax.ppermute(x, "batch", [(0, 1), (1, 0)])

    row, array = 4 * WIDTH, 4 * ROWS * WIDTH
    (found,) = on_mesh(gather, WHOLE).collectives
    assert (found.kind, found.payload) == ("all-gather", array)
    assert found.wire == array * 7 / 8
    (found,) = on_mesh(scatter, CUT).collectives
    assert (found.kind, found.payload, found.group) == ("reduce-scatter", row, 4)
    assert found.wire == row * 3 / 4
    program = on_mesh(swap, CUT)
    assert program.wire == program.collectives[0].payload == row


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        # Round a ring of 4, what a device sends of 4 parts of an array.
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3 / 4),
        ("all-reduce", 6 / 4),
        ("all-to-all", 3 / 4),
        ("ragged-all-to-all", 3 / 4),
        ("collective-broadcast", 3 / 4),
        ("collective-permute", 1),
    ],
)
def test_wire_is_what_the_best_way_of_a_kind_sends(kind, sent):
    assert hlo.Collective(kind, payload=1000, group=4, times=5).wire == 5000 * sent


def test_what_a_loop_of_unknown_length_counts_is_not_a_number():
    def function(x, kernel, length):
        return lax.fori_loop(0, length, lambda _, x: jnp.tanh(x @ kernel), x)

    x, kernel = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))
    assert math.isnan(program_of(function, x, kernel, 3).flops)

    def exchange(x):
        length = jnp.int32(x[0, 0])
        return lax.fori_loop(0, length, lambda _, x: lax.psum(x, "batch"), x)

    (found,) = on_mesh(exchange, CUT).collectives
    assert found.in_loop and math.isnan(found.wire)


TPU_PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter (input: f32[64,128]) -> f32[16,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %zero = u32[] constant(0)
  %all-reduce = f32[64,128]{1,0:T(8,128)} all-reduce(%input), replica_groups=\
mesh['data'=1,'fsdp'=4] {'fsdp'}, to_apply=%sum
  ROOT %kept = f32[16,128]{1,0:T(8,128)} dynamic-slice(%all-reduce, %zero, %zero)
}

%body (x: (s32[], f32[64,128], f32[128,128])) -> (s32[], f32[64,128], f32[128,128]) {
  %x = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}, f32[128,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%x), index=0
  %left = f32[64,128]{1,0:T(8,128)} get-tuple-element(%x), index=1
  %right = f32[128,128]{1,0:T(8,128)} get-tuple-element(%x), index=2
  %product = f32[64,128]{1,0:T(8,128)} convolution(%left, %right), \
dim_labels=bf_io->bf
  ROOT %out = (s32[], f32[64,128], /*index=2*/f32[128,128]) tuple(%i, %product, %right)
}

%condition (y: (s32[], f32[64,128], f32[128,128])) -> pred[] {
  %y = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}, f32[128,128]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  %j = s32[]{:T(128)} get-tuple-element(%y), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (p: (s32[], f32[64,128], f32[128,128])) -> f32[16,128] {
  %p = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}, f32[128,128]{1,0}) parameter(0)
  %loop = (s32[], f32[64,128], f32[128,128]) while(%p), condition=%condition, body=%body
  %done = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %fusion = f32[16,128]{1,0:T(8,128)} fusion(%done), kind=kCustom, \
calls=%all-reduce-scatter
}
"""


def test_tpu_programs_hide_trip_counts_and_reduce_scatters():
    program = hlo.read(TPU_PROGRAM)
    assert program.flops == 7 * 2 * 64 * 128 * 128
    assert program.collectives == (hlo.Collective("reduce-scatter", 4 * 64 * 128, 4),)


def test_a_convolution_counts_no_padding():
    # As TPU programs write a batch of 4 products of [1, 8] and [8, 16].
    text = """\
ENTRY %main (l: f32[4,8], r: f32[4,8,16]) -> f32[4,16] {
  %l = f32[4,1,8]{2,1,0} parameter(0)
  %r = f32[4,8,16]{2,1,0} parameter(1)
  ROOT %c = f32[4,1,16]{2,1,0} convolution(%l, %r), \
window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""
    assert hlo.read(text).flops == 4 * 2 * 8 * 16


ASYNCHRONOUS = """\
HloModule jit_f, num_partitions=4

%start (a: f32[16,128]) -> f32[64,128] {
  %a = f32[16,128]{1,0} parameter(0)
  %gather.1 = f32[64,128]{1,0} all-gather(%a), channel_id=6, replica_groups={{0,1,2,3}}
  ROOT %custom.1 = (f32[16,128]{1,0}, f32[64,128]{1,0}, u32[]) \
custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%step (b: f32[16,128], c: f32[64,128], d: f32[64,64]) -> f32[64,64] {
  %b = f32[16,128]{1,0} parameter(0)
  %c = f32[64,128]{1,0} parameter(1)
  %d = f32[64,64]{1,0} parameter(2)
  %gather.2 = f32[64,128]{1,0} all-gather(%b), channel_id=6, replica_groups={{0,1,2,3}}
  ROOT %product = f32[64,64]{1,0} convolution(%d, %d), dim_labels=bf_io->bf
}

%done (e: f32[16,128], f: f32[64,128]) -> f32[64,128] {
  %e = f32[16,128]{1,0} parameter(0)
  %f = f32[64,128]{1,0} parameter(1)
  %gather.3 = f32[64,128]{1,0} all-gather(%e), channel_id=6, replica_groups={{0,1,2,3}}
  ROOT %custom.3 = f32[64,128]{1,0} custom-call(%gather.3, %f), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[16,128], q: f32[64,64]) -> f32[64,128] {
  %p = f32[16,128]{1,0} parameter(0)
  %q = f32[64,64]{1,0} parameter(1)
  %begun = (f32[16,128]{1,0}, f32[64,128]{1,0}, u32[]) fusion(%p), kind=kCustom, \
calls=%start
  %shard = f32[16,128]{1,0} get-tuple-element(%begun), index=0
  %whole = f32[64,128]{1,0} get-tuple-element(%begun), index=1
  %worked = f32[64,64]{1,0} fusion(%shard, %whole, %q), kind=kCustom, calls=%step
  ROOT %ended = f32[64,128]{1,0} fusion(%shard, %whole), kind=kCustom, calls=%done
}
"""


def test_an_asynchronous_collective_counts_once_and_the_product_beside_it_too():
    program = hlo.read(ASYNCHRONOUS)
    assert program.collectives == (hlo.Collective("all-gather", 4 * 64 * 128, 4),)
    assert program.flops == program.collectives[0].beside == 2 * 64**3


SCHEDULED = """\
HloModule jit_f, num_partitions=4

ENTRY %main (p: f32[64,64]) -> f32[64,64] {
  %p = f32[64,64]{1,0} parameter(0)
  %waits = f32[64,64]{1,0} all-to-all(%p), channel_id=1, replica_groups={{0,1,2,3}}
  %begun = (f32[64,64]{1,0}, f32[64,64]{1,0}) collective-permute-start(%waits), \
channel_id=2, source_target_pairs={{0,1},{1,0}}
  %sent = (f32[64,64]{1,0}, u32[], token[]) send(%p, %p), channel_id=3, \
frontend_attributes={_xla_host_transfer_rendezvous="r",_xla_megascale_target=\
"{1:4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %received = (f32[64,64]{1,0}, u32[], token[]) recv(%p), channel_id=4, \
frontend_attributes={_xla_host_transfer_rendezvous="r",_xla_megascale_target=\
"{1:4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %one = f32[64,64]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
  %ended = f32[64,64]{1,0} collective-permute-done(%begun)
  %two = f32[64,64]{1,0} convolution(%one, %ended), dim_labels=bf_io->bf
  %sent-done = token[] send-done(%sent), channel_id=3
  %received-done = (f32[64,64]{1,0}, token[]) recv-done(%received), channel_id=4
  ROOT %three = f32[64,64]{1,0} convolution(%two, %two), dim_labels=bf_io->bf
}
"""


def test_what_runs_between_start_and_end_stands_beside_a_collective():
    found = hlo.read(SCHEDULED).collectives
    product = 2 * 64**3
    assert [(c.kind, c.beside, c.group) for c in found] == [
        ("all-to-all", 0, 4),
        ("collective-permute", product, 2),
        ("all-reduce", 2 * product, 4),  # between four slices, by the host
    ]
