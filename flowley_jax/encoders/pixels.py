"""A video encoder without weights: a fixed descriptor of each frame's colours and motion.

Let L_t be the luminance in [0, 1], with backward and forward differences D⁻ = L_t − L_{t−1} and
D⁺ = L_{t+1} − L_t. The frame is halved first, so that fast objects move by fewer pixels. The features are:

- where objects are: colour relative to mid-grey, pooled over a grid of soft cells;
- where objects move at time t: sqrt(|D⁻|·|D⁺|), which is large only where a moving object is now, and not
  where it was or will be; it is pooled over a finer grid and over narrow rows and columns;
- the direction of motion: the products C·∂L/∂x and C·∂L/∂y with the central difference C = (D⁻ + D⁺)/2. By
  brightness constancy they are −(∂L/∂x)²·u and −(∂L/∂y)²·v, so a bounce changes their sign between frames;
- the change of motion: the same products with D⁺ − D⁻, in which an impact is a spike;
- what moves: the colour of the moving pixels, and their number.

Cells overlap (triangular windows), so features vary smoothly while an object crosses from one to the next.
Products are compressed by x/sqrt(|x| + ε), with ε at the level of video coding noise. Fixed constants scale
all features to a deviation of about one on moving scenes.

A cut is no motion: D⁻ is zero in the first frame after it, and D⁺ in the last frame before it, as at the
start and the end of a video.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from scipy.ndimage import maximum_filter

from flowley_jax.common.component import HostComponent
from flowley_jax.common.ranges import SIZES, Range
from flowley_jax.common.typed import check_values
from flowley_jax.encoders.protocols import check_frames
from flowley_jax.errors import FlowleyError

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_COLOUR_GRID = 6
_ENERGY_GRID = 8
_FLOW_GRID = 6
_PROFILE_CELLS = 16
_HUES = 8
_PROJECTION_SEED = 20
_COLOUR_SCALE = 4.0
_MOTION_SCALE = 50.0
_MOTION_NOISE = 3e-4
_FLOW_SCALE = 120.0
_FLOW_NOISE = 3e-6
# At a cut, the mean change over pixels and colours, which are in [0, 1], is at least this, and at least this
# many times the change between any other two pictures within this many frames. At 4 frames per second, as in
# some animations, the picture only changes every sixth frame.
_CUT_CHANGE, _CUT_RATIO, _CUT_REACH = 0.03, 3.0, 6
_NATIVE_DIM = 3 * _COLOUR_GRID**2 + _ENERGY_GRID**2 + 2 * _FLOW_GRID**2 + 6 * _PROFILE_CELLS + _HUES + 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelEncoder(HostComponent):
    """Video encoder without weights; see the module's docstring and `VideoEncoder`.

    Attributes:
      fps: frames per second of its input.
      frame_size: height and width of a frame in pixels.
      context: see `VideoEncoder`; differences between frames, and cuts, need the neighbours.
      finds_cuts: whether cuts are detected, so that they are no motion.
      dim: width of a feature vector; a fixed random projection gives any width but the descriptor's own.
    """

    name: ClassVar[str] = "pixels"
    version: ClassVar[int | None] = 2
    context: ClassVar[int] = _CUT_REACH + 1
    finds_cuts: ClassVar[bool] = True

    fps: Annotated[float, Range(above=0, most=1000)] = 24.0
    frame_size: Annotated[int, Range(least=2 * _PROFILE_CELLS, most=4096)] = 96
    dim: Annotated[int, SIZES] = _NATIVE_DIM

    @classmethod
    def from_json(cls, stored: Any, folder: Path, *, where: str, mel: Any = None) -> Any:
        """Return the encoder that `to_json` stored, also that of version 1; see `Component`."""
        earlier = EarlierPixelEncoder
        if cls is not earlier and isinstance(stored, Mapping) and stored.get("version") == earlier.version:
            return earlier.from_json(stored, folder, where=where, mel=mel)
        return super().from_json(stored, folder, where=where, mel=mel)

    def __post_init__(self):
        check_values(self, self.name)
        if self.frame_size % 2:
            raise FlowleyError(f"{self.name}.frame_size={self.frame_size} must be even")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Encode frames (T, frame_size, frame_size, 3) uint8 to features (T, dim) float32.

        Raises:
          FlowleyError: the frames have the wrong shape or type, or there are none.
        """
        check_frames(frames, self.frame_size)
        native = _describe(frames, finds_cuts=self.finds_cuts)
        return native if self.dim == _NATIVE_DIM else native @ _projection(self.dim)


