"""Sharding rules and mesh sizes, without devices."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from flowley_jax.aot.estimate import device_bytes
from flowley_jax.common.devices import MESH_AXES
from flowley_jax.common.trees import named_leaves
from flowley_jax.config import DataConfig, ExperimentConfig, MeshConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.model import ModelConfig
from flowley_jax.training.sharding import Layout, check_sizes, make_mesh, mesh_sizes
from flowley_jax.training.state import StepConfig, abstract_state


def _layout(data=1, fsdp=1, tensor=1):
    mesh = AbstractMesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    return Layout(mesh, "bfloat16")


def _published_state(layout):
    return abstract_state(StepConfig.from_experiment(ExperimentConfig()), layout)


@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"fsdp": 16}, {"data": 4, "fsdp": 8, "tensor": 2}])
def test_a_device_holds_its_share_of_the_published_state(mesh):
    state = _published_state(_layout())
    # 170.9 M parameters, two moments and two averages, float32.
    assert device_bytes(state) == pytest.approx(5 * 4 * 170.9e6, rel=0.01)
    sizes = {name: leaf.size for name, leaf in named_leaves(state).items()}
    of_tensor = re.compile(r"/(w1|w2|w3|out)/kernel")
    also_over_tensor = sum(size for name, size in sizes.items() if of_tensor.search(name))
    fsdp, tensor = mesh["fsdp"], mesh.get("tensor", 1)
    expected = 4 / fsdp * (also_over_tensor / tensor + sum(sizes.values()) - also_over_tensor)
    assert device_bytes(_published_state(_layout(**mesh))) == pytest.approx(expected, rel=0.05)


def test_moments_and_averages_have_the_sharding_of_their_weights():
    state = _published_state(_layout(fsdp=4, tensor=2))
    stored = {name: leaf.sharding.spec for name, leaf in named_leaves(state).items()}
    weights = {name: spec for name, spec in stored.items() if name.startswith("parameters/")}
    assert sum(spec != PartitionSpec() for spec in weights.values()) > 100
    for name, spec in weights.items():
        weight = name.removeprefix("parameters/")
        for prefix in ("optimizer/1/0/mu/", "optimizer/1/0/nu/", "averages/0/", "averages/1/"):
            assert stored[prefix + weight] == spec, weight


def test_every_matrix_of_the_published_model_is_split():
    layout = _layout(fsdp=16)
    state = _published_state(layout)
    for name, leaf in named_leaves(state.parameters).items():
        if len(leaf.shape) >= 2:
            assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape, name
    assert layout.undivided_weights(state.parameters) == []
    uneven = _layout(fsdp=3).undivided_weights(state.parameters)
    assert "final_conv/kernel/value (7, 512, 20)" in uneven


def test_sizes_that_the_mesh_does_not_divide_are_refused():
    with pytest.raises(
        FlowleyError, match=r"^mesh\.data=2 × mesh\.fsdp=1 × mesh\.tensor=1 must be the number of devices, 1$"
    ):
        make_mesh(MeshConfig(data=2))
    for devices in (1, 3):
        with pytest.raises(
            FlowleyError,
            match=rf"^mesh\.fsdp=2 × mesh\.tensor=1 must divide the number of devices, {devices}$",
        ):
            mesh_sizes(MeshConfig(fsdp=2), devices)
    with pytest.raises(FlowleyError, match=r"mesh\.data=3 must be a multiple of the 2 slices"):
        mesh_sizes(MeshConfig(fsdp=2), 6, slices=2)
    assert mesh_sizes(MeshConfig(fsdp=2), 8, slices=2) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(FlowleyError, match=r"mesh\.fsdp=0 must be at least 1"):
        MeshConfig(fsdp=0)
    with pytest.raises(FlowleyError, match=r"data\.batch_size=6 must be a multiple of data × fsdp = 4"):
        check_sizes(ModelConfig(), 6, {"data": 2, "fsdp": 2, "tensor": 1})
    with pytest.raises(FlowleyError, match=r"model\.num_heads=8 must be a multiple of mesh\.tensor=3"):
        check_sizes(ModelConfig(), 6, {"data": 1, "fsdp": 1, "tensor": 3})
    with pytest.raises(FlowleyError, match=r"model\.single_num_heads=6 must be a multiple of mesh\.tensor=4"):
        check_sizes(ModelConfig(width=96, single_num_heads=6), 8, {"data": 1, "fsdp": 1, "tensor": 4})
    with pytest.raises(
        FlowleyError, match=r"data\.batch_size=300 must be a multiple of flow\.coupling_group=256"
    ):
        ExperimentConfig(data=DataConfig(batch_size=300))


def test_a_single_process_reads_every_row():
    rows, group = tiny.layout(tiny.experiment("records")).batch_rows(4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]])
    assert group == 0


class Device(SimpleNamespace):
    """A device of another host."""

    __hash__ = object.__hash__


def _hosts(*counts, tensor=1):
    """Return the layout of a mesh over hosts with these numbers of devices, in the place of the first one."""
    devices = [Device(process_index=host) for host in np.repeat(range(len(counts)), counts).tolist()]
    mesh = SimpleNamespace(
        devices=np.reshape(devices, (-1, 1, tensor)),
        shape={"data": len(devices) // tensor, "fsdp": 1, "tensor": tensor},
    )

    class OfHosts(Layout):
        @property
        def batch(self):
            shards = len(devices) // tensor

            def indices(shape):
                size = shape[0] // shards
                return {
                    device: (slice(index // tensor * size, (index // tensor + 1) * size),)
                    for index, device in enumerate(devices)
                }

            return SimpleNamespace(devices_indices_map=indices)

    return OfHosts(mesh, "float32")


def test_hosts_share_a_batch_evenly():
    rows, group = _hosts(2, 2).batch_rows(8)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert group == 0
    rows, _ = _hosts(2, 2, tensor=4).batch_rows(8)
    np.testing.assert_array_equal(rows, [range(8)])


@pytest.mark.parametrize(
    ("layout", "numbers"),
    [
        (_hosts(1, 3), r"a batch of 12 evenly: processes 0 … 1 have 1, 3 devices, and read 3, 9 rows"),
        (
            _hosts(3, 3, tensor=2),
            r"a batch of 12 evenly: processes 0 … 1 have 3, 3 devices, and read 8, 8 rows",
        ),
    ],
    ids=["uneven", "overlapping"],
)
def test_hosts_that_cannot_share_a_batch_are_refused(layout, numbers):
    with pytest.raises(FlowleyError, match=numbers):
        layout.batch_rows(12)
