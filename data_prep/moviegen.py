"""Make the clip table of MovieGen Audio Bench: python -m data_prep.moviegen --root DIR --out clips.tsv

The benchmark has 527 numbered clips, all in the test split. The videos are files `<id>.mp4` anywhere below
the root; a folder video_with_audio is preferred. The prompts are lines of MovieGenAudioBenchSfx.jsonl or, in
the layout of MMAudio, files `<id>.jsonl`. Nothing is downloaded. Clips without a file or a prompt are listed
in `<out>_missing.tsv`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from data_prep.clip_files import files_below
from data_prep.table_formats import TableFormat, read_table
from data_prep.table_making import check_outputs, define_overwrite, make_clip, missing_list_path, write_tsv
from flowley_jax.cli import run_main
from flowley_jax.common.files import lfs_note
from flowley_jax.data.clip_table import write_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import is_video

# Number of clips; ids go higher because some are unused.
CLIPS = 527
PROMPTS_FILE = "MovieGenAudioBenchSfx.jsonl"
_SHOWN_IDS = 12


def main() -> None:
    """Run the command line."""
    values = flags.FLAGS
    make_table(values.root, values.out, prompts=values.prompts, overwrite=values.overwrite)


def make_table(
    root: str | Path, out: str | Path, *, prompts: str | Path | None = None, overwrite: bool = False
) -> None:
    """Write the clip table and the list of missing clips, and print whether the benchmark is complete.

    Args:
      root: folder with the videos and the prompts.
      out: clip table to write.
      prompts: file with the prompts, if it is not below `root`.
      overwrite: whether existing files are replaced.

    Raises:
      FlowleyError: there are no videos or no prompts, the prompts are damaged, repeated or not those of this
        benchmark, or a file exists that may not be replaced.
    """
    out = Path(out)
    check_outputs(out, missing_list_path(out), overwrite=overwrite)
    files = files_below(Path(root))
    captions = _find_prompts(Path(root), files) if prompts is None else _read_prompts(Path(prompts))
    _check_ids(prompts or root, captions)
    videos = _find_videos(files)
    complete = [clip_id for clip_id in _sort_ids(captions) if clip_id in videos]
    if not complete:
        raise FlowleyError(f"{root}: has no video of the benchmark, such as video_with_audio/0.mp4")
    write_clip_table(
        out,
        [
            make_clip(
                clip_id=clip_id, file=videos[clip_id], caption=captions[clip_id], split="test", label=""
            )
            for clip_id in complete
        ],
    )
    lacking = {
        "video": [clip_id for clip_id in _sort_ids(captions) if clip_id not in videos],
        "prompt": [clip_id for clip_id in _sort_ids(videos) if clip_id not in captions],
    }
    rows = ((clip_id, kind) for kind, ids in lacking.items() for clip_id in ids)
    write_tsv(missing_list_path(out), ("id", "lacks"), rows)
    print(f"{out}: {len(complete)} of {CLIPS} clips: {len(complete)} test")
    if len(captions) != CLIPS:
        print(f"found {len(captions)} prompts; the benchmark has {CLIPS}")
    for kind, ids in lacking.items():
        if ids:
            more = f" and more, see {missing_list_path(out)}" if len(ids) > _SHOWN_IDS else ""
            print(f"without a {kind}: {len(ids)} ({', '.join(ids[:_SHOWN_IDS])}{more})")


def _find_prompts(root: Path, files: Sequence[Path]) -> dict[str, str]:
    whole = [path for path in files if path.name == PROMPTS_FILE]
    if len(whole) > 1:
        raise FlowleyError(f"{root}: has {whole[0]} and {whole[1]}; choose one with --prompts")
    if whole:
        return _read_prompts(whole[0])
    single = [path for path in files if path.suffix.lower() == ".jsonl" and path.stem.isdecimal()]
    if not single:
        raise FlowleyError(
            f"{root}: has neither {PROMPTS_FILE} nor files such as 0.jsonl; name a file with --prompts"
        )
    captions: dict[str, str] = {}
    for path in single:
        if path.stem in captions:
            raise FlowleyError(f"{path}: a second file with the prompt of clip {path.stem}")
        captions[path.stem] = _read_prompt(path)
    return captions


def _read_prompts(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for row in read_table(path, TableFormat.MOVIEGEN).checked_rows():
        if row.id in captions:
            raise FlowleyError(f"{path}, line {row.line}: id {row.id} occurs twice")
        captions[row.id] = row.caption
    return captions


def _read_prompt(path: Path) -> str:
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))["audio_prompt"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        expected = lfs_note(path) or "must be one JSON object with the key audio_prompt"
        raise FlowleyError(f"{path}: {expected}") from error
    if not isinstance(prompt, str):
        raise FlowleyError(f"{path}: audio_prompt={prompt!r} must be a string")
    return prompt


def _check_ids(source: str | Path, captions: Mapping[str, str]) -> None:
    if others := sorted(clip_id for clip_id in captions if not clip_id.isdecimal()):
        raise FlowleyError(
            f"{source}: has a prompt of clip {others[0]!r}; the ids of the benchmark are numbers"
        )


def _sort_ids(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=int)


def _find_videos(files: Sequence[Path]) -> dict[str, Path]:
    """Return videos by id, preferring video_with_audio, then the fewest folders above the file."""
    videos: dict[str, Path] = {}
    numbered = [path for path in files if is_video(path) and path.stem.isdecimal()]
    for path in sorted(numbered, key=lambda path: (path.parent.name != "video_with_audio", len(path.parts))):
        videos.setdefault(path.stem, path)
    return videos


if __name__ == "__main__":
    # Defined here because programs that import several of these modules would define some flags twice.
    flags.DEFINE_string("root", None, "Folder with the videos and the prompts.", required=True)
    flags.DEFINE_string("prompts", None, "File with the prompts, if it is not below --root.")
    flags.DEFINE_string("out", None, "Clip table to write.", required=True)
    define_overwrite()
    run_main(main)
