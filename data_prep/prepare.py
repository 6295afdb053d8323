"""From a clip table to training records.

Features of every clip are made in parallel and kept in `OUT/cache`, so that a run that was stopped goes on
where it was. Then the audio codec is fitted to the training split and the records are written. A clip that
cannot be used is listed with the reason in `OUT/rejected.tsv`.
"""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clip_features import RecordSettings, cached_features, digest_of, extract_features
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec
from flowley_jax.data.clip_table import SPLITS, Clip, read_clip_table
from flowley_jax.data.parts import Parts
from flowley_jax.data.record import Dims, Example, has_records, write_records
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text

_SUMMARY_FILE = "summary.json"
_REJECTED_FILE = "rejected.tsv"


def prepare_records(
    clips: str | os.PathLike, out: str | os.PathLike, settings: RecordSettings, *, workers: int = 1
) -> dict[str, Any]:
    """Makes records and parts of the clips in a table, or finds them made.

    Args:
      clips: the clip table.
      out: folder for the records, made if missing.
      settings: what they are made with.
      workers: processes that read clips.

    Returns:
      The summary that is also in `out/summary.json`: settings, counts for each split, rejected clips.

    Raises:
      FlowleyError: if the table is bad, no training clip can be used, or `out` holds records of another
        table or of other settings.
    """
    out = Path(out)
    table = read_clip_table(clips)
    settings.check_rates()
    identity = _identity(table, settings)
    finished = _finished_summary(out, identity)
    if finished is not None:
        print(f"records are made already in {out}: {_counts_line(finished)}")
        if finished["rejected"]:
            print(f"to try the rejected clips again, remove {out}")
        return finished
    cache = out / "cache"
    _make_folder(cache)
    reasons = extract_features(table, settings, cache, workers)
    _write_rejected(out / _REJECTED_FILE, table, reasons)
    accepted = [clip for clip in table if clip.id not in reasons]
    if not any(clip.split == "train" for clip in accepted):
        first = next(iter(reasons.values()), "the table has none")
        raise FlowleyError(f"{clips}: no training clip can be used ({first}); see {out / _REJECTED_FILE}")
    codec = _codec_of(accepted, settings, cache)
    parts = _parts(codec, accepted, settings, cache, source=Path(clips).name)
    summary = {
        "identity": identity,
        "settings": dataclasses.asdict(settings),
        "examples": dict(Counter(clip.split for clip in accepted)),
        "rejected": len(reasons),
    }
    dims = dataclasses.replace(parts.dims, feature_dtype=settings.feature_dtype)
    parts.save(out)
    write_text(out / _SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    _write_all(out, accepted, dims, codec, settings, cache)
    shutil.rmtree(cache)
    print(f"records are in {out}: {_counts_line(summary)}")
    return summary


def _identity(table: Sequence[Clip], settings: RecordSettings) -> str:
    """A digest of everything that the records depend on, except the contents of the media."""
    rows = [(clip.id, clip.video_path.name, clip.caption, clip.split, clip.label) for clip in table]
    return digest_of([dataclasses.asdict(settings), settings.versions, rows])


def _finished_summary(out: Path, identity: str) -> dict[str, Any] | None:
    if not has_records(out):
        return None
    path = out / _SUMMARY_FILE
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowleyError(f"{path}: cannot be read though {out} has records ({error})") from error
    if summary.get("identity") != identity:
        raise FlowleyError(f"{out}: has records of other clips or settings; choose another folder")
    return summary


def _codec_of(accepted: Sequence[Clip], settings: RecordSettings, cache: Path) -> AudioCodec:
    """The published codec, or the embedded one fitted to the training split."""
    if settings.fixed_codec:
        return settings.fixed_codec
    log_mels = (
        cached_features(clip, settings, cache)["log_mel"] for clip in accepted if clip.split == "train"
    )
    return PcaCodec.fit(log_mels, mel=settings.mel_config, latent_dim=settings.latent_dim)


def _posterior(codec: AudioCodec, features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a clip's latents, each (Ta, C)."""
    if isinstance(codec, PcaCodec):
        mean = codec.encode_log_mel(features["log_mel"][None])[0]
        return mean, np.zeros_like(mean)
    return features["audio_mean"], features["audio_std"]


def _parts(
    codec: AudioCodec, accepted: Sequence[Clip], settings: RecordSettings, cache: Path, source: str
) -> Parts:
    """The parts, with the statistics over the training split of latents drawn from their posteriors."""
    count, total, squares = 0, np.zeros(codec.latent_dim), np.zeros(codec.latent_dim)
    for clip in accepted:
        if clip.split != "train":
            continue
        mean, std = (x.astype(np.float64) for x in _posterior(codec, cached_features(clip, settings, cache)))
        count += len(mean)
        total += mean.sum(axis=0)
        squares += (np.square(mean) + np.square(std)).sum(axis=0)
    mean = total / count
    return Parts(
        seconds=settings.seconds,
        video_encoder=settings.video_encoder,
        text_encoder=settings.text_encoder,
        codec=codec,
        vocoder=settings.vocoder_for(codec),
        latent_mean=mean.astype(np.float32),
        latent_std=np.sqrt(np.maximum(squares / count - mean**2, 0.0)).astype(np.float32),
        source=source,
    )


def _write_all(
    out: Path, accepted: Sequence[Clip], dims: Dims, codec: AudioCodec, settings: RecordSettings, cache: Path
) -> None:
    def examples_of(split: str) -> Callable[[], Iterator[Example]]:
        chosen = [clip for clip in accepted if clip.split == split]
        return lambda: (_example(clip, codec, cached_features(clip, settings, cache)) for clip in chosen)

    present = {clip.split for clip in accepted}
    write_records(out, dims, {split: examples_of(split) for split in SPLITS if split in present})


def _example(clip: Clip, codec: AudioCodec, features: Mapping[str, np.ndarray]) -> Example:
    mean, std = _posterior(codec, features)
    return {
        "audio_mean": mean,
        "audio_std": std,
        "video_features": features["video_features"],
        "text_features": features["text_features"],
        "text_len": features["text_len"],
        "id": clip.id,
        "caption": clip.caption,
        "label": clip.label,
    }


def _write_rejected(path: Path, table: Sequence[Clip], reasons: Mapping[str, str]) -> None:
    if reasons:
        print(f"{len(reasons)} of {len(table)} clips cannot be used; the reasons are in {path}")
    rows = [("id", "video_path", "reason")]
    rows += [(clip.id, str(clip.video_path), reasons[clip.id]) for clip in table if clip.id in reasons]
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be made: {error.strerror or error}") from error


def _counts_line(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in summary["examples"].items())
    return f"{counts}; {summary['rejected']} rejected"
