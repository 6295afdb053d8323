"""The flags of the command that converts published files."""

import dataclasses
import json
import re

import golden_data
import numpy as np
import pytest
import shell
import tiny
from safetensors.numpy import save_file

from flowley_jax.data.components import Components
from flowley_jax.interop.bundles import MANIFEST_FILE
from flowley_jax.interop.registry import FORMATS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source=",), "--source='' must name a file, a folder or a repository"),
        (("--source=a.pth", "--out="), "--out='' must not be empty"),
        (("--bundle=", "--to=a.pth"), "--bundle='' must not be empty"),
        (("--bundle=a", "--to="), "--to='' must not be empty"),
        (("--bundle=a", "--to=README.md"), "README.md: must end in .safetensors"),
        (("--bundle=tests", "--to=a.safetensors"), "tests: holds no bundle (manifest.json)"),
        (("--source=a\nb\x1b[2J.pth",), "a\\nb\\x1b[2J.pth: no such file or folder"),
        (("--source=no/such/file.pth",), "no/such/file.pth: no such file or folder"),
        (("--source=a.pth", "--expect=word"), "--expect"),
        (("--source=a.pth", "--level-from="), "--level-from='' must not be empty"),
        (("--source=a.pth", "--level-from=runs/a"), "--level-from needs --out"),
        (
            ("--source=a.pth", "--out=o", "--level-from=no"),
            "--level-from no: holds neither records nor a run",
        ),
        ((), "give either --source"),
    ],
    ids=str,
)
def test_invalid_flags_end_with_one_line(flags, message):
    result = shell.run("flowley_jax.convert", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_every_model_can_be_expected():
    (line,) = shell.run("flowley_jax.convert", "--source=a.pth", "--expect=word").stderr.splitlines()
    assert [name for name in FORMATS if name not in re.findall(r"\w+", line)] == []


def test_level_of_records_goes_into_the_bundle_of_the_codec(tmp_path):
    save_file(golden_data.state_dict("g_vae16k"), tmp_path / "vae.safetensors")
    save_file(golden_data.state_dict("h_bigvgan16k"), tmp_path / "bigvgan.safetensors")
    records = tiny.write_records(tmp_path / "records", count=1)
    flags = "--out", tmp_path / "bundles", "--level-from", records
    components = dataclasses.replace(Components.load(records), log_mel_max=None)
    components.save(records)
    result = shell.run("flowley_jax.convert", "--source", tmp_path / "vae.safetensors", *flags)
    shell.fails_in_one_line(
        result, f"--level-from {records}: an earlier version made it, without log_mel_max"
    )
    level = np.linspace(-4.5, 1.0, components.codec.mel.bins + 1, dtype=np.float32)
    dataclasses.replace(components, log_mel_max=level).save(records)
    result = shell.run("flowley_jax.convert", "--source", tmp_path / "bigvgan.safetensors", *flags)
    shell.fails_in_one_line(result, "--level-from belongs to the audio VAE, and no --source is one")
    result = shell.run("flowley_jax.convert", "--source", tmp_path / "vae.safetensors", *flags)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "bundles/audio_vae" / MANIFEST_FILE).read_text())
    np.testing.assert_array_equal(np.float32(manifest["log_mel_max"]), level)
