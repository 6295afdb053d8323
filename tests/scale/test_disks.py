"""A full or read-only disk never costs a file that is already written."""

import shutil
import subprocess
import sys

import children
import numpy as np
import pytest
import shell

from flowley_jax.media.write import write_video

pytestmark = pytest.mark.scale

# prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) makes root obey file modes too. A preexec_fn would fork JAX.
OBEYING_MODES = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("debug") / "run"
    result = shell.train(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def test_a_full_disk_keeps_the_earlier_checkpoints(debug_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(debug_run, workdir)
    before = shell.tree(workdir / "checkpoints")
    flags = ("--config", shell.DEBUG, "--workdir", workdir, *shell.SMALL, "--config.train.steps=8")
    result = shell.with_file_limit(300, "flowley_jax.train", *flags)
    shell.fails_in_one_line(result, workdir / "checkpoints", "cannot be written (File too large)")
    assert before.items() <= shell.tree(workdir / "checkpoints").items()
    result = shell.train(workdir, "--config.train.steps=8")
    assert result.returncode == 0 and "resuming at step 4 of 8" in result.stderr


def _set_writable(folder, writable):
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755 if writable else 0o555)


def test_a_folder_that_becomes_read_only_ends_the_run_and_keeps_its_checkpoints(debug_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(debug_run, workdir)
    flags = ("--config", shell.DEBUG, "--workdir", workdir, *shell.SMALL, "--config.train.steps=400")
    train = shell.command("flowley_jax.train", *flags, "--config.train.checkpoint_every=50")
    command = [sys.executable, "-c", OBEYING_MODES, *train]
    with children.started(command, stderr=subprocess.PIPE, text=True, cwd=shell.ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 6/"):
                _set_writable(workdir, False)
                break
        _, rest = process.communicate()
    try:
        assert process.returncode == 2, rest
        assert "Traceback" not in rest
        assert rest.splitlines()[-1].startswith(f"error: {workdir}")
        assert "Permission denied" in rest.splitlines()[-1]
        again = children.run(command, cwd=shell.ROOT)
        shell.fails_in_one_line(again, workdir, "Permission denied")
    finally:
        _set_writable(workdir, True)
    result = shell.train(workdir, "--config.train.steps=6")
    assert result.returncode == 0 and "resuming at step 4 of 6" in result.stderr


def test_a_full_disk_keeps_the_earlier_sound(tiny_run, tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((24, 64, 80, 3), np.uint8), 24.0)
    out = tmp_path / "sound.wav"
    # This run also writes what libraries store at their first import on a machine.
    assert shell.sample(tiny_run, video, out).returncode == 0
    older = out.read_bytes()
    flags = ("--workdir", tiny_run, "--video", video, "--out", out, "--seed=1")
    result = shell.with_file_limit(8, "flowley_jax.sample", *flags, "--overwrite")
    shell.fails_in_one_line(result, out, "cannot be written")
    assert out.read_bytes() == older and not list(tmp_path.glob(".*"))
