"""Guidance in sampling, and the empty conditions that it needs from training.

Every form leads away from a worse velocity than that of the condition. Classifier-free guidance takes that of
the empty condition (Ho and Salimans 2022, arXiv 2207.12598); autoguidance that of a worse network (Karras et
al. 2024, arXiv 2406.02070).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.model import Flowley

# Keeps the scale of CFG-Zero* finite where the empty branch is zero.
_SMALLEST_SQUARE = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """A form of guidance. The defaults of all but the scale give plain classifier-free guidance.

    Attributes:
      scale: guidance scale s; 1 and below count as 1, which is no guidance.
      text_scale: scale of the text, at all times; `scale` is then that of the video. None for one scale.
      start, end: `scale` applies to solver steps that begin in this interval of the time t, and is 1 for the
        others (Kynkäänniemi et al. 2024, arXiv 2404.07724).
      zero_until: time before which the velocity is zero (CFG-Zero*).
      zero_star: scale the empty velocity so that it fits the conditional one best (CFG-Zero*, Fan et al.
        2025, arXiv 2503.18886).
      rescale: share φ of the guided velocity that gets the standard deviation of the conditional one (Lin et
        al. 2023, arXiv 2305.08891).
      bad_model: lead away from a worse network instead of the empty condition.
    """

    scale: float
    text_scale: float | None = None
    start: float = 0.0
    end: float = 1.0
    zero_until: float = 0.0
    zero_star: bool = False
    rescale: float = 0.0
    bad_model: bool = False

    @property
    def branches(self) -> int:
        """Number of network evaluations of a guided velocity."""
        video, text = self.scales
        if video == text:
            return 1 if video == 1.0 else 2
        # The empty branch has the factor 1 − scale of the video.
        return 2 if video == 1.0 else 3

    @property
    def scales(self) -> tuple[float, float]:
        """The scales of video and text; values below 1 count as 1."""
        text_scale = self.scale if self.text_scale is None else self.text_scale
        return max(self.scale, 1.0), max(text_scale, 1.0)

    def at(self, t: float) -> "Guidance | None":
        """Return the form for steps that begin at t, without its time limits; None for a velocity of zero."""
        if t < self.zero_until:
            return None
        scale = self.scale if self.start <= t < self.end else 1.0
        form = dataclasses.replace(self, scale=scale, start=0.0, end=1.0, zero_until=0.0)
        return form if form.branches > 1 else UNGUIDED


UNGUIDED = Guidance(scale=1.0)


def drop_conditions(
    model: Flowley,
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt W"],
    *,
    drop_video: Bool[Array, " B"],
    drop_text: Bool[Array, " B"],
) -> tuple[Float[Array, "B Tv V"], Float[Array, "B Tt W"]]:
    """Return video and text, with the features of marked items replaced by the empty features."""
    empty_video, empty_text = _empty_like(model, video, text)
    video = jnp.where(drop_video[:, None, None], empty_video, video)
    return video, jnp.where(drop_text[:, None, None], empty_text, text)


def random_drops(key: jax.Array, batch_size: int, rate: float) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """Draw independent marks for video and text, each true with probability `rate`."""
    marks = jax.random.bernoulli(key, rate, (2, batch_size))
    return marks[0], marks[1]


@jax.named_scope("guidance")
def guided_velocity(
    model: Flowley,
    latent: Float[Array, "B Ta C"],
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt W"],
    text_len: Int[Array, " B"],
    t: Float[Array, ""],
    r: Float[Array, ""] | None = None,
    *,
    guidance: Guidance,
    negative_text: Float[Array, "B Tt W"] | None = None,
    negative_len: Int[Array, " B"] | None = None,
    bad_model: Flowley | None = None,
) -> Float[Array, "B Ta C"]:
    """Return the guided velocity: s·v(condition) + (1 − s)·v(empty) in the plain form.

    With a scale s_t of the text, it is v(empty) + s·(v(video) − v(empty)) + s_t·(v(video, text) − v(video))
    (Brooks et al. 2022, arXiv 2211.09800, equation 3). All branches of one network are computed in one batch.
    Without a negative text, all of them keep the condition's text_len, which decides the tokens that the
    joint attention reads.

    Args:
      model: the velocity network.
      latent: state x at time t, standardised.
      video, text, text_len: conditions.
      t: time, one for the whole batch.
      r: end of the step, for a flow map; None for the velocity at t.
      guidance: the form; its times do not matter here.
      negative_text, negative_len: text of the branches that guidance leads away from; by default the empty
        text. Autoguidance does not read it.
      bad_model: the worse network of autoguidance.
    """

    def evaluated(network: Flowley, *conditions: tuple[Array, Array, Array]) -> list[Array]:
        count = len(conditions)
        times = (
            None if time is None else jnp.full((count * len(latent),), time, jnp.float32) for time in (t, r)
        )
        inputs = (jnp.concatenate(arrays) for arrays in zip(*conditions, strict=True))
        return jnp.split(network(jnp.concatenate([latent] * count), *inputs, *times), count)

    whole = (video, text, text_len)
    if guidance.branches == 1:
        return evaluated(model, whole)[0]
    if guidance.bad_model:
        assert bad_model is not None and guidance.branches == 2
        [conditional] = evaluated(model, whole)
        [worse] = evaluated(bad_model, whole)
        return _combined(guidance, worse, conditional)
    empty_video, empty_text = _empty_like(model, video, text)
    negative_text = empty_text if negative_text is None else negative_text
    negative_len = text_len if negative_len is None else negative_len
    empty, without_text = ((of, negative_text, negative_len) for of in (empty_video, video))
    if guidance.branches == 3:
        conditional, of_video, worse = evaluated(model, whole, without_text, empty)
        return _combined(guidance, worse, conditional, of_video)
    if guidance.scales[0] == 1.0:
        # Guidance of the text only: the video stays in both branches.
        conditional, of_video = evaluated(model, whole, without_text)
        return _combined(guidance, of_video, conditional, of_video)
    conditional, worse = evaluated(model, whole, empty)
    return _combined(guidance, worse, conditional)


def _combined(guidance: Guidance, worse: Array, conditional: Array, of_video: Array | None = None) -> Array:
    """Return the guided velocity from its branches; `of_video` is None if both scales are equal."""
    scale, text_scale = guidance.scales
    if guidance.zero_star and scale > 1.0:
        product = jnp.sum(conditional * worse, axis=(1, 2), keepdims=True)
        square = jnp.sum(jnp.square(worse), axis=(1, 2), keepdims=True)
        worse = product / (square + _SMALLEST_SQUARE) * worse
    if of_video is None:
        guided = scale * conditional + (1.0 - scale) * worse
    else:
        guided = worse + scale * (of_video - worse) + text_scale * (conditional - of_video)
    if guidance.rescale:
        deviations = jnp.std(guided, axis=(1, 2), keepdims=True)
        factor = jnp.std(conditional, axis=(1, 2), keepdims=True) / jnp.maximum(deviations, _SMALLEST_SQUARE)
        guided = guided * (guidance.rescale * factor + (1.0 - guidance.rescale))
    return guided


def _empty_like(model: Flowley, video: Array, text: Array) -> tuple[Array, Array]:
    empty_video = jnp.broadcast_to(model.empty_video[...][None, None].astype(video.dtype), video.shape)
    return empty_video, jnp.broadcast_to(model.empty_text[...][None, None].astype(text.dtype), text.shape)
