"""A small tagger of sounds: the embedded evaluator, which needs no download.

It is trained on the real sounds of a clip set, with the classes that the set's table names, and stands in for
the field's taggers (PANNs, PaSST): its embeddings and logits go through the same metrics.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.labels import SEPARATOR
from flowley_jax.interop.modules import load_module
from flowley_jax.interop.weight_files import read_arrays, write_arrays

SAMPLE_RATE = MEL_16K.sample_rate
# Quieter frames count as silence, so that the noise floor of a codec or vocoder does not tell real sounds
# from generated ones.
FLOOR = -4.0
# Sharpness of the soft maximum over time.
_SHARPNESS = 4.0
_KERNEL, _STRIDE = 5, 2
_CLASSES_NOTE = "classes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggerConfig:
    """Sizes of the tagger.

    Attributes:
      classes: names of the classes.
      width: channels of the layers over time.
      dilations: distance between the taps of each layer, in frames of 32 ms; together they see about 4 s.
      embedding: width of the embedding.
    """

    classes: tuple[str, ...]
    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    embedding: int = 128


class DilatedBlock(nnx.Module):
    """A residual layer over time."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.taps = nnx.Conv(width, width, (3,), kernel_dilation=(dilation,), rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        return x + self.out(nnx.gelu(self.taps(self.norm(x))))


class Tagger(nnx.Module):
    """Tagger of several classes at once.

    The rhythm of impacts tells a bounce from a swing, so the layers see seconds of sound (dilated
    convolutions, van den Oord et al. 2016, arXiv 1609.03499).
    """

    def __init__(self, config: TaggerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.frames = nnx.Conv(MEL_16K.bins, config.width, (_KERNEL,), strides=(_STRIDE,), rngs=rngs)
        self.blocks = nnx.List(
            [DilatedBlock(config.width, dilation, rngs=rngs) for dilation in config.dilations]
        )
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.embed = nnx.Linear(2 * config.width, config.embedding, rngs=rngs)
        self.head = nnx.Linear(config.embedding, len(config.classes), rngs=rngs)

    def __call__(
        self, log_mels: Float[Array, "B T bins"]
    ) -> tuple[Float[Array, "B dim"], Float[Array, "B classes"]]:
        """Return embeddings and class logits of log-mel frames (see `front_end`); classes are independent."""
        x = self.frames(jnp.maximum(log_mels, FLOOR) - FLOOR / 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        loudest = jax.nn.logsumexp(_SHARPNESS * x, axis=1) / _SHARPNESS
        embedding = nnx.gelu(self.embed(jnp.concatenate([x.mean(axis=1), loudest], axis=-1)))
        return embedding, self.head(embedding)


def front_end(wave: np.ndarray) -> np.ndarray:
    """Return the log-mel frames (T, 80) of a wave (N,) at 16 kHz.

    Raises:
      FlowleyError: the wave is too short.
    """
    return log_mel(wave, MEL_16K)


def save_tagger(tagger: Tagger, path: Path, notes: Mapping[str, str]) -> None:
    """Write a tagger to a .safetensors file.

    Args:
      tagger: the tagger.
      path: the file.
      notes: facts about its training to keep with it.

    Raises:
      FlowleyError: the file cannot be written.
    """
    state = nnx.to_flat_state(nnx.state(tagger, nnx.Param))
    arrays = {".".join(map(str, name)): np.asarray(value[...]) for name, value in state}
    write_arrays(path, arrays, {**notes, _CLASSES_NOTE: SEPARATOR.join(tagger.config.classes)})


def load_tagger(path: Path) -> tuple[Tagger, dict[str, str]]:
    """Return a tagger that `save_tagger` wrote, and the notes.

    Raises:
      FlowleyError: the file is missing or damaged, or does not hold a tagger of the present sizes.
    """
    arrays, notes = read_arrays(path)
    if not notes.get(_CLASSES_NOTE):
        raise FlowleyError(f"{path}: is not a tagger; its notes name no classes")
    config = TaggerConfig(classes=tuple(notes[_CLASSES_NOTE].split(SEPARATOR)))
    try:
        tagger = load_module(
            lambda: Tagger(config, rngs=nnx.Rngs(0)),
            arrays,
            convert=lambda name, array: array,
            title="the tagger",
        )
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    assert isinstance(tagger, Tagger)
    return tagger, notes
