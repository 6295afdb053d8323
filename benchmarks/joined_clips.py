"""Join clips into long videos: copied pictures one after the other, with the times of their events."""

import dataclasses
import fractions
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import av.container
import av.error
import librosa
import numpy as np

from flowley_jax.common.files import atomic_write
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.media.inputs import open_input, required_stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedVideo:
    """A silent video of several clips; it has the id of its first clip.

    Attributes:
      id: id of the first clip.
      path: the video.
      captions: captions of the clips.
      clips: ids of the clips in their order.
      bounds: (clips + 1,) times in seconds at which the clips begin, and the end of the last one.
      events: (events,) times of the clips' events in the video, in seconds.
    """

    id: str
    path: Path
    captions: list[str]
    clips: list[str]
    bounds: np.ndarray
    events: np.ndarray

    def sound(self, waves: Mapping[str, np.ndarray], sample_rate: int) -> np.ndarray:
        """Return the sounds of the clips one after the other, (N,), each cut or filled to its clip's length.

        Args:
          waves: sounds (N,) by the ids of the clips.
          sample_rate: Hz.
        """
        samples = np.diff(np.round(self.bounds * sample_rate).astype(int))
        pieces = [
            librosa.util.fix_length(waves[clip], size=count)
            for clip, count in zip(self.clips, samples, strict=True)
        ]
        return np.concatenate(pieces)


def join_clips(folder: Path, out: Path, *, count: int, split: str = "test") -> list[JoinedVideo]:
    """Join every `count` clips of a split, in the order of the table; videos that exist are kept.

    Args:
      folder: clip set with clips.tsv and events.jsonl, as `data_prep.impacts` writes it.
      out: folder for the videos.
      count: clips per video; the last clips of the split are left out where they make no whole video.
      split: rows of clips.tsv to take.

    Raises:
      FlowleyError: the table, the events or a clip cannot be read, or the split has fewer clips.
    """
    rows = [clip for clip in read_clip_table(folder / "clips.tsv") if clip.split == split]
    if len(rows) < count:
        raise FlowleyError(f"{folder}: its split {split} has {len(rows)} clips, and {count} are to be joined")
    events = read_events(folder / "events.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    videos = []
    for first in range(0, len(rows) - count + 1, count):
        group = rows[first : first + count]
        paths, target = [clip.video_path for clip in group], out / f"{group[0].id}.mp4"
        if not target.exists():
            join_pictures(paths, target)
        bounds = np.cumsum([0.0, *map(picture_seconds, paths)])
        times = [events[clip.id] + start for clip, start in zip(group, bounds[:-1], strict=True)]
        videos.append(
            JoinedVideo(
                id=group[0].id,
                path=target,
                captions=[clip.caption for clip in group],
                clips=[clip.id for clip in group],
                bounds=bounds,
                events=np.concatenate(times),
            )
        )
    return videos


def join_sounds(
    videos: Sequence[JoinedVideo], waves: Mapping[str, np.ndarray], sample_rate: int
) -> dict[str, np.ndarray]:
    """Return the sounds (N,) of the videos' clips one after the other, by the videos' ids."""
    return {video.id: video.sound(waves, sample_rate) for video in videos}


def picture_seconds(path: Path) -> float:
    """Return how long the picture of a file lasts, as its header states it."""
    with open_input(path) as container:
        return float(_seconds(path, required_stream("video", container, path)))


def join_pictures(paths: Sequence[Path], out: Path) -> None:
    """Write the pictures of videos one after the other without encoding them again.

    Args:
      paths: videos that one encoder wrote with the same settings; the same one may occur several times.
      out: .mp4 file to write.

    Raises:
      FlowleyError: a file cannot be read, or its picture needs other settings of the decoder.
    """
    with atomic_write(out, av.error.FFmpegError) as partial, av.open(str(partial), "w") as joined:
        stream, start = None, fractions.Fraction(0)
        for path in paths:
            with open_input(path) as container:
                source = required_stream("video", container, path)
                if stream is None:
                    stream = joined.add_stream_from_template(source)
                if source.codec_context.extradata != stream.codec_context.extradata:
                    raise FlowleyError(
                        f"{path}: its picture was encoded in another way than that of {paths[0]}"
                    )
                _copy(container, source, joined, stream, start)
                start += _seconds(path, source)


def _copy(container, source, joined: av.container.OutputContainer, stream, start: fractions.Fraction) -> None:
    for packet in container.demux(source):
        # The last one only says that the file ends.
        if packet.dts is None or packet.pts is None:
            continue
        shift = round(start / packet.time_base)
        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
        joined.mux(packet)


def _seconds(path: Path, stream) -> fractions.Fraction:
    if stream.duration is None:
        raise FlowleyError(f"{path}: its header does not say how long its picture lasts")
    return stream.duration * stream.time_base
