"""PSCA and its gradients in NumPy float64, row by row from the paper's formulas."""

import numpy as np

from flowley_jax.kernels.psca import SoftMask


def mask_matrix(mask: SoftMask, fade_scale: float, audio_length: int, video_length: int) -> np.ndarray:
    """Return M, (Ta, Tv)."""
    matrix = np.ones((audio_length, video_length))
    for i, aligned in enumerate(mask.aligned_frames(audio_length, video_length)):
        for j in range(video_length):
            m = abs(j - int(aligned)) - mask.window
            if mask.window >= 0 and m > 0:
                matrix[i, j] = fade_scale * _profile(mask, m) if m <= mask.fade_range else 0.0
    return matrix


def _profile(mask: SoftMask, m: float) -> float:
    """Return F(m)."""
    return {
        "linear": 1 - m / mask.fade_range,
        "cosine": 0.5 * (1 + np.cos(np.pi * m / mask.fade_range)),
        "gaussian": np.exp(-0.5 * (m / (mask.fade_range / 2)) ** 2),
        "none": 0.0,
    }[mask.fade]


def attend_and_differentiate(q, k, v, dout, *, mask: SoftMask, fade_scale: float):
    """Return the output (B, Ta, H, d), and the gradients of q, k and v for the output's gradient `dout`."""
    q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
    scale = 1.0 / np.sqrt(q.shape[-1])
    scores = scale * np.einsum("bthd,bshd->bhts", q, k)
    if mask.window >= 0:
        matrix = mask_matrix(mask, fade_scale, q.shape[1], k.shape[1])
        with np.errstate(divide="ignore"):
            scores = scores + np.log(np.maximum(matrix, 0.0) + mask.floor)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, v)
    dv = np.einsum("bhts,bthd->bshd", weights, dout)
    dweights = np.einsum("bthd,bshd->bhts", dout, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    dq = scale * np.einsum("bhts,bshd->bthd", dscores, k)
    dk = scale * np.einsum("bhts,bthd->bshd", dscores, q)
    return out, dq, dk, dv
