"""JAX's persistent compilation cache: the programs that a command compiled, for its next start."""

import hashlib
import logging
import os
import platform
import tempfile
from pathlib import Path

from absl import flags
from filelock import FileLock

from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError

# --help of a command shows the flag as its own.
flags.disclaim_key_flags()
log = logging.getLogger(__name__)
_MAX_BYTES = 2 * 2**30
_LOCK_SECONDS = 10.0
_CPU_INFO = Path("/proc/cpuinfo")
# Keys of the CPU's features in that file, on x86 and on Arm.
_FEATURE_KEYS = ("flags", "Features")
_FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_TIME_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# JAX's names of the lock, of a program and of the time when it was last used, in a cache of bounded size.
_LOCK, _PROGRAM, _USED = ".lockfile", "-cache", "-atime"


def define_compilation_cache(exception: str = "") -> flags.FlagHolder[str | None]:
    """Define the flag `--compilation-cache`, whose value `use_compilation_cache` takes.

    Args:
      exception: when the command has no cache by default, for the help.
    """
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        f"Folder for compiled programs, which the next start reuses; none turns this off. By default what "
        f"{_FOLDER_VARIABLE} names, or else flowley-jax in the user's cache folder{exception}.",
    )


def use_compilation_cache(folder: str | None) -> None:
    """Keep every program that JAX compiles from now on, and take it from the cache at the next start.

    A folder that cannot be used is a warning, and nothing is cached. `JAX_ENABLE_COMPILATION_CACHE=false`
    turns the cache off here too. Where JAX's variable names the folder, JAX uses it as it is. In any other
    folder, there is one cache of bounded size for each kind of CPU.

    Args:
      folder: value of `--compilation-cache`.

    Raises:
      FlowleyError: it is empty.
    """
    import jax

    if folder == "":
        raise FlowleyError("--compilation-cache='' must name a folder, or be none")
    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    if folder is not None or jax.config.values["jax_compilation_cache_dir"] is None:
        try:
            own = _open_own(Path(folder) if folder else _user_folder())
        except (FlowleyError, RuntimeError) as error:
            log.warning(
                "compiled programs are not kept: %s; --compilation-cache names another folder, or none", error
            )
            jax.config.update("jax_enable_compilation_cache", False)
            return
        jax.config.update("jax_compilation_cache_dir", str(own))
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    if _TIME_VARIABLE not in os.environ:
        # JAX's default leaves out the many programs that compile in less than a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _user_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores relative paths.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "flowley-jax"


def _open_own(folder: Path) -> Path:
    """Return the cache for this kind of CPU in a folder, in which files can be written.

    Raises:
      FlowleyError: they cannot.
    """
    own = folder / f"xla-{_cpu_identity()}"
    # A RuntimeError means that the file system has no locks.
    with name_errors(own, RuntimeError):
        # JAX runs the programs that it finds in a cache, so that nobody else may write there.
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(own / _LOCK, timeout=_LOCK_SECONDS), tempfile.TemporaryFile(dir=own):
            _remove_unfinished(own)
    return own


def _cpu_identity() -> str:
    """Return a hash of the features of this machine's CPU.

    Machines with different CPUs may share a home folder, and programs crash on a CPU that lacks a feature.
    """
    features = platform.processor()
    if _CPU_INFO.is_file():
        lines = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
        features = next((value for key, _, value in lines if key.strip() in _FEATURE_KEYS), features)
    text = " ".join([platform.machine(), *sorted(features.split())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _remove_unfinished(folder: Path) -> None:
    """Remove programs of which a killed process or a full disk left a part.

    JAX would neither use nor replace them. It writes the time of use last, so that whole programs have one.
    """
    for path in folder.glob(f"*{_PROGRAM}"):
        if not path.with_name(path.name.removesuffix(_PROGRAM) + _USED).exists():
            path.unlink()
