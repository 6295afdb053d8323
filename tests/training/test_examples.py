"""What the network is given of a batch of records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.data.pipeline import eval_batches
from flowley_jax.model import Flowley
from flowley_jax.training.sharding import make_layout
from flowley_jax.training.step import draw_examples


@pytest.mark.parametrize("training", [False, True])
def test_a_clip_without_a_picture_has_the_empty_video(tmp_path, training):
    records = tiny.write_records(tmp_path / "records")
    config = tiny.experiment(records)
    config = dataclasses.replace(config, flow=dataclasses.replace(config.flow, condition_dropout=0.0))
    model = Flowley(config.model, rngs=nnx.Rngs(0))
    model.empty_video[...] = np.arange(config.model.video_dim, dtype=np.float32)
    batch = next(eval_batches(records, "train", batch_size=4))
    batch["has_video"][1:3] = False
    batch = jax.tree.map(jnp.asarray, batch)
    layout = make_layout(config)
    examples = draw_examples(model, batch, jax.random.key(0), config, layout, training=training)
    empty = np.broadcast_to(np.arange(config.model.video_dim), batch["video_features"][1:3].shape)
    np.testing.assert_array_equal(examples.video[1:3], empty)
    np.testing.assert_array_equal(examples.video[::3], batch["video_features"][::3])
    np.testing.assert_array_equal(examples.text, batch["text_features"])
