"""Turn sampled latents into waves."""

import itertools
from collections.abc import Iterator, Sequence

import librosa
import numpy as np

from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.batches import Track, room_for

# Windows whose decoded log-mel frames are in memory at once.
_WINDOWS = 64
# Latents further from the mean of all latents than this many standard deviations are no sound.
_FARTHEST_LATENT = 100.0


def decode_tracks(
    components: Components, tracks: Sequence[Track], latents: Sequence[np.ndarray], *, rooms: Sequence[int]
) -> list[np.ndarray]:
    """Return the wave of each sound, as long as its clip.

    The codec decodes the windows of the network, and the log-mel frames are blended where windows overlap.

    Args:
      components: codec and vocoder.
      tracks: the sounds.
      latents: (Ta', C) of each sound.
      rooms: numbers of windows for which the vocoder may compile a program; see `batches.rooms`.

    Returns:
      float32 (N,) for each sound. Samples may exceed ±1.

    Raises:
      FlowleyError: latents or waves are not finite, or latents are far from those of any sound.
    """
    for track, rows in zip(tracks, latents, strict=True):
        _check_latents(components, track, rows)
    log_mels = _log_mels(components, tracks, latents)
    waves: list[np.ndarray | None] = [None] * len(tracks)
    short = [index for index, track in enumerate(tracks) if len(track) == 1]
    if short:
        together = _waves(components, np.stack([log_mels[index] for index in short]))
        for index, wave in zip(short, together, strict=True):
            waves[index] = wave
    for index, track in enumerate(tracks):
        if len(track) > 1:
            waves[index] = _waves(components, _padded(components, track, log_mels[index], rooms)[None])[0]
    return [_checked(components, track, wave) for track, wave in zip(tracks, waves, strict=True)]


def fit_length(waves: np.ndarray, samples: int) -> np.ndarray:
    """Cut waves (B, N) to (B, samples); if N is smaller, by a fraction of a latent, append silence."""
    missing = max(0, samples - waves.shape[1])
    return np.pad(waves, ((0, 0), (0, missing)))[:, :samples]


def _log_mels(
    components: Components, tracks: Sequence[Track], latents: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the log-mel frames (2·Ta', bins) of each sound."""
    pieces = [
        rows[start : start + track.clip.windows.weights.shape[1]]
        for track, rows in zip(tracks, latents, strict=True)
        for start in track.clip.windows.latent_starts
    ]
    decoded = _decoded(components, pieces)
    return [track.clip.windows.blended(itertools.islice(decoded, len(track))) for track in tracks]


def _decoded(components: Components, pieces: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the log-mel frames (2·Ta, bins) of windows of latents (Ta, C)."""
    for first in range(0, len(pieces), _WINDOWS):
        yield from components.decode_latents(np.stack(pieces[first : first + _WINDOWS]))


def _padded(components: Components, track: Track, log_mel: np.ndarray, rooms: Sequence[int]) -> np.ndarray:
    """Append silence to log-mel frames (frames, bins), so that few lengths of them are compiled.

    The vocoders process longer sounds in windows of one length.
    """
    if components.vocoder.runs_on_host or len(track) > rooms[-1]:
        return log_mel
    audio_length = track.clip.windows.weights.shape[1]
    length = room_for(len(track), rooms) * audio_length * FRAMES_PER_LATENT
    missing = max(0, length - len(log_mel))
    return np.pad(log_mel, ((0, missing), (0, 0)), constant_values=components.codec.mel.floor)


def _waves(components: Components, log_mels: np.ndarray) -> np.ndarray:
    """Return the waves (B, N) of log-mel frames (B, frames, bins); NaN if the vocoder refuses them."""
    try:
        return components.vocode(log_mels)
    except librosa.ParameterError:
        # Griffin-Lim refuses magnitudes that are not finite.
        return np.full((len(log_mels), 1), np.nan, np.float32)


def _check_latents(components: Components, track: Track, latents: np.ndarray) -> None:
    distance = np.abs((latents - components.latent_mean) / components.latent_std)
    # A comparison with NaN is false.
    if not (distance <= _FARTHEST_LATENT).all():
        raise _no_sound(track, f" (latents are up to {distance.max():.3g} standard deviations from the mean)")


def _checked(components: Components, track: Track, wave: np.ndarray | None) -> np.ndarray:
    """Return a wave in the length of its clip."""
    if wave is None or not np.isfinite(wave).all():
        raise _no_sound(track)
    return fit_length(wave[None], round(track.clip.seconds * components.sample_rate))[0]


def _no_sound(track: Track, reason: str = "") -> FlowleyError:
    return FlowleyError(
        f"{track.clip.id or 'the clip'}: sampling diverged{reason}; lower the guidance or use other weights"
    )
