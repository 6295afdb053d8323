"""Sizes of Synchformer (Iashin et al. 2024, arXiv 2401.16423), and what it takes as input."""

import dataclasses

from flowley_jax.errors import FlowleyError

SAMPLE_RATE = 16_000
FRAME_RATE = 25
# Samples and frames of a segment, and from the start of one segment to that of the next: 0.64 and 0.32 s.
SEGMENT_SAMPLES, SAMPLE_STEP = 10_240, 5120
SEGMENT_FRAMES, FRAME_STEP = 16, 8
IMAGE_SIZE = 224
# Tokens of a segment that the head sees, of the picture and of the sound.
VIDEO_TOKENS, AUDIO_TOKENS = 8, 6
# Segments between which the head finds one offset.
HEAD_SEGMENTS = 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynchformerConfig:
    """Sizes of the network.

    Attributes:
      width: channels of a token in all parts.
      mlp_width: hidden channels of all feed-forward nets.
      layers, heads: blocks and attention heads of the video and of the audio network.
      head_layers, head_heads: blocks and attention heads of the part that compares the two.
      classes: number of offsets.
      dtype: compute type of the network; the audio front end computes in float32.
    """

    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    head_layers: int = 3
    head_heads: int = 8
    classes: int = 21
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("heads", "head_heads"):
            if self.width % getattr(self, name):
                raise FlowleyError(
                    f"Synchformer: width {self.width} must be a multiple of {name}={getattr(self, name)}"
                )
