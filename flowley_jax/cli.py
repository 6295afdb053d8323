"""Entry point of every command: flags, logging, errors and exit codes."""

import atexit
import contextlib
import functools
import gc
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from absl import app, flags
from absl import logging as absl_logging

from flowley_jax.common.interrupt import INTERRUPTED, INTERRUPTED_LINE, end_imports_on_interrupt
from flowley_jax.common.worker_processes import end_workers
from flowley_jax.config_flag import ConfigFlag, nearest_name
from flowley_jax.errors import FlowleyError, plain, shown

# --help of a command shows --verbose as its own.
flags.disclaim_key_flags()

INTERNAL_ERROR = 1
USER_ERROR = 2
# A signal stopped a run, which has stored its state. Job schedulers read it as "run me again".
STOPPED_EARLY = 75

_OWN_PACKAGES = ("flowley_jax", "data_prep", "benchmarks", "launch")
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")
_VERSION = ("--version", "-version")
# Everything that flags and configuration files raise for wrong input.
_FLAG_ERRORS = (flags.Error, OSError, TypeError, ValueError)
_EXPECTED = {
    "invalid literal for int()": "an int",
    "Exceeds the limit": "an int",
    "could not convert string to float": "a number",
    "Non-boolean argument to boolean flag": "true or false",
    "Error while parsing string": "one value, or a tuple such as (1, 2)",
}
# What absl says of a required flag; it does not keep the property itself.
_REQUIRED = "must have a value other than None"