class EarlierPixelEncoder(PixelEncoder):
    """The encoder of runs and records of earlier versions, for which a cut is motion of the whole picture."""

    version: ClassVar[int | None] = 1
    finds_cuts: ClassVar[bool] = False


def _describe(frames: np.ndarray, *, finds_cuts: bool) -> np.ndarray:
    """Compute the descriptor of frames (T, H, W, 3) uint8: (T, _NATIVE_DIM) float32."""
    colour = _halved(frames)
    luminance = colour @ _LUMINANCE
    backward, forward = _differences(luminance, _cuts(colour) if finds_cuts else [])
    energy = np.sqrt(np.abs(backward * forward))
    along_y, along_x = _gradients(luminance)
    central, second = 0.5 * (backward + forward), forward - backward
    flow_y, flow_x = central * along_y, central * along_x
    features = (
        _COLOUR_SCALE * _pooled_colour(colour - 0.5),
        _compressed_energy(_pooled(energy, _ENERGY_GRID)),
        _compressed_energy(_row_profile(energy)),
        _compressed_energy(_column_profile(energy)),
        _compressed_flow(_pooled(flow_y, _FLOW_GRID)),
        _compressed_flow(_pooled(flow_x, _FLOW_GRID)),
        _compressed_flow(_row_profile(flow_y)),
        _compressed_flow(_column_profile(flow_x)),
        _compressed_flow(_row_profile(second * along_y)),
        _compressed_flow(_column_profile(second * along_x)),
        _moving_colour(colour, energy),
    )
    return np.concatenate(
        [feature.reshape(len(frames), -1) for feature in features], axis=1, dtype=np.float32
    )


