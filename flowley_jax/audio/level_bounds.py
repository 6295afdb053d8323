"""Bounds of generated log-mel frames, by what the sounds of the training split reach.

Guidance makes a model overshoot: single hits become up to 30 dB louder than any that it has heard, and the
rest of the sound seems silent next to them. Two bounds keep sounds at the level of the training split:

- No bin exceeds the highest value of this bin in the training split.
- No frame has a higher level than any frame of the training split. The level is the logarithm of the sum of
  a frame's mel energies. Around a frame that is too loud, a gain that changes slowly lowers all bins alike,
  so that attacks and decays keep their shape.
"""

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from flowley_jax.audio.mel import MelConfig, from_log

# Around a frame that is too loud, the gain is held, and then fades, for this many seconds on each side.
_REACH = 0.5


def level_maxima(log_mels: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Return the highest value of each bin, and then the highest level of a frame.

    Args:
      log_mels: frames (..., bins) of real sounds.
      mel: their mel front end.

    Returns:
      (bins + 1,) float32.
    """
    frames = log_mels.reshape(-1, log_mels.shape[-1])
    return np.append(frames.max(axis=0), _levels(frames, mel).max()).astype(np.float32)


def bound_bins(log_mels: np.ndarray, maxima: np.ndarray) -> np.ndarray:
    """Return frames (..., bins) whose bins do not exceed `level_maxima`."""
    return np.minimum(log_mels, maxima[:-1])


def bound_levels(log_mels: np.ndarray, maxima: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Return the frames of whole sounds, (B, frames, bins), whose levels do not exceed `level_maxima`.

    Frames more than a second away from one that is too loud are returned as they are.
    """
    excess = np.maximum(0.0, _levels(log_mels, mel) - maxima[-1])
    if not excess.any():
        return log_mels
    width = 2 * round(_REACH * mel.sample_rate / mel.hop) + 1
    held = maximum_filter1d(excess, width, axis=1, mode="nearest")
    gain = uniform_filter1d(held, width, axis=1, mode="nearest")
    return (log_mels - gain[:, :, None]).astype(log_mels.dtype)


def _levels(log_mels: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Return the logarithm of the sum of each frame's mel energies, (...)."""
    energies = from_log(log_mels.astype(np.float64), mel).sum(axis=-1)
    return np.log10(energies) if mel.log == "log10" else np.log(energies)