def run_main(
    main: Callable[[], int | None],
    config: ConfigFlag | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the flags, run `main` and exit with its result.

    Invalid flags, unknown configuration keys, FlowleyError, missing packages and errors of the operating
    system (a full disk, a folder that cannot be written) end the program with one line and exit code 2;
    Ctrl-C ends it with 130. Anything else is a bug in the program: its traceback, and exit code 1.

    Args:
      main: the command; returns its exit code, None for 0.
      config: the command's `--config` flag, if it has one.
      argv: command line; `sys.argv` by default.
    """
    # Python's last garbage collection would free JAX's programs one by one, which takes seconds.
    atexit.register(gc.freeze)
    end_imports_on_interrupt()
    argv = sys.argv if argv is None else argv
    flags.DEFINE_bool("verbose", False, "Show the log lines of libraries too.")
    flags.DEFINE_bool("version", False, "Print the version and exit.")

    # Names of files need not be valid text; their bytes are printed as they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")

    def run(_: Sequence[str]) -> int | None:
        _configure_logging()
        return main()

    try:
        if any(word in _HELP for word in argv[1:]):
            _print_help(argv, config)
        if any(word in _VERSION for word in argv[1:]):
            _print_version()
        app.run(
            run,
            argv=list(argv),
            flags_parser=functools.partial(parse_flags, config=config),
        )
    except KeyboardInterrupt:
        _exit(INTERRUPTED_LINE, INTERRUPTED)
    except FlowleyError as error:
        _exit(f"error: {error}", USER_ERROR)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else _one_line(error)
        _exit(f"error: {reason}", USER_ERROR)
    except Exception as error:
        package = _missing_package(error)
        if package:
            _exit(f"error: {package} is not installed: pip install {package}", USER_ERROR)
        traceback.print_exc()
        _exit(
            "internal error: this is a bug in the program, not in its input; "
            "please report the traceback above",
            INTERNAL_ERROR,
        )


def parse_flags(
    argv: Sequence[str], values: flags.FlagValues = flags.FLAGS, config: ConfigFlag | None = None
) -> list[str]:
    """Set flags from a command line, whose first word is the program, and return that word.

    Raises:
      FlowleyError: a flag or configuration key is unknown, missing, or has a wrong value, the configuration
        file fails, or a word is not a flag.
    """
    try:
        words = list(_with_known_names(argv, values))
        remaining = values(config.complete(words) if config else words)
        _check_required(values)
        if config:
            # Reading the value checks it.
            _ = config.value
    except flags.UnrecognizedFlagError as error:
        raise FlowleyError(_unknown_flag(error.flagname, values, config)) from error
    except _FLAG_ERRORS as error:
        raise FlowleyError(_one_line(error)) from error
    if len(remaining) > 1:
        raise FlowleyError(f"unexpected argument {remaining[1]!r} (--help lists the options)")
    return remaining


def _print_help(argv: Sequence[str], config: ConfigFlag | None) -> None:
    values = config.values_text(argv) if config else ""
    try:
        app.usage(shorthelp="--helpfull" not in argv, writeto_stdout=True)
        print(f"\n{values}" if values else "", end="", flush=True)
    except BrokenPipeError:
        # A pager was closed; Python would complain about the pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _print_version() -> None:
    try:
        version = metadata.version("flowley-jax")
    except metadata.PackageNotFoundError:
        version = "from a clone that is not installed"
    print(f"flowley-jax {version}", flush=True)
    sys.exit(0)


def _check_required(values: flags.FlagValues) -> None:
    """Refuse empty text for a required flag: as a path it would be the working directory."""
    for name in values:
        required = any(_REQUIRED in (check.message or "") for check in values[name].validators)
        if required and values[name].value == "":
            raise FlowleyError(f"--{name.replace('_', '-')}='' must not be empty")


def _unknown_flag(name: str, values: flags.FlagValues, config: ConfigFlag | None) -> str:
    known = [flag.replace("_", "-") for flag in values]
    if config:
        known += [f"config.{path}" for path in config.names]
    nearest = nearest_name(name.replace("_", "-") if "." not in name else name, known)
    hint = f"; did you mean --{nearest}?" if nearest else ""
    return f"unknown flag --{name}{hint} (--help lists the options)"


def _missing_package(error: Exception) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    return None if package in _OWN_PACKAGES else package.replace("_", "-")


def _configure_logging() -> None:
    """Send this project's log lines to stderr without a prefix, and those of libraries only if --verbose."""
    # Libraries raise what they log as errors.
    absl_logging.set_verbosity(absl_logging.INFO if flags.FLAGS.verbose else absl_logging.FATAL)
    handler = logging.StreamHandler(sys.stderr)
    for package in _OWN_PACKAGES:
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _with_known_names(argv: Sequence[str], values: flags.FlagValues) -> Iterator[str]:
    """Yield the words of a command line, with the names of flags as absl knows them."""
    is_value = False
    for word in argv:
        known = word if is_value else _with_underscores(word, values)
        name = known.lstrip("-")
        is_value = not is_value and known.startswith("-") and name in values and not values[name].boolean
        yield known


def _with_underscores(word: str, values: flags.FlagValues) -> str:
    """Return a flag's name as absl knows it: people type hyphens too."""
    name, equals, value = word.partition("=")
    known = name.lstrip("-").replace("-", "_")
    if not name.startswith("-"):
        return word
    if known in values:
        return f"--{known}{equals}{value}"
    opposite = known.removeprefix("no_")
    if opposite != known and opposite in values and values[opposite].boolean:
        return f"--no{opposite}{equals}{value}"
    return word


def _one_line(error: BaseException) -> str:
    """Return the reason of an error: what this project says, or else the words of absl made short."""
    own = _own_error(error)
    if own:
        return " ".join(str(own).split())
    text = str(error)
    missing_file = re.search(r"No such file or directory: '(.+)'", text)
    if missing_file:
        return f"{missing_file[1]}: no such file"
    missing_flags = re.findall(rf"Flag (--\w+) {_REQUIRED}", text)
    if missing_flags:
        return f"{', '.join(missing_flags).replace('_', '-')} must be given (--help lists the options)"
    wrong_type = re.match(r"flag (--[^=]+)=(.*?): (.*)", text, re.DOTALL)
    if wrong_type:
        name, value, reason = wrong_type[1].removeprefix("--config."), wrong_type[2], wrong_type[3]
        for beginning, expected in _EXPECTED.items():
            if beginning in reason:
                return f"{name}={shown(value)} must be {expected}"
        choices = re.match(r"value should be one of <(.*)>", reason)
        if choices:
            return f"{name}={shown(value)} must be one of {choices[1].replace('|', ', ')}"
        return f"{name}={shown(value)}: {' '.join(reason.split())}"
    return " ".join(re.sub(r"^([\w.]*Error: |\[Errno 2\] )", "", text).split())


def _own_error(error: BaseException | None) -> FlowleyError | None:
    """Return the FlowleyError that absl may have wrapped in an error of its own."""
    while error and not isinstance(error, FlowleyError):
        error = error.__cause__ or error.__context__
    return error


def _exit(line: str, code: int) -> None:
    print(plain(line), file=sys.stderr, flush=True)
    # Reader threads of the data pipeline must not keep a failed program alive.
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    end_workers()
    os._exit(code)
