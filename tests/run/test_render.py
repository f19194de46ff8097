"""Files that start a run on a cluster."""

import shlex

import pytest
import yaml

from maxfdl import launch
from maxfdl.errors import UserError
from maxfdl.run.render import RENDERERS, Job, job_of, k8s, skypilot, slurm, xpk
from tests.commands import Caller, complaint

WORDS = ["experiments.llama2_nnx", "mesh(data=-1)", "text_files(files='my notes/*')"]
JOB = job_of("My Run.1", WORDS, nodes=4, accelerator="H100:8", image="here/maxfdl:1")


def arguments_in(command):
    return shlex.split(command)[3:]


def test_a_name_suits_every_cluster():
    assert JOB.name == "my-run-1"


def test_slurm_starts_one_process_a_node():
    *head, last = slurm(JOB).splitlines()
    assert head[0] == "#!/bin/bash" and "#SBATCH --nodes=4" in head
    assert "#SBATCH --ntasks-per-node=1" in head
    assert "#SBATCH --gpus-per-node=h100:8" in head
    srun, image, *command = shlex.split(last)
    assert (srun, image) == ("srun", "--container-image=here/maxfdl:1")
    assert command[3:] == WORDS


def test_kubernetes_tells_each_pod_its_place():
    service, job = yaml.safe_load_all(k8s(JOB))
    assert service["spec"]["selector"] == {"job-name": "my-run-1"}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "my-run-1-0.my-run-1:1234"
    assert env["JAX_NUM_PROCESSES"]["value"] == "4"
    assert "completion-index" in str(env["JAX_PROCESS_ID"]["valueFrom"])
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    shell, option, command = container["command"]
    assert (shell, option) == ("sh", "-c")
    assert arguments_in(command.removeprefix("exec ")) == WORDS


def test_skypilot_tells_each_node_its_place():
    task = yaml.safe_load(skypilot(JOB))
    assert task["num_nodes"] == 4
    assert task["resources"] == {
        "accelerators": "H100:8",
        "image_id": "docker:here/maxfdl:1",
    }
    *exports, command = task["run"].splitlines()
    assert len(exports) == 3 and arguments_in(command) == WORDS


def test_xpk_asks_for_slices():
    job = job_of("run", WORDS, nodes=2, accelerator="v5p-128", image=None)
    words = shlex.split(xpk(job).replace("\\\n", " "))
    assert "--tpu-type=v5p-128" in words and "--num-slices=2" in words
    assert arguments_in(words[-1].removeprefix("--command=")) == WORDS


def test_one_node_needs_no_place():
    job = job_of("run", WORDS, nodes=1, accelerator=None, image="x")
    assert "JAX_" not in k8s(job) + skypilot(job) + slurm(job)
    assert "resources" not in yaml.safe_load(skypilot(Job("x", "y")))


@pytest.mark.parametrize(("kind", "flag"), [("k8s", "image"), ("xpk", "accelerator")])
def test_what_is_missing_is_named(kind, flag):
    with pytest.raises(UserError, match=f"--render={kind} needs --{flag}"):
        RENDERERS[kind](Job("x", "y"))


def test_launch_prints_it_without_its_own_flags(monkeypatch, capsys):
    call = Caller(monkeypatch, capsys)
    flags = ["--render=slurm", "--nodes", "2", "steps=5"]
    code, out, error = call(launch.main, "experiments.llama2_smoke", *flags)
    assert (code, error) == (0, "") and "#SBATCH --nodes=2" in out
    command = out.splitlines()[-1].removeprefix("srun ")
    assert arguments_in(command) == ["experiments.llama2_smoke", "steps=5"]
    done = call(launch.main, "experiments.llama2_smoke", "--render=slurm", "stps=5")
    assert "Did you mean 'steps'?" in complaint(done)
