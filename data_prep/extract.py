"""Make training records from clips: python -m data_prep.extract --table clips.tsv --out DIR

The same command resumes an interrupted run, and reads only new clips if the table has grown.

It runs on this machine, or on any Beam runner. Everything after a lone -- is passed to the runner:

    python -m data_prep.extract --table clips.tsv --out DIR --runner=FlinkRunner -- --flink_master=HOST:8081
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from data_prep.settings import RecordSettings
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, TIME_LIMITS
from flowley_jax.config_flag import ConfigFlag

_TABLE = flags.DEFINE_string("table", None, "Clip table (TSV).", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for the records and the features; all workers must see it.", required=True
)
_CONFIG = ConfigFlag(
    RecordSettings,
    "Settings of the records: a file that comes with the package (records.py, or records.py:published for "
    "published weights) or your own. Every value listed below is a flag, such as --config.seconds=8.",
    default="records.py",
)
_CODEC_FROM = flags.DEFINE_string(
    "codec_from",
    "",
    "Folder of a run, a shared model (or hf:ORG/NAME) or records: make records that fit its model, with its "
    "codec, vocoder and encoders, for fine-tuning (docs/training.md).",
)
_CAPTIONS = flags.DEFINE_multi_string(
    "captions",
    [],
    "NAME=FILE: captions from another source, a TSV with the columns id and caption; repeatable.",
)
_RUNNER = flags.DEFINE_string("runner", "DirectRunner", "Beam runner; docs/records.md lists some.")
_FEATURES = flags.DEFINE_string(
    "features",
    "",
    "Folder of the features, by default in --out; may be remote (gs://…) if workers mount no disk.",
)
_DECODERS = define_int(
    "decoders", os.cpu_count() or 1, "Processes that read clips, per worker of the runner.", PROCESSES
)
_TIME_LIMIT = define_float("time_limit", 120.0, "Time limit for reading one clip, in seconds.", TIME_LIMITS)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at the first unusable clip.")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Compare existing record files with their checksums; write the records again if needed."
)
_RETRY = flags.DEFINE_bool("retry", False, "Retry clips that could not be used before.")


def main(runner_flags: Sequence[str]) -> None:
    """Run the command line.

    Args:
      runner_flags: flags for the Beam runner.
    """
    from data_prep.caption_files import parse_caption_flags
    from data_prep.model_settings import settings_for_model
    from data_prep.records import RunOptions, prepare_records

    settings = _CONFIG.value
    if _CODEC_FROM.value:
        settings = settings_for_model(_CODEC_FROM.value, settings, given=_given_settings())
    prepare_records(
        _TABLE.value,
        _OUT.value,
        settings,
        RunOptions(
            beam_options=_beam_options(_RUNNER.value, runner_flags),
            decoders=_DECODERS.value,
            time_limit=_TIME_LIMIT.value,
            strict=_STRICT.value,
            retry=_RETRY.value,
            verify=_VERIFY.value,
            features=_FEATURES.value,
        ),
        captions=parse_caption_flags(_CAPTIONS.value),
    )


def _given_settings() -> set[str]:
    """Return the names of the settings that the command line or the file of --config has chosen."""
    default, chosen = (dataclasses.asdict(settings) for settings in (RecordSettings(), _CONFIG.value))
    changed = {name for name, value in chosen.items() if value != default[name]}
    return changed | set(config_flags.get_override_values(flags.FLAGS["config"]))


def _beam_options(runner: str, runner_flags: Sequence[str]):
    from apache_beam.options.pipeline_options import PipelineOptions

    from data_prep.beam_runner import DEFAULT_OPTIONS, check_options

    if runner == "DirectRunner" and not runner_flags:
        runner_flags = DEFAULT_OPTIONS
    options = PipelineOptions([f"--runner={runner}", *runner_flags])
    check_options(options)
    return options


def _split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before a lone --, which are this program's, and those after it."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


if __name__ == "__main__":
    own_arguments, runner_arguments = _split_arguments(sys.argv)
    run_main(functools.partial(main, runner_arguments), _CONFIG, own_arguments)
