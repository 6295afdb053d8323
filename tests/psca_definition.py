"""PSCA and its gradients in NumPy float64, row by row from the paper's formulas."""

import numpy as np

from flowley_jax.kernels.psca.mask import aligned_frames


def profile(fade: str, m: float, fade_range: int) -> float:
    """F(m)."""
    return {
        "linear": 1 - m / fade_range,
        "cosine": 0.5 * (1 + np.cos(np.pi * m / fade_range)),
        "gaussian": np.exp(-0.5 * (m / (fade_range / 2)) ** 2),
        "none": 0.0,
    }[fade]


def mask(
    frames, video_length: int, *, fade_scale: float, window: int, fade_range: int, fade: str
) -> np.ndarray:
    """M, (Ta, Tv)."""
    values = np.ones((len(frames), video_length))
    for i, centre in enumerate(frames):
        for j in range(video_length):
            m = abs(j - int(centre)) - window
            if window >= 0 and m > 0:
                values[i, j] = fade_scale * profile(fade, m, fade_range) if m <= fade_range else 0.0
    return values


def attend_and_differentiate(
    q, k, v, cotangent, *, fade_scale, video_fps, audio_fps, window, fade_range, fade, mask_floor=1e-6
):
    """Output (B, Ta, H, d), and the gradients for q, k and v under the output's cotangent."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    frames = aligned_frames(q.shape[1], k.shape[1], video_fps=video_fps, audio_fps=audio_fps)
    values = mask(frames, k.shape[1], fade_scale=fade_scale, window=window, fade_range=fade_range, fade=fade)
    scale = 1.0 / np.sqrt(q.shape[-1])
    scores = scale * np.einsum("bthd,bshd->bhts", q, k)
    if window >= 0:
        with np.errstate(divide="ignore"):
            scores = scores + np.log(np.maximum(values, 0.0) + mask_floor)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, v)
    dv = np.einsum("bhts,bthd->bshd", weights, cotangent)
    dweights = np.einsum("bthd,bshd->bhts", cotangent, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    dq = scale * np.einsum("bhts,bshd->bthd", dscores, k)
    dk = scale * np.einsum("bhts,bthd->bshd", dscores, q)
    return out, dq, dk, dv
