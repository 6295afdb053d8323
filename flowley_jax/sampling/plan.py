"""Decide which clips are sampled: which are done already, and which cannot be written."""

import dataclasses
import hashlib
import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES
from flowley_jax.media.mix import Mixing
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.ranking import FEWEST_CANDIDATES
from flowley_jax.sampling.sample_log import Request, SampleLog
from flowley_jax.sampling.sampler import Sampler

log = logging.getLogger(__name__)
WRITTEN_SUFFIXES = (*MUX_SUFFIXES, *AUDIO_SUFFIXES)
FileId = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Job:
    """A clip, the files to write, and all that their content depends on."""

    clip: InputClip
    paths: list[Path]
    request: Request


@dataclasses.dataclass(frozen=True)
class Plan:
    """Clips by what is to be done with them.

    Attributes:
      todo: clips to sample.
      done: files of earlier runs by clip id.
      failed: one line for every clip that cannot be used.
    """

    todo: list[Job]
    done: dict[str, list[Path]]
    failed: list[str]


def make_jobs(
    sampler: Sampler,
    clips: Sequence[InputClip],
    out: Path,
    *,
    suffix: str,
    seed: int,
    num_samples: int,
    candidates: int,
    mixing: Mixing,
) -> list[Job]:
    """Return each clip's files and all that they depend on; see `write_sounds` for the arguments.

    Raises:
      FlowleyError: there are fewer candidates than samples.
    """
    check_candidates(candidates, num_samples)
    choices = {"candidates": candidates, **dataclasses.asdict(mixing)}
    return [
        _job(sampler, clip, target_paths(out, clip.id, _suffix_for(clip, suffix), num_samples), seed, choices)
        for clip in clips
    ]


def check_candidates(candidates: int, num_samples: int) -> None:
    """Raise FlowleyError if the candidates cannot be ranked, or are fewer than the sounds to write.

    Args:
      candidates: number of candidates; 0 means no ranking.
      num_samples: number of sounds to write.
    """
    if 0 < candidates < FEWEST_CANDIDATES:
        raise FlowleyError(
            f"--candidates {candidates} must be 0 or at least {FEWEST_CANDIDATES}: fewer cannot be ranked"
        )
    if 0 < candidates < num_samples:
        raise FlowleyError(f"--candidates {candidates} must be at least --num-samples {num_samples}")


def make_plan(jobs: Sequence[Job], sample_log: SampleLog | None) -> Plan:
    """Sort the clips by what is to be done with them."""
    writers, inputs = _writers(jobs), input_ids(job.clip for job in jobs)
    plan = Plan(todo=[], done={}, failed=[])
    for job in jobs:
        if fault := _fault_of_names(job, writers):
            plan.failed.append(fault)
        elif sample_log and sample_log.is_done(job.request, job.paths):
            plan.done[job.clip.id] = job.paths
        elif fault := _fault_of_files(job, inputs, sample_log):
            plan.failed.append(fault)
        else:
            plan.todo.append(job)
    return plan


def task_of(jobs: Sequence[Job]) -> str:
    """Return a digest of all requests, equal for processes with the same jobs."""
    requests = sorted(json.dumps(job.request, sort_keys=True) for job in jobs)
    return hashlib.sha256("\n".join(requests).encode()).hexdigest()


def log_plan(plan: Plan, sample_log: SampleLog | None, out: Path) -> None:
    """Log what is reused, what is replaced, and which clips have no prompt."""
    todo = plan.todo
    if plan.done:
        count = len(plan.done) + len(plan.failed) + len(todo)
        log.info("%d of %d clips already have their sound in %s", len(plan.done), count, out)
    replaced = [job for job in todo if sample_log and any(path.exists() for path in job.paths)]
    if sample_log and replaced:
        # A dict keeps the order of first appearance.
        changes = dict.fromkeys(change for job in replaced for change in sample_log.changes(job.request))
        made_with = f", made with {', '.join(changes)}" if changes else ""
        clips = "1 clip" if len(replaced) == 1 else f"{len(replaced)} clips"
        log.info("replacing earlier sounds of %s in %s%s", clips, out, made_with)
    unprompted = sum(not job.clip.prompt.strip() for job in todo)
    if unprompted and len(todo) == 1:
        log.info("no prompt: the sound follows the picture only")
    elif unprompted:
        log.info("no prompt for %d of %d clips: their sound follows the picture only", unprompted, len(todo))


