"""Clips to training records: python -m data_prep.extract --table clips.tsv --out DIR

Runs on this machine, or on any Beam runner by its name; flags behind a lone -- are the runner's own:

    python -m data_prep.extract --table clips.tsv --out DIR --runner=FlinkRunner -- --flink_master=HOST:8081
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import run_main
from flowley_jax.config import typed_from

_TABLE = flags.DEFINE_string("table", None, "Clip table (TSV).", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for records, and for features; all workers see it.", required=True
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "What the records are made with, configs/records.py by default; behind a colon `published` for published "
    "weights.",
)
_CAPTIONS = flags.DEFINE_multi_string(
    "captions",
    [],
    "NAME=FILE: captions of another source, a TSV with the columns id and caption; repeatable.",
)
_RUNNER = flags.DEFINE_string("runner", "DirectRunner", "Beam's runner; see docs/records.md.")
_FEATURES = flags.DEFINE_string(
    "features",
    "",
    "Folder for the features, if not in --out; gs:// and the like where workers mount no disk.",
)
_DECODERS = flags.DEFINE_integer(
    "decoders", os.cpu_count() or 1, "Processes that decode, for each worker of the runner.", lower_bound=1
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 120.0, "Seconds after which the decoding of one clip is given up.", lower_bound=0.1
)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at the first clip that cannot be used.")
_RETRY = flags.DEFINE_bool("retry", False, "Try clips again that could not be used before.")
_SEPARATOR = "--"


def main() -> int:
    """Command line."""
    from data_prep.prepare import Running, prepare_records
    from data_prep.rows import named_files
    from data_prep.settings import RecordSettings

    prepare_records(
        _TABLE.value,
        _OUT.value,
        typed_from(RecordSettings, _CONFIG.value.to_dict(), "config"),
        Running(
            options=_options(),
            decoders=_DECODERS.value,
            time_limit=_TIME_LIMIT.value,
            strict=_STRICT.value,
            retry=_RETRY.value,
            features=_FEATURES.value,
        ),
        captions=named_files(_CAPTIONS.value),
    )
    return 0


def _options():
    from apache_beam.options.pipeline_options import PipelineOptions

    from data_prep.pipeline import IN_THREADS, check_options

    own = _OF_THE_RUNNER or (IN_THREADS if _RUNNER.value == "DirectRunner" else [])
    options = PipelineOptions([f"--runner={_RUNNER.value}", *own])
    check_options(options)
    return options


def _flags_behind(separator: str) -> list[str]:
    """Takes what stands behind it from the command line."""
    if separator not in sys.argv:
        return []
    place = sys.argv.index(separator)
    behind, sys.argv[place:] = sys.argv[place + 1 :], []
    return behind


def _take_default_config() -> None:
    """As a flag: as the default of one, its values could not be set by others before errors are caught."""
    if not any(word.split("=")[0] in ("--config", "-config") for word in sys.argv):
        sys.argv.insert(1, f"--config={Path(__file__).parents[1] / 'configs/records.py'}")


if __name__ == "__main__":
    _OF_THE_RUNNER = _flags_behind(_SEPARATOR)
    _take_default_config()
    run_main(main)
