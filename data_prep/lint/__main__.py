"""Check a clip table: python -m data_prep.lint --table clips.tsv --out DIR

The exit code is 3 if there is an error. With --out, fingerprints are cached: files that have not changed are
not read again, and an interrupted run resumes.
"""

import os

from absl import flags

from data_prep.caption_files import parse_caption_flags
from data_prep.lint.check import LintOptions, lint
from data_prep.lint.findings import Severity
from data_prep.settings import RecordSettings
from data_prep.table_formats import TableFormat
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, SECONDS, TIME_LIMITS

ERRORS_FOUND = 3

_TABLE = flags.DEFINE_string("table", None, "The clip table.", required=True)
_KIND = flags.DEFINE_enum(
    "kind", None, list(TableFormat), "Format of the table; by default it is recognised from the content."
)
_ROOT = flags.DEFINE_string("root", None, "Additional folder to search for files.")
_OUT = flags.DEFINE_string("out", None, "Folder for lint.json and the cache of fingerprints.")
_CAPTIONS = flags.DEFINE_multi_string(
    "captions", [], "NAME=FILE: captions from another source, as data_prep.extract takes them; repeatable."
)
_FINGERPRINTS = flags.DEFINE_bool("fingerprints", True, "Read the files and find copies among them.")
_WORKERS = define_int("workers", os.cpu_count() or 1, "Processes that read files.", PROCESSES)
_TIME_LIMIT = define_float("time_limit", 120.0, "Time limit for reading one file, in seconds.", TIME_LIMITS)
_SECONDS = define_float(
    "seconds",
    RecordSettings.seconds,
    "Length of the clips that will be made of the files, --config.seconds of data_prep.extract.",
    SECONDS,
)


def main() -> int:
    """Run the command line."""
    findings = lint(
        _TABLE.value,
        kind=_KIND.value,
        root=_ROOT.value,
        out=_OUT.value,
        captions=parse_caption_flags(_CAPTIONS.value),
        options=LintOptions(
            fingerprints=_FINGERPRINTS.value,
            workers=_WORKERS.value,
            time_limit=_TIME_LIMIT.value,
            seconds=_SECONDS.value,
        ),
    )
    return ERRORS_FOUND if any(finding.severity == Severity.ERROR for finding in findings) else 0


if __name__ == "__main__":
    run_main(main)