def is_file(out: Path) -> bool:
    """Return whether `--out` names a file, by its suffix in any case, and not a folder."""
    return out.suffix.lower() in WRITTEN_SUFFIXES and not out.is_dir()


def _suffix_for(clip: InputClip, suffix: str) -> str:
    """Return the suffix of a clip's files in a folder; a sound from text has no picture."""
    return ".wav" if clip.path is None and suffix in MUX_SUFFIXES else suffix


def target_paths(out: Path, clip_id: str, suffix: str, num_samples: int) -> list[Path]:
    """Return the files of a clip's sounds: `out`, or `out`/<id><suffix>; several ones end in _0, _1, …."""
    single = out if is_file(out) else out / f"{clip_id}{suffix}"
    if num_samples == 1:
        return [single]
    stem = single.name.removesuffix(single.suffix)
    return [single.with_name(f"{stem}_{n}{single.suffix}") for n in range(num_samples)]


def replaces_input(paths: Iterable[Path], inputs: Collection[FileId]) -> bool:
    """Return whether one of the paths is one of the input files."""
    return any(_file_id(path) in inputs for path in paths)


def input_ids(clips: Iterable[InputClip]) -> set[FileId]:
    """Return what identifies the videos of clips, whatever their names; videos that are missing have none."""
    return {identity for clip in clips if clip.path and (identity := _file_id(clip.path))}


def _job(sampler: Sampler, clip: InputClip, paths: list[Path], seed: int, choices: Mapping[str, Any]) -> Job:
    settings = dataclasses.asdict(sampler.settings)
    negative_prompt = settings.pop("negative_prompt")
    request = {
        "id": clip.id,
        "files": [path.name for path in paths],
        "prompt": clip.prompt,
        "negative_prompt": negative_prompt if clip.negative_prompt is None else clip.negative_prompt,
        "seed": seed if clip.seed is None else clip.seed,
        "video": None if clip.path is None else _version(clip.path),
        "start": clip.start,
        "end": clip.end,
        **choices,
        "settings": settings,
        "weights": dict(sampler.origin),
    }
    return Job(clip, paths, request)


def _version(video: Path) -> dict[str, str | int] | None:
    """Return what changes with the content of a video, or None if it cannot be told."""
    try:
        stat = os.stat(video)
    except OSError:
        return None
    return {"name": video.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _writers(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Return the jobs that would write each file, by a name that does not depend on its Unicode form."""
    writers: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        for path in job.paths:
            writers[_one_form(path.name)].append(job)
    return writers


def _fault_of_names(job: Job, writers: Mapping[str, list[Job]]) -> str:
    """Return why the names of a clip rule it out, or an empty string."""
    clip = job.clip
    if clip.fault:
        return clip.fault
    try:
        f"{clip.id}{clip.path}{clip.prompt}{clip.negative_prompt}".encode()
    except UnicodeEncodeError:
        # The line itself must be printable.
        return f"{clip.name!a}: its name is not UTF-8 text; rename it"
    for path in job.paths:
        rivals = [other.clip for other in writers[_one_form(path.name)] if other is not job]
        if rivals:
            others = ", ".join(other.name for other in rivals)
            forms = any(other.id != clip.id and _one_form(other.id) == _one_form(clip.id) for other in rivals)
            note = " (the names differ only in their Unicode form)" if forms else ""
            return (
                f"{clip.name}: its sound {path.name} would replace that of {others}{note}; rename one of them"
            )
    return ""


def _fault_of_files(job: Job, inputs: Collection[FileId], sample_log: SampleLog | None) -> str | None:
    """Return why the files of a clip cannot be written, or None."""
    clip = job.clip
    for path in job.paths:
        if fault := _fault_of_length(path):
            return fault
        if replaces_input([path], inputs):
            return f"{clip.name}: the output {path} would replace an input video; change --out or --kind"
        try:
            if sample_log and (fault := sample_log.made_files.fault(path, clip.id)):
                return fault
        except FlowleyError as error:
            return str(error)
    return None


def _fault_of_length(path: Path) -> str | None:
    length = len(os.fsencode(path.name))
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except OSError:
        return None
    if length <= longest:
        return None
    return f"{path.name}: the file name has {length} bytes, at most {longest} are possible; shorten the id"


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _file_id(path: Path) -> FileId | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
