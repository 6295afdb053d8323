"""Caption the clips of a table, resumably, and record where every caption comes from.

`captions.jsonl` holds every answer of every run with its provenance. `captions.tsv` and `rejected.tsv` are
written from it at the end of a run.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.feature_store import digest
from data_prep.rejection import Rejection
from data_prep.soundcap.clip_view import ClipView, ViewConfig, load_view
from data_prep.soundcap.filters import clean_answer, find_problem
from data_prep.soundcap.models import REFUSED, CaptionModel
from data_prep.soundcap.prompts import Prompt
from data_prep.storage import file_stamps
from data_prep.worker_pool import WorkerPool
from flowley_jax.common.files import write_text
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.common.locks import lock_folder
from flowley_jax.common.progress import progress_bar
from flowley_jax.data.clip_table import TableClip
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
JOURNAL_FILE = "captions.jsonl"
CAPTIONS_FILE = "captions.tsv"
REJECTED_FILE = "rejected.tsv"
# A model that refuses this many clips before it has answered any is at fault, not the clips.
_MAX_FIRST_REFUSALS = 4

_NOT_IN_CELLS = str.maketrans("\t\r\n", "   ")

# A row of the journal: the id, the answer or the reason why there is none, the file's stamp, the provenance.
Answer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Settings for reading clips.

    Attributes:
      workers: number of processes that decode clips.
      time_limit: time limit for reading one clip, in seconds.
    """

    workers: int = 2
    time_limit: float = 120.0


@dataclasses.dataclass(frozen=True)
class CaptionResult:
    """The captions by clip id, and the reasons why other clips have none."""

    captions: dict[str, str]
    rejected: dict[str, Rejection]


def caption_clips(
    clips: Sequence[TableClip],
    out: Path,
    model: CaptionModel,
    prompt: Prompt,
    view: ViewConfig,
    *,
    reader: ReaderConfig | None = None,
    retry: bool = False,
) -> CaptionResult:
    """Caption every clip that has no answer in `out/captions.jsonl` yet or has changed since.

    Args:
      clips: the clips of a table.
      out: folder for the journal, `captions.tsv` (id, caption) and `rejected.tsv` (id, reason, detail).
      model: the model to ask.
      prompt: what to ask it.
      view: the part of each clip that the model gets.
      reader: settings for reading clips; the defaults if None.
      retry: whether to ask again about clips without a good caption.

    Raises:
      FlowleyError: the model cannot answer at all, `out` cannot be written, or another process writes to it.
        Calling this again resumes.
    """
    with lock_folder(out):
        return _caption_clips(clips, out, model, prompt, view, reader or ReaderConfig(), retry)


def log_summary(out: Path, clips: Sequence[TableClip], result: CaptionResult) -> None:
    """Log how many clips have a caption, and why the others have none."""
    log.info("%d of %d clips have a caption: %s", len(result.captions), len(clips), out / CAPTIONS_FILE)
    if result.rejected:
        counts = Counter(rejection.reason for rejection in result.rejected.values()).most_common()
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        log.info("no caption for %d (%s); see %s", len(result.rejected), reasons, out / REJECTED_FILE)


def _caption_clips(
    clips: Sequence[TableClip],
    out: Path,
    model: CaptionModel,
    prompt: Prompt,
    view: ViewConfig,
    reader: ReaderConfig,
    retry: bool,
) -> CaptionResult:
    provenance = _provenance(model, prompt, view)
    stamps = {path: stamp and list(stamp) for path, stamp in file_stamps(c.source for c in clips).items()}
    stamp_by_id = {clip.id: stamps[clip.source] for clip in clips}
    answers = _earlier_answers(out, provenance["made_by"], stamp_by_id)
    if retry:
        answers = {clip_id: answer for clip_id, answer in answers.items() if _judge(answer)[1] is None}
    missing = [clip for clip in clips if clip.id not in answers]
    if len(missing) < len(clips):
        done = len(clips) - len(missing)
        log.info("%d of %d clips already have an answer in %s", done, len(clips), out / JOURNAL_FILE)
    with progress_bar("captions", total=len(missing)) if missing else contextlib.nullcontext() as bar:
        for group, views in _view_groups(missing, view, model.batch_size, reader):
            new_answers = _ask(model, views, prompt)
            _check_refusals(new_answers, answers)
            for clip, answer in zip(group, new_answers, strict=True):
                row = {
                    "id": clip.id,
                    **_answer_fields(answer),
                    "file": stamp_by_id[clip.id],
                    **provenance,
                }
                answers[clip.id] = row
                append_json(out / JOURNAL_FILE, row)
            if bar is not None:
                bar.update(len(group))
    result = _result(clips, answers)
    _write_tables(out, result)
    return result


def _provenance(model: CaptionModel, prompt: Prompt, view: ViewConfig) -> dict[str, Any]:
    made_by = digest([sorted(model.identity.items()), prompt.sha256, dataclasses.asdict(view)])
    return {
        **model.identity,
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "viewing": dataclasses.asdict(view),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "made_by": made_by,
    }


