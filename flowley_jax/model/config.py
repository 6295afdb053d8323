"""Sizes and variants of the network."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flowley_jax.common.ranges import Count, NotNegative, Positive, Range
from flowley_jax.common.typed import check_values, free_on_resume
from flowley_jax.errors import FlowleyError
from flowley_jax.kernels.psca.mask import Fade, SoftMask

SingleType = Literal["psca", "dit"]
PscaImplementation = Literal["auto", "xla", "pallas", "cudnn"]
AttentionImplementation = Literal["auto", "xla", "cudnn"]
AdalnInit = Literal["gaussian", "zero"]
Layers = Literal["auto", "unrolled", "scanned"]
Remat = Literal["none", "block"]
ComputeType = Literal["float32", "bfloat16"]

# The gated nets round their inner width up to a multiple of this.
_MLP_MULTIPLE = 256
# PSCA computes with frames in float32, which is exact below this.
_FRAMES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and variants of the network; the defaults are the published base model (16 kHz, 8 s).

    Attributes:
      audio_dim: channels of the audio latent.
      video_dim: channels of the video features.
      text_dim: channels of the text features.
      width: model width D.
      num_heads: attention heads H; must divide D into heads of an even width.
      single_num_heads: attention heads of the single-stream blocks if they differ; None uses num_heads.
      qk_scale: softmax scale of all attention; None uses 1/√(head width).
      mlp_ratio: hidden width of the gated feed-forward nets relative to D, before the two-thirds rule.
      multi_depth: number of multi-stream blocks (N1).
      single_depth: number of single-stream blocks (N2).
      single_type: "psca" reads text and video by cross-attention; "dit" has self-attention only.
      share_single: apply one single-stream block N2 times, as the published checkpoint does; False builds N2
        blocks.
      balance: fixed weight of text against video in the single-stream blocks; None learns it.
      window: hard window ω of PSCA in video frames; a negative value turns the mask off.
      fade_range: soft window δ of PSCA in video frames.
      fade: profile F of the soft window; "none" leaves only the hard window.
      progressive: let the fade scale β fall from 1 to 0 with depth; False keeps it at 1.
      mask_floor: ε of log(M + ε); 0.0 is a hard cut, a different function that reads only frames near the
        windows.
      psca_implementation: implementation of PSCA; "auto" is the Pallas kernel on TPU, cuDNN on NVIDIA GPUs in
        bfloat16, XLA elsewhere.
      attention_implementation: implementation of all other attention; "auto" is cuDNN on NVIDIA GPUs in
        bfloat16, XLA elsewhere.
      video_fps: frame rate of the video features in frames per second.
      dropout: dropout rate of the feed-forward nets, the global condition and the projections P_v and P_t.
      adaln_init: initial weights of the blocks' adaLN maps, "gaussian" for N(0, 0.001) or "zero".
      layers: how the program lays blocks out; "scanned" compiles a kind of block once, "auto" unrolls on CPU
        only.
      remat: "block" keeps only the input of each block for the backward pass and recomputes the rest.
      dtype: compute type of the network; parameters are always float32.
    """

    audio_dim: Count = 20
    video_dim: Count = 768
    text_dim: Count = 1024
    width: Count = 512
    num_heads: Count = 8
    single_num_heads: Count | None = None
    qk_scale: Positive | None = None
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    multi_depth: Count = 5
    single_depth: Count = 10
    single_type: SingleType = "psca"
    share_single: bool = True
    balance: float | None = None
    window: Annotated[int, Range(below=_FRAMES)] = 0
    fade_range: Annotated[int, Range(least=1, below=_FRAMES)] = 4
    fade: Fade = "cosine"
    progressive: bool = True
    mask_floor: NotNegative = 1e-6
    psca_implementation: PscaImplementation = free_on_resume("auto")
    attention_implementation: AttentionImplementation = free_on_resume("auto")
    video_fps: Annotated[float, Range(above=0, most=1000)] = 8.0
    dropout: Annotated[float, Range(least=0, below=1)] = 0.1
    adaln_init: AdalnInit = "gaussian"
    layers: Layers = free_on_resume("auto")
    remat: Remat = free_on_resume("none")
    dtype: ComputeType = "float32"

    def __post_init__(self):
        check_values(self, "model")
        for name, heads in (("num_heads", self.num_heads), ("single_num_heads", self.single_heads)):
            if self.width % (2 * heads):
                raise FlowleyError(
                    f"model.width={self.width} must be a multiple of 2·{name}={2 * heads}: "
                    "rotary embedding pairs the channels of each head"
                )

    @property
    def multi_heads(self) -> int:
        """Attention heads of the multi-stream blocks."""
        return self.num_heads

    @property
    def single_heads(self) -> int:
        """Attention heads of the single-stream blocks."""
        return self.num_heads if self.single_num_heads is None else self.single_num_heads

    @property
    def mlp_width(self) -> int:
        """Inner width of the gated nets: two thirds of the hidden width, rounded up to 256."""
        return -(-int(2 * int(self.width * self.mlp_ratio) / 3) // _MLP_MULTIPLE) * _MLP_MULTIPLE

    @property
    def fade_scales(self) -> tuple[float, ...]:
        """Fade scale β_ℓ of every single-stream block: 1 − ℓ/(N2 − 1)."""
        depth = self.single_depth
        if not self.progressive or depth == 1:
            return (1.0,) * depth
        return tuple(1.0 - block / (depth - 1) for block in range(depth))

    def soft_mask(self, audio_length: int, video_length: int) -> SoftMask:
        """Return the settings of PSCA's mask for these lengths; both axes span the same time."""
        return SoftMask(
            video_fps=self.video_fps,
            audio_fps=self.video_fps * audio_length / video_length,
            window=self.window,
            fade_range=self.fade_range,
            fade=self.fade,
            floor=self.mask_floor,
        )

    @classmethod
    def from_torch_config(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Translate the keyword arguments of the published PyTorch model.

        Sequence lengths are accepted and ignored. The published keywords do not say whether the
        single-stream blocks share weights; the extra keyword `unshared` does.

        Raises:
          FlowleyError: a keyword is unknown, or its value has no counterpart here.
        """
        config = {name: value for name, value in config.items() if name not in _TORCH_LENGTHS}
        fields: dict[str, Any] = {"share_single": not config.pop("unshared", False)}
        single_type = config.pop("single_type", "DiTV2")
        if single_type not in _TORCH_SINGLE_TYPES:
            known = ", ".join(_TORCH_SINGLE_TYPES)
            raise FlowleyError(f"single_type={single_type!r} of the PyTorch model must be one of {known}")
        fields["single_type"] = _TORCH_SINGLE_TYPES[single_type]
        fade = config.pop("mask_fade_type", "cosine")
        fields["fade"] = fade if config.pop("mask_fade", True) else "none"
        if ("multi_n_heads" in config) != ("single_n_heads" in config):
            raise FlowleyError("multi_n_heads and single_n_heads of the PyTorch model must be given together")
        # With equal counts the field stays None, and the configuration equals one that names a single count.
        if config.get("multi_n_heads") == config.get("single_n_heads"):
            config.pop("single_n_heads", None)
        unknown = sorted(set(config) - set(_TORCH_NAMES))
        if unknown:
            raise FlowleyError(f"unknown keywords of the PyTorch model: {', '.join(unknown)}")
        return cls(**fields, **{_TORCH_NAMES[name]: value for name, value in config.items()})


_TORCH_LENGTHS = ("audio_seq_len", "text_seq_len", "visual_seq_len")
_TORCH_SINGLE_TYPES: Mapping[str, SingleType] = {"DiTV2": "psca", "DiT": "dit"}
_TORCH_NAMES = {
    "audio_dim": "audio_dim",
    "video_dim": "video_dim",
    "text_dim": "text_dim",
    "hidden_dim": "width",
    "multi_n_heads": "num_heads",
    "single_n_heads": "single_num_heads",
    "qk_scale": "qk_scale",
    "multi_n_layers": "multi_depth",
    "single_n_layers": "single_depth",
    "mlp_ratio": "mlp_ratio",
    "balance_hparam": "balance",
    "mask_window_size": "window",
    "mask_fade_range": "fade_range",
    "video_fps": "video_fps",
}
