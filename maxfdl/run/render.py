"""Files that start a run on a cluster: written out to be read, and never submitted."""

import dataclasses
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence

from maxfdl.errors import UserError
from maxfdl.run.processes.place import VARIABLES

PORT = 1234


@dataclasses.dataclass(frozen=True)
class Job:
    """What a cluster is asked for.

    Args:
      name: Of the job: small letters, digits and '-'.
      command: What each node runs.
      nodes: How many there are, with a process each.
      accelerator: What each node has, such as `H100:8`, or the type of a TPU slice,
        such as `v5p-128`; None asks for nothing.
      image: Container that has maxfdl in it; None for what is installed on the nodes.
    """

    name: str
    command: str
    nodes: int = 1
    accelerator: str | None = None
    image: str | None = None

    @property
    def devices(self) -> tuple[str, int]:
        """The kind of a node's devices, and how many it has."""
        kind, _, count = (self.accelerator or "").partition(":")
        return kind, int(count) if count.isdecimal() else 1


def job_of(
    name: str,
    arguments: Sequence[str],
    nodes: int,
    accelerator: str | None,
    image: str | None,
) -> Job:
    """Returns the job that runs `launch` with these arguments."""
    words = ["python", "-m", "maxfdl.launch", *arguments]
    small = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "maxfdl"
    return Job(small, shlex.join(words), nodes, accelerator, image)


def slurm(job: Job) -> str:
    """A script for `sbatch`. JAX learns its place from `srun`."""
    kind, count = job.devices
    gpus = [f"#SBATCH --gpus-per-node={kind.lower()}:{count}"] if kind else []
    inside = f" --container-image={shlex.quote(job.image)}" if job.image else ""
    return _lines(
        "#!/bin/bash",
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --nodes={job.nodes}",
        "#SBATCH --ntasks-per-node=1",
        *gpus,
        "#SBATCH --signal=TERM@120",  # the run saves, and the same script goes on
        "#SBATCH --requeue",
        f"srun{inside} {job.command}",
    )


def skypilot(job: Job) -> str:
    """A task for `sky launch`."""
    places = {
        "coordinator": f'"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
        "num_processes": "$SKYPILOT_NUM_NODES",
        "process_id": "$SKYPILOT_NODE_RANK",
    }
    exports = [f"  export {VARIABLES[k]}={v}" for k, v in places.items()]
    resources = [
        *([f"  accelerators: {job.accelerator}"] if job.accelerator else []),
        *([f"  image_id: docker:{job.image}"] if job.image else []),
    ]
    return _lines(
        f"name: {job.name}",
        f"num_nodes: {job.nodes}",
        *(["resources:", *resources] if resources else []),
        "run: |",
        *(exports if job.nodes > 1 else []),
        f"  {job.command}",
    )


def k8s(job: Job) -> str:
    """A service and an indexed job for `kubectl apply`.

    Raises:
      UserError: If there is no image.
    """
    if job.image is None:
        raise UserError("--render=k8s needs --image=IMAGE, with maxfdl in it.")
    kind, count = job.devices
    return textwrap.dedent(
        f"""\
        apiVersion: v1
        kind: Service
        metadata:
          name: {job.name}
        spec:
          clusterIP: None
          publishNotReadyAddresses: true
          selector:
            job-name: {job.name}
        ---
        apiVersion: batch/v1
        kind: Job
        metadata:
          name: {job.name}
        spec:
          completionMode: Indexed
          completions: {job.nodes}
          parallelism: {job.nodes}
          template:
            spec:
              subdomain: {job.name}
              restartPolicy: OnFailure
              terminationGracePeriodSeconds: 120
              containers:
              - name: launch
                image: {_quoted(job.image)}
                command: [sh, -c, {_quoted(f"exec {job.command}")}]
        """
    ) + _lines(*_container(job, "nvidia.com/gpu" if kind else "", count))


def _container(job: Job, resource: str, count: int) -> list[str]:
    rank = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environment = [
        "env:",
        f"- name: {VARIABLES['coordinator']}",
        f"  value: {job.name}-0.{job.name}:{PORT}",
        f"- name: {VARIABLES['num_processes']}",
        f'  value: "{job.nodes}"',
        f"- name: {VARIABLES['process_id']}",
        "  valueFrom:",
        f'    fieldRef: {{fieldPath: "{rank}"}}',
    ]
    limits = [f"resources: {{limits: {{{resource}: {count}}}}}"] if resource else []
    lines = [*(environment if job.nodes > 1 else []), *limits]
    return [f"        {line}" for line in lines]


def xpk(job: Job) -> str:
    """A command of xpk, for TPU slices on GKE.

    Raises:
      UserError: If no type of slice is named.
    """
    if job.accelerator is None:
        raise UserError("--render=xpk needs --accelerator_type=TYPE, such as v5p-128.")
    words = [
        "xpk workload create",
        '--cluster="$CLUSTER"',
        f"--workload={job.name}",
        f"--tpu-type={job.accelerator}",
        f"--num-slices={job.nodes}",
        *([f"--docker-image={shlex.quote(job.image)}"] if job.image else []),
        f"--command={shlex.quote(job.command)}",
    ]
    return _lines(" \\\n  ".join(words))


def _quoted(text: str) -> str:
    """Returns a string of YAML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


RENDERERS: dict[str, Callable[[Job], str]] = {
    "slurm": slurm,
    "k8s": k8s,
    "skypilot": skypilot,
    "xpk": xpk,
}
"""By the value of `--render`."""
