"""Clips to sample sound for, and their features."""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np

from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.common.ranges import SECONDS, SEEDS
from flowley_jax.data.components import Components
from flowley_jax.encoders.streaming import encode_blocks
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.windows import WindowLengths, Windows, plan_windows
from flowley_jax.media.mix import Keep, check_keep

# Frames that are encoded at once.
_BLOCK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Silent clip to sample sound for, or a text alone.

    Attributes:
      id: with the seed, decides the random draw; the same id gives the same sound in any batch.
      frames: uint8 (T, H, W, 3) at the rate `Sampler.components.video_fps`; or blocks of such frames, which
        are read one after the other; None for a sound from text.
      prompt: text that describes the sound; empty for none.
      negative_prompt: text that guidance leads away from; None for that of the sampler's settings.
      seed: seed of the random draw; None for that of the call.
      seconds: length of a sound from text; with frames, their length decides.
      own_sound: float32 (N,) at `Sampler.components.sample_rate`, the sound that the clip has already.
      keep: parts of `own_sound` that the new sound must fit, as starts and ends in seconds.
    """

    id: str
    frames: np.ndarray | Iterable[np.ndarray] | None = None
    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    seconds: float | None = None
    own_sound: np.ndarray | None = None
    keep: Keep = ()

    def __post_init__(self):
        check_keep(self.keep, self.id)
        if self.keep and self.own_sound is None:
            raise FlowleyError(f"clip {self.id!r}: has no sound of its own of which parts could be kept")
        for name in ("id", "prompt"):
            if not isinstance(getattr(self, name), str):
                raise FlowleyError(f"{name}={getattr(self, name)!r} of a clip must be text, '' for none")
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            raise FlowleyError(f"negative_prompt={self.negative_prompt!r} of a clip must be text or None")
        if self.seed is not None:
            check_seed(self.seed)
        if self.frames is None and self.seconds is None:
            raise FlowleyError(f"clip {self.id!r}: without frames it needs its length, seconds")
        if self.seconds is not None and (fault := SECONDS.fault(self.seconds)):
            raise FlowleyError(f"clip {self.id!r}: seconds={self.seconds} {fault}")


@dataclasses.dataclass(frozen=True, eq=False)
class OwnLatents:
    """Latents of a sound that a clip has already.

    Attributes:
      latents: float32 (windows.latents, audio_dim), on the codec's scale.
      kept: (windows.latents,) the latents that the sampled sound keeps.
    """

    latents: np.ndarray
    kept: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedClip:
    """The features of a clip, which condition its sound.

    Attributes:
      id: id of the clip.
      seconds: length of its sound.
      windows: the windows that cover it.
      video: float32 (windows.frames, video_dim).
      text: float32 (Tt, text_dim).
      text_len: number of tokens of the prompt.
      negative_text, negative_len: those of the negative prompt.
      seed: seed of the random draw; None for that of the call.
      own: latents that its sound keeps; None for none.
    """

    id: str
    seconds: float
    windows: Windows
    video: np.ndarray
    text: np.ndarray
    text_len: int
    negative_text: np.ndarray
    negative_len: int
    seed: int | None = None
    own: OwnLatents | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipEncoder:
    """Turns clips into the features that a network was trained with.

    Attributes:
      components: encoders of video and text.
      empty_video, empty_text: (video_dim,) and (text_dim,) features that replace a missing condition.
      window: size of a window.
      overlap: share of a window that overlaps with the next one.
      negative_prompt: negative prompt of the clips that have none of their own; None if guidance has no
        empty branch, and negative prompts are refused.
    """

    components: Components
    empty_video: np.ndarray
    empty_text: np.ndarray
    window: WindowLengths
    overlap: float
    negative_prompt: str | None

    def __call__(self, clip: Clip) -> EncodedClip:
        """Return the features of a clip; without a prompt, its text features are the empty text.

        Raises:
          FlowleyError: a prompt is too long for the text encoder, frames have the wrong shape or type, or
            guidance has no branch for the clip's negative prompt.
        """
        if self.negative_prompt is None and clip.negative_prompt:
            raise FlowleyError(
                f"{clip.id or 'the clip'}: negative_prompt={clip.negative_prompt!r} does not go with "
                "autoguidance, which has no empty branch; remove it, or set autoguidance_step=0"
            )
        negative_prompt = (
            (self.negative_prompt or "") if clip.negative_prompt is None else clip.negative_prompt
        )
        text, text_len = self._text_features(clip.prompt)
        if negative_prompt.strip():
            negative_text, negative_len = self._text_features(negative_prompt)
        else:
            # As in training, where the empty text keeps the length of the text that it replaces.
            negative_text, negative_len = self._empty_like(text), text_len
        video, windows, seconds = self._video_features(clip)
        return EncodedClip(
            id=clip.id,
            seconds=seconds,
            windows=windows,
            video=video,
            text=text,
            text_len=text_len,
            negative_text=negative_text,
            negative_len=negative_len,
            seed=clip.seed,
            own=self._own_latents(clip, windows) if clip.keep else None,
        )

    def _own_latents(self, clip: Clip, windows: Windows) -> OwnLatents:
        assert clip.own_sound is not None
        codec, rate = self.components.codec, self.components.codec.latent_rate
        samples = windows.latents * FRAMES_PER_LATENT * codec.mel.hop
        wave = np.asarray(clip.own_sound, np.float32)[:samples]
        latents, _ = self.components.encode_audio(np.pad(wave, (0, samples - len(wave)))[None])
        middles = (np.arange(windows.latents) + 0.5) / rate
        kept = np.any([(middles >= start) & (middles < end) for start, end in clip.keep], axis=0)
        return OwnLatents(np.asarray(latents[0], np.float32), kept)

    def _text_features(self, prompt: str) -> tuple[np.ndarray, int]:
        text, text_len = self.components.features_of_text([prompt])
        return text[0] if prompt.strip() else self._empty_like(text[0]), int(text_len[0])

    def _empty_like(self, text: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.empty_text.astype(text.dtype), text.shape)

    def _video_features(self, clip: Clip) -> tuple[np.ndarray, Windows, float]:
        """Return the features of a clip's frames, its windows, and its length in seconds."""
        fps = self.components.video_fps
        if clip.frames is None:
            assert clip.seconds is not None
            windows = self._windows(frames_of_text(clip.seconds, fps))
            video = np.broadcast_to(self.empty_video, (windows.frames, *self.empty_video.shape))
            return video, windows, clip.seconds
        blocks = _blocks(clip.frames) if isinstance(clip.frames, np.ndarray) else clip.frames
        video, frames = encode_blocks(self.components.video_encoder, blocks, least=self.window.video)
        windows = self._windows(frames)
        missing = np.repeat(video[-1:], windows.frames - len(video), axis=0)
        return np.concatenate([video, missing]), windows, frames / fps

    def _windows(self, frames: int) -> Windows:
        return plan_windows(frames, self.window, overlap=self.overlap)


def frames_of_text(seconds: float, fps: float) -> int:
    """Return the number of frames that cover a sound from text."""
    # Rounded, since 0.1 s at 30 frames per second would be a little more than three frames.
    return max(1, math.ceil(round(seconds * fps, 6)))


def check_seed(seed: int) -> None:
    """Raise a FlowleyError unless the keys of JAX can have this seed."""
    if fault := SEEDS.fault(seed):
        raise FlowleyError(f"seed={seed} {fault}")


def _blocks(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield frames (T, H, W, 3) in blocks; also none, so that the encoder refuses what is no video."""
    for start in range(0, max(1, len(frames)), _BLOCK):
        yield frames[start : start + _BLOCK]
