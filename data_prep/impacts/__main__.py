"""Makes the clip set: python -m data_prep.impacts --out DIR"""

from pathlib import Path

from absl import flags

from data_prep.impacts.generate import ClipSetConfig, generate
from flowley_jax.cli import run_main

_DEFAULTS = ClipSetConfig()
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the set; clips that are there already are kept.", required=True
)
_TRAIN = flags.DEFINE_integer("train", _DEFAULTS.train, "Training clips.")
_VALID = flags.DEFINE_integer("valid", _DEFAULTS.valid, "Validation clips.")
_TEST = flags.DEFINE_integer("test", _DEFAULTS.test, "Test clips.")
_SECONDS = flags.DEFINE_float("seconds", _DEFAULTS.seconds, "Length of a clip.")
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of the whole set.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
_SHEET = flags.DEFINE_string("contact_sheet", None, "Also draw a few clips with their sound to this .png.")


def main() -> int:
    """Command line."""
    config = ClipSetConfig(
        train=_TRAIN.value, valid=_VALID.value, test=_TEST.value, seconds=_SECONDS.value, seed=_SEED.value
    )
    generate(config, Path(_OUT.value), workers=_WORKERS.value)
    if _SHEET.value:
        from data_prep.impacts.contact_sheet import draw_contact_sheet

        draw_contact_sheet(Path(_OUT.value), Path(_SHEET.value))
    print(f"clips, clips.tsv and events.jsonl are in {_OUT.value}")
    return 0


if __name__ == "__main__":
    run_main(main)
