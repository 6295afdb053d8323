"""The `--config` flag: a configuration file whose values are flags too, typed by a dataclass."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from flowley_jax.common.typed import typed_from
from flowley_jax.config_help import describe, value_names
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.config import ExperimentConfig

# --help of a command shows the flag as its own.
flags.disclaim_key_flags()

T = TypeVar("T")
# Short names from other projects and papers.
_ALIASES = {
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "cfg": "sample.guidance",
    "lr": "optim.learning_rate",
    "warmup": "optim.warmup_steps",
    "wd": "optim.weight_decay",
}


def default_config(name: str) -> str:
    """Return the path of a configuration file that comes with this package.

    Args:
      name: file name in `configs/`, with options after a colon if there are any: "vggsound.py:debug".
    """
    return str(_packaged_folder() / name)


def config_dict_of(config: Any) -> ConfigDict:
    """Return a configuration dataclass in the form that flags change.

    Fields that are None can still be set by a flag of their type.
    """
    tree = ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = config_dict_of(value)
        elif value is None:
            value = config_dict.placeholder(typing.get_args(hints[field.name])[0])
        tree[field.name] = value
    return tree


class ConfigFlag(Generic[T]):
    """A command's `--config` flag.

    Its file is looked up in the working directory first, then among the files of this package: outside a
    clone, `configs/vggsound.py` and `vggsound.py` both name the packaged file.

    Args:
      kind: dataclass of the configuration.
      help_text: what the configuration is for, and which values people change first.
      default: packaged file, with its options, to use without `--config`; None makes the flag required.
      values: where the flag is defined.
    """

    def __init__(
        self,
        kind: type[T],
        help_text: str,
        *,
        default: str | None = None,
        values: flags.FlagValues = flags.FLAGS,
    ):
        self._kind, self._default = kind, default
        # ml_collections looks here for the values to override; `complete` fills it in.
        self._argv: list[str] = []
        self._flag = config_flags.DEFINE_config_file(
            "config",
            help_string=help_text,
            flag_values=values,
            sys_argv=self._argv,
        )
        # --help shows the packaged file, which `complete` adds, and not the default of ml_collections.
        values["config"].default_as_str = f"'{default}'" if default else None

    @property
    def value(self) -> T:
        """The typed configuration, with the values that flags changed.

        Raises:
          FlowleyError: a value is invalid.
        """
        config = self._flag.value
        if not isinstance(config, ConfigDict):
            raise FlowleyError("--config: get_config must return a ConfigDict (see config_dict_of)")
        return typed_from(self._kind, config.to_dict())

    def complete(self, argv: Sequence[str]) -> list[str]:
        """Return a command line with the file's full path first, and remember it for the flags of values.

        Raises:
          FlowleyError: no file is given or found, or the configuration has no such value.
        """
        file, rest = self._split(argv[1:])
        rest = [self._checked(word) for word in rest]
        self._argv[:] = [argv[0], f"--config={file}", *rest]
        return list(self._argv)

    def values_text(self, argv: Sequence[str]) -> str:
        """Return a list of all values, with their defaults in the file that the command line names.

        Raises:
          FlowleyError: the file is not found or not valid.
        """
        given = any(re.match(r"--?config(=|$)", word) for word in argv)
        file = self._split(argv[1:])[0] if given or self._default else None
        source = f"the defaults of {file}" if file else "their defaults"
        return (
            f"Values of the configuration, with {source}. Change one with --config.NAME=VALUE;\n"
            "for true and false, --config.NAME and --noconfig.NAME work too.\n\n"
            f"{describe(self._kind, _load(file) if file else self._kind())}\n"
        )

    def _split(self, words: Sequence[str]) -> tuple[str, list[str]]:
        given, rest = self._default, []
        remaining = iter(words)
        for word in remaining:
            name, equals, value = word.partition("=")
            if name in ("--config", "-config"):
                given = value if equals else next(remaining, "")
            else:
                rest.append(word)
        if not given:
            raise FlowleyError("--config must name a configuration file")
        return _find(given), rest

    def _checked(self, word: str) -> str:
        parts = re.match(r"--?(no)?config\.([^=\[]+)(.*)", word)
        if not parts:
            return word
        negated, name, rest = parts[1] or "", parts[2].replace("-", "_"), parts[3]
        known = value_names(self._kind)
        if name not in known and not any(path.startswith(f"{name}.") for path in known):
            nearest = _nearest(name, known)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise FlowleyError(f"unknown configuration key {name}{hint}")
        return f"--{negated}config.{name}{rest}"


def experiment_flag(
    use: str, *, default: str | None = None, values: flags.FlagValues = flags.FLAGS
) -> "ConfigFlag[ExperimentConfig]":
    """Define the `--config` flag of a command that trains, or needs the configuration of a training.

    Args:
      use: what the command does with the configuration, as a sentence.
      default: packaged file to use without `--config`; None makes the flag required.
      values: where the flag is defined.
    """
    from flowley_jax.config import ExperimentConfig

    help_text = (
        f"{use} A file that comes with the package (impacts.py, vggsound.py) or your own; options follow a "
        "colon, such as vggsound.py:large,44k, or impacts.py:debug for a few steps on generated records. "
        "Every value listed below is a flag. Most people change --config.data.batch_size and "
        "--config.optim.learning_rate first."
    )
    return ConfigFlag(ExperimentConfig, help_text, default=default, values=values)


def _packaged_folder() -> Path:
    # A wheel has the files inside the package; a clone, and an editable install, at the top level.
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def _find(file: str) -> str:
    path, colon, options = file.partition(":")
    if Path(path).is_file():
        return file
    packaged = Path(default_config(Path(path).name))
    if str(Path(path).parent) in (".", "configs") and packaged.is_file():
        return f"{packaged}{colon}{options}"
    names = ", ".join(sorted(found.name for found in _packaged_folder().glob("*.py")))
    raise FlowleyError(f"{path}: no such file; the package comes with {names}")


def _load(file: str) -> ConfigDict:
    values = flags.FlagValues()
    loaded = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    values(["help", f"--config={file}"])
    return loaded.value


def _likeness(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known dotted name that was probably meant: by its last part, else by the whole name."""
    leaf = name.rpartition(".")[2]
    if _ALIASES.get(leaf) in known:
        return _ALIASES[leaf]
    leaves = {path.rpartition(".")[2] for path in known}
    similar = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves)
    candidates = [path for path in known if path.rpartition(".")[2] in similar]
    if candidates:
        return max(
            candidates, key=lambda path: (_likeness(leaf, path.rpartition(".")[2]), _likeness(name, path))
        )
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
