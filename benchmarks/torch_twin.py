"""Flowley's network in PyTorch, written from the same equations under the published names.

Benchmarks compare its speed, and tests compare its numbers. It uses PyTorch's fused attention and
convolutions, and leaves out nothing that the JAX network computes. The "dit" variant is not covered.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowley_jax.model import ModelConfig

TIME_WIDTH = 256


class GatedMlp(nn.Module):
    """w2(dropout(silu(w1 x) · w3 x)) without biases, over (B, T, D).

    Args:
      kernel: None for linear maps, or a kernel size for convolutions over time.
    """

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

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT if self.temporal else x
        y = self.w2(self.dropout(functional.silu(self.w1(x)) * self.w3(x)))
        return y.mT if self.temporal else y


class TimeConv(nn.Conv1d):
    """A convolution over the time axis of (B, T, D)."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class RmsNorm(nn.Module):
    """scale · x / (rms(x) + 1e-6)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return self.scale * x / (rms + 1e-6)


class QueryKeyNorm(nn.Module):
    """RMSNorm of queries and of keys."""

    def __init__(self, width: int):
        super().__init__()
        self.query_norm = RmsNorm(width)
        self.key_norm = RmsNorm(width)


class SelfProjection(nn.Module):
    """Projection to q, k and v, each (B, H, T, d); channels are laid out (head, channel, q/k/v)."""

    def __init__(self, config: ModelConfig, num_heads: int):
        super().__init__()
        self.qkv_prj = nn.Linear(config.width, 3 * config.width)
        self.qk_norm = QueryKeyNorm(config.width // num_heads)
        self.num_heads = num_heads

    def forward(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _split_heads(self.qkv_prj(x), self.num_heads, 3)
        q, k = self.qk_norm.query_norm(q), self.qk_norm.key_norm(k)
        if rotation is None:
            return q, k, v
        return _rotate(q, rotation), _rotate(k, rotation), v


class CrossAttention(nn.Module):
    """Attention from one stream to another with an optional additive mask, merged to (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        head_width = config.width // config.single_heads
        self.q_prj = nn.Linear(config.width, config.width)
        self.kv_prj = nn.Linear(config.width, 2 * config.width)
        self.q_norm, self.k_norm = RmsNorm(head_width), RmsNorm(head_width)
        self.num_heads, self.scale = config.single_heads, config.qk_scale

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        (q,) = _split_heads(self.q_prj(x), self.num_heads, 1)
        k, v = _split_heads(self.kv_prj(source), self.num_heads, 2)
        return _attention(self.q_norm(q), self.k_norm(k), v, mask=mask, scale=self.scale)


class Modulation(nn.Module):
    """adaLN: a map from the condition to `parts` vectors (B, 1, D)."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.adaLN_modulation(condition)[:, None].chunk(self.parts, dim=-1)


class Branch(nn.Module):
    """One modality's part of a multi-stream block."""

    def __init__(self, config: ModelConfig, *, temporal: bool):
        super().__init__()
        width, kernel = config.width, 3 if temporal else None
        self.attn = SelfProjection(config, config.multi_heads)
        self.linear1 = TimeConv(width, width, 3) if temporal else nn.Linear(width, width)
        self.ffn = GatedMlp(width, config.mlp_width, kernel=kernel, dropout=config.dropout)
        self.adaLN_modulation = Modulation(width, 6)

    def update(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Add the attention result and the feed-forward net, each gated."""
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
        self.scale = config.qk_scale

    def forward(
        self,
        streams: Sequence[Tensor],
        condition: Tensor,
        rotations: Sequence[Tensor | None],
        readable: Tensor,
    ) -> list[Tensor]:
        branches = (self.audio_block, self.visual_block, self.text_block)
        modulations = [branch.adaLN_modulation(condition) for branch in branches]
        projected = [
            branch.attn(_modulated(x, *modulation[:2]), rotation)
            for branch, x, modulation, rotation in zip(branches, streams, modulations, rotations, strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))
        joint = _attention(q, k, v, mask=readable, scale=self.scale)
        parts = joint.split([x.shape[1] for x in streams], dim=1)
        return [
            branch.update(x, attended, modulation)
            for branch, x, attended, modulation in zip(branches, streams, parts, modulations, strict=True)
        ]


class SingleStreamBlock(nn.Module):
    """Self-attention, cross-attention to text, PSCA to video, and a gated net."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.cross_weight = nn.Parameter(torch.tensor(0.5), requires_grad=config.balance is None)
        self.self_attn = SelfProjection(config, config.single_heads)
        self.vis_aud_cross_atn = CrossAttention(config)
        self.tex_aud_cross_atn = CrossAttention(config)
        self.linear1 = TimeConv(width, width, 3)
        self.ffn = GatedMlp(width, config.mlp_width, kernel=3, dropout=config.dropout)
        self.adaLN_modulation = Modulation(width, 6)
        self.scale = config.qk_scale

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        text: Tensor,
        condition: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.adaLN_modulation(condition)
        q, k, v = self.self_attn(_modulated(audio, shift, scale), rotation)
        audio = audio + gate * self.linear1(_attention(q, k, v, scale=self.scale))
        from_text = self.tex_aud_cross_atn(audio, text)
        from_video = self.vis_aud_cross_atn(audio, video, mask)
        audio = audio + self.cross_weight * from_text + (1 - self.cross_weight) * from_video
        return audio + ffn_gate * self.ffn(_modulated(audio, ffn_shift, ffn_scale))


class CrossInput(nn.Module):
    """P_v or P_t: Linear, SiLU, dropout, Linear."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.proj = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t in [0, 1], Linear, SiLU, Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        half = TIME_WIDTH // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class FinalLayer(nn.Module):
    """adaLN and a convolution to the channels of the latent."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.adaLN_modulation = Modulation(config.width, 2)
        self.conv = TimeConv(config.width, config.audio_dim, 7)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.conv(_modulated(x, *self.adaLN_modulation(condition)))


class Twin(nn.Module):
    """The velocity network; loads the published state dict without its prefix "model.".

    Args:
      config: sizes and variant.
      lengths: Ta, Tv and Tt, for which the masks and rotations are computed.
    """

    def __init__(self, config: ModelConfig, lengths: tuple[int, int, int]):
        super().__init__()
        if config.single_type != "psca":
            raise ValueError(f"single_type={config.single_type!r}: the twin covers only psca")
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

        multi, single = width // config.multi_heads, width // config.single_heads
        for name, rotation in (
            ("multi_audio_rotation", _rotation(audio_length, multi, 1.0)),
            ("multi_video_rotation", _rotation(video_length, multi, audio_length / video_length)),
            ("single_audio_rotation", _rotation(audio_length, single, 1.0)),
        ):
            self.register_buffer(name, rotation, persistent=False)
        masks = log_masks(config, audio_length, video_length)
        self.register_buffer("masks", torch.from_numpy(masks), persistent=False)

    def forward(self, latent: Tensor, video: Tensor, text: Tensor, text_len: Tensor, t: Tensor) -> Tensor:
        """Return the velocity (B, Ta, audio_dim).

        Args:
          latent: (B, Ta, audio_dim), standardised.
          video, text: (B, Tv, video_dim) and (B, Tt, text_dim) features.
          text_len, t: (B,) numbers of valid text tokens, and times.
        """
        audio = self.audio_projector(latent)
        video = self.visual_projector(video)
        text = self.text_projector(text)
        pooled = self.text_cond_projector(text.mean(1)) + self.visual_cond_projector(video.mean(1))
        condition = self.global_cond_projector(pooled) + self.timestep_embedder(t)

        tokens = torch.arange(text.shape[1], device=text.device)
        readable = functional.pad(
            tokens[None] < text_len[:, None], (audio.shape[1] + video.shape[1], 0), value=True
        )
        rotations = (self.multi_audio_rotation, self.multi_video_rotation, None)
        streams = (audio, video, text)
        for block in self.multimodal_stream:
            streams = block(streams, condition, rotations, readable[:, None, None])
        audio, video, text = streams

        video, text = self.cross_visual_proj(video), self.cross_textual_proj(text)
        masked = self.config.window >= 0
        for index, block in enumerate(self.single_modal_stream):
            mask = self.masks[index].to(audio.dtype) if masked else None
            audio = block(audio, video, text, condition, self.single_audio_rotation, mask)
        return self.final_layer(audio, condition)


def log_masks(config: ModelConfig, audio_length: int, video_length: int) -> np.ndarray:
    """Return log(M⁽ℓ⁾ + ε) of every single-stream block, (N2, Ta, Tv) float32."""
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


def _rotation(length: int, head_width: int, position_scale: float) -> Tensor:
    """Return cos and sin of the rotary angles, (2, length, head_width/2)."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    frequencies = 1.0 / 10000.0**exponents * position_scale
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    cos, sin = rotation
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def _split_heads(x: Tensor, num_heads: int, parts: int) -> tuple[Tensor, ...]:
    """Split channels laid out (head, channel, part) into `parts` tensors (B, H, T, d)."""
    return x.unflatten(-1, (num_heads, -1, parts)).transpose(1, 2).unbind(-1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend with an optional mask and merge the heads to (B, T, D); a scale of None is 1/√d."""
    heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return heads.transpose(1, 2).flatten(2)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift
