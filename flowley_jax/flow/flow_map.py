"""Flow maps: networks that give the mean velocity of a whole step, so that a few steps suffice.

The mean velocity u(x_t, t, r) leads from x_t at time t to x_r = x_t + (r − t)·u at a later time r, and
u(x_t, t, t) is the velocity itself. A trained network is fine-tuned towards it by α-Flow (Zhang et al., arXiv
2510.20771), which needs forward passes only: α = 1/2 gives the targets of shortcut models, and α → 0 those of
MeanFlow. The velocities come from the network as it was at the start, the teacher, with guidance folded in.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.common.ranges import GUIDANCES, NotNegative, Range, Share
from flowley_jax.common.typed import check_values
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import Guidance, drop_conditions
from flowley_jax.model import Flowley
from flowley_jax.model.stack import GatherWeights, identity

# Returns the mean velocity (B, Ta, C) at x_t (B, Ta, C) from t (B,) to r (B,).
MeanVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_PORTION = Range(above=0, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapConfig:
    """Training of a flow map, from the weights that `start.weights` names.

    Attributes:
      enabled: whether the run trains a flow map.
      guidance: classifier-free guidance scale that is folded in; at 1 or below, none is.
      guidance_text: scale of the text at all times, which makes `guidance` that of the video; None for one
        scale.
      guidance_from: time t at which `guidance` begins to apply; before, it is 1.
      guidance_to: time t at which it stops applying.
      alpha_first: portion α of a step that follows the teacher, at the beginning of the training. It falls
        exponentially.
      alpha_last: portion α at the end of the training.
      velocity_share: share of a batch that trains the velocity, r = t.
      weight_power: p of the weight (e + c)^−p of an item with the error e; 0 weights all items alike.
    """

    enabled: bool = False
    guidance: Annotated[float, GUIDANCES] = 7.5
    guidance_text: Annotated[float, GUIDANCES] | None = None
    guidance_from: Share = 0.0
    guidance_to: Share = 1.0
    alpha_first: Annotated[float, _PORTION] = 0.5
    alpha_last: Annotated[float, _PORTION] = 0.1
    velocity_share: Share = 0.5
    weight_power: NotNegative = 1.0

    def __post_init__(self):
        check_values(self, "flow.map")
        if self.guidance_from > self.guidance_to:
            raise FlowleyError(
                f"flow.map.guidance_from={self.guidance_from} must be at most "
                f"flow.map.guidance_to={self.guidance_to}"
            )
        if self.alpha_last > self.alpha_first:
            raise FlowleyError(
                f"flow.map.alpha_last={self.alpha_last} must be at most "
                f"flow.map.alpha_first={self.alpha_first}"
            )


def alpha_at(step: jax.Array | int, steps: int, config: FlowMapConfig) -> Float[Array, ""]:
    """Return α after `step` of `steps` training steps."""
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
    return config.alpha_first * (config.alpha_last / config.alpha_first) ** progress


def velocity_rows(batch_size: int, share: float) -> Bool[np.ndarray, " B"]:
    """Return which rows of a batch train the velocity: a share of them, spread evenly."""
    counts = np.floor(share * np.arange(batch_size + 1))
    return np.diff(counts) > 0


def draw_intervals(
    key: jax.Array, velocity_times: Float[Array, " B"], share: float
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return the times t and r ≥ t of a batch.

    Args:
      key: random key.
      velocity_times: times of the rows that train the velocity, where r = t; the other rows get two uniform
        draws, sorted.
      share: share of rows that train the velocity.
    """
    is_velocity = velocity_rows(len(velocity_times), share)
    start, end = jnp.sort(jax.random.uniform(key, (2, len(velocity_times))), axis=0)
    return jnp.where(is_velocity, velocity_times, start), jnp.where(is_velocity, velocity_times, end)


@jax.named_scope("teacher")
def teacher_velocity(
    model: Flowley,
    noisy: Float[Array, "B Ta C"],
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt W"],
    text_len: Int[Array, " B"],
    t: Float[Array, " B"],
    config: FlowMapConfig,
    gather_weights: GatherWeights = identity,
) -> Float[Array, "B Ta C"]:
    """Return the guided velocity (`flowley_jax.flow.guidance`), with all its branches in one batched call.

    The scale of the video is `config.guidance` where `guidance_from` ≤ t < `guidance_to`, and else 1. The
    scale of the text is the same, unless `guidance_text` sets one for all times. Without guidance, only the
    conditional branch runs.

    Args:
      model: the teacher.
      noisy: x_t, standardised.
      video, text, text_len: conditions; some of them can be empty already.
      t: time of each item.
      config: guidance.
      gather_weights: applied to each block's weights where the block is computed.
    """
    form = Guidance(scale=config.guidance, text_scale=config.guidance_text)
    if form.branches == 1:
        return model(noisy, video, text, text_len, t, gather_weights=gather_weights)
    everywhere = jnp.ones(t.shape, bool)
    empty_video, empty_text = drop_conditions(model, video, text, drop_video=everywhere, drop_text=everywhere)
    branches = [(video, text)]
    if config.guidance_text is not None:
        branches.append((video, empty_text))
    if form.scales[0] > 1.0:
        branches.append((empty_video, empty_text))
    videos, texts = zip(*branches, strict=True)
    count = len(branches)
    velocities = model(
        _in_turn(*[noisy] * count),
        _in_turn(*videos),
        _in_turn(*texts),
        _in_turn(*[text_len] * count),
        _in_turn(*[t] * count),
        gather_weights=gather_weights,
    )
    conditional, *others = jnp.moveaxis(velocities.reshape(len(noisy), count, *noisy.shape[1:]), 1, 0)
    guided = (t >= config.guidance_from) & (t < config.guidance_to)
    scale, text_scale = jnp.where(guided, form.scales[0], 1.0)[:, None, None], form.scales[1]
    if config.guidance_text is None:
        [empty] = others
        return empty + scale * (conditional - empty)
    of_video, *empty = others
    toward_text = text_scale * (conditional - of_video)
    if not empty:
        return of_video + toward_text
    return empty[0] + scale * (of_video - empty[0]) + toward_text


def mean_velocity_target(
    noisy: Float[Array, "B Ta C"],
    velocity: Float[Array, "B Ta C"],
    t: Float[Array, " B"],
    r: Float[Array, " B"],
    mean_velocity: MeanVelocity,
    *,
    alpha: jax.Array | float,
) -> Float[Array, "B Ta C"]:
    """Return the target of u(x_t, t, r): the velocity up to m = t + α·(r − t), and then the mean velocity.

    It is α·v + (1 − α)·u(x_m, m, r) with x_m = x_t + (m − t)·v (α-Flow, arXiv 2510.20771), and v where r = t.
    No gradient passes.

    Args:
      noisy: x_t.
      velocity: v at x_t.
      t, r: times of the start and of the end of a step.
      mean_velocity: estimate of u.
      alpha: α, above 0 and at most 1.
    """
    middle = t + alpha * (r - t)
    moved = noisy + (middle - t)[:, None, None] * velocity
    target = alpha * velocity + (1.0 - alpha) * mean_velocity(moved, middle, r)
    return jax.lax.stop_gradient(jnp.where((r > t)[:, None, None], target, velocity))


def _in_turn(*arrays: Array) -> Array:
    """Return the rows of arrays in turn, so that all rows of an item stay on its device."""
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
