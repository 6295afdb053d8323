"""Entry point of every command: flags, logging, errors and exit codes."""

import contextlib
import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging

from flowley_jax.config_flag import ConfigFlag
from flowley_jax.errors import FlowleyError

# --help of a command shows --verbose as its own.
flags.disclaim_key_flags()

INTERNAL_ERROR = 1
USER_ERROR = 2
# A signal stopped a run, which has stored its state. Job schedulers read it as "run me again".
STOPPED_EARLY = 75
INTERRUPTED = 130

_OWN_PACKAGES = ("flowley_jax", "data_prep", "benchmarks", "launch")
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")
# Everything that flags and configuration files raise for wrong input.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError)
_EXPECTED = {
    "invalid literal for int()": "an int",
    "could not convert string to float": "a number",
    "Non-boolean argument to boolean flag": "true or false",
}


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
    argv = sys.argv if argv is None else argv
    flags.DEFINE_bool("verbose", False, "Show the log lines of libraries too.")

    def run(_: Sequence[str]) -> int | None:
        _configure_logging()
        return main()

    try:
        if any(word in _HELP for word in argv[1:]):
            _print_help(argv, config)
        app.run(
            run,
            argv=list(argv),
            flags_parser=functools.partial(parse_flags, config=config),
        )
    except KeyboardInterrupt:
        _exit("interrupted; run the same command again to continue", INTERRUPTED)
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
      FlowleyError: a flag or configuration key is unknown, missing or of the wrong type, or a word is not a
        flag.
    """
    try:
        words = [_with_underscores(word, values) for word in argv]
        remaining = values(config.complete(words) if config else words)
    except _FLAG_ERRORS as error:
        raise FlowleyError(f"{_one_line(error)} (--help lists the options)") from error
    if len(remaining) > 1:
        raise FlowleyError(f"unexpected argument {remaining[1]!r} (--help lists the options)")
    return remaining


def _print_help(argv: Sequence[str], config: ConfigFlag | None) -> None:
    try:
        values = config.values_text(argv) if config else ""
    except _FLAG_ERRORS as error:
        raise FlowleyError(_one_line(error)) from error
    try:
        app.usage(shorthelp="--helpfull" not in argv, writeto_stdout=True)
        print(f"\n{values}" if values else "", end="", flush=True)
    except BrokenPipeError:
        # A pager was closed; Python would complain about the pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


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


def _one_line(error: Exception) -> str:
    """Return the reason of an error; of one in a configuration file, the last line of its traceback."""
    if isinstance(error, AttributeError | KeyError):
        return f"the configuration failed with {type(error).__name__}: {error}"
    text = str(error)
    if isinstance(error, FlowleyError) and "\n" not in text:
        return text
    missing_file = re.search(r"No such file or directory: '(.+)'", text)
    if missing_file:
        return f"{missing_file[1]}: no such file"
    missing_flags = re.findall(r"Flag (--\w+) must have a value other than None", text)
    if missing_flags:
        return f"{', '.join(missing_flags)} must be given"
    wrong_type = re.match(r"flag (--[^=]+)=(.*?): (.*)", text, re.DOTALL)
    if wrong_type:
        name = wrong_type[1].removeprefix("--config.")
        for reason, expected in _EXPECTED.items():
            if reason in wrong_type[3]:
                return f"{name}={wrong_type[2]!r} must be {expected}"
    if "Traceback" in text or "Failed loading config" in text:
        text = text.strip().splitlines()[-1].strip()
    return " ".join(re.sub(r"^([\w.]*Error: |\[Errno 2\] )", "", text).split())


def _exit(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    # Reader threads of the data pipeline must not keep a failed program alive.
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
