"""A picture of a few clips of a set: frames above the sound, true events marked."""

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.data.clip_table import Clip, read_clip_table
from flowley_jax.media.read import read_audio, read_frames

CLIPS = 6
FRAMES = 12


def draw_contact_sheet(folder: Path, path: Path) -> None:
    """Draws the first clips of the test split (or of the whole set, without one) to a .png.

    Args:
      folder: the clip set, as `generate` leaves it.
    """
    table = read_clip_table(folder / "clips.tsv")
    chosen = ([clip for clip in table if clip.split == "test"] or table)[:CLIPS]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    by_id = {row["id"]: row for row in events}
    figure = Figure(figsize=(12, 2.4 * len(chosen)), layout="constrained")
    axes = figure.subplots(2 * len(chosen), 1, height_ratios=[1.1, 1] * len(chosen))
    for index, clip in enumerate(chosen):
        _draw_clip(axes[2 * index], axes[2 * index + 1], clip, by_id[clip.id])
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_clip(picture, sound, clip: Clip, events: dict) -> None:
    frames = read_frames(clip.video_path, fps=FRAMES / events["seconds"], seconds=events["seconds"])
    picture.imshow(np.concatenate(list(frames), axis=1), aspect="auto")
    picture.set_title(f"{clip.id}: {clip.caption}", loc="left", fontsize=9)
    picture.set_axis_off()
    mel = log_mel(read_audio(clip.video_path, sample_rate=MEL_16K.sample_rate), MEL_16K)
    sound.imshow(mel.T, origin="lower", aspect="auto", extent=(0, events["seconds"], 0, 1), cmap="magma")
    for impact in events["impacts"]:
        sound.axvline(impact["time"], color="cyan", linewidth=0.8, linestyle=":")
    sound.set_yticks([])
