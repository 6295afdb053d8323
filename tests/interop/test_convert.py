"""Conversion of published files to bundles and back, and errors that say what a file is."""

import hashlib
import json
import os

import golden_data
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import published
import pytest
from safetensors.numpy import save_file

from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import MANIFEST_FILE, WEIGHTS_FILE, Bundle
from flowley_jax.interop.convert import convert, inspect, write_back
from flowley_jax.interop.weight_files import read_arrays
from flowley_jax.model import ModelConfig

LEVEL = tuple(np.linspace(-4.5, 1.0, 81, dtype=np.float32).tolist())
FILES = {"flowley": "a_shared", "audio_vae": "g_vae16k", "bigvgan": "h_bigvgan16k"}


def _write(path, arrays):
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    return str(path)


@pytest.fixture
def source(tmp_path):
    """A function that writes golden weights of a format as a published file."""

    def write(name, change=None):
        arrays = golden_data.state_dict(FILES[name])
        if name == "flowley":
            arrays = {f"model.{key}": array for key, array in arrays.items()}
        return _write(tmp_path / f"{name}.safetensors", change(arrays) if change else arrays)

    return write


@pytest.mark.parametrize("name", list(FILES))
def test_bundle_is_written_back_without_loss(source, tmp_path, name):
    bundle = convert(source(name), tmp_path / "bundles")
    assert bundle.folder == tmp_path / "bundles" / name and bundle.format == name
    write_back(bundle.folder, tmp_path / "back.safetensors")
    expected, _ = read_arrays(tmp_path / f"{name}.safetensors")
    written, _ = read_arrays(tmp_path / "back.safetensors")
    assert written.keys() == expected.keys()
    for key, array in expected.items():
        assert written[key].dtype == array.dtype
        np.testing.assert_array_equal(written[key], array)


def test_half_precision_is_stored_and_computed_in_float32(source, tmp_path):
    half = convert(
        source("audio_vae", lambda arrays: {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}),
        tmp_path / "bundles",
    )
    assert {array.dtype.name for array in half.arrays().values()} == {"bfloat16"}
    latents = jnp.ones((1, 6, 20))
    decoded = half.load().decode(latents)
    assert decoded.dtype == np.float32
    exact = convert(source("audio_vae"), tmp_path / "exact").load().decode(latents)
    # Rounding the weights to 8 bits changes the result by a few units of that precision.
    assert golden_data.relative_error(decoded, exact) < 2e-2


