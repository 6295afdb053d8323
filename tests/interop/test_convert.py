"""Bundles: from published files and back, what a file is said to be, and what is wrong with it."""

import json
import os

import golden_data
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import published
import pytest
from safetensors.numpy import save_file

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import MANIFEST_FILE, WEIGHTS_FILE, Bundle
from flowley_jax.interop.convert import convert, inspect, write_back
from flowley_jax.interop.weight_files import read_arrays
from flowley_jax.model import ModelConfig

FILES = {"flowley": "a_shared", "audio_vae": "g_vae16k", "bigvgan": "h_bigvgan16k"}


def _write(path, arrays):
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    return str(path)


@pytest.fixture
def source(tmp_path):
    """Writes golden weights of a kind as a published file."""

    def write(kind, change=None):
        arrays = golden_data.state_dict(FILES[kind])
        if kind == "flowley":
            arrays = {f"model.{name}": array for name, array in arrays.items()}
        return _write(tmp_path / f"{kind}.safetensors", change(arrays) if change else arrays)

    return write


@pytest.mark.parametrize("kind", list(FILES))
def test_there_and_back(source, tmp_path, kind):
    bundle = convert(source(kind), tmp_path / "bundles")
    assert bundle.folder == tmp_path / "bundles" / kind and bundle.kind == kind
    write_back(bundle.folder, tmp_path / "back.safetensors")
    expected, found = (
        read_arrays(tmp_path / f"{kind}.safetensors")[0],
        read_arrays(tmp_path / "back.safetensors")[0],
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_half_precision_is_kept_and_computed_in_float32(source, tmp_path):
    half = convert(
        source("audio_vae", lambda arrays: {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}),
        tmp_path / "bundles",
    )
    assert {array.dtype.name for array in half.arrays().values()} == {"bfloat16"}
    latents = jnp.ones((1, 6, 20))
    decoded = half.load().decode(latents)
    assert decoded.dtype == np.float32
    whole = convert(source("audio_vae"), tmp_path / "whole").load().decode(latents)
    # Weights rounded to 8 bits move the result by some of their last bit.
    assert golden_data.relative_error(decoded, whole) < 2e-2


def test_the_manifest_says_where_from_and_how_large(source, tmp_path):
    path = source("bigvgan")
    folder = convert(path, tmp_path / "bundles").folder
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (origin,) = manifest["sources"]
    content = (tmp_path / "bigvgan.safetensors").read_bytes()
    import hashlib

    assert origin == {
        "name": "bigvgan.safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert manifest["parameters"] == sum(a.size for a in golden_data.state_dict("h_bigvgan16k").values())
    assert manifest["config"]["rates"] == [4, 4, 2, 2, 2, 2]


def test_the_network_s_sizes_are_told_by_its_weights(source, tmp_path):
    config = convert(source("flowley"), tmp_path / "bundles").config
    expected = ModelConfig.from_torch_config(golden_data.settings("a_shared")["model"])
    told = (
        "audio_dim",
        "video_dim",
        "text_dim",
        "width",
        "num_heads",
        "multi_depth",
        "single_depth",
        "share_single",
    )
    for name in (*told, "mlp_width"):
        assert getattr(config, name) == getattr(expected, name), name


def test_a_bundle_that_is_made_is_not_made_again(source, tmp_path):
    path = source("audio_vae")
    folder = convert(path, tmp_path / "bundles").folder
    before = (folder / WEIGHTS_FILE).stat().st_mtime_ns
    convert(path, tmp_path / "bundles")
    assert (folder / WEIGHTS_FILE).stat().st_mtime_ns == before
    (folder / WEIGHTS_FILE).write_bytes(b"damaged")
    convert(path, tmp_path / "bundles")
    Bundle.open(folder).check()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"audio_projector.0.weight": 1}, "found Flowley's network"),
        ({"discriminators.0.convs.0.weight": 1}, "found discriminators of a vocoder"),
        ({"visual.trunk.blocks.0.norm1.weight": 1}, "found a CLIP model on another image network"),
        (
            {"some.layer": 1, "another": 1},
            r"found something else \(2 weights, among them another, some.layer\)",
        ),
    ],
)
def test_a_wrong_file_is_said_to_be_what_it_is(tmp_path, arrays, message):
    path = _write(tmp_path / "a.safetensors", {name: np.zeros(3, np.float32) for name in arrays})
    with pytest.raises(FlowleyError, match=f"expected the audio VAE, {message}"):
        convert(path, tmp_path / "bundles", expect="audio_vae")
    assert not (tmp_path / "bundles").exists()


