"""The network against the published implementation: velocity and every intermediate of all variants."""

import dataclasses
import math

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error

from flowley_jax.interop import flowley_from_torch
from flowley_jax.model import (
    Flowley,
    ModelConfig,
    abstract_model,
    attention,
    conditioning,
    multi_stream,
    single_stream,
)
from flowley_jax.model.attention import rotary_angles

TOLERANCE = 1e-5


class _Recorder:
    """Recorder of the results of chosen callables, in the order of their calls."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch
        self.results: dict[str, list] = {}

    def record_calls(self, owner, label):
        name = "__call__"
        original = getattr(owner, name)

        def recording(instance, *args, **kwargs):
            result = original(instance, *args, **kwargs)
            self.results.setdefault(label(instance) if callable(label) else label, []).append(result)
            return result

        self._patch.setattr(owner, name, recording)

    def record_function(self, module, name: str, label: str):
        original = getattr(module, name)

        def recording(*args, **kwargs):
            result = original(*args, **kwargs)
            self.results.setdefault(label, []).append(attention.merge_heads(result))
            return result

        self._patch.setattr(module, name, recording)


@pytest.mark.parametrize("name", golden_data.VARIANTS)
def test_velocity_and_every_intermediate_match_the_golden_data(name, monkeypatch):
    data, model = golden_data.load(name), golden_data.model(name)
    recorder = _Recorder(monkeypatch)
    labels = {
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
        return labels.get(id(instance), "other")

    for owner in (
        conditioning.InputProjection,
        conditioning.Linear,
        conditioning.GatedMlp,
        conditioning.TimeEmbedding,
        conditioning.GlobalCondition,
        conditioning.CrossInput,
    ):
        recorder.record_calls(owner, label)
    recorder.record_calls(multi_stream.MultiStreamBlock, "multi")
    recorder.record_calls(single_stream.SingleStreamBlock, "single")
    recorder.record_function(single_stream, "attention", "self_and_text")
    recorder.record_function(single_stream, "video_attention", "vis_cross")

    velocity = model(
        jnp.asarray(data["in/audio_latent"]), *golden_data.conditions(name), jnp.asarray(data["in/t"])
    )

    results = recorder.results
    actual = {key: values[0] for key, values in results.items() if key in labels.values()}
    actual["flow"] = velocity
    for index, streams in enumerate(results["multi"]):
        for stream, values in zip(("audio", "visual", "text"), streams, strict=True):
            actual[f"multi.{index}.{stream}"] = values
    for index, values in enumerate(results["single"]):
        actual[f"single.{index}"] = values
    for index, values in enumerate(results.get("vis_cross", [])):
        actual[f"single_vis_cross.{index}"] = values
        actual[f"single_self_attn.{index}"] = results["self_and_text"][2 * index]
        actual[f"single_tex_cross.{index}"] = results["self_and_text"][2 * index + 1]
    tables = ("multi_key_bias", "_rot", "single_modal_mask")
    expected = [key for key in data if key.startswith("out/") and not key.endswith(tables)]
    assert len(expected) >= 16
    errors = {key: relative_error(actual[key.removeprefix("out/")], data[key]) for key in expected}
    assert max(errors.values()) < TOLERANCE, errors


def test_rotary_angles_match_the_golden_tables():
    data = golden_data.load("masks_rope_time")
    for name, length, scale in (("audio_full_hd64", 250, 1.0), ("visual_full_hd64", 64, 250 / 64)):
        angles = rotary_angles(length, 64, position_scale=scale)
        table = np.stack(
            [np.stack([np.cos(angles), -np.sin(angles)], -1), np.stack([np.sin(angles), np.cos(angles)], -1)],
            -2,
        )
        np.testing.assert_allclose(table[None], data[f"out/rope/{name}"], atol=1e-5, rtol=0)


def test_time_embedding_matches_the_golden_data():
    data = golden_data.load("masks_rope_time")
    embedding = conditioning.sinusoidal_embedding(jnp.asarray(data["in/t"]))
    np.testing.assert_allclose(embedding, data["out/timestep_embedding_256"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("share", "parameters"), [(True, 170_894_909), (False, 277_140_422)])
def test_parameter_counts_are_the_published_ones(share, parameters):
    _, *states = abstract_model(ModelConfig(share_single=share))
    assert sum(leaf.size for leaf in jax.tree.leaves(states)) == parameters


def test_velocity_has_the_length_of_the_latent():
    data, model = golden_data.load("a_shared"), golden_data.model("a_shared")
    video, text, text_len = golden_data.conditions("a_shared")
    latent = jnp.concatenate([jnp.asarray(data["in/audio_latent"])] * 2, axis=1)
    velocity = model(latent, jnp.concatenate([video] * 2, axis=1), text, text_len, jnp.asarray(data["in/t"]))
    assert velocity.shape == latent.shape
    assert bool(jnp.isfinite(velocity).all())


def test_joint_attention_does_not_read_text_padding():
    data, model = golden_data.load("b_dit"), golden_data.model("b_dit")
    video, text, _ = golden_data.conditions("b_dit")
    latent, t = jnp.asarray(data["in/audio_latent"]), jnp.asarray(data["in/t"])
    text_len = jnp.asarray([2, 3, 4])
    # Reversing the padding keeps the mean over positions, the only other way that this variant reads text.
    reversed_padding = np.array(text)
    for item, length in enumerate(np.asarray(text_len)):
        reversed_padding[item, length:] = reversed_padding[item, length:][::-1]
    assert not np.allclose(reversed_padding, text)
    run = nnx.jit(model)
    np.testing.assert_allclose(
        run(latent, video, jnp.asarray(reversed_padding), text_len, t),
        run(latent, video, text, text_len, t),
        atol=5e-6,
    )


@pytest.mark.scale
def test_bfloat16_velocity_is_close_and_weights_stay_float32():
    data = golden_data.load("a_shared")
    config = dataclasses.replace(golden_data.config("a_shared"), dtype="bfloat16")
    model = flowley_from_torch(golden_data.state_dict("a_shared"), config)
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
    run = nnx.jit(lambda model, seed: model(*inputs, deterministic=False, rng=_keys(seed, len(inputs[0]))))
    velocity = run(model, 0)
    np.testing.assert_array_equal(velocity, run(model, 0))
    assert float(jnp.abs(velocity - run(model, 1)).max()) > 1e-3


def _keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def test_qk_scale_replaces_the_softmax_scale_of_all_attention():
    data, model = golden_data.load("a_shared"), golden_data.model("a_shared")
    inputs = (
        jnp.asarray(data["in/audio_latent"]),
        *golden_data.conditions("a_shared"),
        jnp.asarray(data["in/t"]),
    )
    # Heads are 8 channels wide: tripling 1/√8 is the same as tripling every normalised query.
    scaled = flowley_from_torch(
        golden_data.state_dict("a_shared"), dataclasses.replace(model.config, qk_scale=3 / math.sqrt(8))
    )
    tripled = nnx.clone(model)
    for _, module in nnx.iter_modules(tripled):
        if isinstance(module, attention.QkvProjection | attention.CrossProjection):
            module.query_norm.scale.set_value(3 * module.query_norm.scale[...])
    velocity, expected = nnx.jit(scaled)(*inputs), nnx.jit(tripled)(*inputs)
    np.testing.assert_allclose(velocity, expected, atol=1e-5)
    assert relative_error(velocity, data["out/flow"]) > 1e-3


def test_stacks_may_have_different_head_counts():
    config = ModelConfig(width=32, num_heads=4, single_num_heads=2, multi_depth=1, single_depth=1)
    model = Flowley(config, rngs=nnx.Rngs(0))
    branch, block = model.multi_stream[0].audio, model.single_stream[0]
    assert (branch.qkv.num_heads, branch.qkv.query_norm.scale.shape) == (4, (8,))
    for projection in (block.qkv, block.reader.video, block.reader.text):
        assert (projection.num_heads, projection.query_norm.scale.shape) == (2, (16,))
    inputs = (jnp.ones((1, 5, 20)), jnp.ones((1, 2, 768)), jnp.ones((1, 3, 1024)))
    assert nnx.jit(model)(*inputs, jnp.asarray([2]), jnp.asarray([0.5])).shape == (1, 5, 20)
