"""Put the windows of sounds of any lengths into batches."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.flow.sampler import WindowBatch, item_key, window_keys
from flowley_jax.flow.windows import Windows
from flowley_jax.sampling.clips import EncodedClip


class HasWindows(Protocol):
    """A clip whose windows are known."""

    @property
    def windows(self) -> Windows: ...


# Groups of windows that are computed at once, in a batch of several sounds.
_TOGETHER = 4
AnyWindows = TypeVar("AnyWindows", bound=HasWindows)


@dataclasses.dataclass(frozen=True)
class Track(Generic[AnyWindows]):
    """One sound to sample.

    Attributes:
      clip: the features that condition it.
      sample: its number among the sounds of this clip.
    """

    clip: AnyWindows
    sample: int

    def __len__(self) -> int:
        return len(self.clip.windows)


class Gathered(Generic[AnyWindows]):
    """Collects the sounds of each clip until there are as many as are wanted."""

    def __init__(self, num_samples: int):
        """
        Args:
          num_samples: number of sounds per clip.
        """
        self._num_samples = num_samples
        self._waves: dict[int, dict[int, np.ndarray]] = {}

    def add(self, track: Track[AnyWindows], wave: np.ndarray) -> np.ndarray | None:
        """Add the wave (N,) of a sound; return the clip's waves (num_samples, N) if it was the last one."""
        waves = self._waves.setdefault(id(track.clip), {})
        waves[track.sample] = wave
        if len(waves) < self._num_samples:
            return None
        del self._waves[id(track.clip)]
        return np.stack([waves[number] for number in range(self._num_samples)])


