"""Check whether picture and sound of the files cover the same time."""

from collections.abc import Mapping

from data_prep.lint.findings import Finding, Severity, findings_of, row_case
from data_prep.lint.fingerprint_cache import FingerprintResult
from data_prep.lint.fingerprints import SPAN_SECONDS, Fingerprints
from data_prep.lint.media import RowsWithFiles
from data_prep.read_clip import OFFSET_TOLERANCE, describe_offset


def check_timelines(
    rows: RowsWithFiles, results: Mapping[str, FingerprintResult], seconds: float
) -> list[Finding]:
    """Report files whose picture and sound begin apart, and files with a hole in the sound.

    Args:
      rows: rows with their files.
      results: fingerprints by path, or the reason why there are none.
      seconds: length of the clips that will be made of the files.
    """
    offsets, rejected, holes = [], [], []
    for row, path in rows:
        prints = results[path]
        if not isinstance(prints, Fingerprints):
            continue
        if prints.hole > OFFSET_TOLERANCE:
            holes.append(row_case(row, f"{prints.hole:.2f} s are missing"))
        if prints.offset is None or prints.overlap is None or abs(prints.offset) <= OFFSET_TOLERANCE:
            continue
        detail = f"{describe_offset(prints.offset)}; they overlap by {prints.overlap:.2f} s"
        # Streams are not compared beyond SPAN_SECONDS.
        wanted = min(seconds, SPAN_SECONDS - abs(prints.offset)) - OFFSET_TOLERANCE
        (rejected if prints.overlap < wanted else offsets).append(row_case(row, detail))
    return [
        *findings_of(
            Severity.WARNING,
            "offset",
            f"files whose picture and sound overlap by less than {seconds:g} s; extract rejects them",
            rejected,
        ),
        *findings_of(
            Severity.WARNING,
            "hole",
            "files with missing parts within the sound; extract rejects them",
            holes,
        ),
        *findings_of(Severity.NOTE, "begin_apart", "files whose picture and sound begin apart", offsets),
    ]
