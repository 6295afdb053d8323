"""Clip table of MovieGen Audio Bench: python -m data_prep.moviegen --root DIR --out clips.tsv

The benchmark has 527 numbered clips, all of them for tests. Videos are files `<id>.mp4` below root, those of
a folder video_with_audio before others; prompts are lines of MovieGenAudioBenchSfx.jsonl, or, as MMAudio has
them, files `<id>.jsonl`. Nothing is downloaded. Clips without a file or prompt are listed in
`<out>_missing.tsv`.
"""

from absl import flags

from data_prep.datasets.moviegen import make_table
from flowley_jax.cli import run_main

_ROOT = flags.DEFINE_string("root", None, "Folder with the videos, and the prompts.", required=True)
_PROMPTS = flags.DEFINE_string("prompts", None, "The prompts, if they are not below root.")
_OUT = flags.DEFINE_string("out", None, "The clip table to write.", required=True)


def main() -> int:
    """Command line."""
    make_table(_ROOT.value, _OUT.value, prompts=_PROMPTS.value)
    return 0


if __name__ == "__main__":
    run_main(main)