def rooms(devices: int, most: int) -> list[int]:
    """Return the numbers of windows that a batch may have room for, up to those computed at once.

    They are powers of two times the number of devices; the last one is at least `most`. Longer sounds take
    the last one times a power of two.
    """
    sizes = [devices]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], -(-most // devices) * devices))
    return sizes


def room_for(count: int, sizes: Sequence[int]) -> int:
    """Return the least room for `count` windows; `sizes` are `rooms`."""
    room = next((size for size in sizes if size >= count), sizes[-1])
    while room < count:
        room *= 2
    return room


def compiled_room_for(count: int, sizes: Sequence[int], compiled: Collection[int]) -> int:
    """Return the room for `count` windows; a larger one for which a program is compiled saves a compilation.

    Args:
      count: number of windows.
      sizes: `rooms`.
      compiled: rooms that programs are compiled for.
    """
    least = room_for(count, sizes)
    return min((room for room in compiled if least <= room <= most_together(sizes)), default=least)


def most_together(sizes: Sequence[int]) -> int:
    """Return the most windows of a batch of several sounds, some of which are longer than a window.

    The network computes only a part of them at once, so a large batch needs little memory, and wastes less
    of its room than a small one.
    """
    return _TOGETHER * sizes[-1]


def packed(tracks: Sequence[Track[AnyWindows]], room: int) -> Iterator[list[Track[AnyWindows]]]:
    """Divide sounds into batches of at most `room` windows; one with more windows is a batch of its own.

    The longest ones are placed first, each into the first batch with room for it.
    """
    batches: list[list[Track[AnyWindows]]] = []
    for track in sorted(tracks, key=len, reverse=True):
        for batch in batches:
            if sum(map(len, batch)) + len(track) <= room:
                batch.append(track)
                break
        else:
            batches.append([track])
    yield from batches


def window_batch(tracks: Sequence[Track[EncodedClip]], *, room: int, texts: int, seed: int) -> WindowBatch:
    """Return the windows of sounds as the arrays of a program.

    The latents of a sound follow those of the sounds before it, and take the room of its windows without
    overlap.

    Args:
      tracks: sounds with at most `room` windows.
      room: windows W of the program.
      texts: rows K of the program's texts, at least the number of clips.
      seed: seed of the clips that have none of their own.
    """
    clips = list({id(track.clip): track.clip for track in tracks}.values())
    rows = {id(clip): row for row, clip in enumerate(clips)}
    video_length, audio_length = _lengths(clips[0].windows)
    frame_offsets = np.cumsum([0, *(len(clip.video) for clip in clips)])
    first_windows = np.cumsum([0, *map(len, tracks)])
    count = int(first_windows[-1])
    batch_rows = {
        "latent_starts": np.zeros(room, np.int32),
        "frame_starts": np.zeros(room, np.int32),
        "conditions": np.zeros(room, np.int32),
    }
    weights = np.zeros((room, audio_length), np.float32)
    for first, track in zip(first_windows[:-1], tracks, strict=True):
        windows, row, used = track.clip.windows, rows[id(track.clip)], slice(first, first + len(track))
        batch_rows["latent_starts"][used] = audio_length * first + windows.latent_starts
        batch_rows["frame_starts"][used] = frame_offsets[row] + windows.frame_starts
        batch_rows["conditions"][used] = row
        weights[used] = windows.weights
    return WindowBatch(
        keys=_keys(tracks, room, seed),
        weights=jnp.asarray(weights),
        video=jnp.asarray(_padded([clip.video for clip in clips], room * video_length)),
        text=_rows([clip.text for clip in clips], texts),
        text_len=_rows([np.int32(clip.text_len) for clip in clips], texts),
        negative_text=_rows([clip.negative_text for clip in clips], texts),
        negative_len=_rows([np.int32(clip.negative_len) for clip in clips], texts),
        count=jnp.asarray(count, jnp.int32),
        latents=jnp.asarray(sum(track.clip.windows.latents for track in tracks), jnp.int32),
        **_own_latents(tracks, audio_length * first_windows[:-1], (room, audio_length)),
        **{name: jnp.asarray(values) for name, values in batch_rows.items()},
    )


def _own_latents(
    tracks: Sequence[Track[EncodedClip]], starts: np.ndarray, shape: tuple[int, int]
) -> dict[str, jax.Array]:
    """Return the latents of a batch that are kept, and where; nothing if no sound keeps any.

    Args:
      tracks: the sounds.
      starts: first latent of each sound.
      shape: windows W and latents Ta of the batch.
    """
    owned = [(start, track.clip.own) for start, track in zip(starts, tracks, strict=True) if track.clip.own]
    if not owned:
        return {}
    latents = np.zeros((shape[0] * shape[1], owned[0][1].latents.shape[1]), np.float32)
    kept = np.zeros(len(latents), bool)
    for start, own in owned:
        used = slice(start, start + len(own.kept))
        latents[used], kept[used] = own.latents, own.kept
    return {"own": jnp.asarray(latents.reshape(*shape, -1)), "kept": jnp.asarray(kept.reshape(shape))}


def latents_of(tracks: Sequence[Track], latents: np.ndarray) -> list[np.ndarray]:
    """Return the latents (Ta', C) of each sound of a batch from the batch's (W, Ta, C)."""
    flat = latents.reshape(-1, latents.shape[-1])
    starts = latents.shape[1] * np.cumsum([0, *map(len, tracks)])
    return [
        flat[start : start + track.clip.windows.latents]
        for start, track in zip(starts[:-1], tracks, strict=True)
    ]


def _lengths(windows: Windows) -> tuple[int, int]:
    """Return the frames Tv and the latents Ta of a window."""
    return windows.frames - int(windows.frame_starts[-1]), windows.weights.shape[1]


def _keys(tracks: Sequence[Track[EncodedClip]], room: int, seed: int) -> jax.Array:
    keys = [
        window_keys(item_key(_seed(track, seed), track.clip.id, track.sample), len(track)) for track in tracks
    ]
    together = jnp.concatenate(keys)
    # The noise of windows that are not used has no effect.
    return jnp.concatenate([together, jnp.repeat(together[:1], room - len(together))])


def _seed(track: Track[EncodedClip], seed: int) -> int:
    return seed if track.clip.seed is None else track.clip.seed


def _padded(parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Join arrays along their first axis, and append zeros up to a length."""
    missing = length - sum(map(len, parts))
    return np.concatenate([*parts, np.zeros((missing, *parts[0].shape[1:]), parts[0].dtype)])


def _rows(values: Sequence[np.ndarray | np.generic], count: int) -> jax.Array:
    """Stack values, and append zeros up to a number of rows."""
    return jnp.asarray(_padded([np.stack(values)], count))
