"""The `--config` flag: a configuration file whose values are flags too, typed by a dataclass."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from flowley_jax.common.typed import typed_from
from flowley_jax.config_file import ConfigFile, find_config_file, load_config
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
        self._file: ConfigFile | None = None
        # ml_collections looks here for the values to override; `complete` fills it in.
        self._argv: list[str] = []
        self._flag = config_flags.DEFINE_config_file(
            "config",
            help_string=help_text,
            flag_values=values,
            sys_argv=self._argv,
        )
        # ml_collections hides where a file fails, and cuts paths at their first colon.
        values["config"].parser = _Parser(kind)
        # --help shows the packaged file, which `complete` adds, and not the default of ml_collections.
        values["config"].default_as_str = f"'{default}'" if default else None

    @property
    def value(self) -> T:
        """The typed configuration, with the values that flags changed.

        Raises:
          FlowleyError: a value is invalid.
        """
        config = self._flag.value
        fields = {field.name for field in dataclasses.fields(typing.cast(Any, self._kind))}
        if foreign := sorted(set(config) - fields):
            raise FlowleyError(
                f"{self._file}: has {foreign[0]}, which is no value of this command's configuration; it has "
                f"{', '.join(sorted(fields))}"
            )
        return typed_from(self._kind, config.to_dict())

    @property
    def names(self) -> list[str]:
        """Dotted names of all values."""
        return value_names(self._kind)

    def complete(self, argv: Sequence[str]) -> list[str]:
        """Return a command line with the file's full path first, and remember it for the flags of values.

        Raises:
          FlowleyError: no file is given or found, or the configuration has no such value.
        """
        self._file, rest = self._split(argv[1:])
        rest = [self._checked(word) for word in rest]
        self._argv[:] = [argv[0], f"--config={self._file}", *rest]
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
            f"{describe(self._kind, load_config(file) if file else self._kind())}\n"
        )

    def _split(self, words: Sequence[str]) -> tuple[ConfigFile, list[str]]:
        given, rest = [], []
        remaining = iter(words)
        for word in remaining:
            name, equals, value = word.partition("=")
            if name in ("--config", "-config"):
                given.append(value if equals else next(remaining, ""))
            else:
                rest.append(word)
        if len(given) > 1:
            raise FlowleyError(f"--config must be given once, found {' and '.join(given)}")
        file = given[0] if given else self._default
        if not file:
            raise FlowleyError("--config must name a configuration file")
        return find_config_file(file), rest

    def _checked(self, word: str) -> str:
        parts = re.match(r"--?(no)?config\.([^=]*)(.*)", word, re.DOTALL)
        if not parts:
            return word
        negated, name, rest = parts[1] or "", parts[2].replace("-", "_"), parts[3]
        known = value_names(self._kind)
        if name not in known:
            nearest = nearest_name(name, known)
            hint = f"; did you mean {nearest}?" if nearest else ""
            within = [path for path in known if path.startswith(f"{name}.")]
            hint = f"; it is a section with {', '.join(within)}" if within else hint
            raise FlowleyError(f"unknown configuration key {name}{hint} (--help lists the options)")
        return f"--{negated}config.{name}{rest}"


class _Parser(flags.ArgumentParser):
    """Parser of the flag's text, which names a file; values that the file leaves out have their defaults."""

    def __init__(self, kind: type):
        self._kind = kind

    def parse(self, argument: str) -> ConfigDict:
        config = load_config(find_config_file(argument))
        with config.unlocked():
            _add_missing(config, config_dict_of(self._kind()))
        config.lock()
        return config


def _add_missing(config: ConfigDict, defaults: ConfigDict) -> None:
    for name, value in defaults.items(preserve_field_references=True):
        given = config.get(name)
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(given, ConfigDict):
            _add_missing(given, value)


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


def _likeness(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """Return the known dotted name that was probably meant: by its last part, else by the whole name."""
    leaf = name.rpartition(".")[2]
    alias = next((path for path in known if path.removeprefix("config.") == _ALIASES.get(leaf)), None)
    if alias:
        return alias
    leaves = {path.rpartition(".")[2] for path in known}
    similar = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves)
    candidates = [path for path in known if path.rpartition(".")[2] in similar]
    if candidates:
        return max(
            candidates, key=lambda path: (_likeness(leaf, path.rpartition(".")[2]), _likeness(name, path))
        )
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
