"""Tiles of the PSCA kernels: their sizes, and which tiles of one axis each tile of the other one needs."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from flowley_jax.kernels.psca.mask import SoftMask

Axis = Literal["audio", "video"]

# A register row of a TPU: arrays in vector memory are padded to a multiple of this many columns.
LANES = 128
# Vector memory of a core that the tiles of one grid step may take, including the pipeline's second buffers.
VMEM_BUDGET = 12 * 2**20
# Tile sizes to choose from, largest first.
AUDIO_TILES = (256, 128, 64, 32, 16)
VIDEO_TILES = (512, 256, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileRanges:
    """The run of inner tiles, first to last, that each outer tile needs.

    Attributes:
      first: index of the first inner tile, for each outer tile.
      last: index of the last inner tile, for each outer tile.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Length of the longest run; an outer tile with a shorter one neither reads nor computes the rest."""
        return max(last - first for first, last in zip(self.first, self.last, strict=True)) + 1

    @property
    def pairs(self) -> int:
        """Number of pairs of tiles that are read and computed."""
        return sum(self.last) - sum(self.first) + len(self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """The static half of a kernel call: sizes of arrays and tiles, and settings.

    Attributes:
      mask: settings of the soft mask.
      audio_length: number of audio positions Ta.
      video_length: number of video frames Tv.
      num_heads: number of heads H on this device.
      head_dim: channels d of a head.
      audio_tile: rows of q in a grid step.
      video_tile: rows of k and v in a grid step.
      scale: softmax scale.
      interpret: run the kernels in Pallas's interpreter: a bool, or pltpu.InterpretParams.
    """

    mask: SoftMask
    audio_length: int
    video_length: int
    num_heads: int
    head_dim: int
    audio_tile: int
    video_tile: int
    scale: float
    interpret: Any = False

    @property
    def audio_tiles(self) -> int:
        """Number of tiles along audio."""
        return -(-self.audio_length // self.audio_tile)

    @property
    def video_tiles(self) -> int:
        """Number of tiles along video."""
        return -(-self.video_length // self.video_tile)

    def rows(self, axis: Axis) -> int:
        """Return the rows of a tile along an axis."""
        return self.audio_tile if axis == "audio" else self.video_tile

    def ranges(self, outer: Axis) -> TileRanges:
        """Return which tiles of the other axis each tile of the outer axis needs."""
        return self._video_ranges() if outer == "audio" else self._audio_ranges()

    def _video_ranges(self) -> TileRanges:
        """Return the video tiles that each audio tile reads."""
        if not self.mask.hard_cut:
            return TileRanges(first=(0,) * self.audio_tiles, last=(self.video_tiles - 1,) * self.audio_tiles)
        frames, reach = self._frames(), self.mask.reach
        first, last = [], []
        for start in range(0, self.audio_length, self.audio_tile):
            rows = frames[start : start + self.audio_tile]
            first.append(max(0, int(rows[0]) - reach) // self.video_tile)
            last.append(min(self.video_length - 1, int(rows[-1]) + reach) // self.video_tile)
        return TileRanges(first=tuple(first), last=tuple(last))

    def _audio_ranges(self) -> TileRanges:
        """Return the audio tiles that read each video tile.

        A video tile that no audio tile reads gets one audio tile, all of it masked: its gradient must be
        written all the same.
        """
        if not self.mask.hard_cut:
            return TileRanges(first=(0,) * self.video_tiles, last=(self.audio_tiles - 1,) * self.video_tiles)
        frames, reach = self._frames(), self.mask.reach
        first, last = [], []
        for start in range(0, self.video_length, self.video_tile):
            end = min(self.video_length, start + self.video_tile) - 1
            first_row = int(np.searchsorted(frames, start - reach, side="left"))
            first_row = min(first_row, self.audio_length - 1)
            last_row = int(np.searchsorted(frames, end + reach, side="right")) - 1
            first.append(first_row // self.audio_tile)
            last.append(max(first_row, last_row) // self.audio_tile)
        return TileRanges(first=tuple(first), last=tuple(last))

    def frames_by_tile(self) -> Int[np.ndarray, "tiles 1 rows"]:
        """Return the aligned frames of each audio tile, padded at the end.

        A TPU takes a block of any number of columns if it is a whole row, hence the middle axis.
        """
        padding = self.audio_tiles * self.audio_tile - self.audio_length
        frames = np.pad(self._frames(), (0, padding), mode="edge")
        return frames.reshape(self.audio_tiles, 1, self.audio_tile)

    def _frames(self) -> Int[np.ndarray, " Ta"]:
        return self.mask.aligned_frames(self.audio_length, self.video_length)


def tile_sizes(
    audio_length: int, video_length: int, *, width: int, itemsize: int, hard_cut: bool
) -> tuple[int, int] | None:
    """Return the rows of audio and of video in a grid step: the largest that fit VMEM_BUDGET.

    A short axis is one tile. With the hard cut, tiles of video are small, so that few frames outside the
    windows are read.

    Args:
      audio_length: Ta.
      video_length: Tv.
      width: channels H·d of a row.
      itemsize: bytes of an element.
      hard_cut: whether frames outside the windows have weight zero.

    Returns:
      Rows of an audio tile and of a video tile, or None if not even the smallest tiles fit.
    """
    video_tiles = VIDEO_TILES[-1:] if hard_cut else VIDEO_TILES
    for audio in AUDIO_TILES:
        for video in video_tiles:
            audio_tile, video_tile = min(audio, audio_length), min(video, video_length)
            if tile_bytes(audio_tile, video_tile, width=width, itemsize=itemsize) <= VMEM_BUDGET:
                return audio_tile, video_tile
    return None


def tile_bytes(audio_tile: int, video_tile: int, *, width: int, itemsize: int) -> int:
    """Return the vector memory of a grid step of the largest kernel, in bytes.

    It holds double-buffered operands, accumulators, softmax statistics and scores.
    """
    row = _padded(width) * itemsize
    operands = 2 * (4 * audio_tile * row + 4 * video_tile * row)
    accumulators = 4 * _padded(width) * max(audio_tile, 2 * video_tile)
    statistics = 2 * 2 * 4 * LANES * audio_tile
    scores = 4 * 4 * audio_tile * _padded(video_tile)
    return operands + accumulators + statistics + scores


def _padded(columns: int) -> int:
    return -(-columns // LANES) * LANES
