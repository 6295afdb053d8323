"""What a PSCA kernel visits: tile sizes, and which video tiles each audio tile reads and the reverse."""

import dataclasses

import numpy as np

LANES = 128
# What the tiles of one grid step may take of a core's vector memory, the pipeline's second buffers counted.
VMEM_BUDGET = 12 * 2**20
AUDIO_TILES = (256, 128, 64, 32, 16)
VIDEO_TILES = (512, 256, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visits:
    """For each tile of one axis, the run of tiles of the other axis that it needs.

    Attributes:
      first, last: index of the first and of the last one.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def count(self) -> int:
        """The largest number of them; a tile that needs fewer neither reads nor computes the rest."""
        return max(last - first for first, last in zip(self.first, self.last, strict=True)) + 1

    @property
    def total(self) -> int:
        """Pairs of tiles that are read and computed."""
        return sum(self.last) - sum(self.first) + len(self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything static about one call.

    Attributes:
      audio_length, video_length: Ta and Tv.
      num_heads, head_dim: H and d.
      audio_tile, video_tile: rows of q, and of k and v, in one grid step.
      window, fade_range: ω and δ in frames; a negative ω is attention without a mask.
      hard_cut: frames outside the windows are not visited.
      scale: softmax scale.
      frames: aligned frame of every audio position.
      interpret: run the kernels in Pallas's interpreter.
    """

    audio_length: int
    video_length: int
    num_heads: int
    head_dim: int
    audio_tile: int
    video_tile: int
    window: int
    fade_range: int
    hard_cut: bool
    scale: float
    frames: tuple[int, ...]
    interpret: object

    @property
    def audio_tiles(self) -> int:
        """Number of tiles along audio."""
        return -(-self.audio_length // self.audio_tile)

    @property
    def video_tiles(self) -> int:
        """Number of tiles along video."""
        return -(-self.video_length // self.video_tile)

    @property
    def reach(self) -> int:
        """Largest distance from the aligned frame that the hard cut leaves, in frames."""
        return self.window + self.fade_range

    def video_visits(self) -> Visits:
        """Video tiles that each audio tile reads."""
        if not self.hard_cut:
            return Visits(first=(0,) * self.audio_tiles, last=(self.video_tiles - 1,) * self.audio_tiles)
        frames = np.asarray(self.frames)
        low, high = [], []
        for start in range(0, self.audio_length, self.audio_tile):
            rows = frames[start : start + self.audio_tile]
            low.append(max(0, int(rows[0]) - self.reach) // self.video_tile)
            high.append(min(self.video_length - 1, int(rows[-1]) + self.reach) // self.video_tile)
        return Visits(first=tuple(low), last=tuple(high))

    def audio_visits(self) -> Visits:
        """Audio tiles that read each video tile; a tile that none reads gets one that masks it out."""
        if not self.hard_cut:
            return Visits(first=(0,) * self.video_tiles, last=(self.audio_tiles - 1,) * self.video_tiles)
        frames = np.asarray(self.frames)
        low, high = [], []
        for start in range(0, self.video_length, self.video_tile):
            last = min(self.video_length, start + self.video_tile) - 1
            row = int(np.searchsorted(frames, start - self.reach, side="left"))
            end = int(np.searchsorted(frames, last + self.reach, side="right")) - 1
            row = min(row, self.audio_length - 1)
            low.append(row // self.audio_tile)
            high.append(max(row, end) // self.audio_tile)
        return Visits(first=tuple(low), last=tuple(high))


def tile_sizes(
    audio_length: int, video_length: int, *, width: int, itemsize: int, hard_cut: bool
) -> tuple[int, int] | None:
    """Rows of audio and of video in one grid step: the largest that fit VMEM_BUDGET; None if none do.

    Short axes are one tile. With the hard cut, tiles of video are small, so that little outside the
    windows is read.

    Args:
      width: H·d, the channels that a row holds.
      itemsize: bytes of an element.
    """
    choices = VIDEO_TILES[-1:] if hard_cut else VIDEO_TILES
    for audio in AUDIO_TILES:
        for video in choices:
            audio_tile, video_tile = min(audio, audio_length), min(video, video_length)
            if tile_bytes(audio_tile, video_tile, width=width, itemsize=itemsize) <= VMEM_BUDGET:
                return audio_tile, video_tile
    return None


def tile_bytes(audio_tile: int, video_tile: int, *, width: int, itemsize: int) -> int:
    """Vector memory of one step of the largest kernel: double-buffered operands, accumulators, scores."""
    audio_row, video_row = _lanes(width) * itemsize, _lanes(width) * itemsize
    operands = 2 * (4 * audio_tile * audio_row + 4 * video_tile * video_row)
    accumulators = 4 * _lanes(width) * max(audio_tile, 2 * video_tile)
    statistics = 2 * 2 * 4 * LANES * audio_tile
    scores = 4 * 4 * audio_tile * _lanes(video_tile)
    return operands + accumulators + statistics + scores


def _lanes(columns: int) -> int:
    return -(-columns // LANES) * LANES
