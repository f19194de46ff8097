"""The report as a person reads it."""

import dataclasses

from maxfdl.report import ahead_text
from maxfdl.report.ahead import Ahead, Exchange
from maxfdl.report.roofline import Roofline

GIB = 2**30
BACKWARD = "jit(step)/shard_map/transpose(jvp())/while/body/closed_call/checkpoint"
REPORT = Ahead(
    name="llama",
    device_kind="TPU v5 lite",
    mesh={"data": 2, "fsdp": 256},
    num_slices=2,
    compile_seconds=338.0,
    compile_cpu_seconds=91.0,
    model_flops=3e14,
    written_flops=4e14,
    memory_bytes=16 * GIB,
    argument_bytes=5 * GIB,
    temp_bytes=7 * GIB,
    peak_bytes=12 * GIB,
    flops=4.04e14,
    unknown_kernels=("my_kernel",),
    hbm_bytes=500.0 * GIB,
    collectives=(
        Exchange(
            kind="all-gather",
            axes=("fsdp",),
            group_size=256,
            network="ici",
            in_loop=True,
            executions=448,
            payload_bytes=24.0 * GIB,
            wire_bytes=22.0 * GIB,
            overlapped_wire_bytes=11.0 * GIB,
            beside_flops=2e14,
            source=f"{BACKWARD}/rematted_computation/dot_general",
        ),
        Exchange(
            kind="all-reduce",
            axes=("data",),
            group_size=2,
            network="dcn",
            in_loop=False,
            executions=float("nan"),
            payload_bytes=float("nan"),
            wire_bytes=float("nan"),
            overlapped_wire_bytes=0.0,
            beside_flops=0.0,
            source="jit(step)/transpose(jvp(jit(_take)))/gather",
        ),
    ),
    roofline=Roofline(compute=2.0, hbm=0.6, ici=0.25, dcn=0.001),
    mfu=0.75,
)

TEXT = """\
step: llama
devices: 512 devices (TPU v5 lite) in 2 slices
mesh: data 2 x fsdp 256
compiled in: 5m38s (1m31s of CPU)
fits: yes, a device has 16.0 GiB
arguments: 5.0 GiB
temporaries: 7.0 GiB
peak: 12.0 GiB
FLOPs: 404T (1.010 of the step's formula 400T, 1.347 of the model's 300T); not \
those of my_kernel
main memory: 500.0 GiB moved (estimate)
sent: ?
least time: 2 s a step, 75.0% MFU
bound by: matrix products (matrix products 2 s, main memory 600 ms, the interconnect \
250 ms, the data-centre network 1 ms)

collective  over  group  runs  payload   wire      overlapped             where        \
          largest from
all-gather  fsdp  256    448   24.0 GiB  22.0 GiB  50% beside 200T FLOPs  in a loop, \
ici         recomputed dot_general
all-reduce  data  2      ?     ?         ?         none                   outside of \
loops, dcn  backward _take/gather
"""


def test_every_figure_has_a_line_and_every_collective_a_row():
    assert "\n".join(ahead_text.lines(REPORT)) + "\n" == TEXT


def test_a_step_that_does_not_fit_is_shown_beside_one_that_does():
    other = dataclasses.replace(
        REPORT, name="other", refusal="Used 20.5G of 15.75G hbm.", collectives=()
    )
    rows = ahead_text.side_by_side([REPORT, other])
    fits = next(row for row in rows if row.startswith("fits"))
    assert "yes, a device has 16.0 GiB" in fits and "no: Used 20.5G" in fits


def test_the_last_column_has_the_second_over_the_first():
    other = dataclasses.replace(REPORT, temp_bytes=14 * GIB)
    rows = ahead_text.side_by_side([REPORT, other])
    temporaries = next(row for row in rows if row.startswith("temporaries"))
    assert temporaries.split() == [
        "temporaries",
        "7.0",
        "GiB",
        "14.0",
        "GiB",
        "x",
        "2.000",
    ]
