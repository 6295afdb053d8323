"""Published audio VAEs: kernels are (out, in, kernel), in most files as they were before normalisation."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, in_float32, is_float, load_module
from flowley_jax.networks.audio_vae import AudioVae, VaeConfig, effective_kernel

_NORM_TOLERANCE = 0.02


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> VaeConfig:
    """Return the sizes of the VAE, which the shapes of its weights determine.

    Raises:
      FlowleyError: a weight that determines a size is missing.
    """
    del settings
    try:
        width, bins, kernel = arrays["encoder.conv_in.weight"].shape
        latent_dim = arrays["decoder.conv_in.weight"].shape[1]
        levels = count_numbered(arrays, "encoder.down.{}.block.0.conv1.weight")
        widths = [arrays[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    except KeyError as error:
        raise FlowleyError(f"the audio VAE lacks {error.args[0]}") from error
    return VaeConfig(
        bins=bins,
        latent_dim=latent_dim,
        width=width,
        multipliers=tuple(level_width // width for level_width in widths),
        blocks=count_numbered(arrays, "encoder.down.0.block.{}.conv1.weight"),
        kernel=kernel,
    )


def vae_from_torch(arrays: Mapping[str, np.ndarray], config: VaeConfig) -> AudioVae:
    """Return the VAE with published weights. Kernels are normalised unless all of them have unit norm.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    is_raw = not kernels_are_normalised(arrays)

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        if name.startswith("data_"):
            return array.reshape(-1)
        if array.ndim != 3:
            return array
        kernel = np.ascontiguousarray(array.transpose(2, 1, 0))
        return np.asarray(effective_kernel(jnp.asarray(kernel))) if is_raw else kernel

    module = load_module(
        lambda: AudioVae(config, rngs=nnx.Rngs(0)), arrays, convert=convert, title="the audio VAE"
    )
    assert isinstance(module, AudioVae)
    return module


def kernels_are_normalised(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether every output of every kernel has unit norm, which only `remove_weight_norm` produces."""
    kernels = [
        in_float32(array)
        for name, array in arrays.items()
        if name.endswith("weight") and np.ndim(array) == 3 and is_float(array)
    ]
    norms = [np.linalg.norm(kernel, axis=(1, 2)) for kernel in kernels]
    return all(np.allclose(norm, 1.0, rtol=0, atol=_NORM_TOLERANCE) for norm in norms)
