"""The GPUs that a task of a launcher uses."""

import os
import socket
import sys

import children
import pytest

from flowley_jax.common.cluster_tasks import visible_devices
from flowley_jax.errors import FlowleyError

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
}


def _slurm(tasks, local, **variables):
    return {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": str(local), **variables}


def _open_mpi(tasks, local, **variables):
    counts = {"OMPI_COMM_WORLD_LOCAL_SIZE": str(tasks), "OMPI_COMM_WORLD_LOCAL_RANK": str(local)}
    return {**counts, **variables}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (_slurm("1(x4)", 0, SLURM_GPUS_ON_NODE="8"), "all"),
        (_slurm("1(x4)", 0, JAX_LOCAL_DEVICE_IDS="0,1"), None),
        # One task per GPU, and every task sees all GPUs of the node.
        (_slurm("8(x2)", 3, SLURM_GPUS_ON_NODE="8"), "3"),
        (_slurm("8(x2)", 3, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7", SLURM_GPUS_ON_NODE="8"), "3"),
        (_slurm("2", 1, SLURM_GPUS_ON_NODE="8"), "4,5,6,7"),
        # One task per GPU, and Slurm shows every task its own.
        (_slurm("8(x2)", 3, CUDA_VISIBLE_DEVICES="3", SLURM_GPUS_ON_NODE="8"), "all"),
        (_slurm("2", 1, CUDA_VISIBLE_DEVICES="4,5,6,7", SLURM_GPUS_ON_NODE="8"), "all"),
        (_slurm("8(x2)", 3, CUDA_VISIBLE_DEVICES="0"), "all"),
        (_slurm("4", 3), None),
        # Nodes with different numbers of tasks; and without the list of them.
        (_slurm("2,1", 0, SLURM_NODEID="1", SLURM_GPUS_ON_NODE="2"), "all"),
        (_slurm("2,1", 1, SLURM_NODEID="0", SLURM_GPUS_ON_NODE="2"), "1"),
        ({**SLURM, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "4"}, "all"),
        ({**SLURM, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "2"}, "0"),
        (_open_mpi(1, 0), "all"),
        (_open_mpi(4, 2), None),
        (_open_mpi(4, 2, CUDA_VISIBLE_DEVICES="0,1,2,3"), "2"),
        (_open_mpi(4, 2, CUDA_VISIBLE_DEVICES="2"), "all"),
        (_open_mpi(4, 2, HIP_VISIBLE_DEVICES="2"), "all"),
    ],
)
def test_gpus_of_a_task(environment, expected):
    assert visible_devices(environment) == expected


def test_gpus_that_tasks_cannot_share_are_refused():
    with pytest.raises(FlowleyError, match=r"3 tasks on one node cannot share its 8 GPUs evenly"):
        visible_devices(_slurm("3", 0, SLURM_GPUS_ON_NODE="8"))


# Connects as the only process, and prints what JAX will show it.
CONNECT = """
import jax
from flowley_jax.common import distributed
distributed.initialize(coordinator=None, count=None, index=None)
print(jax.config._read("jax_cuda_visible_devices"), jax.config._read("jax_rocm_visible_devices"))
"""


def _connect(**variables):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": port, **variables}
    return children.run([sys.executable, "-c", CONNECT], limit=120, env=environment)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, "all all\n"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}, "5 5\n"),
        pytest.param(
            {"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_LOCAL_DEVICE_IDS": "0,1"},
            "0,1 0,1\n",
            marks=pytest.mark.scale,
        ),
        pytest.param(
            {"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_CUDA_VISIBLE_DEVICES": "2"},
            "2 all\n",
            marks=pytest.mark.scale,
        ),
    ],
)
def test_jax_uses_these_gpus_under_slurm(variables, expected):
    slurm = {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "5"}
    result = _connect(**slurm, **variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


def test_jax_uses_all_gpus_under_open_mpi():
    address = {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://127.0.0.1:34911"}
    world = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    result = _connect(**address, **world, **_open_mpi(1, 0))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all all\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {},
            "Open MPI started 4 processes without the address of the first one: add --coordinator HOST:PORT",
        ),
        (
            {"OMPI_MCA_orte_hnp_uri": "4096.0;made up"},
            "the processes of this run cannot connect (Could not parse",
        ),
    ],
)
def test_open_mpi_without_an_address_is_refused(variables, expected):
    world = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    result = _connect(**world, **_open_mpi(4, 0), **variables)
    assert result.returncode == 1
    assert f"FlowleyError: {expected}" in result.stderr
