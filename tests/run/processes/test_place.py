"""Tests of telling which of several processes this is."""

import pytest

from maxfdl.errors import UserError
from maxfdl.run.processes.place import Place, read_place

FLAGS = ["--coordinator=host0:1234", "--num_processes=4", "--process_id=3"]
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "localhost:99",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
# What Open MPI tells the processes that it starts.
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:4444",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def read(monkeypatch):
    """Reads the place from flags and variables, which JAX looks at too."""

    def read(*args: str, **environment: str) -> Place | None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return read_place(["launch.py", *args], environment)

    return read


def test_without_flags_and_variables_a_process_is_alone(read):
    assert read("--fdl_config=experiments.llama2_smoke", "steps=3") is None


def test_flags_tell_the_place(read):
    assert read(*FLAGS) == Place("host0", 1234, 3, 4, timeout=300.0)
    assert read("--process_id", "0", "x", *FLAGS[:2]) == Place("host0", 1234, 0, 4, 300)


def test_variables_stand_for_flags_that_are_not_given(read):
    assert read(**VARIABLES) == Place("localhost", 99, 1, 2, timeout=60.0)
    assert read("--process_id=0", **VARIABLES) == Place("localhost", 99, 0, 2, 60.0)


def test_one_process_of_one_is_alone(read):
    assert read(*FLAGS[:1], "--num_processes=1", "--process_id=0") is None


def test_an_address_of_the_sixth_version_stands_in_brackets(read):
    place = read("--coordinator=[::1]:80", *FLAGS[1:])
    assert place is not None
    assert (place.host, place.address, place.on_one_machine) == (
        "::1",
        "[::1]:80",
        True,
    )


def test_other_flags_may_be_wrong(read):
    assert read("--no_such=1", "--fdl_config=(", *FLAGS) is not None


def test_the_time_to_wait_can_be_given(read):
    place = read("--initialization_timeout=2.5", *FLAGS)
    assert place is not None and (place.timeout, place.heartbeat) == (2.5, 60.0)
    place = read("--heartbeat_timeout=7", *FLAGS)
    assert place is not None and (place.timeout, place.heartbeat) == (300.0, 7.0)


@pytest.mark.parametrize(
    "args, environment, message",
    [
        (FLAGS[:1], {}, "--coordinator (or JAX_COORDINATOR_ADDRESS) is given but"),
        ([], {"JAX_COORDINATOR_ADDRESS": "a:1"}, "--coordinator (or JAX_COORD"),
        (FLAGS[1:], {}, "but --coordinator (or JAX_COORDINATOR_ADDRESS) is not;"),
        (
            FLAGS[1:2],
            {},
            "but --coordinator (or JAX_COORDINATOR_ADDRESS) and --process",
        ),
        (["--coordinator=host0", *FLAGS[1:]], {}, "--coordinator=host0 must be HOST:P"),
        (["--coordinator=:1", *FLAGS[1:]], {}, "--coordinator=:1 must be HOST:PORT"),
        (["--coordinator=a:99999", *FLAGS[1:]], {}, "=a:99999 must be HOST:PORT"),
        (
            [*FLAGS, "--num_processes=two"],
            {},
            "--num_processes=two must be an integer.",
        ),
        ([*FLAGS, "--num_processes=0"], {}, "--num_processes=0 must be positive."),
        ([*FLAGS, "--process_id=4"], {}, "--process_id=4 must be from 0 to 3, for"),
        ([*FLAGS, "--process_id=-1"], {}, "--process_id=-1 must be from 0 to 3, for"),
        ([], VARIABLES | {"JAX_PROCESS_ID": "x"}, "--process_id=x must be an integer."),
        ([*FLAGS, "--initialization_timeout=0"], {}, "=0 must be a positive number of"),
        ([*FLAGS, "--heartbeat_timeout=x"], {}, "--heartbeat_timeout=x must be a posi"),
        ([*FLAGS, "--coordinator"], {}, "Missing value for flag --coordinator"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(read, args, environment, message):
    with pytest.raises(UserError) as error:
        read(*args, **environment)
    text = str(error.value)
    assert message in text and "\n" not in text


def test_open_mpi_tells_what_is_not_given(read):
    assert read(**OPEN_MPI) == Place("127.0.0.1", 61441, 1, 2, 60.0, (1,))
    place = read("--coordinator=[::1]:5", **OPEN_MPI)
    assert place == Place("::1", 5, 1, 2, 60.0, (1,))


def test_slurm_tells_what_is_not_given(read):
    assert read(**SLURM) == Place("node3", 61447, 1, 2, 300.0, (0,))


def test_inside_an_allocation_of_slurm_a_process_without_srun_is_alone(read):
    assert read(**{k: v for k, v in SLURM.items() if "STEP" not in k}) is None


def test_a_cluster_that_jax_does_not_know_is_one_sentence(read):
    with pytest.raises(
        UserError, match=r"but --num_processes \(or JAX_NUM_PROCESSES\)"
    ):
        read(OMPI_COMM_WORLD_SIZE="2", JAX_COORDINATOR_ADDRESS="a:1")


def test_a_cluster_that_jax_fails_on_is_one_sentence(read):
    with pytest.raises(UserError, match="but JAX cannot tell which .ValueError: inv"):
        read(**{**SLURM, "SLURM_PROCID": "x"})
