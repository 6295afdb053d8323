"""The command that compiles for other devices: what it refuses before it starts to compile."""

import pytest
import shell

CONFIG = "--config=configs/vggsound.py:debug"
UNFIT = ("-1", "0", str(10**20), "nan", "", "word")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v5e",), "topology 'v5e' must be cpu, or one of"),
        (("--slices=2",), "--slices=2 needs a TPU --topology"),
        (("--what=sample", "--slices=2"), "--slices=2 needs --what=train"),
        (("--config.mesh.fsdp=7",), "mesh.fsdp=7 × mesh.tensor=1 must divide the number of devices"),
        (("--json=.",), "--json .: is a folder, expected a file"),
        (("--json=README.md",), "--json README.md: already exists"),
        *(((f"--{flag}={text}",), "must be") for flag in ("clips", "slices", "mfu") for text in UNFIT),
    ],
    ids=str,
)
def test_invalid_flags_end_before_anything_is_compiled(flags, message):
    result = shell.run("flowley_jax.compile", CONFIG, *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
