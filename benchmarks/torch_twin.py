"""The network in PyTorch, from the same equations, under the published names: what benchmarks compare with.

Fused attention and convolutions are PyTorch's own; nothing is left out that this project's network does. It
covers the variants that have cross-attention.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flowley_jax.model import ModelConfig

TIME_WIDTH = 256


class GatedMlp(nn.Module):
    """w2(dropout(silu(w1 x) · w3 x)), bias-free, over (B, T, D); convolutions over time with a `kernel`."""

    def __init__(self, width: int, inner: int, *, kernel: int | None = None, dropout: float = 0.0):
        super().__init__()

        def projection(inputs: int, outputs: int) -> nn.Module:
            if kernel is None:
                return nn.Linear(inputs, outputs, bias=False)
            return nn.Conv1d(inputs, outputs, kernel, padding="same", bias=False)

        self.w1 = projection(width, inner)
        self.w2 = projection(inner, width)
        self.w3 = projection(width, inner)
        self.dropout = nn.Dropout(dropout)
        self.temporal = kernel is not None

    def forward(self, x):
        x = x.mT if self.temporal else x
        y = self.w2(self.dropout(functional.silu(self.w1(x)) * self.w3(x)))
        return y.mT if self.temporal else y


class TimeConv(nn.Conv1d):
    """A convolution over the time axis of (B, T, D)."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding="same")

    def forward(self, x):
        return super().forward(x.mT).mT


