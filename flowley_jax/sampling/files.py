"""Sounds for video files: read, sample, write, clip by clip; what is made already is not made again."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_frames
from flowley_jax.media.write import AUDIO_SUFFIXES, VIDEO_SUFFIXES, mux_audio, write_audio
from flowley_jax.sampling.clips import Source
from flowley_jax.sampling.sampler import Clip, Sampler
from flowley_jax.training.progress import clock
from flowley_jax.whole_files import append_line, naming

log = logging.getLogger(__name__)
MANIFEST = "samples.jsonl"
GROUP = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Files by clip id, those found made already included, and one line for every clip that failed."""

    written: dict[str, list[Path]]
    failed: list[str]


def check_out(out: Path, *, many: bool) -> None:
    """Makes the folder of `out`, which is a folder for many clips, or one file of a known kind.

    Raises:
      FlowleyError: it is neither, or its folder cannot be made or written to.
    """
    known = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)
    if many and out.suffix in known:
        raise FlowleyError(f"--out {out} is a file; for several clips it must be a folder")
    if out.suffix and out.suffix not in known and not out.is_dir():
        raise FlowleyError(f"--out {out}: the ending must be one of {', '.join(known)}, or none for a folder")
    if out.suffix in known and out.is_dir():
        raise FlowleyError(f"--out {out}: is a folder with the name of a file")
    folder = out.parent if out.suffix in known else out
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise FlowleyError(f"{folder}: cannot be written (Permission denied)")


def write_sounds(
    sampler: Sampler,
    sources: Sequence[Source],
    out: Path,
    *,
    kind: str = ".mp4",
    seed: int = 0,
    num_samples: int = 1,
) -> Results:
    """Gives every source its sound and writes `out`, or `out`/<id><kind> for a folder.

    With several samples, the files end in _0, _1, …. Unreadable clips are listed and left out. A folder gets
    a `samples.jsonl` that says how each file was made; a clip whose files were made in the same way from the
    same video is not sampled again. Files that are there before the first use of the folder are not replaced.

    Args:
      kind: .mp4, .mkv or .mov copy the picture without re-encoding; .wav and .flac hold the sound alone.
    """
    manifest = None if _is_file(out) else _Manifest(out)
    written: dict[str, list[Path]] = {}
    todo: list[Source] = []
    failed: list[str] = []
    for source in sources:
        paths = _targets(out, source, kind, num_samples)
        if manifest and manifest.has(_request(sampler, source, paths, seed), paths):
            written[source.id] = paths
        elif any(path.exists() and source.path.exists() and path.samefile(source.path) for path in paths):
            failed.append(f"{source.path}: the output would replace the input video")
        elif manifest and manifest.is_new and any(path.exists() for path in paths):
            failed.append(
                f"{paths[0]}: is there, and was not made by this program; remove it or change --out"
            )
        else:
            todo.append(source)
    if written:
        log.info("%d of %d clips have their sound already in %s", len(written), len(sources), out)
    started, made = time.monotonic(), 0
    for start in range(0, len(todo), GROUP):
        group = {source.id: source for source in todo[start : start + GROUP]}
        clips = _read_clips(sampler, group.values(), failed)
        for clip, waves in sampler.sounds(clips, seed=seed, num_samples=num_samples):
            source = group[clip.id]
            paths = _targets(out, source, kind, num_samples)
            try:
                for path, wave in zip(paths, waves, strict=True):
                    _write(path, source, wave, sampler.parts.sample_rate)
            except FlowleyError as error:
                failed.append(str(error))
                continue
            written[source.id] = paths
            if manifest:
                manifest.add(_request(sampler, source, paths, seed))
            made += 1
            left = (time.monotonic() - started) / made * (len(todo) - made)
            log.info("%d/%d %s  left %s", made, len(todo), paths[0], clock(left))
    return Results(written=written, failed=failed)


class _Manifest:
    """`samples.jsonl`: one line per clip, appended when its files are whole."""

    def __init__(self, folder: Path):
        self._path = folder / MANIFEST
        self._made: dict[str, dict[str, Any]] = {}
        self.is_new = not self._path.exists()
        with naming(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        text = self._path.read_text()
        # What a crash left of the last line must not swallow the next one.
        self._separator = "" if text.endswith("\n") or not text else "\n"
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._made[row["id"]] = row
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # Its clip is made again.

    def has(self, request: dict[str, Any], paths: Sequence[Path]) -> bool:
        made = json.loads(json.dumps(request)) == self._made.get(request["id"])
        return made and all(path.exists() for path in paths)

    def add(self, request: dict[str, Any]) -> None:
        self._made[request["id"]] = request
        append_line(self._path, self._separator + json.dumps(request, ensure_ascii=False))
        self._separator = ""


def _request(sampler: Sampler, source: Source, paths: Sequence[Path], seed: int) -> dict[str, Any]:
    """All that the sounds of a clip depend on."""
    stat = source.path.stat() if source.path.exists() else None
    return {
        "id": source.id,
        "files": [path.name for path in paths],
        "prompt": source.prompt,
        "seed": seed,
        "video": {"name": source.path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if stat
        else None,
        "settings": dataclasses.asdict(sampler.settings),
        "weights": dict(sampler.origin),
    }


def _read_clips(sampler: Sampler, sources, failed: list[str]) -> list[Clip]:
    """Frames and prompts of the sources that can be used; a line in `failed` for each other."""
    clips = []
    fps, size = sampler.parts.video_fps, sampler.parts.video_encoder.frame_size
    for source in sources:
        try:
            frames = read_frames(source.path, fps=fps, size=size)
            sampler.parts.features_of_text([source.prompt])
        except FlowleyError as error:
            failed.append(str(error))
        else:
            clips.append(Clip(id=source.id, frames=frames, prompt=source.prompt))
    return clips


def _is_file(out: Path) -> bool:
    return out.suffix in (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)


def _targets(out: Path, source: Source, kind: str, num_samples: int) -> list[Path]:
    single = out if _is_file(out) else out / f"{source.id}{kind}"
    if num_samples == 1:
        return [single]
    return [single.with_name(f"{single.stem}_{n}{single.suffix}") for n in range(num_samples)]


def _write(path: Path, source: Source, wave: np.ndarray, sample_rate: int) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in AUDIO_SUFFIXES:
        write_audio(path, wave, sample_rate)
        return
    mux_audio(source.path, wave, sample_rate, path)
