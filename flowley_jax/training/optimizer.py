"""AdamW, its schedule and its clipping (spec/model.md, optimiser)."""

import math

import optax

from flowley_jax.config import OptimConfig


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then steps or a cosine; `total_steps` is the last training step."""
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
    """Clipping by global norm, then AdamW with weight decay on every parameter."""
    clip = (
        optax.clip_by_global_norm(config.clip_norm) if math.isfinite(config.clip_norm) else optax.identity()
    )
    return optax.chain(
        clip,
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
        ),
    )