class RmsNorm(nn.Module):
    """scale · x / (rms(x) + 1e-6)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return self.scale * x / (rms + 1e-6)


class QueryKeyNorm(nn.Module):
    """RMSNorm of queries and of keys."""

    def __init__(self, width: int):
        super().__init__()
        self.query_norm = RmsNorm(width)
        self.key_norm = RmsNorm(width)


class SelfProjection(nn.Module):
    """q, k, v, each (B, H, T, d); channels come laid out (head, channel, q/k/v)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.qkv_prj = nn.Linear(config.width, 3 * config.width)
        self.qk_norm = QueryKeyNorm(config.width // config.num_heads)
        self.num_heads = config.num_heads

    def forward(self, x, rotation):
        q, k, v = _heads(self.qkv_prj(x), self.num_heads, 3)
        q, k = self.qk_norm.query_norm(q), self.qk_norm.key_norm(k)
        if rotation is None:
            return q, k, v
        return _rotate(q, rotation), _rotate(k, rotation), v


class CrossAttention(nn.Module):
    """Attention from one stream to another with an additive mask or none, merged to (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        head = config.width // config.num_heads
        self.q_prj = nn.Linear(config.width, config.width)
        self.kv_prj = nn.Linear(config.width, 2 * config.width)
        self.q_norm, self.k_norm = RmsNorm(head), RmsNorm(head)
        self.num_heads = config.num_heads

    def forward(self, x, source, mask=None):
        (q,) = _heads(self.q_prj(x), self.num_heads, 1)
        k, v = _heads(self.kv_prj(source), self.num_heads, 2)
        return _merge(
            functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=mask)
        )


class Modulation(nn.Module):
    """adaLN: `parts` vectors (B, 1, D) of the condition."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))
        self.parts = parts

    def forward(self, condition):
        return self.adaLN_modulation(condition)[:, None].chunk(self.parts, dim=-1)


class Branch(nn.Module):
    """One modality's part of a multi-stream block."""

    def __init__(self, config: ModelConfig, *, temporal: bool):
        super().__init__()
        width, kernel = config.width, 3 if temporal else None
        self.attn = SelfProjection(config)
        self.linear1 = TimeConv(width, width, 3) if temporal else nn.Linear(width, width)
        self.ffn = GatedMlp(width, config.mlp_width, kernel=kernel, dropout=config.dropout)
        self.adaLN_modulation = Modulation(width, 6)

    def update(self, x, attended, modulation):
        _, _, gate, shift, scale, ffn_gate = modulation
        x = x + gate * self.linear1(attended)
        return x + ffn_gate * self.ffn(_modulated(x, shift, scale))


class MultiStreamBlock(nn.Module):
    """Joint attention over [audio; video; text]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.audio_block = Branch(config, temporal=True)
        self.visual_block = Branch(config, temporal=True)
        self.text_block = Branch(config, temporal=False)

    def forward(self, streams, condition, rotations, readable):
        branches = (self.audio_block, self.visual_block, self.text_block)
        modulations = [branch.adaLN_modulation(condition) for branch in branches]
        projected = [
            branch.attn(_modulated(x, *modulation[:2]), rotation)
            for branch, x, modulation, rotation in zip(branches, streams, modulations, rotations, strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))
        joint = _merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=readable))
        parts = joint.split([x.shape[1] for x in streams], dim=1)
        return [
            branch.update(x, attended, modulation)
            for branch, x, attended, modulation in zip(branches, streams, parts, modulations, strict=True)
        ]


class SingleStreamBlock(nn.Module):
    """Self-attention, cross-attention to text and (PSCA) to video, and a gated net."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.cross_weight = nn.Parameter(torch.tensor(0.5), requires_grad=config.balance is None)
        self.self_attn = SelfProjection(config)
        self.vis_aud_cross_atn = CrossAttention(config)
        self.tex_aud_cross_atn = CrossAttention(config)
        self.linear1 = TimeConv(width, width, 3)
        self.ffn = GatedMlp(width, config.mlp_width, kernel=3, dropout=config.dropout)
        self.adaLN_modulation = Modulation(width, 6)

    def forward(self, audio, video, text, condition, rotation, mask):
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.adaLN_modulation(condition)
        q, k, v = self.self_attn(_modulated(audio, shift, scale), rotation)
        audio = audio + gate * self.linear1(_merge(functional.scaled_dot_product_attention(q, k, v)))
        from_text = self.tex_aud_cross_atn(audio, text)
        from_video = self.vis_aud_cross_atn(audio, video, mask)
        audio = audio + self.cross_weight * from_text + (1 - self.cross_weight) * from_video
        return audio + ffn_gate * self.ffn(_modulated(audio, ffn_shift, ffn_scale))


class CrossInput(nn.Module):
    """P_v or P_t."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.proj = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )

    def forward(self, x):
        return self.proj(x)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t in [0, 1], Linear, SiLU, Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        half = TIME_WIDTH // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t):
        angles = t[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class FinalLayer(nn.Module):
    """adaLN and a convolution to the latent's channels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.adaLN_modulation = Modulation(config.width, 2)
        self.conv = TimeConv(config.width, config.audio_dim, 7)

    def forward(self, x, condition):
        return self.conv(_modulated(x, *self.adaLN_modulation(condition)))


class Twin(nn.Module):
    """Velocity of the audio latent; loads the published state dict without its prefix "model.".

    Args:
      lengths: Ta, Tv and Tt; the masks and rotations are made for them.
    """

    def __init__(self, config: ModelConfig, lengths: tuple[int, int, int]):
        super().__init__()
        if config.single_type != "psca":
            raise ValueError(f"single_type={config.single_type!r}: the twin has psca alone")
        audio_length, video_length, _ = lengths
        width, inner = config.width, config.mlp_width
        self.config = config
        for name, size in (("latent_mean", config.audio_dim), ("latent_std", config.audio_dim)):
            self.register_buffer(name, torch.full((1, 1, size), float(name == "latent_std")))
        self.register_buffer("empty_visual_feature", torch.zeros(1, config.video_dim))
        self.register_buffer("empty_text_feature", torch.zeros(1, config.text_dim))

        self.text_projector = nn.Sequential(
            nn.Linear(config.text_dim, width), nn.SiLU(), GatedMlp(width, inner)
        )
        self.visual_projector = nn.Sequential(
            nn.Linear(config.video_dim, width), nn.SiLU(), GatedMlp(width, inner, kernel=3)
        )
        self.audio_projector = nn.Sequential(
            TimeConv(config.audio_dim, width, 7), nn.SiLU(), GatedMlp(width, inner, kernel=7)
        )
        self.text_cond_projector = nn.Linear(width, width)
        self.visual_cond_projector = nn.Linear(width, width)
        self.global_cond_projector = GatedMlp(width, inner, dropout=config.dropout)
        self.timestep_embedder = TimeEmbedding(width)
        self.multimodal_stream = nn.ModuleList(MultiStreamBlock(config) for _ in range(config.multi_depth))
        self.cross_visual_proj = CrossInput(config)
        self.cross_textual_proj = CrossInput(config)
        first = SingleStreamBlock(config)
        self.single_modal_stream = nn.ModuleList(
            first if config.share_single or not index else SingleStreamBlock(config)
            for index in range(config.single_depth)
        )
        self.final_layer = FinalLayer(config)

        head = width // config.num_heads
        self.register_buffer("audio_rotation", _rotation(audio_length, head, 1.0), persistent=False)
        ratio = audio_length / video_length
        self.register_buffer("video_rotation", _rotation(video_length, head, ratio), persistent=False)
        masks = log_masks(config, audio_length, video_length)
        self.register_buffer("masks", torch.from_numpy(masks), persistent=False)

    def forward(self, latent, video, text, text_len, t):
        """latent (B, Ta, audio_dim), standardised; video, text: features; text_len, t: (B,)."""
        audio = self.audio_projector(latent)
        video = self.visual_projector(video)
        text = self.text_projector(text)
        pooled = self.text_cond_projector(text.mean(1)) + self.visual_cond_projector(video.mean(1))
        condition = self.global_cond_projector(pooled) + self.timestep_embedder(t)

        tokens = torch.arange(text.shape[1], device=text.device)
        readable = functional.pad(
            tokens[None] < text_len[:, None], (audio.shape[1] + video.shape[1], 0), value=True
        )
        rotations = (self.audio_rotation, self.video_rotation, None)
        streams = (audio, video, text)
        for block in self.multimodal_stream:
            streams = block(streams, condition, rotations, readable[:, None, None])
        audio, video, text = streams

        video, text = self.cross_visual_proj(video), self.cross_textual_proj(text)
        masked = self.config.window >= 0
        for index, block in enumerate(self.single_modal_stream):
            mask = self.masks[index].to(audio.dtype) if masked else None
            audio = block(audio, video, text, condition, self.audio_rotation, mask)
        return self.final_layer(audio, condition)


def log_masks(config: ModelConfig, audio_length: int, video_length: int) -> np.ndarray:
    """log(M⁽ℓ⁾ + ε) of every single-stream block, float32 (N2, Ta, Tv)."""
    audio_fps = np.float32(config.video_fps * audio_length / video_length)
    seconds = np.arange(audio_length, dtype=np.float32) / audio_fps
    aligned = np.clip(np.round(seconds * np.float32(config.video_fps)), 0, video_length - 1)
    beyond = np.abs(np.arange(video_length)[None] - aligned[:, None]) - config.window
    reach = config.fade_range
    fades = {
        "linear": 1 - beyond / reach,
        "cosine": 0.5 * (1 + np.cos(np.pi * beyond / reach)),
        "gaussian": np.exp(-0.5 * (beyond / (reach / 2)) ** 2),
        "none": np.zeros_like(beyond),
    }
    soft = np.where((beyond > 0) & (beyond <= reach), fades[config.fade], 0.0)
    masks = [np.where(beyond <= 0, 1.0, scale * soft) for scale in config.fade_scales]
    return np.log(np.stack(masks) + config.mask_floor).astype(np.float32)


def _rotation(length: int, head: int, position_scale: float) -> torch.Tensor:
    """cos and sin of the rotary angles, (2, length, head/2)."""
    exponents = torch.arange(0, head, 2, dtype=torch.float32) / head
    frequencies = 1.0 / 10000.0**exponents * position_scale
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x, rotation):
    cos, sin = rotation
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def _heads(x, num_heads: int, parts: int):
    """Channels laid out (head, channel, part) to `parts` tensors (B, H, T, d)."""
    return x.unflatten(-1, (num_heads, -1, parts)).transpose(1, 2).unbind(-1)


def _merge(x):
    return x.transpose(1, 2).flatten(2)


def _modulated(x, shift, scale):
    return functional.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift
