"""Configuration files: where they are found, and what is said when one fails."""

import importlib.machinery
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from flowley_jax.errors import FlowleyError

_MODULE = "flowley_configuration"


class ConfigFile(NamedTuple):
    """A configuration file and the options for its `get_config`.

    Attributes:
      path: the file.
      options: what follows the colon; None without one.
    """

    path: str
    options: str | None = None

    def __str__(self) -> str:
        return self.path if self.options is None else f"{self.path}:{self.options}"


def packaged_file(name: str) -> str:
    """Return the path of a configuration file that comes with this package.

    Args:
      name: file name in `configs/`, with options after a colon if there are any: "vggsound.py:debug".
    """
    return str(_packaged_folder() / name)


def find_config_file(text: str) -> ConfigFile:
    """Return the file that `--config` names: of the working directory, or else of this package.

    Raises:
      FlowleyError: there is no such file.
    """
    if Path(text).is_file():
        return ConfigFile(text)
    # A folder may have a colon too.
    for colon in (place for place in reversed(range(len(text))) if text[place] == ":"):
        if Path(text[:colon]).is_file():
            return ConfigFile(text[:colon], text[colon + 1 :])
    path, colon, options = text.partition(":")
    packaged = Path(packaged_file(Path(path).name))
    if str(Path(path).parent) in (".", "configs") and packaged.is_file():
        return ConfigFile(str(packaged), options if colon else None)
    names = ", ".join(sorted(found.name for found in _packaged_folder().glob("*.py")))
    raise FlowleyError(f"{path}: no such file; the package comes with {names}")


def load_config(file: ConfigFile) -> ConfigDict:
    """Run a configuration file and return what its `get_config` returns.

    Raises:
      FlowleyError: the file fails; the message names its line.
    """
    try:
        get_config = _run(file.path)
        config = get_config() if file.options is None else get_config(file.options)
    # A script that is no configuration may end itself.
    except (Exception, SystemExit) as error:
        raise FlowleyError(_reason(file.path, error)) from error
    if not isinstance(config, ConfigDict):
        raise FlowleyError(f"{file.path}: get_config must return a ConfigDict (see config_dict_of)")
    return config


def _run(path: str):
    loader = importlib.machinery.SourceFileLoader(_MODULE, path)
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[_MODULE] = module
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise FlowleyError(f"{path}: must define get_config, which returns the configuration")
    return module.get_config


def _reason(path: str, error: BaseException) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    if isinstance(error, FlowleyError) and (not lines or frames[-1].filename == path):
        # The file itself says what is wrong.
        return words
    reason = words if isinstance(error, FlowleyError) else f"{type(error).__name__}: {words}"
    return f"{path}, line {lines[-1]}: {reason}" if lines else f"{path}: {reason}"


def _packaged_folder() -> Path:
    # A wheel has the files inside the package; a clone, and an editable install, at the top level.
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"
