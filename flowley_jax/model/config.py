"""What the network is: its sizes and variants."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels.psca.mask import Fade

SingleType = Literal["psca", "dit"]
AttentionImplementation = Literal["auto", "xla", "cudnn"]

_TORCH_SINGLE_TYPES: Mapping[str, SingleType] = {"DiTV2": "psca", "DiT": "dit"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and variants of the network; the defaults are the published base model (16 kHz, 8 s).

    Attributes:
      audio_dim, video_dim, text_dim: channels of the audio latent and of the video and text features.
      width: model width D.
      num_heads: attention heads H of both stacks; D/H is the head width and must be even.
      mlp_ratio: hidden width of the gated feed-forward nets over D, before the two-thirds rule.
      multi_depth, single_depth: number of multi-stream (N1) and single-stream (N2) blocks.
      single_type: "psca" reads text and video by cross-attention; "dit" has self-attention alone.
      share_single: one single-stream block applied N2 times (the published checkpoint) or N2 blocks.
      balance: fixed weight of text against video in the single-stream blocks; None learns it.
      window, fade_range, fade: ω and δ in video frames and the fade profile F of PSCA; a negative
        window turns the mask off, which makes PSCA plain cross-attention.
      progressive: fade scale β_ℓ falls from 1 to 0 with depth; False keeps it at 1.
      mask_floor: ε of log(M + ε); 0.0 is the hard cut, a different function, whose cost grows with the
        window and not with the video.
      psca_implementation: "auto" (the Pallas kernel on TPU, cuDNN on NVIDIA GPUs in bfloat16, XLA elsewhere),
        "xla", "pallas" or "cudnn".
      attention_implementation: of all other attention: "auto" (cuDNN on NVIDIA GPUs in bfloat16, XLA
        elsewhere), "xla" or "cudnn".
      video_fps: frame rate of the video features, in frames per second.
      dropout: rate in the feed-forward nets, the global condition and the projections P_v and P_t.
      adaln_init: "gaussian" N(0, 0.001) weights for the blocks' adaLN maps, or "zero".
      layers: how blocks stand in the compiled program: "unrolled", "scanned" (compiles once for all blocks
        of a kind), or "auto", unrolled on CPU and scanned elsewhere.
      remat: "block" computes a block's activations again in the backward pass and keeps its input alone;
        "none" keeps all of them.
      dtype: compute type of the network, "float32" or "bfloat16"; parameters are always float32.
    """

    audio_dim: int = 20
    video_dim: int = 768
    text_dim: int = 1024
    width: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    multi_depth: int = 5
    single_depth: int = 10
    single_type: SingleType = "psca"
    share_single: bool = True
    balance: float | None = None
    window: int = 0
    fade_range: int = 4
    fade: Fade = "cosine"
    progressive: bool = True
    mask_floor: float = 1e-6
    psca_implementation: Literal["auto", "xla", "pallas", "cudnn"] = "auto"
    attention_implementation: AttentionImplementation = "auto"
    video_fps: float = 8.0
    dropout: float = 0.1
    adaln_init: Literal["gaussian", "zero"] = "gaussian"
    layers: Literal["auto", "unrolled", "scanned"] = "auto"
    remat: Literal["none", "block"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % (2 * self.num_heads):
            raise FlowleyError(
                f"model.width={self.width} must be a multiple of 2·num_heads={2 * self.num_heads}: "
                "rotary embedding pairs the channels of each head"
            )
        for name in ("multi_depth", "single_depth", "audio_dim", "video_dim", "text_dim", "fade_range"):
            if getattr(self, name) < 1:
                raise FlowleyError(f"model.{name}={getattr(self, name)} must be at least 1")
        _check_choice("single_type", self.single_type, ("psca", "dit"))
        _check_choice("fade", self.fade, ("cosine", "linear", "gaussian", "none"))
        _check_choice("adaln_init", self.adaln_init, ("gaussian", "zero"))
        _check_choice("psca_implementation", self.psca_implementation, ("auto", "xla", "pallas", "cudnn"))
        _check_choice("attention_implementation", self.attention_implementation, ("auto", "xla", "cudnn"))
        _check_choice("layers", self.layers, ("auto", "unrolled", "scanned"))
        _check_choice("remat", self.remat, ("none", "block"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if not 0.0 <= self.dropout < 1.0:
            raise FlowleyError(f"model.dropout={self.dropout} must be in [0, 1)")
        if self.mask_floor < 0.0:
            raise FlowleyError(f"model.mask_floor={self.mask_floor} must not be negative")

    @property
    def mlp_width(self) -> int:
        """Inner width of the gated feed-forward nets: ⅔ of the hidden width, rounded up to 256."""
        return -(-int(2 * int(self.width * self.mlp_ratio) / 3) // 256) * 256

    @property
    def fade_scales(self) -> tuple[float, ...]:
        """β_ℓ of every single-stream block (spec/model.md, PSCA)."""
        depth = self.single_depth
        if not self.progressive or depth == 1:
            return (1.0,) * depth
        return tuple(1.0 - block / (depth - 1) for block in range(depth))

    @classmethod
    def from_torch_config(cls, config: Mapping) -> "ModelConfig":
        """Translates the keyword names of the published PyTorch model.

        The original's keywords do not say whether the single-stream blocks share weights; the extra
        keyword `unshared` does here. Sequence lengths are accepted and not needed.

        Raises:
          FlowleyError: for unknown keywords, values without a counterpart here, or different head
            counts in the two stacks.
        """
        config = dict(config)
        for length in ("audio_seq_len", "text_seq_len", "visual_seq_len"):
            config.pop(length, None)
        if config.get("multi_n_heads") != config.get("single_n_heads"):
            raise FlowleyError(
                f"multi_n_heads={config.get('multi_n_heads')} and single_n_heads="
                f"{config.get('single_n_heads')} must be equal"
            )
        config.pop("single_n_heads", None)
        single_type = config.pop("single_type", "DiTV2")
        _check_choice("single_type", single_type, tuple(_TORCH_SINGLE_TYPES))
        fade = config.pop("mask_fade_type", "cosine") if config.pop("mask_fade", True) else "none"
        config.pop("mask_fade_type", None)
        kwargs = {
            "single_type": _TORCH_SINGLE_TYPES[single_type],
            "fade": fade,
            "share_single": not config.pop("unshared", False),
        }
        unknown = sorted(set(config) - set(_TORCH_NAMES))
        if unknown:
            raise FlowleyError(f"unknown keywords of the PyTorch model: {', '.join(unknown)}")
        kwargs.update({_TORCH_NAMES[name]: value for name, value in config.items()})
        return cls(**kwargs)


_TORCH_NAMES = {
    "audio_dim": "audio_dim",
    "video_dim": "video_dim",
    "text_dim": "text_dim",
    "hidden_dim": "width",
    "multi_n_heads": "num_heads",
    "multi_n_layers": "multi_depth",
    "single_n_layers": "single_depth",
    "mlp_ratio": "mlp_ratio",
    "balance_hparam": "balance",
    "mask_window_size": "window",
    "mask_fade_range": "fade_range",
    "video_fps": "video_fps",
}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FlowleyError(f"model.{name}={value!r} must be one of {', '.join(choices)}")
