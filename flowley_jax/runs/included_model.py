"""The model that comes with the package, for a first sound before anything is trained."""

from pathlib import Path

INCLUDED = Path(__file__).parents[1] / "pretrained" / "impacts"
EXAMPLES = "examples"
# What `sample` and the page say about it.
DESCRIPTION = "the included model, which knows the sounds of things that strike, bounce, swing, saw and hum"


def examples(folder: Path) -> list[tuple[Path, str]]:
    """Return the example videos of a model's folder, each with the prompt in the .txt file of its name."""
    videos = sorted((folder / EXAMPLES).glob("*.mp4"))
    return [(video, video.with_suffix(".txt").read_text(encoding="utf-8").strip()) for video in videos]
