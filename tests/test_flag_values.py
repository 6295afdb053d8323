"""Every flag of every command against wrong values: accepted, or one line names the flag and the value."""

import json
import os
import runpy
import sys
import traceback
import typing
from pathlib import Path

import pytest
import shell
from absl import flags

from flowley_jax import cli
from flowley_jax.common.number_flags import NumberParser
from flowley_jax.common.ranges import Range
from flowley_jax.config_help import sections
from flowley_jax.errors import FlowleyError

ROOT = Path(__file__).parents[1]
# The packages of this project, whose modules may be commands.
PACKAGES = ("flowley_jax", "data_prep", "launch", "benchmarks")
# For each configuration, the command that tries its values; they are the same in the others.
CONFIGURED = {"ExperimentConfig": "flowley_jax.train", "RecordSettings": "data_prep.extract"}
HUGE = str(10**20)
NO_NUMBERS = ("nan", "inf", "", "word", "9" * 5000)
VALUES = ("-1", "0", HUGE, *NO_NUMBERS)


def commands() -> list[str]:
    """Return the modules that end in a call of run_main."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    starting = [path for path in files if "run_main(" in path.read_text().partition('"__main__":')[2]]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in starting]
    return [name.removesuffix(".__main__") for name in names]


def try_values(module: str, out: Path) -> None:
    """Write what parsing makes of each value of each flag of a command; its work is not done.

    "rows" are [flag, kind of number or "", bounds, value, message or None, whether it is a traceback].
    "hidden" are the flags that --help leaves out.
    """
    parsers = []
    cli.app.run = lambda run, argv, flags_parser: parsers.append(flags_parser)
    sys.argv = [module]
    os.chdir(ROOT)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    main = flags.FLAGS.find_module_defining_flag("version")
    shown = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main)}
    hidden = [name for name in flags.FLAGS if _is_own(name) and name not in shown]
    rows = list(_rows(module, parsers[0].keywords["config"]))
    out.write_text(json.dumps({"rows": rows, "hidden": hidden}))


def _rows(module, config):
    names = [name for name in flags.FLAGS if _is_own(name)]
    required = [f"--{name}={_sensible(name)}" for name in names if _is_required(flags.FLAGS[name])]
    words = [module, *required]
    if config:
        words.append("--config=records.py" if "seconds" in config.names else "--config=impacts.py")
    for name in names:
        parser = flags.FLAGS[name].parser
        kind = next((kind for kind in ("int", "float") if kind in parser.flag_type()), "")
        bounds = _bounds(parser.range) if isinstance(parser, NumberParser) else None
        yield from _rows_of(words, config, [name, kind, bounds])
    if not config or CONFIGURED[config._kind.__name__] != module:
        return
    for section in sections(config._kind):
        for value in section.values:
            yield from _rows_of(words, config, [f"config.{value.path}", *_number(value.hint)])


def _rows_of(words, config, beginning):
    for value in VALUES:
        # The last of two equal flags counts, also for required ones.
        message, broken = _parse([*words, f"--{beginning[0]}={value}"], config)
        yield [*beginning, value, message, broken]


def _parse(words, config):
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    try:
        cli.parse_flags(words, flags.FLAGS, config)
    except FlowleyError as error:
        return str(error), False
    except Exception:
        return traceback.format_exc(), True
    return None, False


def _is_own(name):
    # A flag of the main module has the module's path.
    module = flags.FLAGS.find_module_defining_flag(name) or ""
    return name != "config" and (module.split(".")[0] in PACKAGES or Path(module).is_relative_to(ROOT))


def _is_required(flag):
    return any("other than None" in check.message for check in flag.validators)


def _sensible(name):
    return getattr(flags.FLAGS[name].parser, "enum_values", ["x"])[0]


def _number(hint):
    """Return the kind of number of a configuration value and its bounds; "" and None if it is none."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return arguments[0].__name__, _bounds(arguments[1])
    if hint in (int, float):
        return hint.__name__, _bounds(Range())
    if typing.get_origin(hint) is typing.Literal or not arguments:
        return "", None
    return _number(arguments[0])


def _bounds(numbers):
    return [numbers.least, numbers.most, numbers.above, numbers.below]


@pytest.fixture(scope="module", params=commands())
def tried(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("rows") / "rows.json"
    process = shell.FORKS.Process(target=try_values, args=(request.param, out))
    process.start()
    process.join(shell.TIMEOUT)
    assert process.exitcode == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def rows(tried):
    return tried["rows"]


def test_help_lists_every_flag(tried):
    assert not tried["hidden"]


def test_each_value_is_accepted_or_refused_in_one_line(rows):
    assert {flag for flag, *_ in rows} >= {"verbose", "version"}
    for flag, _, _, value, message, broken in rows:
        assert not broken, f"--{flag}={value}: {message}"
        if message:
            names = (flag.removeprefix("config."), flag.replace("_", "-"))
            assert any(name in message for name in names), (flag, value, message)
            assert value[:40] in message or float(value) == float(message.split("=")[1].split()[0]), message
            assert "\n" not in message and len(message) < 300, message


def test_numbers_are_accepted_only_within_their_ranges(rows):
    for flag, kind, bounds, value, message, _ in rows:
        if not kind:
            continue
        assert bounds, f"--{flag} has no range"
        least, most, above, below = bounds
        inside = (
            value not in NO_NUMBERS
            and not (kind == "int" and value == HUGE)
            and (least is None or float(value) >= least)
            and (most is None or float(value) <= most)
            and (above is None or float(value) > above)
            and (below is None or float(value) < below)
        )
        assert inside or message, f"--{flag}={value} is accepted"
