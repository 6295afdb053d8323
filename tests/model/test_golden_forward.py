"""The network against the published implementation: velocity and every intermediate, all variants."""

import dataclasses

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error

from flowley_jax.interop import flowley_from_torch
from flowley_jax.model import Flowley, ModelConfig, attention, conditioning, multi_stream, single_stream
from flowley_jax.model.rope import rotary_angles

TOLERANCE = 1e-5


class _Recorder:
    """Collects what chosen callables return, in the order of the calls."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch
        self.seen: dict[str, list] = {}

    def method(self, owner, name: str, label):
        original = getattr(owner, name)

        def recording(instance, *args, **kwargs):
            result = original(instance, *args, **kwargs)
            self.seen.setdefault(label(instance) if callable(label) else label, []).append(result)
            return result

        self._patch.setattr(owner, name, recording)

    def function(self, module, name: str, label: str):
        original = getattr(module, name)

        def recording(*args, **kwargs):
            result = original(*args, **kwargs)
            self.seen.setdefault(label, []).append(attention.merge_heads(result))
            return result

        self._patch.setattr(module, name, recording)


@pytest.mark.parametrize("name", golden_data.VARIANTS)
def test_velocity_and_every_intermediate(name, monkeypatch):
    data, model = golden_data.load(name), golden_data.model(name)
    recorder = _Recorder(monkeypatch)
    parts = {
        id(model.audio_input): "audio_projector",
        id(model.text_input): "text_projector",
        id(model.video_input): "visual_projector",
        id(model.global_condition.text): "text_cond_projector",
        id(model.global_condition.video): "visual_cond_projector",
        id(model.global_condition.mlp): "global_cond_projector",
        id(model.global_condition.time): "timestep_embedder",
        id(model.global_condition): "cond_feat",
        id(model.cross_video): "cross_visual_proj",
        id(model.cross_text): "cross_textual_proj",
    }

    def label(instance):
        return parts.get(id(instance), "other")

    for owner in (
        conditioning.InputProjection,
        conditioning.Linear,
        conditioning.GatedMlp,
        conditioning.TimeEmbedding,
        conditioning.GlobalCondition,
        conditioning.CrossInput,
    ):
        recorder.method(owner, "__call__", label)
    recorder.method(multi_stream.MultiStreamBlock, "__call__", "multi")
    recorder.method(single_stream.SingleStreamBlock, "__call__", "single")
    recorder.function(single_stream, "attention", "self_and_text")
    recorder.function(single_stream, "video_attention", "vis_cross")

    velocity = model(
        jnp.asarray(data["in/audio_latent"]), *golden_data.conditions(name), jnp.asarray(data["in/t"])
    )

    found = {key: values[0] for key, values in recorder.seen.items() if key in parts.values()}
    found["flow"] = velocity
    for index, streams in enumerate(recorder.seen["multi"]):
        for stream, values in zip(("audio", "visual", "text"), streams, strict=True):
            found[f"multi.{index}.{stream}"] = values
    for index, values in enumerate(recorder.seen["single"]):
        found[f"single.{index}"] = values
    if "vis_cross" in recorder.seen:
        for index, values in enumerate(recorder.seen["vis_cross"]):
            found[f"single_vis_cross.{index}"] = values
            found[f"single_self_attn.{index}"] = recorder.seen["self_and_text"][2 * index]
            found[f"single_tex_cross.{index}"] = recorder.seen["self_and_text"][2 * index + 1]
    tables = ("multi_key_bias", "_rot", "single_modal_mask")
    wanted = [key for key in data if key.startswith("out/") and not key.endswith(tables)]
    assert len(wanted) >= 16
    errors = {key: relative_error(found[key.removeprefix("out/")], data[key]) for key in wanted}
    assert max(errors.values()) < TOLERANCE, errors


def test_rotary_tables():
    data = golden_data.load("masks_rope_time")
    for name, length, scale in (("audio_full_hd64", 250, 1.0), ("visual_full_hd64", 64, 250 / 64)):
        angles = rotary_angles(length, 64, position_scale=scale)
        table = np.stack(
            [np.stack([np.cos(angles), -np.sin(angles)], -1), np.stack([np.sin(angles), np.cos(angles)], -1)],
            -2,
        )
        np.testing.assert_allclose(table[None], data[f"out/rope/{name}"], atol=1e-5, rtol=0)


def test_time_embedding():
    data = golden_data.load("masks_rope_time")
    embedding = conditioning.sinusoidal_embedding(jnp.asarray(data["in/t"]))
    np.testing.assert_allclose(embedding, data["out/timestep_embedding_256"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("share", "parameters"), [(True, 170_894_909), (False, 277_140_422)])
def test_published_parameter_counts(share, parameters):
    model = nnx.eval_shape(lambda: Flowley(ModelConfig(share_single=share), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == parameters


def test_lengths_are_the_inputs():
    data, model = golden_data.load("a_shared"), golden_data.model("a_shared")
    video, text, text_len = golden_data.conditions("a_shared")
    latent = jnp.concatenate([jnp.asarray(data["in/audio_latent"])] * 2, axis=1)
    velocity = model(latent, jnp.concatenate([video] * 2, axis=1), text, text_len, jnp.asarray(data["in/t"]))
    assert velocity.shape == latent.shape
    assert bool(jnp.isfinite(velocity).all())


def test_text_padding_is_not_read_by_joint_attention():
    data, model = golden_data.load("b_dit"), golden_data.model("b_dit")
    video, text, _ = golden_data.conditions("b_dit")
    latent, t = jnp.asarray(data["in/audio_latent"]), jnp.asarray(data["in/t"])
    text_len = jnp.asarray([2, 3, 4])
    pad = jnp.arange(text.shape[1])[None, :, None] >= text_len[:, None, None]
    # Shuffling the padding keeps the mean over positions, the only other way that text is read.
    shuffled = jnp.where(pad, jnp.flip(jnp.where(pad, text, 0.0), axis=1), text)
    flipped = (
        text.at[0, 2:]
        .set(text[0, 2:][::-1])
        .at[1, 3:]
        .set(text[1, 3:][::-1])
        .at[2, 4:]
        .set(text[2, 4:][::-1])
    )
    assert not np.allclose(shuffled, text)
    np.testing.assert_allclose(
        model(latent, video, flipped, text_len, t), model(latent, video, text, text_len, t), atol=5e-6
    )


@pytest.mark.scale
def test_bfloat16_compute_stays_close_and_keeps_float32_weights():
    data = golden_data.load("a_shared")
    config = ModelConfig.from_torch_config(golden_data.settings("a_shared")["model"])
    model = flowley_from_torch(
        golden_data.state_dict("a_shared"), dataclasses.replace(config, dtype="bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    velocity = model(
        jnp.asarray(data["in/audio_latent"]), *golden_data.conditions("a_shared"), jnp.asarray(data["in/t"])
    )
    assert velocity.dtype == jnp.float32
    error = np.asarray(velocity) - data["out/flow"]
    assert float(np.sqrt(np.mean(error**2)) / data["out/flow"].std()) < 0.03


def test_dropout_needs_a_key_and_depends_on_it():
    data, model = golden_data.load("a_shared"), golden_data.model("a_shared")
    inputs = (
        jnp.asarray(data["in/audio_latent"]),
        *golden_data.conditions("a_shared"),
        jnp.asarray(data["in/t"]),
    )
    with pytest.raises(ValueError, match="needs rng"):
        model(*inputs, deterministic=False)
    first = model(*inputs, deterministic=False, rng=jax.random.split(jax.random.key(0), len(inputs[0])))
    again = model(*inputs, deterministic=False, rng=jax.random.split(jax.random.key(0), len(inputs[0])))
    other = model(*inputs, deterministic=False, rng=jax.random.split(jax.random.key(1), len(inputs[0])))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
