"""The GPUs of its node that a task of Slurm or Open MPI uses: all, or its share if tasks share the node."""

import re
from collections.abc import Mapping

from flowley_jax.errors import FlowleyError

# Variables that list the GPUs which a task may see, of NVIDIA and of AMD.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
ALL = "all"


def visible_devices(environment: Mapping[str, str]) -> str | None:
    """Return the GPUs that this task uses, as JAX's option `cuda_visible_devices` names them.

    JAX by itself gives every task one GPU, with the number of the task on its node. That leaves most GPUs
    idle with one task per node, and names a missing GPU where the launcher shows every task only its own.

    Args:
      environment: environment variables of the task.

    Returns:
      "all", or numbers such as "4,5,6,7"; None where JAX's own choice holds: outside of Slurm and Open MPI,
      with JAX_LOCAL_DEVICE_IDS, or with several tasks whose GPUs the launcher does not list.

    Raises:
      FlowleyError: the tasks of a node cannot share its GPUs evenly.
    """
    tasks, index = _tasks_on_node(environment)
    if tasks is None or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    if tasks == 1:
        return ALL
    listed = next((environment[name] for name in _VISIBLE if environment.get(name)), None)
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    total = int(on_node) if on_node.isdigit() else None
    visible = len(listed.split(",")) if listed else total
    if visible is None:
        return None
    if visible < (tasks if total is None else total):
        # The launcher shows every task only its own GPUs.
        return ALL
    if visible % tasks:
        raise FlowleyError(
            f"{tasks} tasks on one node cannot share its {visible} GPUs evenly: start one task per node or "
            "one per GPU (--ntasks-per-node)"
        )
    share = visible // tasks
    return ",".join(str(number) for number in range(index * share, (index + 1) * share))


def _tasks_on_node(environment: Mapping[str, str]) -> tuple[int | None, int]:
    """Return the number of tasks on this node (None outside of a launcher), and the number of this one."""
    if "SLURM_PROCID" in environment and "SLURM_LOCALID" in environment:
        return _slurm_tasks(environment), int(environment["SLURM_LOCALID"])
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
    return None, 0


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    # Such as "8(x3),4": eight tasks on each of three nodes, and four on the last one.
    counts = [
        int(count)
        for count, repeated in re.findall(
            r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        )
        for _ in range(int(repeated or 1))
    ]
    node = int(environment.get("SLURM_NODEID", "0"))
    if node < len(counts):
        return counts[node]
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    return max(1, int(environment.get("SLURM_NTASKS", "1")) // nodes)
