"""ImageBind against outputs of the published implementation."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from films import film
from flax import nnx
from golden_data import count_parameters, load, relative_error, settings, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.frames import imagebind_clips, three_crops
from flowley_jax.evaluation.resizing import with_short_side
from flowley_jax.interop.imagebind import imagebind_from_torch, infer_config
from flowley_jax.interop.registry import identify, needed_weights
from flowley_jax.networks import imagebind_audio
from flowley_jax.networks.imagebind import ImageBind, ImageBindConfig, TrunkConfig

NAME = "av_imagebind_small"
CONFIG = ImageBindConfig(
    vision=TrunkConfig(width=56, layers=3, heads=4, mlp_width=224),
    audio=TrunkConfig(width=48, layers=3, heads=4, mlp_width=192),
    dim=40,
)
# Compiled, the networks take a fraction of the time.
_embed_audio, _embed_video = nnx.jit(ImageBind.embed_audio), nnx.jit(ImageBind.embed_video)


def _waves():
    return load("waves_16k")["wave"].astype(np.float32) / 32768


def _images():
    return jnp.asarray(np.stack([imagebind_audio.clip_images(wave[None]) for wave in _waves()]))


@functools.cache
def _clips():
    frames = [with_short_side(frame, 224) for frame in film("landscape", [24, 74, 124, 174])]
    return imagebind_clips(jnp.asarray(three_crops(np.stack(frames)))[None])


def _model(factors=None, **changes):
    factors = factors or {}
    arrays = {name: array * factors.get(name, 1.0) for name, array in state_dict(NAME).items()}
    return imagebind_from_torch(arrays, dataclasses.replace(CONFIG, **changes))


def test_the_front_end_is_the_published_one():
    golden = load("av_front_audio")
    for row, images in enumerate(_images()):
        # The chirp's quiet bins are float32 noise in the published program.
        assert relative_error(images[:, None], golden[f"ib/8s/row{row}"]) < 1e-3
    silence = imagebind_audio.clip_images(np.zeros((1, 32_000)))[0, :, ::32]
    assert relative_error(silence, golden["ib/silence"]) < 1e-6


@pytest.mark.parametrize(
    ("case", "rows", "samples"),
    [
        ("stereo/row01", slice(2), 128_000),
        ("5s/row0", slice(1), 80_000),
        ("5s/row1", slice(1, 2), 80_000),
        ("1.5s/row1", slice(1, 2), 24_000),
        ("7.77s/row1", slice(1, 2), 124_321),
    ],
)
def test_sounds_of_other_lengths_and_channels_give_the_published_images(case, rows, samples):
    wave = _waves()[rows, :samples]
    kept = wave.copy()
    images = imagebind_audio.clip_images(wave)
    assert relative_error(images[:, None, :, ::4], load("av_front_audio")[f"ib/{case}"]) < 1e-3
    np.testing.assert_array_equal(wave, kept)


def test_clips_are_cut_as_published():
    golden = load("av_front_audio")
    for key in (key for key in golden if key.startswith("ib/clip_samples/")):
        np.testing.assert_array_equal(imagebind_audio.clip_samples(int(key.split("/")[-1])), golden[key])


def test_a_sound_below_one_window_is_refused():
    assert imagebind_audio.clip_images(np.zeros((1, 400))).shape == (3, 128, 204)
    with pytest.raises(FlowleyError, match="399 samples is too short for ImageBind; expected at least 400"):
        imagebind_audio.clip_images(np.zeros((1, 399)))


def test_embeddings_of_sounds_are_the_published_ones():
    assert relative_error(_embed_audio(_model(), _images()), load(NAME)["out/audio"]) < 1e-5


def test_embeddings_of_videos_are_the_published_ones():
    assert relative_error(_embed_video(_model(), _clips()), load(NAME)["out/vision"]) < 1e-5


def test_the_epsilons_are_the_published_ones():
    golden, model = load(NAME), _model(settings(NAME)["eps_multipliers"])
    assert relative_error(_embed_audio(model, _images()[:1]), golden["out/audio_eps"]) < 1e-5
    assert relative_error(_embed_video(model, _clips()), golden["out/vision_eps"]) < 1e-5


def test_the_scale_of_sounds_is_limited():
    model = _model()
    model.modality_postprocessors["audio"]["1"].log_logit_scale[...] = jnp.asarray(5.0)
    embedding = _embed_audio(model, _images()[:1])
    assert relative_error(embedding, load(NAME)["out/audio_scale_clamped"]) < 1e-5


def test_bfloat16_is_close():
    golden, model = load(NAME), _model(dtype="bfloat16")
    audio, video = _embed_audio(model, _images()), _embed_video(model, _clips())
    assert audio.dtype == video.dtype == jnp.float32
    assert relative_error(audio, golden["out/audio"]) < 3e-2
    assert relative_error(video, golden["out/vision"]) < 3e-2


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: ImageBind(ImageBindConfig(), rngs=nnx.Rngs(0)))
    counts = {"vision": 0, "audio": 0}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[path[1]] += variable.size
    assert counts == {"vision": 632_829_440, "audio": 86_235_649}
    assert count_parameters(model) == sum(counts.values())


def test_sizes_are_those_of_the_published_file():
    model = nnx.eval_shape(lambda: ImageBind(ImageBindConfig(), rngs=nnx.Rngs(0)))
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    shapes = {".".join(map(str, path)): variable.shape for path, variable in parameters}
    arrays = {name: np.broadcast_to(np.float32(0), shape[::-1]) for name, shape in shapes.items()}
    assert infer_config(arrays, {}) == ImageBindConfig()


def test_the_file_is_recognised_and_other_ones_are_refused():
    arrays = state_dict(NAME)
    assert identify(arrays).name == "imagebind"
    other = ["modality_trunks.text.blocks.0.norm_1.weight", "modality_postprocessors.text.1.log_logit_scale"]
    assert set(needed_weights([*arrays, *other])) == set(arrays)
    with pytest.raises(FlowleyError, match="width 56 must be a multiple of 16 heads"):
        infer_config(arrays, {})
    del arrays["modality_trunks.audio.blocks.1.attn.bias_k"]
    with pytest.raises(FlowleyError, match=r"do not fit ImageBind; .*audio\.blocks\.1\.attn\.bias_k"):
        imagebind_from_torch(arrays, CONFIG)
    del arrays["modality_heads.vision.2.weight"]
    with pytest.raises(FlowleyError, match=r"ImageBind lacks modality_heads\.vision\.2\.weight"):
        infer_config({name: arrays[name] for name in arrays} | _divisible(), {})


def _divisible():
    """Return weights from which the widths are read, with widths that the published heads divide."""
    return {
        "modality_trunks.vision.blocks.0.mlp.fc1.weight": np.zeros((64, 16)),
        "modality_trunks.audio.blocks.0.mlp.fc1.weight": np.zeros((48, 12)),
    }
