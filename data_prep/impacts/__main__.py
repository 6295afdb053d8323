"""Generate a set of clips with impacts: python -m data_prep.impacts --out DIR"""

from pathlib import Path

from absl import flags

from data_prep.impacts.generate import ClipSetConfig, generate
from flowley_jax.cli import run_main
from flowley_jax.common.files import check_new_file
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, SEEDS, Range

_DEFAULTS = ClipSetConfig()
_OUT = flags.DEFINE_string("out", None, "Folder of the set; existing clips are kept.", required=True)
# Ids have five digits.
_CLIPS = Range(least=0, most=100_000)
_TRAIN = define_int("train", _DEFAULTS.train, "Number of training clips.", _CLIPS)
_VALID = define_int("valid", _DEFAULTS.valid, "Number of validation clips.", _CLIPS)
_TEST = define_int("test", _DEFAULTS.test, "Number of test clips.", _CLIPS)
_SECONDS = define_float("seconds", _DEFAULTS.seconds, "Length of a clip in seconds.", Range(least=3, most=60))
_SEED = define_int("seed", _DEFAULTS.seed, "Random seed of the set.", SEEDS)
_WORKERS = define_int("workers", 2, "Processes that generate clips.", PROCESSES)
_SHEET = flags.DEFINE_string(
    "contact_sheet", None, "Also draw a few clips and their sound to this .png file."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing --contact_sheet.")


def main() -> int:
    """Run the command line."""
    config = ClipSetConfig(
        train=_TRAIN.value, valid=_VALID.value, test=_TEST.value, seconds=_SECONDS.value, seed=_SEED.value
    )
    if _SHEET.value:
        check_new_file(Path(_SHEET.value), overwrite=_OVERWRITE.value, option="--contact_sheet")
    generate(config, Path(_OUT.value), workers=_WORKERS.value)
    if _SHEET.value:
        from data_prep.impacts.contact_sheet import draw_contact_sheet

        draw_contact_sheet(Path(_OUT.value), Path(_SHEET.value))
    print(f"{_OUT.value}: clips, clips.tsv and events.jsonl")
    return 0


if __name__ == "__main__":
    run_main(main)
