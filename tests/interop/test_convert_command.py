"""The flags of the command that converts published files."""

import pytest
import shell


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
        ((), "give either --source"),
    ],
    ids=str,
)
def test_invalid_flags_end_with_one_line(flags, message):
    result = shell.run("flowley_jax.convert", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
