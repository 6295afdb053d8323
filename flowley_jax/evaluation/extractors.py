"""The extractors, which turn sounds, pictures and captions into features, in one place."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax import Array

from flowley_jax.evaluation.frames import imagebind_clips, synchformer_segments

# Function from a model and a batch of its inputs to features by kind, each (B, …).
Apply = Callable[..., dict[str, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """One way to get features from a file.

    Attributes:
      name: key of its inputs in `preparation`.
      kinds: kinds of the features.
      bundle: name of the network's bundle; empty if the inputs are the features.
      apply: function of the model and of its inputs.
      batch: clips on a device at once.
    """

    name: str
    kinds: tuple[str, ...]
    bundle: str = ""
    apply: Apply | None = None
    batch: int = 16


def _panns(model: Any, waves: Array) -> dict[str, Array]:
    embedding, logits = model(waves)
    return {"pann_2048": embedding, "pann_logits": logits}


def _vggish(model: Any, examples: Array) -> dict[str, Array]:
    clips, count = examples.shape[:2]
    return {"vggish": model(examples.reshape(-1, *examples.shape[2:])).reshape(clips, count, -1)}


def _passt(model: Any, waves: Array) -> dict[str, Array]:
    logits, embedding = model(waves)
    return {"passt_logits": logits, "passt_embed": embedding}


def _tagger(model: Any, log_mels: Array) -> dict[str, Array]:
    embedding, logits = model(log_mels)
    return {"tagger_embed": embedding, "tagger_logits": logits}


EXTRACTORS = {
    extractor.name: extractor
    for extractor in (
        Extractor(name="panns", kinds=("pann_2048", "pann_logits"), bundle="panns", apply=_panns),
        Extractor(name="vggish", kinds=("vggish",), bundle="vggish", apply=_vggish),
        Extractor(name="passt", kinds=("passt_embed", "passt_logits"), bundle="passt", apply=_passt, batch=4),
        Extractor(
            name="clap",
            kinds=("clap_laion_audio",),
            bundle="clap",
            apply=lambda model, waves: {"clap_laion_audio": model.embed_audio(waves)},
        ),
        Extractor(
            name="imagebind",
            kinds=("imagebind_audio",),
            bundle="imagebind",
            apply=lambda model, images: {"imagebind_audio": model.embed_audio(images)},
        ),
        Extractor(
            name="synchformer",
            kinds=("synchformer_audio",),
            bundle="synchformer",
            apply=lambda model, segments: {"synchformer_audio": model.embed_audio(segments)},
            batch=4,
        ),
        Extractor(
            name="imagebind_video",
            kinds=("imagebind_video",),
            bundle="imagebind",
            apply=lambda model, crops: {"imagebind_video": model.embed_video(imagebind_clips(crops))},
            batch=2,
        ),
        Extractor(
            name="synchformer_video",
            kinds=("synchformer_video",),
            bundle="synchformer",
            apply=lambda model, frames: {
                "synchformer_video": model.embed_video(synchformer_segments(frames))
            },
            batch=1,
        ),
        Extractor(name="tagger", kinds=("tagger_embed", "tagger_logits"), bundle="tagger", apply=_tagger),
        Extractor(name="level", kinds=("level",)),
        Extractor(name="audio_peaks", kinds=("audio_peaks",)),
        Extractor(name="video_peaks", kinds=("video_peaks", "video_format")),
        Extractor(
            name="captions",
            kinds=("clap_laion_text",),
            bundle="clap",
            apply=lambda model, ids: {"clap_laion_text": model.embed_text(ids)},
        ),
        Extractor(name="onsets", kinds=("onsets", "protocol_onsets")),
        Extractor(name="events", kinds=("events",)),
        Extractor(name="labels", kinds=("tagger_labels",)),
    )
}
# Extractors of each kind of file, in the order in which they are shown.
SOUND = (
    *("panns", "vggish", "passt", "clap", "imagebind", "synchformer"),
    *("tagger", "level", "audio_peaks", "onsets"),
)
PICTURE = ("imagebind_video", "synchformer_video")
MOTION = ("video_peaks",)
