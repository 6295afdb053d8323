"""Draw a few clips of a set: frames above the spectrogram, with the true events marked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.common.files import atomic_write
from flowley_jax.common.jsonl import read_jsonl
from flowley_jax.data.clip_table import TableClip, read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames

CLIPS = 6
FRAMES = 16


def draw_contact_sheet(
    folder: Path, path: Path, *, generated: Path | None = None, clips: int = CLIPS
) -> None:
    """Draw the first clips of the test split, or of the whole set if it has none, to a .png file.

    Args:
      folder: the clip set, as `generate` writes it.
      path: picture to write.
      generated: folder of the same clips with other sound, which is drawn below the real one.
      clips: number of clips to draw.

    Raises:
      FlowleyError: the table or the events are missing or damaged, a clip cannot be read, or the picture
        cannot be written.
    """
    table = read_clip_table(folder / "clips.tsv")
    chosen = ([clip for clip in table if clip.split == "test"] or table)[:clips]
    events = _read_events(folder / "events.jsonl", chosen)
    heights = [0.8, 1.0, 1.0] if generated else [0.8, 1.0]
    figure = Figure(figsize=(11, 1.0 * sum(heights) * len(chosen)), layout="constrained", dpi=110)
    axes = figure.subplots(len(heights) * len(chosen), 1, height_ratios=heights * len(chosen))
    for index, clip in enumerate(chosen):
        picture, *sounds = axes[index * len(heights) : (index + 1) * len(heights)]
        _draw_frames(picture, clip, events[clip.id])
        _draw_sound(sounds[0], clip.video_path, events[clip.id], "real" if generated else "")
        if generated:
            _draw_sound(sounds[1], generated / f"{clip.id}.mp4", events[clip.id], "generated")
    with atomic_write(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _read_events(path: Path, clips: Sequence[TableClip]) -> dict[str, dict]:
    events = {row.get("id"): row for row in read_jsonl(path)}
    for clip in clips:
        if not {"seconds", "impacts"} <= events.get(clip.id, {}).keys():
            raise FlowleyError(f"{path}: has no events of clip {clip.id}; run data_prep.impacts again")
    return {clip.id: events[clip.id] for clip in clips}


def _draw_frames(axes, clip: TableClip, events: dict) -> None:
    frames = read_frames(clip.video_path, fps=FRAMES / events["seconds"], seconds=events["seconds"])
    axes.imshow(np.concatenate(list(frames), axis=1), aspect="auto")
    axes.set_title(clip.caption, loc="left", fontsize=9)
    axes.set_axis_off()


def _draw_sound(axes, path: Path, events: dict, name: str) -> None:
    mel = log_mel(read_audio(path, sample_rate=MEL_16K.sample_rate), MEL_16K)
    axes.imshow(
        mel.T,
        origin="lower",
        aspect="auto",
        extent=(0, len(mel) * MEL_16K.hop / MEL_16K.sample_rate, 0, 1),
        cmap="magma",
        vmin=-4.0,
        vmax=1.0,
    )
    for impact in events["impacts"]:
        axes.axvline(impact["time"], color="cyan", linewidth=1.2, linestyle="--")
    axes.set_xlim(0, events["seconds"])
    axes.set_ylabel(name, fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
