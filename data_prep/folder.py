"""Clip table of a plain folder of videos: python -m data_prep.folder --root DIR --out clips.tsv

| column | what it is |
|---|---|
| id | path below root with `__` for `/`; behind it a hash where other paths could have the same |
| text_description | the content of the `.txt` beside the file, or else the words of the file's name |
| label | name of the folder that the file is in |
| split | by the hash of the id, so that further files move no clip to another split |
"""

from absl import flags

from data_prep.datasets.folder import make_table
from flowley_jax.cli import run_main

_ROOT = flags.DEFINE_string("root", None, "Folder of the videos, and of folders of them.", required=True)
_OUT = flags.DEFINE_string("out", None, "The clip table to write.", required=True)
_VALID = flags.DEFINE_float("valid", 0.05, "Share of the clips that is valid.", lower_bound=0.0)
_TEST = flags.DEFINE_float("test", 0.05, "Share of the clips that is test.", lower_bound=0.0)


def main() -> int:
    """Command line."""
    make_table(_ROOT.value, _OUT.value, valid=_VALID.value, test=_TEST.value)
    return 0


if __name__ == "__main__":
    run_main(main)
