"""Empty conditions: condition dropout in training, and classifier-free guidance in sampling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.model import Flowley


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
    *,
    scale: float,
    negative_text: Float[Array, "B Tt W"] | None = None,
    negative_len: Int[Array, " B"] | None = None,
) -> Float[Array, "B Ta C"]:
    """Return s·v(condition) + (1 − s)·v(empty), with both branches in one batched call.

    At s = 1 and below, only the conditional branch runs. Without a negative text, both branches keep the
    condition's text_len, which decides the tokens that the joint attention reads.

    Args:
      model: the velocity network.
      latent: state x at time t, standardised.
      video, text, text_len: conditions.
      t: time, one for the whole batch.
      scale: guidance scale s.
      negative_text, negative_len: text of the empty branch, from which guidance leads away; by default the
        empty text.
    """
    times = jnp.full((latent.shape[0],), t, jnp.float32)
    if scale <= 1.0:
        return model(latent, video, text, text_len, times)
    empty_video, empty_text = _empty_like(model, video, text)
    both = model(
        jnp.concatenate([latent, latent]),
        jnp.concatenate([video, empty_video]),
        jnp.concatenate([text, empty_text if negative_text is None else negative_text]),
        jnp.concatenate([text_len, text_len if negative_len is None else negative_len]),
        jnp.concatenate([times, times]),
    )
    conditional, empty = jnp.split(both, 2)
    return scale * conditional + (1.0 - scale) * empty


def _empty_like(model: Flowley, video: Array, text: Array) -> tuple[Array, Array]:
    empty_video = jnp.broadcast_to(model.empty_video[...][None, None].astype(video.dtype), video.shape)
    return empty_video, jnp.broadcast_to(model.empty_text[...][None, None].astype(text.dtype), text.shape)
