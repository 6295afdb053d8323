"""Captions from a model of `transformers` on this machine: Qwen2.5-VL, or Qwen2.5-Omni, which hears."""

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.rejection import Rejection, one_line
from data_prep.soundcap.look import SAMPLE_RATE, Seen
from data_prep.soundcap.models import REFUSED
from flowley_jax.errors import FlowleyError

try:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
    from transformers.video_utils import VideoMetadata
except ImportError as error:
    raise FlowleyError("SoundCap's own models need PyTorch: pip install 'flowley-jax[soundcap]'") from error
except RuntimeError as error:
    # What torchvision raises that was built for another PyTorch.
    raise FlowleyError(f"torch and torchvision do not fit each other ({one_line(error)})") from error

# Types of configurations whose models hear, and whose conversations are written in the same way.
_HEARING = ("qwen2_5_omni", "qwen2_5_omni_thinker")


class LocalModel:
    """A model and its processor.

    Args:
      model: a folder, or a name on the hub.
      adapter: folder of a LoRA adapter that `data_prep.soundcap.finetune` wrote.
      at_once: clips in a batch.
      sound: whether it has to hear.
      device: cuda, cpu, …; by default the first GPU, if there is one.
      dtype: float32, bfloat16 or auto, that of the weights.

    Raises:
      FlowleyError: it cannot be loaded, or cannot hear.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: str = "",
        at_once: int = 4,
        max_tokens: int = 128,
        sound: bool = False,
        device: str = "",
        dtype: str = "auto",
    ):
        self.at_once, self._max_tokens = at_once, max_tokens
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._adapter, self._dtype = adapter, dtype
        if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
            raise FlowleyError(f"{model}: no such folder")
        if adapter and not (Path(adapter) / "adapter_config.json").is_file():
            raise FlowleyError(f"{adapter}: holds no adapter (adapter_config.json is missing)")
        with _naming(model):
            config = transformers.AutoConfig.from_pretrained(model)
            if sound and config.model_type not in _HEARING:
                raise FlowleyError(f"{model}: a {config.model_type} hears nothing; take a Qwen2.5-Omni")
            self._hears = config.model_type in _HEARING
            self.processor: Any = transformers.AutoProcessor.from_pretrained(model)
        # Answers of a batch begin at one place.
        self.processor.tokenizer.padding_side = "left"
        # The commit of a model from the hub.
        revision = getattr(config, "_commit_hash", None)
        self.identity: dict[str, str] = {"model": model, **({"revision": revision} if revision else {})}
        if adapter:
            self.identity |= {"adapter": adapter, "adapter_sha256": _digest(Path(adapter))}

    @functools.cached_property
    def model(self) -> Any:
        """Its weights are read when they are first needed: not by a run that finds all its work done.

        Raises:
          FlowleyError: they cannot be loaded.
        """
        kind: Any = transformers.AutoModelForImageTextToText
        if self._hears:
            kind = transformers.Qwen2_5OmniThinkerForConditionalGeneration
        with _naming(self.identity["model"]):
            model = kind.from_pretrained(self.identity["model"], dtype=self._dtype).to(self._device).eval()
        return _with_adapter(model, self._adapter) if self._adapter else model

    def __call__(self, clips: Sequence[Seen], prompt: str) -> list[str | Rejection]:
        _ = self.model
        try:
            return list(self._answers(clips, prompt))
        except (RuntimeError, ValueError) as error:
            # Out of memory, or a clip that the processor refuses: the others are not to suffer.
            if len(clips) == 1:
                return [Rejection(REFUSED, one_line(error)[:200])]
            return [answer for clip in clips for answer in self([clip], prompt)]

    def inputs(self, clips: Sequence[Seen], prompt: str, answers: Sequence[str] | None = None):
        """Tensors on the host for a batch of clips, all of them with sound or none.

        Args:
          answers: what the model should say, for training; by default it is to say it.
        """
        texts = [self._written(prompt, answer) for answer in answers or [None] * len(clips)]
        metadata = [
            VideoMetadata(
                total_num_frames=len(clip.frames), fps=clip.fps, frames_indices=list(range(len(clip.frames)))
            )
            for clip in clips
        ]
        extra: dict[str, Any] = {}
        if clips[0].wave is not None:
            extra = {
                "audio": [clip.wave for clip in clips],
                "load_audio_from_video": True,
                "audio_from_video_indices": list(range(len(clips))),
                "audio_kwargs": {"sampling_rate": SAMPLE_RATE},
            }
        videos_kwargs = {"do_sample_frames": False, "video_metadata": metadata, "cap_pixels_per_frame": True}
        if self._hears:
            videos_kwargs["fps"] = clips[0].fps
        batch = self.processor(
            text=texts,
            videos=[clip.frames for clip in clips],
            padding=True,
            return_tensors="pt",
            videos_kwargs=videos_kwargs,
            **extra,
        )
        return batch

    def _answers(self, clips: Sequence[Seen], prompt: str) -> list[str]:
        batch = self.inputs(clips, prompt).to(self._device, dtype=self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**batch, do_sample=False, max_new_tokens=self._max_tokens)
        return self.processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def answer_tokens(self, prompt: str, answer: str) -> int:
        """How many tokens of a conversation, at its end, are the answer."""
        asked, answered = self._written(prompt, None), self._written(prompt, answer)
        if not answered.startswith(asked):
            raise FlowleyError(f"{self.identity['model']}: its template does not end where an answer begins")
        ending = answered[len(asked) :]
        return len(self.processor.tokenizer(ending, add_special_tokens=False)["input_ids"])

    def _written(self, prompt: str, answer: str | None) -> str:
        """A conversation about a clip as the model reads it."""
        messages: list[dict] = [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        ]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None, tokenize=False
        )


def _with_adapter(model, adapter: str):
    import peft  # pyright: ignore[reportMissingImports]

    with _naming(adapter):
        return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def _digest(adapter: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(adapter.glob("adapter_model.*")):
        found.update(path.read_bytes())
    return found.hexdigest()


@contextlib.contextmanager
def _naming(place: str):
    """Turns what libraries raise for files into one line that names them."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, FlowleyError):
            raise
        raise FlowleyError(f"{place}: cannot be loaded ({one_line(error)[:300]})") from error
