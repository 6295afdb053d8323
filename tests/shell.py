"""The programs as a shell starts them, and how they end."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPACTS = str(ROOT / "configs/impacts.py")
DEBUG = f"{IMPACTS}:debug"
# Its network with fewer blocks, whose step compiles in seconds.
SMALL = (
    "--config.model.width=32",
    "--config.model.multi_depth=1",
    "--config.model.single_depth=2",
    # A schedule that does not know how long a run is: runs of all lengths share one program.
    "--config.optim.schedule=steps",
)
TIMEOUT = 600
# Programs are forked from a process that has imported the libraries: that takes longer than most of them run.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["flowley_jax.cli", "flowley_jax.sampling.published", "flowley_jax.training.loop"]
)


def command(module, *flags):
    """What a shell would start."""
    return [sys.executable, "-m", module, *map(str, flags)]


def run(module, *flags):
    """Runs a program to its end."""
    arguments = [str(flag) for flag in flags]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _FORKS.Process(target=_program, args=(module, arguments, *outputs))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired([module, *arguments], TIMEOUT)
        written = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *written)


def _program(module, arguments, stdout, stderr):
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def train(workdir, *flags, config=DEBUG):
    """Trains; the debug configuration in small."""
    small = SMALL if config == DEBUG else ()
    return run("flowley_jax.train", "--config", config, "--workdir", workdir, *small, *flags)


def sample(workdir, video, out, *flags, **options):
    """Samples."""
    return run("flowley_jax.sample", "--workdir", workdir, "--video", video, "--out", out, *flags, **options)


def fails_in_one_line(result, *expected):
    """Exit code 2, no traceback, and a last line that has all that is expected; returns it."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    for part in expected:
        assert str(part) in line
    return line


def tree(folder):
    """Every file with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_file_limit(kilobytes, module, *flags):
    """Runs a program for which the disk is full after that much of a file."""
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$0" "$@"', *command(module, *flags)]
    # Reads the compilation cache and adds nothing: half-written entries would outlive the test.
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    return subprocess.run(limited, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment)
