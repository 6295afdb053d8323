"""The devices of a run: the axes of its mesh, its platform, and what each kind of device can do."""

import dataclasses

import jax

# Every mesh has these axes. A batch is split over the first two; `tensor` splits heads and hidden channels.
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
    """Memory in bytes and peak dense bfloat16 FLOPs per second of one device, as its maker states them."""

    memory: int
    peak_flops: float


TPU_SPECS = {
    "v4": DeviceSpec(32 * 2**30, 275e12),
    "v5e": DeviceSpec(16 * 2**30, 197e12),
    "v5p": DeviceSpec(95 * 2**30, 459e12),
    "v6e": DeviceSpec(32 * 2**30, 918e12),
}

GPU_SPECS = {
    "A100": DeviceSpec(80 * 2**30, 312e12),
    "H100": DeviceSpec(80 * 2**30, 989e12),
    "H200": DeviceSpec(141 * 2**30, 989e12),
    "B200": DeviceSpec(180 * 2**30, 2250e12),
}
# JAX's names of TPU devices.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def device_spec(device_kind: str) -> DeviceSpec | None:
    """Return the spec of a JAX `device_kind`, or None if it is not in the tables above."""
    if device_kind in _TPU_KINDS:
        return TPU_SPECS[_TPU_KINDS[device_kind]]
    return next((spec for name, spec in GPU_SPECS.items() if name in device_kind), None)


def platform_in_use() -> str:
    """Return "cpu", "gpu" or "tpu": the platform of the mesh in use, or else of this process.

    The mesh may consist of devices that this machine only compiles for.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