def test_manifest_states_sources_and_sizes(source, tmp_path):
    path = source("bigvgan")
    folder = convert(path, tmp_path / "bundles").folder
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (origin,) = manifest["sources"]
    content = (tmp_path / "bigvgan.safetensors").read_bytes()
    assert origin == {
        "name": "bigvgan.safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert manifest["parameters"] == sum(a.size for a in golden_data.state_dict("h_bigvgan16k").values())
    assert manifest["config"]["rates"] == [4, 4, 2, 2, 2, 2]


def test_sizes_of_the_network_are_inferred_from_its_weights(source, tmp_path):
    config = convert(source("flowley"), tmp_path / "bundles").config
    expected = ModelConfig.from_torch_config(golden_data.settings("a_shared")["model"])
    inferred = (
        "audio_dim",
        "video_dim",
        "text_dim",
        "width",
        "num_heads",
        "multi_depth",
        "single_depth",
        "share_single",
    )
    for name in (*inferred, "mlp_width"):
        assert getattr(config, name) == getattr(expected, name), name


def _manifest(bundle):
    return json.loads((bundle.folder / MANIFEST_FILE).read_text())


@pytest.mark.parametrize(
    ("notes", "frames", "expected"),
    [({}, None, 8.0), ({}, 40, 5.0), ({"flowley_jax.seconds": "4.096"}, 40, 4.096)],
)
def test_manifest_of_the_network_has_the_length_of_its_clips(tmp_path, notes, frames, expected):
    arrays = {name: np.asarray(a, order="C") for name, a in golden_data.state_dict("a_shared").items()}
    save_file(arrays, tmp_path / "flowley.safetensors", notes)
    if frames:
        settings = {**golden_data.settings("a_shared")["model"], "visual_seq_len": frames, "video_fps": 8.0}
        (tmp_path / "config.json").write_text(json.dumps(settings))
    bundle = convert(str(tmp_path / "flowley.safetensors"), tmp_path / "bundles")
    assert bundle.seconds == _manifest(bundle)["seconds"] == expected
    assert Bundle.open(bundle.folder) == bundle
    write_back(bundle.folder, tmp_path / "back.safetensors")
    assert read_arrays(tmp_path / "back.safetensors")[1] == notes


def test_bundle_of_an_earlier_version_gets_its_length(source, tmp_path):
    path = source("flowley")
    bundle = convert(path, tmp_path / "bundles")
    manifest = _manifest(bundle)
    del manifest["seconds"]
    (bundle.folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert Bundle.open(bundle.folder).seconds is None
    assert convert(path, tmp_path / "bundles").seconds == 8.0
    assert Bundle.open(bundle.folder).seconds == 8.0


def test_file_of_a_run_that_does_not_name_its_length_is_one_warning(tmp_path, caplog):
    arrays = {name: np.asarray(a, order="C") for name, a in golden_data.state_dict("a_shared").items()}
    save_file(arrays, tmp_path / "flowley.safetensors", {"flowley_jax.codec": "0" * 64})
    with caplog.at_level("WARNING", logger="flowley_jax"):
        convert(str(tmp_path / "flowley.safetensors"), tmp_path / "bundles")
    (record,) = caplog.records
    assert "8 s are assumed" in record.getMessage() and "flowley.safetensors" in record.getMessage()


def test_level_is_kept_until_another_one_is_given(source, tmp_path, caplog):
    path, out = source("audio_vae"), tmp_path / "bundles"
    assert "log_mel_max" not in _manifest(convert(path, out))
    bundle = convert(path, out, log_mel_max=LEVEL)
    assert bundle.log_mel_max == Bundle.open(bundle.folder).log_mel_max == LEVEL
    with caplog.at_level("INFO", logger="flowley_jax"):
        assert convert(path, out).log_mel_max == LEVEL
    assert "keeps the log_mel_max that an earlier --level-from gave it" in caplog.text
    (bundle.folder / WEIGHTS_FILE).write_bytes(b"damaged")
    assert convert(path, out).log_mel_max == Bundle.open(bundle.folder).log_mel_max == LEVEL
    other = tuple(-value for value in LEVEL)
    assert convert(path, out, log_mel_max=other).log_mel_max == other
    assert Bundle.open(bundle.folder).sha256 == bundle.sha256


def test_level_of_other_bins_is_refused_and_the_bundle_stays(source, tmp_path):
    path, out = source("audio_vae"), tmp_path / "bundles"
    bundle = convert(path, out, log_mel_max=LEVEL)
    with pytest.raises(
        FlowleyError, match=r"log_mel_max has 80 values, and the audio VAE with its 80 bins needs 81"
    ):
        convert(path, out, log_mel_max=LEVEL[1:])
    assert Bundle.open(bundle.folder) == bundle
    manifest = _manifest(bundle)
    (bundle.folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"log_mel_max": [0.0]}))
    with pytest.raises(FlowleyError, match=r"manifest\.json: is damaged \(log_mel_max has 1 values"):
        Bundle.open(bundle.folder)


def test_models_other_than_the_codec_have_no_level(source, tmp_path):
    bundle = convert(source("bigvgan"), tmp_path / "bundles", log_mel_max=LEVEL)
    assert bundle.log_mel_max is None and "log_mel_max" not in _manifest(bundle)


def test_existing_bundle_is_kept_unless_it_is_damaged(source, tmp_path):
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
        ({"discriminators.0.convs.0.weight": 1}, "found the discriminators of a vocoder"),
        ({"visual.trunk.blocks.0.norm1.weight": 1}, "found a CLIP model with a different image network"),
        (
            {"some.layer": 1, "another": 1},
            r"found an unknown model \(2 weights, among them another, some.layer\)",
        ),
    ],
)
def test_wrong_file_is_described_in_the_error(tmp_path, arrays, message):
    path = _write(tmp_path / "a.safetensors", {name: np.zeros(3, np.float32) for name in arrays})
    with pytest.raises(FlowleyError, match=f"expected the audio VAE, {message}"):
        convert(path, tmp_path / "bundles", expect="audio_vae")
    assert not (tmp_path / "bundles").exists()


def test_missing_weights_are_listed_in_the_error(source, tmp_path):
    def without(arrays):
        return {n: a for n, a in arrays.items() if not n.startswith("resblocks.3.convs1.1.")}

    with pytest.raises(
        FlowleyError,
        match=r"bigvgan\.safetensors: .*2 weights differ: resblocks\.3\.convs1\.1\.bias: found none",
    ):
        convert(source("bigvgan", without), tmp_path / "bundles")