def _earlier_answers(out: Path, made_by: str, stamp_by_id: Mapping[str, Any]) -> dict[str, Answer]:
    """Return the latest answers of the same model, prompt and view about files that have not changed."""
    journal = read_jsonl(out / JOURNAL_FILE)
    rows = [row for row in journal if _is_answer(row)]
    if len(rows) < len(journal):
        log.warning("%s: %d rows are no answers and not used", out / JOURNAL_FILE, len(journal) - len(rows))
    if rows and rows[-1]["made_by"] != made_by and (out / CAPTIONS_FILE).exists():
        log.warning(
            "%s: captions will be replaced, because the model, prompt or view has changed",
            out / CAPTIONS_FILE,
        )
    latest = {row["id"]: row for row in rows if row["made_by"] == made_by}
    return {
        clip_id: answer for clip_id, answer in latest.items() if answer["file"] == stamp_by_id.get(clip_id)
    }


def _is_answer(row: Mapping[str, Any]) -> bool:
    """Return whether a row of the journal can be judged; other versions and other programs write it too."""
    words = ("text",) if "text" in row else ("reason", "detail")
    return "file" in row and all(isinstance(row.get(name), str) for name in ("id", "made_by", *words))


def _view_groups(
    clips: Sequence[TableClip], view: ViewConfig, size: int, reader: ReaderConfig
) -> Iterator[tuple[Sequence[TableClip], list[ClipView | Rejection]]]:
    """Yield groups of clips with their views; the next group is read while the model answers."""
    if not clips:
        return
    groups = [clips[start : start + size] for start in range(0, len(clips), size)]
    pool = WorkerPool(functools.partial(load_view, view), count=reader.workers, time_limit=reader.time_limit)
    with concurrent.futures.ThreadPoolExecutor(1) as prefetcher, contextlib.closing(pool):

        def read(group: Sequence[TableClip]) -> concurrent.futures.Future[list[ClipView | Rejection]]:
            return prefetcher.submit(lambda: list(pool.map((clip.source,) for clip in group)))

        next_views = read(groups[0])
        for index, group in enumerate(groups):
            views = next_views.result()
            if index + 1 < len(groups):
                next_views = read(groups[index + 1])
            yield group, views


def _ask(model: CaptionModel, views: Sequence[ClipView | Rejection], prompt: Prompt) -> list[str | Rejection]:
    """Return the model's answer for each readable clip, and the rejection of each other clip."""
    readable = [view for view in views if isinstance(view, ClipView)]
    answers = iter(model(readable, prompt.text) if readable else [])
    return [view if isinstance(view, Rejection) else next(answers) for view in views]


def _check_refusals(new_answers: Sequence[str | Rejection], answers: Mapping[str, Answer]) -> None:
    """Raise a FlowleyError if the model has refused several clips and answered none so far."""
    if any(isinstance(answer, str) for answer in new_answers):
        return
    if any("text" in answer for answer in answers.values()):
        return
    refusals = [
        answer.detail for answer in new_answers if isinstance(answer, Rejection) and answer.reason == REFUSED
    ]
    if len(refusals) >= _MAX_FIRST_REFUSALS:
        raise FlowleyError(f"the model refuses all of the first {len(refusals)} clips ({refusals[0]})")


def _answer_fields(answer: str | Rejection) -> dict[str, str]:
    if isinstance(answer, Rejection):
        return {"reason": answer.reason, "detail": answer.detail}
    return {"text": answer}


def _judge(answer: Answer) -> tuple[str, Rejection | None]:
    """Return the caption of an answer, and the reason if it cannot be used."""
    if "text" not in answer:
        return "", Rejection(answer["reason"], answer["detail"])
    caption = clean_answer(answer["text"])
    problem = find_problem(caption)
    return caption, None if problem is None else Rejection(problem[0], f"{problem[1]}: {caption[:200]}")


def _result(clips: Sequence[TableClip], answers: Mapping[str, Answer]) -> CaptionResult:
    result = CaptionResult({}, {})
    for clip in clips:
        caption, rejection = _judge(answers[clip.id])
        if rejection is None:
            result.captions[clip.id] = caption
        else:
            result.rejected[clip.id] = rejection
    return result


def _write_tables(out: Path, result: CaptionResult) -> None:
    captions = [(clip_id, caption) for clip_id, caption in result.captions.items()]
    rejected = [
        (clip_id, rejection.reason, " ".join(rejection.detail.split()))
        for clip_id, rejection in result.rejected.items()
    ]
    _write_table(out / CAPTIONS_FILE, [("id", "caption"), *captions])
    _write_table(out / REJECTED_FILE, [("id", "reason", "detail"), *rejected])


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    # Ids may be file names: with tabs, line ends, and bytes that are not UTF-8.
    lines = ["\t".join(cell.translate(_NOT_IN_CELLS) for cell in row) + "\n" for row in rows]
    write_text(path, "".join(lines).encode(errors="replace").decode())
