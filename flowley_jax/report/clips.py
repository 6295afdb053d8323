"""The section on one clip: its videos, and its spectrograms and onsets on one time axis."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from flowley_jax.report.images import file_uri, heat_map
from flowley_jax.report.plot import time_axis


@dataclass(frozen=True, kw_only=True)
class ReportClip:
    """One clip as the report shows it.

    Attributes:
      title: caption, in plain text.
      remarks: what to say of its scores, in plain text.
      video: the video or sound file with the generated sound.
      real_video: the video with the real sound, if it exists.
      events: (events,) true event times in seconds.
      detected: (onsets,) onsets detected in the generated sound, in seconds.
      real_mel, generated_mel: (frames, bins) log-mel spectrograms.
      frame_rate: frames per second of the spectrograms.
    """

    title: str
    remarks: str
    video: Path
    real_video: Path | None
    events: np.ndarray
    detected: np.ndarray
    real_mel: np.ndarray
    generated_mel: np.ndarray
    frame_rate: float

    def __post_init__(self) -> None:
        for name in ("real_mel", "generated_mel"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"{self.title}: {name} must be (frames, bins), got {shape}")

    @property
    def seconds(self) -> float:
        """Length of the common time axis in seconds."""
        return max(len(self.real_mel), len(self.generated_mel)) / self.frame_rate


def clip_section(clip: ReportClip) -> str:
    """Return the HTML article on a clip.

    Raises:
      FlowleyError: a video is missing or cannot be read.
    """
    videos = _video(clip.video, "generated sound")
    if clip.real_video is not None:
        videos += _video(clip.real_video, "real sound")
    return (
        f'<article class="clip"><h3>{escape(clip.title)}</h3>'
        f'<p class="score">{escape(clip.remarks)}</p>'
        f'<div class="clip-body"><div class="videos">{videos}</div>{_timeline(clip)}</div></article>'
    )


def _video(path: Path, caption: str) -> str:
    return (
        f'<figure><video controls playsinline preload="auto" src="{file_uri(path)}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _timeline(clip: ReportClip) -> str:
    # Both spectrograms use the scale of the real sound, so that equal colours mean equal levels.
    low, high = (float(level) for level in np.nanpercentile(clip.real_mel, (2, 99.8)))
    return (
        f'<div class="sounds"><div class="timeline" data-seconds="{clip.seconds:.4f}">'
        f"{_spectrogram(clip, clip.real_mel, 'real sound', low, high)}"
        f'<svg class="onsets" aria-hidden="true">{_marks(clip.events, clip.seconds, "true", "0", "45%")}'
        f"{_marks(clip.detected, clip.seconds, 'heard', '55%', '100%')}</svg>"
        f"{_spectrogram(clip, clip.generated_mel, 'generated sound', low, high)}"
        f'<i class="playhead" hidden></i></div>{time_axis(clip.seconds)}{_legend(clip)}</div>'
    )


def _legend(clip: ReportClip) -> str:
    if not len(clip.events) and not len(clip.detected):
        return ""
    return (
        '<p class="legend"><span class="key true">true events</span>'
        '<span class="key heard">onsets detected in the generated sound</span></p>'
    )


def _spectrogram(clip: ReportClip, mel: np.ndarray, name: str, low: float, high: float) -> str:
    image = heat_map(mel.T[::-1], low=low, high=high)
    width = 100 * len(mel) / clip.frame_rate / clip.seconds
    return (
        f'<div class="mel"><img alt="mel spectrogram of the {name}" style="width:{width:.2f}%" src="{image}">'
        f'<svg aria-hidden="true">{_marks(clip.events, clip.seconds, "true", "0", "100%")}</svg>'
        f"<span>{name}</span></div>"
    )


def _marks(times: Iterable[float], seconds: float, style: str, top: str, bottom: str) -> str:
    positions = (f"{100 * time / seconds:.2f}%" for time in times)
    return "".join(f'<line class="{style}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>' for x in positions)
