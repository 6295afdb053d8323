"""Bundles that are interrupted, damaged, or written where other files are."""

import concurrent.futures
import errno
import json
import os
import shutil
import threading

import golden_data
import numpy as np
import published
import pytest
from safetensors.numpy import save_file

from flowley_jax.encoders.clip_frames import ClipFrames
from flowley_jax.encoders.t5_text import T5Text
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import bundles
from flowley_jax.interop.bundles import MANIFEST_FILE, WEIGHTS_FILE, Bundle
from flowley_jax.interop.convert import convert, write_back


@pytest.fixture(scope="module")
def t5_files(tmp_path_factory):
    """The published files of a T5 encoder, which tests must not change."""
    return published.write_t5(tmp_path_factory.mktemp("t5") / "t5", published.T5)


@pytest.fixture
def t5_copy(t5_files, tmp_path):
    """A copy of them, which tests may change."""
    return shutil.copytree(t5_files, tmp_path / "files")


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(golden_data.state_dict("g_vae16k"), path)
    return path


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _assert_whole(folder):
    ids, _ = T5Text(bundle=Bundle.open(folder)).tokens(["a dog barks"])
    assert ids.shape == (1, 77)
    Bundle.open(folder).check()


class _Stopped(BaseException):
    """An interruption."""


@pytest.mark.parametrize("interruption", [_Stopped(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("earlier", [False, True])
def test_conversion_may_be_interrupted_at_every_step(t5_copy, tmp_path, monkeypatch, earlier, interruption):
    """Stop at the first, second, … file that is written or moved, and run the same command again."""
    out, calls = tmp_path / "out", []
    if earlier:
        settings = json.loads((t5_copy / "config.json").read_text())
        (t5_copy / "config.json").write_text(json.dumps(settings | {"layer_norm_epsilon": 1e-5}))
        convert(str(t5_copy), out)
        (t5_copy / "config.json").write_text(json.dumps(settings))

    def stopping(function, limit):
        def call(*arguments, **options):
            calls.append(None)
            if len(calls) == limit:
                raise interruption
            return function(*arguments, **options)

        return call

    stops = 0
    for limit in range(1, 20):
        calls.clear()
        target = tmp_path / f"out{limit}"
        if earlier:
            shutil.copytree(out, target)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", stopping(shutil.copyfile, limit))
            patch.setattr(os, "replace", stopping(os.replace, limit))
            patch.setattr(bundles, "write_arrays", stopping(bundles.write_arrays, limit))
            try:
                convert(str(t5_copy), target)
            except (FlowleyError, OSError) as error:
                assert "No space left on device" in str(error)
                stops += 1
            except _Stopped:
                stops += 1
        assert not [path for path in target.iterdir() if path.name.startswith(".partial")]
        convert(str(t5_copy), target)
        _assert_whole(target / "t5")
        assert Bundle.open(target / "t5").config.layer_norm_epsilon == 1e-6
        if len(calls) < limit:
            break
    # Each of two tokenizer files and the weights, and more for the moves.
    assert stops >= 4


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_damaged_tokenizer_is_noticed_and_the_advice_helps(t5_files, tmp_path, name, damage):
    folder = convert(str(t5_files), tmp_path / "out").folder
    content = (folder / name).read_bytes()
    if damage == "removed":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-1] if damage == "cut" else content.replace(b"pad", b"bad", 1))
    with pytest.raises(FlowleyError, match=rf"{name}: .*; convert the model again"):
        T5Text(bundle=Bundle.open(folder)).tokens(["a dog"])
    convert(str(t5_files), tmp_path / "out")
    assert (folder / name).read_bytes() == content
    _assert_whole(folder)


def test_advice_on_a_missing_tokenizer_helps(t5_copy, tmp_path):
    names = ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        (t5_copy / name).rename(tmp_path / name)
    folder = convert(str(t5_copy), tmp_path / "out").folder
    with pytest.raises(FlowleyError, match=r"put tokenizer\.json .* and convert them again"):
        T5Text(bundle=Bundle.open(folder)).tokens(["a dog"])
    for name in names:
        (tmp_path / name).rename(t5_copy / name)
    _assert_whole(convert(str(t5_copy), tmp_path / "out").folder)


def test_tokenizer_that_was_not_fetched_is_refused(t5_copy, tmp_path):
    (t5_copy / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(FlowleyError, match=r"tokenizer\.json: .*it is a Git LFS pointer"):
        convert(str(t5_copy), tmp_path / "out")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "tokenizer.json", MANIFEST_FILE])
