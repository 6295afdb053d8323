"""Run the commands as a shell does, and check how they end."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import children

from flowley_jax.common.locks import LOCK_FILE

ROOT = Path(__file__).parents[1]
IMPACTS = str(ROOT / "configs/impacts.py")
DEBUG = f"{IMPACTS}:debug"
# The network of the demonstration with fewer blocks, whose step compiles in seconds.
SMALL = (
    "--config.model.width=32",
    "--config.model.multi_depth=1",
    "--config.model.single_depth=2",
    # A schedule that does not depend on the length of a run: runs of all lengths share one compiled step.
    "--config.optim.schedule=steps",
)
TIMEOUT = 600.0
# Commands are forked from a process that has imported the libraries: most commands take less time than that.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["flowley_jax.cli", "flowley_jax.sampling.published", "flowley_jax.training.loop"]
)


def command(module: str, *flags: object) -> list[str]:
    """Return the words that start a command."""
    return [sys.executable, "-m", module, *map(str, flags)]


def run(module: str, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it is killed after TIMEOUT seconds."""
    arguments = [str(flag) for flag in flags]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_run_module, args=(module, arguments, *outputs))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired([module, *arguments], TIMEOUT)
        written = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess([module, *arguments], process.exitcode or 0, *written)


def _run_module(module: str, arguments: list[str], stdout: Path, stderr: Path) -> None:
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def train(workdir: Path, *flags: object, config: str = DEBUG) -> subprocess.CompletedProcess[str]:
    """Train, by default a smaller version of the debug configuration."""
    small = SMALL if config == DEBUG else ()
    return run("flowley_jax.train", "--config", config, "--workdir", workdir, *small, *flags)


def sample(workdir: Path, video: Path, out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Sample sound for a video, a folder or a table."""
    return run("flowley_jax.sample", "--workdir", workdir, "--video", video, "--out", out, *flags)


def fails_in_one_line(result: subprocess.CompletedProcess[str], *expected: object) -> str:
    """Check for exit code 2 without a traceback, and return the last line, which must contain `expected`."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    for part in expected:
        assert str(part) in line
    return line


def tree(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file in a folder, but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE)
    return {path: path.read_bytes() for path in files}


def with_file_limit(kilobytes: int, module: str, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot write more than `kilobytes` to a file, as if the disk were full."""
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$0" "$@"', *command(module, *flags)]
    # The command reads the compilation cache and adds nothing: a half-written entry would outlive the test.
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    return children.run(limited, cwd=ROOT, env=environment)
