"""The training step: the network's inputs for a batch of records, and the names of its operations."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.data.pipeline import eval_batches
from flowley_jax.model import Flowley
from flowley_jax.training.flops import lower_step
from flowley_jax.training.step import draw_examples


@pytest.mark.parametrize("training", [False, True])
def test_a_clip_without_video_gets_the_empty_video_feature(tmp_path, training):
    records = tiny.write_records(tmp_path / "records")
    config = tiny.experiment(records)
    flow = dataclasses.replace(config.flow, condition_dropout=0.0)
    model = Flowley(config.model, rngs=nnx.Rngs(0))
    model.empty_video[...] = np.arange(config.model.video_dim, dtype=np.float32)
    batch = next(eval_batches(records, "train", batch_size=4))
    batch["has_video"][1:3] = False
    batch = jax.tree.map(jnp.asarray, batch)
    examples = draw_examples(model, batch, jax.random.key(0), flow, tiny.layout(config), training=training)
    empty = np.broadcast_to(np.arange(config.model.video_dim), batch["video_features"][1:3].shape)
    np.testing.assert_array_equal(examples.video[1:3], empty)
    np.testing.assert_array_equal(examples.video[::3], batch["video_features"][::3])
    np.testing.assert_array_equal(examples.text, batch["text_features"])


def test_operations_of_the_step_are_named_in_profiles():
    config = tiny.experiment("records")
    lowered = lower_step(config, tiny.layout(config), (25, 10, 9))
    text = lowered.as_text(debug_info=True)
    # Within the gradient, JAX writes jvp(scope) and transpose(jvp(scope)).
    for scope in ("examples", "coupling", "flowley", "loss", "psca", "optimizer", "ema", "update_ratios"):
        assert re.search(rf"[/(]{scope}\)*/", text), scope
