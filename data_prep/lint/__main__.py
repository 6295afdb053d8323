"""Looks for what is wrong with a clip table: python -m data_prep.lint --table clips.tsv --out DIR

Exit code 3 says that there is an error. With --out a run that was stopped goes on, and files that have not
changed are not read again.
"""

import os

from absl import flags

from data_prep.lint.check import Reading, lint
from data_prep.lint.findings import Severity
from data_prep.tables import Kind
from flowley_jax.cli import run_main

ERRORS_FOUND = 3

_TABLE = flags.DEFINE_string("table", None, "The clip table.", required=True)
_KIND = flags.DEFINE_enum(
    "kind", None, list(Kind), "Its convention; by default it is known from the content."
)
_ROOT = flags.DEFINE_string("root", None, "Another folder in which files are looked for.")
_OUT = flags.DEFINE_string("out", None, "Folder for lint.json, and for fingerprints once read.")
_CAPTIONS = flags.DEFINE_multi_string(
    "captions", [], "NAME=FILE: captions of another source, as data_prep.extract takes them; repeatable."
)
_FINGERPRINTS = flags.DEFINE_bool("fingerprints", True, "Read the files, and find copies among them.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes that read files.", lower_bound=1)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 120.0, "Seconds after which the reading of one file is given up.", lower_bound=0.1
)


def main() -> int:
    """Command line."""
    findings = lint(
        _TABLE.value,
        kind=_KIND.value,
        root=_ROOT.value,
        out=_OUT.value,
        captions=_captions(),
        reading=Reading(
            fingerprints=_FINGERPRINTS.value, workers=_WORKERS.value, time_limit=_TIME_LIMIT.value
        ),
    )
    return ERRORS_FOUND if any(finding.severity == Severity.ERROR for finding in findings) else 0


def _captions() -> dict[str, str]:
    if not _CAPTIONS.value:
        return {}
    # Takes seconds to import.
    from data_prep.rows import named_files

    return named_files(_CAPTIONS.value)


if __name__ == "__main__":
    run_main(main)
