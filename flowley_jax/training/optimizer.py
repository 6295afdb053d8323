"""The optimiser of a training run, and its learning rate."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from flowley_jax.common.trees import path_name
from flowley_jax.config import OptimConfig

ADAM_EPSILON = 1e-8
MUON_MOMENTUM = 0.95
# Root mean square of an update at learning rate 1, which is about that of AdamW: both share a rate.
MUON_RMS = 0.2
# Layers that AdamW updates in any case: those that read an input, those of adaLN, and the last one.
_OUTER_LAYERS = (
    "audio_input/first",
    "video_input/first",
    "text_input/first",
    "global_condition/time/first",
    "modulation/linear",
    "final_modulation/linear",
    "final_conv",
)
_KERNEL = "/kernel/value"


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the schedule: linear warm-up, then decay at given steps or by a cosine.

    Args:
      total_steps: the last training step, where a cosine reaches zero.
    """
    warmup = config.warmup_steps

    def warm(step):
        return config.learning_rate * (step + 1) / (warmup + 1)

    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, total_steps - warmup))
    else:
        after = optax.piecewise_constant_schedule(
            config.learning_rate, {step: config.decay_factor for step in config.decay_steps}
        )
    return optax.join_schedules([warm, after], [warmup])


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Return AdamW or Muon after clipping by the global norm, with weight decay on every parameter.

    Muon orthogonalises the momentum of the inner layers' kernels (Jordan et al. 2024), scaled to the size of
    AdamW's updates (Liu et al., arXiv 2502.16982). AdamW with Nesterov momentum updates all other parameters.
    """
    rate = learning_rate(config, total_steps)
    if config.kind == "muon":
        update = muon(
            rate,
            beta=MUON_MOMENTUM,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=inner_kernels,
            consistent_rms=MUON_RMS,
        )
    else:
        update = optax.adamw(
            rate, b1=config.beta1, b2=config.beta2, eps=ADAM_EPSILON, weight_decay=config.weight_decay
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def inner_kernels(parameters: Any) -> Any:
    """Return how Muon reads each parameter as a matrix; None for those that AdamW updates.

    The kernel of a convolution is one matrix with the inputs of all its positions as rows.
    """

    def as_matrix(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        name = path_name(path)
        layer = name.removesuffix(_KERNEL)
        if layer == name or layer.endswith(_OUTER_LAYERS):
            return None
        *inputs, outputs = range(leaf.ndim)
        return MuonDimensionNumbers(tuple(inputs), (outputs,))

    return jax.tree.map_with_path(as_matrix, parameters)
