"""How every command line starts and fails: one clear line on stderr, exit code 2, no traceback."""

import dataclasses
import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_dict

from flowley_jax.errors import FlowleyError

FAULT = 1
USER_ERROR = 2
INTERRUPTED = 130


def run_main(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main` and exits with its result.

    Bad flags, unknown configuration keys, FlowleyError and errors of the operating system (a full disk, a
    folder that cannot be written) end the program with one line and exit code 2; Ctrl-C with 130. Anything
    else is a fault of the program: its traceback, and exit code 1.
    """
    try:
        app.run(lambda argv: _quietly(main), flags_parser=parse_flags)
    except KeyboardInterrupt:
        _leave("interrupted; run the same command again to go on", INTERRUPTED)
    except FlowleyError as error:
        _leave(f"error: {error}", USER_ERROR)
    except OSError as error:
        named = f"{error.strerror}: {error.filename}" if error.filename else _reason(error)
        _leave(f"error: {named}", USER_ERROR)
    except SystemExit:
        if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in sys.argv):
            sys.exit(0)
        raise
    except Exception:
        traceback.print_exc()
        _leave("error: a fault of this program, not of its input; please report the lines above", FAULT)


def config_dict_of(config: Any) -> ConfigDict:
    """A configuration dataclass as flags see it; fields that are None now can still be set by a flag."""
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


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Sets flags from a command line, whose first word is the program, and returns that word.

    Raises:
      FlowleyError: a flag or configuration key is unknown, missing or of another type, or a word is no flag.
    """
    try:
        remaining = values([_underscored(argument, values) for argument in argv])
    except (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise FlowleyError(f"{_reason(error)} (--help lists the options)") from error
    if len(remaining) > 1:
        raise FlowleyError(f"unexpected argument {remaining[1]!r} (--help lists the options)")
    return remaining


def _quietly(main: Callable[[], int | None]) -> int | None:
    """Runs `main` with this project's log lines on stderr as they are, and nothing of the libraries."""
    # What libraries log as errors they raise as well.
    absl_logging.set_verbosity(absl_logging.FATAL)
    plain = logging.StreamHandler(sys.stderr)
    for package in ("flowley_jax", "data_prep", "benchmarks", "launch"):
        logger = logging.getLogger(package)
        logger.addHandler(plain)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return main()


def _underscored(argument: str, values: flags.FlagValues) -> str:
    """A flag's name with underscores, which is how absl knows it; people type hyphens as well."""
    name, equals, value = argument.partition("=")
    known = name.lstrip("-").replace("-", "_")
    if not name.startswith("-"):
        return argument
    if known in values:
        return f"--{known}{equals}{value}"
    opposite = known.removeprefix("no_")
    if opposite != known and opposite in values and values[opposite].boolean:
        return f"--no{opposite}{equals}{value}"
    return argument


def _reason(error: Exception) -> str:
    """One line; of a configuration file's own error, which ml_collections wraps in a traceback, its last."""
    if isinstance(error, AttributeError | KeyError):
        inner = error.args[0]
        key, *hint = str(inner.args[0] if isinstance(inner, KeyError) else inner).splitlines()
        return f"unknown configuration key {key}{''.join(f'. {line}' for line in hint)}"
    text = str(error)
    gone = re.search(r"No such file or directory: '(.+)'", text)
    if gone:
        return f"{gone[1]}: no such file"
    missing = re.findall(r"Flag (--\w+) must have a value other than None", text)
    if missing:
        return f"{', '.join(missing)} must be given"
    if "Traceback" in text or "Failed loading config" in text:
        text = text.strip().splitlines()[-1].strip()
    return " ".join(text.removeprefix("ValueError: ").removeprefix("[Errno 2] ").split())


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    # Reader threads of the data pipeline must not keep a failed program alive.
    logging.shutdown()
    os._exit(code)
