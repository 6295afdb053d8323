"""Clip table of VGGSound: python -m data_prep.vggsound --csv vggsound.csv --videos DIR --out clips.tsv

Videos are files `<YouTube id>_<start, six digits>.mp4` (or .mkv, .webm) in one folder; nothing is downloaded.
Train and test are those of the CSV; clips of train are held out as valid by the hash of the YouTube id, so
that the choice depends on the CSV alone and no video is in train and valid, or in valid and test. Labels are
the captions. Clips without a file are listed in `<out>_missing.tsv`.
"""

from absl import flags

from data_prep.datasets.vggsound import make_table
from flowley_jax.cli import run_main

_CSV = flags.DEFINE_string("csv", None, "The official vggsound.csv.", required=True)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder of the clips.", required=True)
_OUT = flags.DEFINE_string("out", None, "The clip table to write.", required=True)
_VALID = flags.DEFINE_integer("valid", 2000, "Clips of train to hold out as valid.", lower_bound=0)


def main() -> int:
    """Command line."""
    make_table(_CSV.value, _VIDEOS.value, _OUT.value, valid=_VALID.value)
    return 0


if __name__ == "__main__":
    run_main(main)