def test_missing_weights_are_listed(source, tmp_path):
    def without(arrays):
        return {n: a for n, a in arrays.items() if not n.startswith("resblocks.3.convs1.1.")}

    with pytest.raises(
        FlowleyError, match=r"bigvgan\.safetensors: .*2 problems.*resblocks\.3\.convs1\.1\.bias"
    ):
        convert(source("bigvgan", without), tmp_path / "bundles")


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    def spoiled(arrays):
        return {**arrays, "conv_pre.bias": np.full_like(arrays["conv_pre.bias"], np.nan)}

    with pytest.raises(FlowleyError, match=r"conv_pre\.bias has values that are not finite"):
        convert(source("bigvgan", spoiled), tmp_path / "bundles")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_named(source, tmp_path, share):
    path = tmp_path / "bigvgan.safetensors"
    source("bigvgan")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        FlowleyError, match=r"bigvgan\.safetensors: is (damaged or no safetensors file|empty)"
    ):
        convert(str(path), tmp_path / "bundles")


def test_what_a_file_is(source):
    path = source("audio_vae")
    assert "the audio VAE; 57 weights of" in inspect(path)
    with pytest.raises(FlowleyError, match="expected a CLIP image encoder, found the audio VAE"):
        inspect(path, expect="clip")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"<html>", "download the file again")],
)
def test_a_download_that_went_wrong_is_told(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FlowleyError, match=message):
        inspect(str(tmp_path / "model.safetensors"))


def test_corrected_settings_make_the_bundle_anew(tmp_path):
    files = published.write_clip(tmp_path / "clip", published.CLIP)
    path = files / "open_clip_config.json"
    right = path.read_text()
    path.write_text(right.replace('"quick_gelu": true', '"quick_gelu": false'))
    assert convert(str(files), tmp_path / "out").config.activation == "gelu"
    path.write_text(right)
    assert convert(str(files), tmp_path / "out").config.activation == "quick_gelu"


def test_a_tokenizer_that_comes_later_is_taken(tmp_path, caplog):
    files = published.write_t5(tmp_path / "t5", published.T5)
    (files / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (files / "tokenizer_config.json").unlink()
    with caplog.at_level("WARNING", logger="flowley_jax"):
        folder = convert(str(files), tmp_path / "out").folder
    assert "no tokenizer beside the weights" in caplog.text
    (tmp_path / "tokenizer.json").rename(files / "tokenizer.json")
    convert(str(files), tmp_path / "out")
    assert (folder / "tokenizer.json").exists()


def test_a_bundle_of_other_weights_is_not_replaced(source, tmp_path):
    convert(source("audio_vae"), tmp_path / "bundles")
    other = source("audio_vae", lambda arrays: {name: 2 * array for name, array in arrays.items()})
    with pytest.raises(
        FlowleyError, match=r"is made of audio_vae\.safetensors with other weights; remove it"
    ):
        convert(other, tmp_path / "bundles")


def test_damaged_weights_are_found_before_they_are_used(source, tmp_path):
    bundle = convert(source("bigvgan"), tmp_path / "bundles")
    path = bundle.folder / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FlowleyError, match=r"is damaged or was replaced .*; convert it again"):
        bundle.load()


def test_others_can_read_what_is_written(source, tmp_path):
    folder = convert(source("audio_vae"), tmp_path / "bundles").folder
    write_back(folder, tmp_path / "new" / "back.safetensors")
    mask = os.umask(0o022)
    os.umask(mask)
    for path in (folder / WEIGHTS_FILE, tmp_path / "new" / "back.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_replaced_file_of_weights_is_not_written_back(source, tmp_path):
    folder = convert(source("audio_vae"), tmp_path / "bundles").folder
    other = convert(source("bigvgan"), tmp_path / "bundles").folder
    (folder / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())
    with pytest.raises(FlowleyError, match="is damaged or was replaced"):
        write_back(folder, tmp_path / "back.safetensors")


def test_a_bundle_elsewhere_is_found_by_the_variable(source, tmp_path, monkeypatch):
    bundle = convert(source("audio_vae"), tmp_path / "bundles")
    stored = bundle.to_json()
    (tmp_path / "bundles").rename(tmp_path / "moved")
    with pytest.raises(FlowleyError, match="set FLOWLEY_BUNDLES"):
        Bundle.from_json(stored).load()
    monkeypatch.setenv("FLOWLEY_BUNDLES", str(tmp_path / "moved"))
    assert Bundle.from_json(stored).load().config.latent_dim == 20
    with pytest.raises(FlowleyError, match="another model than the one"):
        Bundle.from_json({**stored, "sha256": "0"}).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no bundle"),
        ("{", "cannot be read as JSON"),
        ('{"version": 9}', "is no manifest of version 1"),
        ('{"version": 1, "kind": "song"}', "is damaged"),
    ],
)
def test_folders_without_a_good_manifest(tmp_path, content, message):
    if content is not None:
        (tmp_path / MANIFEST_FILE).write_text(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        Bundle.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_network_in_the_place_of_a_codec(source, tmp_path):
    folder = convert(source("bigvgan"), tmp_path / "bundles").folder
    from flowley_jax.audio.vae_codec import VaeCodec

    with pytest.raises(FlowleyError, match="expected the audio VAE, found the BigVGAN vocoder"):
        VaeCodec(bundle=Bundle.open(folder))
