"""Which kind of device the program at hand is for."""

import jax


def platform_in_use() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in use, whose devices can be ones that this machine only compiles
    for, or else of this process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
