"""The loss of a state on clips that it is not trained on."""

from pathlib import Path

import jax

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import TrainState


def validation_losses(
    valid_fn, state: TrainState, records: Path, config: ExperimentConfig, layout: Layout
) -> dict[str, float]:
    """Mean losses over the valid split, named `valid/…`; the same draws at every call.

    Args:
      valid_fn: of `make_valid_step`.
    """
    sums: dict[str, float] = {}
    count = 0
    for index, batch in enumerate(eval_batches(records, "valid", batch_size=config.data.batch_size)):
        size = len(batch["text_len"])
        for name, value in jax.device_get(valid_fn(state, layout.place(batch), index)).items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
        count += size
    return {f"valid/{name}": value / count for name, value in sums.items()}
