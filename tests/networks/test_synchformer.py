"""Synchformer against outputs of the published implementation."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from films import film
from flax import nnx
from golden_data import count_parameters, load, relative_error, settings, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.frames import centre_crops, synchformer_segments
from flowley_jax.evaluation.resizing import with_short_side
from flowley_jax.interop.registry import identify
from flowley_jax.interop.synchformer import infer_config, synchformer_from_torch
from flowley_jax.networks import synchformer_audio
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SAMPLE_STEP, SEGMENT_SAMPLES, SynchformerConfig

NAME = "av_synchformer_small"


@functools.cache
def _sounds():
    """Return all segments of the three sounds, (3, 24, 10240)."""
    waves = load("waves_16k")["wave"].astype(np.float32) / 32768
    windows = np.lib.stride_tricks.sliding_window_view(waves, SEGMENT_SAMPLES, axis=1)
    return np.ascontiguousarray(windows[:, ::SAMPLE_STEP])


def _pictures(segments):
    """Return segments of the film, (1, S, 16, 224, 224, 3)."""
    frames = [8 * segment + frame for segment in segments for frame in range(16)]
    small = np.stack([with_short_side(frame, 224) for frame in film("landscape", frames)])
    return synchformer_segments(jnp.asarray(centre_crops(small))[None])[:, ::2]


def _config(**changes):
    return dataclasses.replace(infer_config(state_dict(NAME), {}), heads=4, **changes)


# Compiled, the networks take a fraction of the time.
_embed_audio, _embed_video = nnx.jit(Synchformer.embed_audio), nnx.jit(Synchformer.embed_video)


@functools.cache
def _model():
    return synchformer_from_torch(state_dict(NAME), _config())


def test_the_front_end_is_the_published_one():
    golden = load("av_front_audio")
    images = synchformer_audio.log_mel(jnp.asarray(_sounds().reshape(-1, SEGMENT_SAMPLES)))
    images = np.asarray(images).reshape(3, 24, 128, 66)
    assert relative_error(images[:, [0, 1, 12, 23]], golden["sync/8s"]) < 5e-5
    assert relative_error(images.sum(axis=-1), golden["sync/8s_sum_over_time"]) < 2e-5
    silence = synchformer_audio.log_mel(jnp.zeros((1, SEGMENT_SAMPLES)))[0, :, np.array([0, 64, 65])]
    assert relative_error(silence, golden["sync/silence"]) < 1e-6


def test_the_last_column_is_zero_before_it_is_normalised():
    image = synchformer_audio.log_mel(jnp.zeros((1, SEGMENT_SAMPLES)))[0]
    np.testing.assert_allclose(image[:, 65], 4.2677393 / (2 * 4.5689974), rtol=1e-6)


def test_features_of_sounds_are_the_published_ones():
    assert relative_error(_embed_audio(_model(), _sounds()), load(NAME)["out/audio"]) < 1e-5


def test_features_of_pictures_are_the_published_ones():
    segments = [0, 1, 23]
    features = _embed_video(_model(), _pictures(segments))
    assert relative_error(features, load(NAME)["out/video"][:, segments]) < 1e-5


@pytest.mark.parametrize(("name", "part"), [("first", slice(14)), ("last", slice(-14, None))])
def test_logits_of_offsets_are_the_published_ones(name, part):
    golden = load(NAME)
    video = jnp.asarray(golden["out/video"])[:, part]
    logits = _model().offset_logits(jnp.repeat(video, 3, axis=0), jnp.asarray(golden["out/audio"])[:, part])
    assert relative_error(logits, golden[f"out/logits_{name}"]) < 1e-5


def test_the_epsilons_are_the_published_ones():
    golden, factors = load(NAME), settings(NAME)["eps_multipliers"]
    arrays = {name: array * factors.get(name, 1.0) for name, array in state_dict(NAME).items()}
    model = synchformer_from_torch(arrays, _config())
    audio = _embed_audio(model, _sounds()[:1, :14])
    assert relative_error(audio[:, :4], golden["out/audio_eps"]) < 1e-5
    video = _embed_video(model, _pictures(range(14)))
    assert relative_error(video[:, :4], golden["out/video_eps"]) < 1e-5
    assert relative_error(model.offset_logits(video, audio), golden["out/logits_first_eps"]) < 1e-5


def test_another_number_of_segments_is_refused():
    video, audio = jnp.zeros((1, 13, 8, 48)), jnp.zeros((1, 14, 6, 48))
    with pytest.raises(FlowleyError, match="offset of 14 segments; found 13 of the picture and 14 of"):
        _model().offset_logits(video, audio)


def test_bfloat16_is_close():
    golden = load(NAME)
    model = synchformer_from_torch(state_dict(NAME), _config(dtype="bfloat16"))
    audio = _embed_audio(model, _sounds()[:, :2])
    video = _embed_video(model, _pictures([0]))
    assert audio.dtype == video.dtype == jnp.float32
    assert relative_error(audio, golden["out/audio"][:, :2]) < 3e-2
    assert relative_error(video, golden["out/video"][:, :1]) < 3e-2
    logits = model.offset_logits(
        *(jnp.asarray(golden[f"out/{name}"][:1, :14]) for name in ("video", "audio"))
    )
    assert relative_error(logits, golden["out/logits_first"][:1]) < 3e-2


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: Synchformer(SynchformerConfig(), rngs=nnx.Rngs(0)))
    unused = 3 * 16 * 16 * 768 + 768
    assert count_parameters(model) + unused == 237_460_245
    assert count_parameters(model.vfeat_extractor) + unused == 122_440_704
    assert count_parameters(model.afeat_extractor) == 92_400_384
    assert count_parameters(model.transformer) == 21_437_973


def test_the_file_is_recognised_and_other_ones_are_refused():
    arrays = state_dict(NAME)
    assert identify(arrays).name == "synchformer"
    del arrays["vfeat_extractor.temp_embed"]
    with pytest.raises(FlowleyError, match=r"do not fit Synchformer; .*vfeat_extractor\.temp_embed"):
        synchformer_from_torch(arrays, _config())
    del arrays["transformer.off_head.weight"]
    with pytest.raises(FlowleyError, match=r"Synchformer lacks transformer\.off_head\.weight"):
        infer_config(arrays, {})
    with pytest.raises(FlowleyError, match="width 700 must be a multiple of heads=12"):
        SynchformerConfig(width=700)