def test_files_of_others_are_never_replaced(t5_files, tmp_path, name):
    folder = tmp_path / "out" / "t5"
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FlowleyError, match=rf"holds {name}, and no valid manifest\.json says"):
        convert(str(t5_files), tmp_path / "out")
    assert _content(folder) == {name: b"{}", "notes.txt": b"mine"}


def test_other_files_of_a_bundles_folder_are_kept(t5_copy, tmp_path):
    folder = tmp_path / "out" / "t5"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    convert(str(t5_copy), tmp_path / "out")
    settings = json.loads((t5_copy / "config.json").read_text())
    (t5_copy / "config.json").write_text(json.dumps(settings | {"layer_norm_epsilon": 1e-5}))
    convert(str(t5_copy), tmp_path / "out")
    assert Bundle.open(folder).config.layer_norm_epsilon == 1e-5
    assert (folder / "notes.txt").read_text() == "mine"


def test_damaged_bundle_of_other_weights_is_not_replaced(vae_file, tmp_path):
    folder = convert(str(vae_file), tmp_path / "out").folder
    (folder / WEIGHTS_FILE).write_bytes(b"damaged")
    other = tmp_path / "other.safetensors"
    save_file({name: np.asarray(2 * x) for name, x in golden_data.state_dict("g_vae16k").items()}, other)
    with pytest.raises(FlowleyError, match=r"was made from other weights \(vae\.safetensors\)"):
        convert(str(other), tmp_path / "out")


def test_two_conversions_at_once_make_one_bundle(vae_file, tmp_path, monkeypatch):
    """Hold the first one while it writes, until the second one waits for it."""
    writing, moved = threading.Event(), []
    monkeypatch.setattr("flowley_jax.common.locks.time.sleep", lambda _: writing.set())
    write_arrays = bundles.write_arrays

    def waiting(*arguments):
        assert writing.wait(timeout=60)
        moved.append(arguments[0])
        write_arrays(*arguments)

    monkeypatch.setattr(bundles, "write_arrays", waiting)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [pool.submit(convert, str(vae_file), tmp_path / "out") for _ in range(2)]
        made = [result.result(timeout=120) for result in results]
    assert len(moved) == 1 and made[0] == made[1]
    made[0].check()


def test_left_overs_of_killed_conversions_are_removed(vae_file, tmp_path):
    left_over = tmp_path / "out" / ".partial-0123456789abcdef"
    left_over.mkdir(parents=True)
    (left_over / WEIGHTS_FILE).write_bytes(b"half")
    convert(str(vae_file), tmp_path / "out")
    assert not left_over.exists()


