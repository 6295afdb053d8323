"""Generate a set of clips with impacts: python -m data_prep.impacts --out DIR"""

from pathlib import Path

from absl import flags

from data_prep.impacts.generate import ClipSetConfig, generate
from flowley_jax.cli import run_main

_DEFAULTS = ClipSetConfig()
_OUT = flags.DEFINE_string("out", None, "Folder of the set; existing clips are kept.", required=True)
_TRAIN = flags.DEFINE_integer("train", _DEFAULTS.train, "Number of training clips.")
_VALID = flags.DEFINE_integer("valid", _DEFAULTS.valid, "Number of validation clips.")
_TEST = flags.DEFINE_integer("test", _DEFAULTS.test, "Number of test clips.")
_SECONDS = flags.DEFINE_float("seconds", _DEFAULTS.seconds, "Length of a clip in seconds.")
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Random seed of the set.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that generate clips.", lower_bound=1)
_SHEET = flags.DEFINE_string(
    "contact_sheet", None, "Also draw a few clips and their sound to this .png file."
)


def main() -> int:
    """Run the command line."""
    config = ClipSetConfig(
        train=_TRAIN.value, valid=_VALID.value, test=_TEST.value, seconds=_SECONDS.value, seed=_SEED.value
    )
    generate(config, Path(_OUT.value), workers=_WORKERS.value)
    if _SHEET.value:
        from data_prep.impacts.contact_sheet import draw_contact_sheet

        draw_contact_sheet(Path(_OUT.value), Path(_SHEET.value))
    print(f"{_OUT.value}: clips, clips.tsv and events.jsonl")
    return 0


if __name__ == "__main__":
    run_main(main)