def test_non_finite_weights_are_refused(source, tmp_path):
    def with_nan(arrays):
        return {**arrays, "conv_pre.bias": np.full_like(arrays["conv_pre.bias"], np.nan)}

    with pytest.raises(FlowleyError, match=r"conv_pre\.bias: not finite"):
        convert(source("bigvgan", with_nan), tmp_path / "bundles")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_named_in_the_error(source, tmp_path, share):
    path = tmp_path / "bigvgan.safetensors"
    source("bigvgan")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        FlowleyError, match=r"bigvgan\.safetensors: is (damaged or not a safetensors file|empty)"
    ):
        convert(str(path), tmp_path / "bundles")


def test_inspect_describes_a_file(source):
    path = source("audio_vae")
    assert "the audio VAE; 57 weights with 316,578 parameters, float32" in inspect(path)
    with pytest.raises(FlowleyError, match="expected a CLIP image encoder, found the audio VAE"):
        inspect(path, expect="clip")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"<html>", "download the file again")],
)
def test_failed_download_is_recognised(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FlowleyError, match=message):
        inspect(str(tmp_path / "model.safetensors"))


def test_changed_settings_make_the_bundle_again(tmp_path):
    files = published.write_clip(tmp_path / "clip", published.CLIP)
    path = files / "open_clip_config.json"
    correct = path.read_text()
    path.write_text(correct.replace('"quick_gelu": true', '"quick_gelu": false'))
    assert convert(str(files), tmp_path / "out").config.activation == "gelu"
    path.write_text(correct)
    assert convert(str(files), tmp_path / "out").config.activation == "quick_gelu"


def test_tokenizer_that_is_added_later_is_copied(tmp_path, caplog):
    files = published.write_t5(tmp_path / "t5", published.T5)
    (files / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (files / "tokenizer_config.json").unlink()
    with caplog.at_level("WARNING", logger="flowley_jax"):
        folder = convert(str(files), tmp_path / "out").folder
    assert "no tokenizer next to the weights" in caplog.text
    (tmp_path / "tokenizer.json").rename(files / "tokenizer.json")
    convert(str(files), tmp_path / "out")
    assert (folder / "tokenizer.json").exists()


def test_bundle_of_other_weights_is_not_replaced(source, tmp_path):
    convert(source("audio_vae"), tmp_path / "bundles")
    other = source("audio_vae", lambda arrays: {name: 2 * array for name, array in arrays.items()})
    with pytest.raises(
        FlowleyError, match=r"was made from other weights \(audio_vae\.safetensors\); remove it"
    ):
        convert(other, tmp_path / "bundles")


def test_damaged_weights_are_detected_before_use(source, tmp_path):
    bundle = convert(source("bigvgan"), tmp_path / "bundles")
    path = bundle.folder / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FlowleyError, match=r"is damaged or was replaced .*; convert the model again"):
        bundle.load()


def test_written_files_are_readable_by_others(source, tmp_path):
    folder = convert(source("audio_vae"), tmp_path / "bundles").folder
    write_back(folder, tmp_path / "new" / "back.safetensors")
    mask = os.umask(0o022)
    os.umask(mask)
    for path in (folder / WEIGHTS_FILE, tmp_path / "new" / "back.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_replaced_weights_are_not_written_back(source, tmp_path):
    folder = convert(source("audio_vae"), tmp_path / "bundles").folder
    other = convert(source("bigvgan"), tmp_path / "bundles").folder
    (folder / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())
    with pytest.raises(FlowleyError, match="is damaged or was replaced"):
        write_back(folder, tmp_path / "back.safetensors")


def test_moved_bundle_is_found_through_the_environment_variable(source, tmp_path, monkeypatch):
    bundle = convert(source("audio_vae"), tmp_path / "bundles")
    stored = bundle.to_json()
    (tmp_path / "bundles").rename(tmp_path / "moved")
    with pytest.raises(FlowleyError, match="set FLOWLEY_BUNDLES"):
        Bundle.from_json(stored).load()
    monkeypatch.setenv("FLOWLEY_BUNDLES", str(tmp_path / "moved"))
    assert Bundle.from_json(stored).load().config.latent_dim == 20
    with pytest.raises(FlowleyError, match="holds different weights from the expected bundle"):
        Bundle.from_json({**stored, "sha256": "0"}).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no bundle"),
        ("{", "is not valid JSON"),
        ('{"version": 9}', "is not a manifest of version 1"),
        ('{"version": 1, "kind": "song"}', "is damaged"),
    ],
)
def test_folder_without_a_valid_manifest_is_named_in_the_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / MANIFEST_FILE).write_text(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        Bundle.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_bundle_of_a_different_format_is_refused_by_a_codec(source, tmp_path):
    folder = convert(source("bigvgan"), tmp_path / "bundles").folder
    with pytest.raises(FlowleyError, match="expected the audio VAE, found the BigVGAN vocoder"):
        VaeCodec(bundle=Bundle.open(folder))