def _halved(frames: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels: (T, H, W, 3) uint8 to (T, H/2, W/2, 3) float32 in [0, 1]."""
    sums = frames[:, ::2, ::2].astype(np.float32)
    for rows, columns in ((0, 1), (1, 0), (1, 1)):
        sums += frames[:, rows::2, columns::2]
    return sums * np.float32(1.0 / (4 * 255))


def _cuts(colour: np.ndarray) -> np.ndarray:
    """Return the first frames after cuts in frames (T, H, W, 3), (cuts,)."""
    changes = np.array(
        [0.0, *(np.abs(after - before).mean() for before, after in itertools.pairwise(colour))]
    )
    others = np.ones(2 * _CUT_REACH + 1, bool)
    others[_CUT_REACH] = False
    around = maximum_filter(changes, footprint=others, mode="constant")
    return np.flatnonzero(changes > np.maximum(_CUT_CHANGE, _CUT_RATIO * around))


def _differences(luminance: np.ndarray, cuts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return D⁻ and D⁺, each (T, H, W); they are zero where there is no neighbouring frame of the scene."""
    backward, forward = np.zeros_like(luminance), np.zeros_like(luminance)
    np.subtract(luminance[1:], luminance[:-1], out=backward[1:])
    backward[cuts] = 0.0
    forward[:-1] = backward[1:]
    return backward, forward


def _gradients(luminance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences along y and x, each (T, H, W) and zero at the border."""
    along_y, along_x = np.zeros_like(luminance), np.zeros_like(luminance)
    np.subtract(luminance[:, 2:], luminance[:, :-2], out=along_y[:, 1:-1])
    np.subtract(luminance[:, :, 2:], luminance[:, :, :-2], out=along_x[:, :, 1:-1])
    return along_y, along_x


@functools.cache
def _windows(cells: int, length: int) -> np.ndarray:
    """Return triangular, overlapping windows (cells, length) float32, each of which sums to one."""
    centres = (np.arange(cells) + 0.5) / cells
    positions = (np.arange(length) + 0.5) / length
    windows = np.maximum(0.0, 1.0 - cells * np.abs(centres[:, None] - positions))
    return (windows / windows.sum(axis=1, keepdims=True)).astype(np.float32)


def _pooled(plane: np.ndarray, cells: int) -> np.ndarray:
    """Average a plane (T, H, W) over windows: (T, cells, cells)."""
    return _windows(cells, plane.shape[1]) @ (plane @ _windows(cells, plane.shape[2]).T)


def _pooled_colour(colour: np.ndarray) -> np.ndarray:
    """Average colours (T, H, W, 3) over windows: (T, grid, grid·3)."""
    count, height, width, channels = colour.shape
    rows = _windows(_COLOUR_GRID, height) @ colour.reshape(count, height, width * channels)
    return _windows(_COLOUR_GRID, width) @ rows.reshape(count * _COLOUR_GRID, width, channels)


def _row_profile(plane: np.ndarray) -> np.ndarray:
    """Average a plane (T, H, W) along x and over windows of rows: (T, cells)."""
    return plane.mean(axis=2) @ _windows(_PROFILE_CELLS, plane.shape[1]).T


def _column_profile(plane: np.ndarray) -> np.ndarray:
    """Average a plane (T, H, W) along y and over windows of columns: (T, cells)."""
    return plane.mean(axis=1) @ _windows(_PROFILE_CELLS, plane.shape[2]).T


def _compressed_energy(energy: np.ndarray) -> np.ndarray:
    return _MOTION_SCALE * energy / np.sqrt(energy + _MOTION_NOISE)


def _compressed_flow(flow: np.ndarray) -> np.ndarray:
    return _FLOW_SCALE * flow / np.sqrt(np.abs(flow) + _FLOW_NOISE)


def _moving_colour(colour: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return mean colour, rectified hues and amount of the moving pixels, (T, hues + 4)."""
    count, height, width = energy.shape
    pixels = colour.reshape(count, height * width, 3)
    weights = energy.reshape(count, 1, height * width)
    chroma = np.maximum(0.0, pixels @ _hue_axes())
    amount = weights.sum(axis=2)
    total = amount + _MOTION_NOISE * height * width
    mean = (weights @ (pixels - 0.5))[:, 0] / total
    hues = (weights @ chroma)[:, 0] / total
    return np.concatenate(
        [_COLOUR_SCALE * mean, 2 * _COLOUR_SCALE * hues, _compressed_energy(amount / (height * width))],
        axis=1,
    )


@functools.cache
def _hue_axes() -> np.ndarray:
    """Return directions (3, hues) around the grey axis, in the plane of the two opponent colours."""
    red_green = np.array([1.0, -1.0, 0.0]) / np.sqrt(2.0)
    yellow_blue = np.array([1.0, 1.0, -2.0]) / np.sqrt(6.0)
    angles = 2.0 * np.pi * np.arange(_HUES) / _HUES
    axes = np.outer(red_green, np.cos(angles)) + np.outer(yellow_blue, np.sin(angles))
    return axes.astype(np.float32)


@functools.cache
def _projection(dim: int) -> np.ndarray:
    """Return a random projection (_NATIVE_DIM, dim) float32, whose independent entries keep the scale."""
    uniform = np.random.PCG64(_PROJECTION_SEED).random_raw(_NATIVE_DIM * dim).astype(np.float64) / 2.0**64
    entries = (uniform - 0.5) * np.sqrt(12.0 / _NATIVE_DIM)
    return entries.reshape(_NATIVE_DIM, dim).astype(np.float32)
