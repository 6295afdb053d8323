"""Train the embedded tagger on the real sounds of a clip set; about a minute on two cores."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from flowley_jax.audio.mel import MEL_16K, from_log, to_log
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.labels import all_classes, targets
from flowley_jax.evaluation.tagger import Tagger, TaggerConfig

# So small a network cannot tell more classes apart.
MOST_CLASSES = 64
LEAST_CLIPS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggerTraining:
    """How a tagger is trained.

    Attributes:
      epochs: passes over the clips.
      batch: clips per step.
      learning_rate: highest rate of AdamW, which falls to zero along a cosine.
      mixed: share of the clips to which another clip's sound is added.
      shift_seconds: largest shift in time; what leaves at one end returns at the other.
      gains: lowest and highest change of level, as powers of ten.
      noises: lowest and highest level of added noise, as powers of ten of mel energy.
    """

    epochs: int = 60
    batch: int = 32
    learning_rate: float = 2e-3
    mixed: float = 0.3
    shift_seconds: float = 0.5
    gains: tuple[float, float] = (-0.6, 0.3)
    noises: tuple[float, float] = (-4.5, -2.5)


def train_tagger(
    log_mels: np.ndarray,
    labels: list[str],
    *,
    training: TaggerTraining | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
) -> Tagger:
    """Return a tagger of the classes that the labels name.

    Args:
      log_mels: (clips, T, 80) of `front_end`.
      labels: label of each clip.
      training: how to train; None for the usual way.
      seed: seed of the weights, of the order of the clips and of their changes.
      progress: function of the number of finished epochs, of all epochs, and of the mean loss.

    Raises:
      FlowleyError: there are too few clips, or fewer than two or too many classes.
    """
    training = training or TaggerTraining()
    classes = all_classes(labels)
    if len(labels) < LEAST_CLIPS:
        raise FlowleyError(f"a tagger needs at least {LEAST_CLIPS} labelled clips; there are {len(labels)}")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise FlowleyError(
            f"the labels name {len(classes)} classes; a tagger is trained for 2 to {MOST_CLASSES}"
        )
    named = targets(labels, classes)
    tagger = Tagger(TaggerConfig(classes=classes), rngs=nnx.Rngs(seed))
    steps = len(labels) // training.batch or 1
    optimizer = _optimizer(training, steps * training.epochs)
    graphdef, state = nnx.split(tagger)
    moments = optimizer.init(state)

    @jax.jit
    def step(state, moments, log_mels, named):
        def loss_of(state):
            logits = nnx.merge(graphdef, state)(log_mels)[1]
            return optax.sigmoid_binary_cross_entropy(logits, named).sum(axis=-1).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, loss

    rng = np.random.default_rng(seed)
    for epoch in range(training.epochs):
        order, losses = rng.permutation(len(labels)), []
        for start in range(0, steps * training.batch, training.batch):
            rows = order[start : start + training.batch]
            changed = _change(log_mels[rows], named[rows], training, rng)
            state, moments, loss = step(state, moments, *changed)
            losses.append(loss)
        progress(epoch + 1, training.epochs, float(np.mean(jax.device_get(losses))))
    return nnx.merge(graphdef, state)


def _optimizer(training: TaggerTraining, steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, min(50, steps // 10), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))


def _change(
    log_mels: Float[np.ndarray, "B T bins"],
    named: Float[np.ndarray, "B classes"],
    training: TaggerTraining,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "B T bins"], Float[np.ndarray, "B classes"]]:
    """Return clips at other levels and times, with noise, some with the sound of another one of the batch."""
    batch = len(log_mels)
    energy = from_log(log_mels + rng.uniform(*training.gains, (batch, 1, 1)), MEL_16K)
    most = round(training.shift_seconds * MEL_16K.sample_rate / MEL_16K.hop)
    shifts = rng.integers(-most, most + 1, batch)
    energy = np.stack([np.roll(clip, shift, axis=0) for clip, shift in zip(energy, shifts, strict=True)])
    partner, is_mixed = rng.permutation(batch), rng.random(batch) < training.mixed
    energy = np.where(is_mixed[:, None, None], np.hypot(energy, energy[partner]), energy)
    named = np.where(is_mixed[:, None], np.maximum(named, named[partner]), named)
    energy = energy + 10.0 ** rng.uniform(*training.noises, (batch, 1, 1))
    return to_log(energy, MEL_16K).astype(np.float32), named
