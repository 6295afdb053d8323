"""Make the model that comes with the package: make included-model

It is the demonstration's model, trained for 300 more steps so that it samples in four. Its folder also has a
card with its scores, and silent example videos.
"""

import dataclasses
from pathlib import Path

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.config_flag import experiment_flag

_CONFIG = experiment_flag("Configuration that trains the flow map.", default="impacts.py:few_steps")
_DEMO = flags.DEFINE_string("demo", "runs/demo", "Folder of a finished demonstration.")
_OUT = flags.DEFINE_string("out", None, "New folder for the model.", required=True)
_COMPILATION_CACHE = define_compilation_cache()
_NAME = "flowley-jax-impacts"
_LICENSE = "apache-2.0"
# Scores of the card: F1 and median error of onsets, distances, and right materials.
_METRICS = ("onset-F1", "onset-error-ms", "FD-TAGGER", "KL-TAGGER-softmax", "material-accuracy")
# Index of each example among the test clips.
EXAMPLE_CLIPS = {"glass_ball": 49, "metal_mallet": 52, "stone_cube": 35}


def main() -> int:
    """Train, score and write the model; return 75 if a signal stopped the training."""
    from flowley_jax.common.files import write_text
    from flowley_jax.demo.scoring import GENERATED, score_impacts
    from flowley_jax.evaluation.run import TAGGER_FILE
    from flowley_jax.runs.model_card import CARD, model_card
    from flowley_jax.runs.model_folder import check_empty, write_model_folder
    from flowley_jax.sampling.sampler import Sampler
    from flowley_jax.training.loop import train

    use_compilation_cache(_COMPILATION_CACHE.value)
    demo, out, config = Path(_DEMO.value), Path(_OUT.value or ""), _CONFIG.value
    check_empty(out)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, records=str(demo / "records")))
    workdir, clips = demo / "few_steps", demo / "clips"
    if train(config, workdir).interrupted:
        return STOPPED_EARLY
    weights = write_model_folder(
        workdir, out, sigma_rel=config.sample.sigma_rel, dtype="bfloat16", compact=True
    )
    # Score the rounded weights, because they are the ones that ship.
    sampler = Sampler.from_run(out)
    evaluation = score_impacts(
        sampler,
        clips,
        demo / "few_steps_samples",
        demo / "few_steps_evaluation",
        tagger=demo / "evaluation" / TAGGER_FILE,
    )
    metrics = evaluation.rows[GENERATED].metrics
    figures = {name: metrics[name] for name in _METRICS}
    card = model_card(
        _NAME, config, sampler.components, weights, workdir="", license_name=_LICENSE, figures=figures
    )
    write_text(out / CARD, card)
    _write_examples(clips, out)
    print(out)
    return 0


def _write_examples(clips: Path, out: Path) -> None:
    """Write silent copies of some test clips, each with its caption as a .txt file."""
    from flowley_jax.common.files import write_text
    from flowley_jax.data.clip_table import read_clip_table
    from flowley_jax.media.read import probe, read_frames
    from flowley_jax.media.write import write_video
    from flowley_jax.runs.included_model import EXAMPLES

    folder = out / EXAMPLES
    folder.mkdir()
    held_out = [clip for clip in read_clip_table(clips / "clips.tsv") if clip.split == "test"]
    for name, index in EXAMPLE_CLIPS.items():
        clip = held_out[index]
        fps = probe(clip.video_path).video_fps
        assert fps is not None
        write_video(folder / f"{name}.mp4", read_frames(clip.video_path, fps=fps), fps)
        write_text(folder / f"{name}.txt", clip.caption + "\n")


if __name__ == "__main__":
    run_main(main, _CONFIG)
