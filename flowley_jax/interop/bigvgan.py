"""Published BigVGAN generators, whose kernels are plain or weight-normalised (under two naming schemes)."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import (
    count_numbered,
    in_float32,
    is_float,
    load_module,
    wrong_type,
)
from flowley_jax.networks.bigvgan import BigVgan, BigVganConfig

_WEIGHT_NORM_NAMES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
_SUPPORTED = {"resblock": "1", "activation": "snakebeta", "snake_logscale": True}


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> BigVganConfig:
    """Return the sizes of the vocoder, from the shapes of its weights and from `config.json`.

    Raises:
      FlowleyError: weights or settings are missing, or the variant is not supported.
    """
    arrays = without_weight_norm(arrays)
    for name, value in _SUPPORTED.items():
        if settings.get(name, value) != value:
            raise FlowleyError(f"BigVGAN with {name}={settings[name]!r} is not supported, only {value!r}")
    try:
        width, bins, _ = arrays["conv_pre.weight"].shape
        kernels = tuple(
            arrays[f"ups.{i}.0.weight"].shape[2] for i in range(count_numbered(arrays, "ups.{}.0.weight"))
        )
        blocks = count_numbered(arrays, "resblocks.{}.convs1.0.weight") // max(1, len(kernels))
        block_kernels = tuple(arrays[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(blocks))
        pairs = count_numbered(arrays, "resblocks.0.convs1.{}.weight")
    except KeyError as error:
        raise FlowleyError(f"the BigVGAN vocoder lacks {error.args[0]}") from error
    has_bias = "conv_post.bias" in arrays
    if not has_bias and "use_tanh_at_final" not in settings:
        raise FlowleyError(
            "this BigVGAN is of version 2 (no bias at the end); only its config.json says how the wave is "
            "bounded; put it next to the weights"
        )
    dilations = settings.get("resblock_dilation_sizes", [[1, 3, 5]])
    rates = settings.get("upsample_rates", [kernel // 2 for kernel in kernels])
    all_dilations = list(itertools.chain.from_iterable(dilations))
    for name, values in (("upsample_rates", rates), ("resblock_dilation_sizes", all_dilations)):
        if not values or any(type(value) is not int or value < 1 for value in values):
            raise FlowleyError(f"BigVGAN with {name}={settings.get(name)!r} is not possible")
    if any(list(block) != list(dilations[0]) for block in dilations) or len(dilations[0]) != pairs:
        raise FlowleyError(f"BigVGAN with dilations {dilations} and {pairs} pairs per block is not supported")
    return BigVganConfig(
        bins=bins,
        width=width,
        # In every published generator, the kernel is twice as long as the rate.
        rates=tuple(rates),
        kernels=kernels,
        block_kernels=block_kernels,
        dilations=tuple(dilations[0]),
        use_bias_at_final=has_bias,
        use_tanh_at_final=bool(settings.get("use_tanh_at_final", True)),
    )


def bigvgan_from_torch(arrays: Mapping[str, np.ndarray], config: BigVganConfig) -> BigVgan:
    """Return the vocoder with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith("filter"):
            return array.reshape(-1)
        if array.ndim != 3:
            return array
        return np.ascontiguousarray(array.transpose((0, 2, 1) if name.startswith("ups.") else (2, 1, 0)))

    module = load_module(
        lambda: BigVgan(config, rngs=nnx.Rngs(0)),
        without_weight_norm(arrays),
        convert=convert,
        title="the BigVGAN vocoder",
    )
    assert isinstance(module, BigVgan)
    return module


def without_weight_norm(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights in which g and v are replaced by g·v/‖v‖, with the norm over all axes but the first."""
    plain = dict(arrays)
    for magnitude, direction in _WEIGHT_NORM_NAMES:
        for name in [name for name in plain if name.endswith(f".{direction}")]:
            stem = name.removesuffix(direction)
            if stem + magnitude not in plain:
                raise FlowleyError(f"{name} exists, but {stem + magnitude} does not")
            for array_name in (name, stem + magnitude):
                if not is_float(plain[array_name]):
                    raise FlowleyError(wrong_type(array_name, plain[array_name]))
            v, g = in_float32(plain.pop(name)), in_float32(plain.pop(stem + magnitude))
            # A norm of 0 gives weights that are not finite, which are refused with their names.
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                plain[f"{stem}weight"] = g * v / np.linalg.norm(v.reshape(len(v), -1), axis=1)[:, None, None]
    return plain
