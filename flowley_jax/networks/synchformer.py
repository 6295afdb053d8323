"""Synchformer (Iashin et al. 2024, arXiv 2401.16423): features for synchrony, and the offset of the sound.

Attributes are named as in the published file, so that the path of a weight is its name there. Linear weights
are (in, out), and kernels (frames, height, width, in, out).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import Linear
from flowley_jax.networks.synchformer_audio import AudioNetwork
from flowley_jax.networks.synchformer_config import HEAD_SEGMENTS, SynchformerConfig
from flowley_jax.networks.synchformer_head import OffsetNetwork
from flowley_jax.networks.synchformer_video import VideoNetwork


class Synchformer(nnx.Module):
    """Networks of picture and sound, and the one that compares them.

    Features are float32, before the projections `vproj` and `aproj`.
    """

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vfeat_extractor = VideoNetwork(config, rngs=rngs)
        self.afeat_extractor = AudioNetwork(config, rngs=rngs)
        self.vproj = Linear(config.width, config.width, rngs=rngs)
        self.aproj = Linear(config.width, config.width, rngs=rngs)
        self.transformer = OffsetNetwork(config, rngs=rngs)

    def embed_audio(self, segments: Float[Array, "B S 10240"]) -> Float[Array, "B S 6 D"]:
        """Return the features of segments of a wave at 16 kHz, which start every `SAMPLE_STEP` samples."""
        features = self.afeat_extractor(segments.reshape(-1, segments.shape[-1]))
        return features.reshape(*segments.shape[:2], *features.shape[1:]).astype(jnp.float32)

    def embed_video(self, segments: Float[Array, "B S 16 224 224 3"]) -> Float[Array, "B S 8 D"]:
        """Return the features of segments of frames at 25 fps, which start every `FRAME_STEP` frames.

        Args:
          segments: RGB in [-1, 1]; see `evaluation.frames.synchformer_segments`.
        """
        frames = segments.reshape(-1, *segments.shape[2:]).astype(self.config.dtype)
        features = self.vfeat_extractor(frames)
        return features.reshape(*segments.shape[:2], *features.shape[1:]).astype(jnp.float32)

    def offset_logits(
        self, video: Float[Array, "B 14 8 D"], audio: Float[Array, "B 14 6 D"]
    ) -> Float[Array, "B classes"]:
        """Return the logits of the offsets between features of the same 14 segments, from -2 to 2 s.

        Raises:
          FlowleyError: there are more or fewer segments, for which the network has no positions.
        """
        if not video.shape[1] == audio.shape[1] == HEAD_SEGMENTS:
            raise FlowleyError(
                f"Synchformer finds the offset of {HEAD_SEGMENTS} segments; found {video.shape[1]} of the "
                f"picture and {audio.shape[1]} of the sound"
            )
        batch, dtype = len(video), self.config.dtype
        tokens = self.vproj(video.astype(dtype)), self.aproj(audio.astype(dtype))
        logits = self.transformer(*(x.reshape(batch, -1, x.shape[-1]) for x in tokens))
        return logits.astype(jnp.float32)