def test_manifest_that_is_cut_or_changed_ends_in_an_error(vae_file, tmp_path):
    folder = convert(str(vae_file), tmp_path / "out").folder
    path = folder / MANIFEST_FILE
    content = path.read_bytes()
    for position in range(len(content.rstrip())):
        path.write_bytes(content[:position])
        with pytest.raises(FlowleyError, match=r"manifest\.json"):
            Bundle.open(folder)
        changed = bytearray(content)
        changed[position] ^= 0x11
        path.write_bytes(changed)
        try:
            bundle = Bundle.open(folder)
        except FlowleyError as error:
            assert "manifest.json" in str(error)
        else:
            assert bundle.to_json().keys() == json.loads(content).keys() | {"folder"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": 3}, "must be a tuple"),
        ({"sources": [{"name": "a"}]}, "missing"),
        ({"sources": [{"name": 1, "size": 1, "sha256": "0"}]}, r"name=1 must be text"),
        ({"sources": [{"name": "a", "size": -1, "sha256": "0"}]}, r"size=-1 must be at least 0"),
        ({"kind": ["vae"]}, "must be text"),
        ({"config": []}, r"config=\[\] must be a JSON object"),
        ({"config": {"bins": "80"}}, "bins='80' must be an int"),
        ({"sha256": None}, "sha256=None must be text"),
        ({"parameters": 1e99}, "must be an int"),
        ({"within": 3}, "within=3 must be text"),
        ({"colour": "red"}, "unknown key"),
    ],
    ids=str,
)
def test_manifest_with_wrong_values_is_refused(vae_file, tmp_path, change, message):
    folder = convert(str(vae_file), tmp_path / "out").folder
    stored = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(stored | change))
    with pytest.raises(FlowleyError, match=rf"manifest\.json: is damaged .*{message}"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.int8), "has type int8, expected float16, bfloat16"),
        (lambda x: x > 0, "has type bool"),
        (lambda x: x.astype(np.complex64), "has type complex64"),
        (lambda x: np.full(x.shape, 1e300), "not finite"),
        (lambda x: x.reshape(-1), "sizes|weights differ"),
        (lambda x: x[:0], "sizes|weights differ"),
    ],
)
@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "decoder.conv_in.weight"])
def test_weights_of_wrong_type_or_shape_are_refused(tmp_path, name, change, message):
    arrays = golden_data.state_dict("g_vae16k")
    changed = np.ascontiguousarray(change(np.asarray(arrays[name])))
    save_file({**arrays, name: changed}, tmp_path / "vae.safetensors")
    with pytest.raises(FlowleyError, match=rf"vae\.safetensors: [^$]*({message})"):
        convert(str(tmp_path / "vae.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out" / "audio_vae").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 10**9},
        {"num_layers": 0},
        {"num_heads": 0},
        {"num_heads": -4},
        {"d_kv": "8"},
        {"d_ff": 10**20},
        {"d_model": None},
        {"d_model": 2.5},
        {"feed_forward_proj": ["relu"]},
        {"relative_attention_num_buckets": 0},
        {"layer_norm_epsilon": float("nan")},
    ],
    ids=str,
)
def test_t5_with_unusable_settings_is_refused(t5_copy, tmp_path, change):
    settings = json.loads((t5_copy / "config.json").read_text())
    (t5_copy / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(FlowleyError, match=r"model\.safetensors: "):
        convert(str(t5_copy), tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"vision_cfg": 3},
        {"vision_cfg": {"head_width": 0}},
        {"vision_cfg": {"head_width": "a"}},
        {"vision_cfg": []},
    ],
    ids=str,
)
def test_clip_with_unusable_settings_is_refused(tmp_path, change):
    files = published.write_clip(tmp_path / "clip", published.CLIP)
    (files / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True, **change}}))
    with pytest.raises(FlowleyError, match=r"open_clip_model\.safetensors: "):
        convert(str(files), tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"upsample_rates": [0, 4]},
        {"upsample_rates": "44"},
        {"upsample_rates": [4]},
        {"resblock_dilation_sizes": 3},
        {"resblock_dilation_sizes": []},
        {"resblock_dilation_sizes": [[1, "a", 5]]},
        {"resblock_dilation_sizes": [[1, 0, 5]]},
        {"activation": ["snakebeta"]},
    ],
    ids=str,
)
def test_bigvgan_with_unusable_settings_is_refused(tmp_path, change):
    save_file(golden_data.state_dict("h_bigvgan16k"), tmp_path / "bigvgan_generator.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(golden_data.settings("h_bigvgan16k")["h"] | change))
    with pytest.raises(FlowleyError, match=r"bigvgan_generator\.safetensors: "):
        convert(str(tmp_path), tmp_path / "out")


def test_existing_file_is_written_over_only_if_asked(vae_file, tmp_path):
    folder = convert(str(vae_file), tmp_path / "out").folder
    (tmp_path / "back.safetensors").write_text("mine")
    with pytest.raises(FlowleyError, match=r"--to .*back\.safetensors: already exists"):
        write_back(folder, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_text() == "mine"
    write_back(folder, tmp_path / "back.safetensors", overwrite=True)
    assert (tmp_path / "back.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("value", [0, -1, "77", 1.5, None, True])
def test_number_of_tokens_is_checked(t5_files, tmp_path, value):
    bundle = convert(str(t5_files), tmp_path / "out")
    with pytest.raises(FlowleyError, match="max_tokens="):
        T5Text(bundle=bundle, max_tokens=value)


@pytest.mark.parametrize(
    "change", [{"fps": float("nan")}, {"fps": 0}, {"fps": "8"}, {"dtype": "float64"}], ids=str
)
def test_settings_of_the_clip_encoder_are_checked(tmp_path, change):
    bundle = convert(str(published.write_clip(tmp_path / "clip", published.CLIP)), tmp_path / "out")
    with pytest.raises(FlowleyError, match=f"{next(iter(change))}="):
        ClipFrames(bundle=bundle, **change)
