"""Captions from a `transformers` model on this machine: Qwen2.5-VL, or Qwen2.5-Omni, which also hears."""

import contextlib
import functools
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.rejection import Rejection, one_line
from data_prep.soundcap.clip_view import SAMPLE_RATE, ClipView
from data_prep.soundcap.models import REFUSED
from flowley_jax.common.files import sha256
from flowley_jax.errors import FlowleyError

NEEDS_PYTORCH = "SoundCap's local models need PyTorch: pip install 'flowley-jax[soundcap]'"

try:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
    from transformers.video_utils import VideoMetadata
except ImportError as error:
    raise FlowleyError(NEEDS_PYTORCH) from error
except RuntimeError as error:
    # A torchvision that was built for a different PyTorch raises this.
    raise FlowleyError(f"torch and torchvision do not match ({one_line(error)}); reinstall both") from error

# Model types with audio input. Both use the same chat format.
_AUDIO_VISUAL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")


class LocalModel:
    """A vision-language or audio-visual model and its processor.

    Args:
      model: a folder, or a name on the hub.
      adapter: folder of a LoRA adapter that `data_prep.soundcap.finetune` wrote.
      batch_size: number of clips per batch.
      max_tokens: longest answer in tokens.
      sound: whether the model must have audio input.
      device: cuda, cpu, …; by default the first GPU, if there is one.
      dtype: type of the weights: float32, bfloat16 or auto.

    Attributes:
      processor: the model's processor from `transformers`.
      identity: the model's name, its revision on the hub, and its adapter, for the provenance of captions.

    Raises:
      FlowleyError: the model cannot be loaded, or lacks the audio input that it needs; or there is no such
        device.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: str = "",
        batch_size: int = 4,
        max_tokens: int = 128,
        sound: bool = False,
        device: str = "",
        dtype: str = "auto",
    ):
        self.batch_size, self._max_tokens = batch_size, max_tokens
        self._device = _checked_device(device) if device else "cuda" if torch.cuda.is_available() else "cpu"
        self._adapter, self._dtype = adapter, dtype
        if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
            raise FlowleyError(f"{model}: no such folder")
        if adapter and not (Path(adapter) / "adapter_config.json").is_file():
            raise FlowleyError(f"{adapter}: not a LoRA adapter (no adapter_config.json)")
        with _name_load_errors(model):
            config = transformers.AutoConfig.from_pretrained(model)
            if sound and config.model_type not in _AUDIO_VISUAL_TYPES:
                raise FlowleyError(
                    f"{model}: model type {config.model_type} has no audio input; use a Qwen2.5-Omni model"
                )
            self._has_audio_input = config.model_type in _AUDIO_VISUAL_TYPES
            self.processor: Any = transformers.AutoProcessor.from_pretrained(model)
        # With padding on the left, all answers of a batch begin at the same position.
        self.processor.tokenizer.padding_side = "left"
        # The hub commit, for a model from the hub.
        revision = getattr(config, "_commit_hash", None)
        self.identity: dict[str, str] = {"model": model, **({"revision": revision} if revision else {})}
        if adapter:
            weights = sorted(Path(adapter).glob("adapter_model.*"))
            self.identity |= {"adapter": adapter, "adapter_sha256": sha256(*weights)}

    @functools.cached_property
    def model(self) -> Any:
        """The network, loaded at first use: a run without anything to do does not load it.

        Raises:
          FlowleyError: it cannot be loaded.
        """
        network: Any = transformers.AutoModelForImageTextToText
        if self._has_audio_input:
            network = transformers.Qwen2_5OmniThinkerForConditionalGeneration
        with _name_load_errors(self.identity["model"]):
            model = network.from_pretrained(self.identity["model"], dtype=self._dtype).to(self._device).eval()
        return _with_adapter(model, self._adapter) if self._adapter else model

    def __call__(self, clips: Sequence[ClipView], prompt: str) -> list[str | Rejection]:
        _ = self.model
        try:
            return list(self._generate(clips, prompt))
        except FlowleyError:
            raise
        except (RuntimeError, ValueError) as error:
            # Out of memory, or a clip that the processor refuses. The other clips of the batch get an answer.
            if len(clips) == 1:
                return [Rejection(REFUSED, one_line(error)[:200])]
            return [answer for clip in clips for answer in self([clip], prompt)]

    def close(self) -> None:
        """Free the network's memory, also on the GPU: JAX takes most of what it finds free."""
        self.__dict__.pop("model", None)
        # Networks refer to themselves.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def inputs(self, clips: Sequence[ClipView], prompt: str, answers: Sequence[str] | None = None) -> Any:
        """Return a batch of tensors on the host.

        Args:
          clips: clips that all have audio, or all have none.
          prompt: the question, the same for all clips.
          answers: the answer to each clip, for training; without them the batch ends where the answers begin.
        """
        texts = [self._conversation(prompt, answer) for answer in answers or [None] * len(clips)]
        metadata = [
            VideoMetadata(
                total_num_frames=len(clip.frames), fps=clip.fps, frames_indices=list(range(len(clip.frames)))
            )
            for clip in clips
        ]
        audio_options: dict[str, Any] = {}
        if clips[0].wave is not None:
            audio_options = {
                "audio": [clip.wave for clip in clips],
                "load_audio_from_video": True,
                "audio_from_video_indices": list(range(len(clips))),
                "audio_kwargs": {"sampling_rate": SAMPLE_RATE},
            }
        video_options = {"do_sample_frames": False, "video_metadata": metadata, "cap_pixels_per_frame": True}
        if self._has_audio_input:
            video_options["fps"] = clips[0].fps
        return self.processor(
            text=texts,
            videos=[clip.frames for clip in clips],
            padding=True,
            return_tensors="pt",
            videos_kwargs=video_options,
            **audio_options,
        )

    def count_answer_tokens(self, prompt: str, answer: str) -> int:
        """Return the number of tokens that the answer takes at the end of a conversation.

        Raises:
          FlowleyError: the model's chat template does not put the answer at the end.
        """
        question, conversation = self._conversation(prompt, None), self._conversation(prompt, answer)
        if not conversation.startswith(question):
            raise FlowleyError(
                f"{self.identity['model']}: its chat template changes the question when it is answered"
            )
        ending = conversation[len(question) :]
        return len(self.processor.tokenizer(ending, add_special_tokens=False)["input_ids"])

    def _generate(self, clips: Sequence[ClipView], prompt: str) -> list[str]:
        batch = self.inputs(clips, prompt).to(self._device, dtype=self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**batch, do_sample=False, max_new_tokens=self._max_tokens)
        return self.processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def _conversation(self, prompt: str, answer: str | None) -> str:
        """Return a conversation about one clip in the model's chat format."""
        messages: list[dict] = [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        ]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None, tokenize=False
        )


def _checked_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise FlowleyError(f"device={device!r} must be a device of PyTorch: cpu, cuda, cuda:1, …") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise FlowleyError(f"device={device!r}: PyTorch finds no GPU")
    return device


def _with_adapter(model: Any, adapter: str) -> Any:
    import peft  # pyright: ignore[reportMissingImports]

    with _name_load_errors(adapter):
        return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


@contextlib.contextmanager
def _name_load_errors(path: str) -> Iterator[None]:
    """Turn a library's loading error into one line that names the file."""
    try:
        yield
    except FlowleyError:
        raise
    # A device that PyTorch was not built for ends in an AssertionError.
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise FlowleyError(f"{path}: cannot be loaded ({one_line(error)[:300]})") from error
