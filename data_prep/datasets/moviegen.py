"""The clip table of MovieGen Audio Bench (data_prep.moviegen says what it holds)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.clip_files import ENDINGS, files_below
from data_prep.clip_set import clip_of, write_clips, write_rows
from data_prep.tables import Kind, read_table
from flowley_jax.errors import FlowleyError

# Their numbers go beyond it, since some are left out.
CLIPS = 527
PROMPTS_FILE = "MovieGenAudioBenchSfx.jsonl"
_SHOWN = 12


def make_table(root: str | Path, out: str | Path, *, prompts: str | Path | None = None) -> None:
    """Writes the table and what is missing, and says whether it is whole.

    Raises:
      FlowleyError: root has no video or no prompts, or the prompts are damaged, not of this benchmark or
        there several times.
    """
    files, out = files_below(Path(root)), Path(out)
    captions = _prompts_of(Path(root), files) if prompts is None else _of_lines(Path(prompts))
    _refuse_others(prompts or root, captions)
    videos = _videos(files)
    whole = [clip_id for clip_id in _in_order(captions) if clip_id in videos]
    if not whole:
        raise FlowleyError(f"{root}: has no video of the benchmark, such as video_with_audio/0.mp4")
    write_clips(
        out,
        [
            clip_of(clip_id=one, file=videos[one], caption=captions[one], split="test", label="")
            for one in whole
        ],
    )
    lacks = {
        "video": [clip_id for clip_id in _in_order(captions) if clip_id not in videos],
        "prompt": [clip_id for clip_id in _in_order(videos) if clip_id not in captions],
    }
    listed = out.with_name(f"{out.stem}_missing.tsv")
    write_rows(listed, ("id", "lacks"), ((one, what) for what, ids in lacks.items() for one in ids))
    print(f"{len(whole)} of {CLIPS} clips are in {out}: {len(whole)} test")
    if len(captions) != CLIPS:
        print(f"there are {len(captions)} prompts; the benchmark has {CLIPS}")
    for what, ids in lacks.items():
        if ids:
            more = f" and more, see {listed}" if len(ids) > _SHOWN else ""
            print(f"{len(ids)} have no {what}: {', '.join(ids[:_SHOWN])}{more}")


def _prompts_of(root: Path, files: Sequence[Path]) -> dict[str, str]:
    together = [path for path in files if path.name == PROMPTS_FILE]
    if len(together) > 1:
        raise FlowleyError(f"{root}: has {together[0]} and {together[1]}; choose one by --prompts")
    if together:
        return _of_lines(together[0])
    single = [path for path in files if path.suffix == ".jsonl" and path.stem.isdecimal()]
    if not single:
        raise FlowleyError(f"{root}: has neither {PROMPTS_FILE} nor files as 0.jsonl; name one by --prompts")
    captions: dict[str, str] = {}
    for path in single:
        if path.stem in captions:
            raise FlowleyError(f"{path}: prompts of clip {path.stem} are there twice")
        captions[path.stem] = _single_prompt(path)
    return captions


def _of_lines(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for row in read_table(path, Kind.MOVIEGEN).without_faults():
        if row.id in captions:
            raise FlowleyError(f"{path}, line {row.line}: id {row.id} occurs twice")
        captions[row.id] = row.caption
    return captions


def _single_prompt(path: Path) -> str:
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))["audio_prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlowleyError(f"{path}: must be one JSON object with the key audio_prompt") from error
    if not isinstance(prompt, str):
        raise FlowleyError(f"{path}: audio_prompt is {prompt!r}; expected a text")
    return prompt


def _refuse_others(where: str | Path, captions: Mapping[str, str]) -> None:
    if others := sorted(clip_id for clip_id in captions if not clip_id.isdecimal()):
        raise FlowleyError(f"{where}: has a prompt of clip {others[0]!r}; those of the benchmark are numbers")


def _in_order(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=int)


def _videos(files: Sequence[Path]) -> dict[str, Path]:
    """By id; of several, the one in video_with_audio, then the one least deep."""
    found: dict[str, Path] = {}
    wanted = [path for path in files if path.suffix in ENDINGS and path.stem.isdecimal()]
    for path in sorted(wanted, key=lambda path: (path.parent.name != "video_with_audio", len(path.parts))):
        found.setdefault(path.stem, path)
    return found
