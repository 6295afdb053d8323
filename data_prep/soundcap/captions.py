"""Captions for the clips of a table, resumably, with provenance."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.decoder import DecoderPool
from data_prep.files import alone_in, stamps_of
from data_prep.progress import progress_bar
from data_prep.rejection import Rejection
from data_prep.soundcap.filters import cleaned, fault_of
from data_prep.soundcap.journal import Answer, Journal
from data_prep.soundcap.look import Seen, Viewing, look
from data_prep.soundcap.models import REFUSED, CaptionModel
from data_prep.soundcap.prompts import Prompt
from data_prep.store import digest_of
from flowley_jax.data.clip_table import Clip
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text

log = logging.getLogger(__name__)
JOURNAL_FILE = "captions.jsonl"
CAPTIONS_FILE = "captions.tsv"
REJECTED_FILE = "rejected.tsv"
# So many clips that a model refuses at once, before it has answered any, are the model's fault.
_TELLING = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How clips are read: processes that decode, and seconds after which one clip is given up."""

    decoders: int = 2
    time_limit: float = 120.0


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Captions by id, and why there is none for other clips."""

    captions: dict[str, str]
    rejected: dict[str, Rejection]


def caption_clips(
    clips: Sequence[Clip],
    out: Path,
    model: CaptionModel,
    prompt: Prompt,
    viewing: Viewing,
    *,
    reading: Reading | None = None,
    retry: bool = False,
) -> Captioned:
    """Asks the model about every clip that has no answer yet in `out/captions.jsonl`, or has changed since.

    Args:
      out: folder for the journal, `captions.tsv` (id, caption) and `rejected.tsv` (id, reason, detail).
      retry: whether clips without a good caption are asked about again.

    Raises:
      FlowleyError: the model answers nothing at all, the disk refuses, or another process writes to `out`;
        running it again goes on.
    """
    with alone_in(out):
        return _caption_clips(clips, out, model, prompt, viewing, reading or Reading(), retry)


def _caption_clips(
    clips: Sequence[Clip],
    out: Path,
    model: CaptionModel,
    prompt: Prompt,
    viewing: Viewing,
    reading: Reading,
    retry: bool,
) -> Captioned:
    made_by = _made_by(model, prompt, viewing)
    journal = Journal(out / JOURNAL_FILE)
    if (out / CAPTIONS_FILE).exists() and journal.last() not in (made_by, None):
        log.warning("%s gets captions of this model, prompt and way of showing now", out / CAPTIONS_FILE)
    stamps = {path: stamp and list(stamp) for path, stamp in stamps_of(c.source for c in clips).items()}
    files = {clip.id: stamps[clip.source] for clip in clips}
    answers = {k: answer for k, answer in journal.of(made_by).items() if answer["file"] == files.get(k)}
    if retry:
        answers = {key: answer for key, answer in answers.items() if _judged(answer)[1] is None}
    todo = [clip for clip in clips if clip.id not in answers]
    if len(todo) < len(clips):
        already = len(clips) - len(todo)
        log.info("%d of %d clips have an answer already in %s", already, len(clips), journal.path)
    provenance = _provenance(model, prompt, viewing, made_by)
    with progress_bar("captions", total=len(todo)) if todo else contextlib.nullcontext() as bar:
        for group, seen in _groups(todo, viewing, model.at_once, reading):
            found = _answers(seen, model, prompt)
            _check_some(found, answers)
            for clip, answer in zip(group, found, strict=True):
                answers[clip.id] = {"id": clip.id, **_stored(answer), "file": files[clip.id], **provenance}
                journal.add(answers[clip.id])
            if bar is not None:
                bar.update(len(group))
    captioned = _sorted_out(clips, answers)
    _write(out, captioned)
    return captioned


def tell(out: Path, clips: Sequence[Clip], captioned: Captioned) -> None:
    """Says how many clips have a caption, and why others have none."""
    log.info("%d of %d clips have a caption: %s", len(captioned.captions), len(clips), out / CAPTIONS_FILE)
    if captioned.rejected:
        counts = Counter(one.reason for one in captioned.rejected.values()).most_common()
        listed = ", ".join(f"{number} {reason}" for reason, number in counts)
        log.info("without: %d (%s); see %s", len(captioned.rejected), listed, out / REJECTED_FILE)


def _made_by(model: CaptionModel, prompt: Prompt, viewing: Viewing) -> str:
    return digest_of([sorted(model.identity.items()), prompt.sha256, dataclasses.asdict(viewing)])


def _provenance(model: CaptionModel, prompt: Prompt, viewing: Viewing, made_by: str) -> dict[str, Any]:
    return {
        **model.identity,
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "viewing": dataclasses.asdict(viewing),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "made_by": made_by,
    }


def _groups(
    clips: Sequence[Clip], viewing: Viewing, size: int, reading: Reading
) -> Iterator[tuple[Sequence[Clip], list[Seen | Rejection]]]:
    """Clips as the model is shown them; while it answers about some, the next are read."""
    if not clips:
        return
    groups = [clips[start : start + size] for start in range(0, len(clips), size)]
    pool = DecoderPool(
        functools.partial(look, viewing), count=reading.decoders, time_limit=reading.time_limit
    )
    with concurrent.futures.ThreadPoolExecutor(1) as ahead, contextlib.closing(pool):

        def read(group: Sequence[Clip]):
            return ahead.submit(lambda: list(pool.map((clip.source,) for clip in group)))

        following = read(groups[0])
        for index, group in enumerate(groups):
            seen = following.result()
            if index + 1 < len(groups):
                following = read(groups[index + 1])
            yield group, seen


def _answers(seen: Sequence[Seen | Rejection], model: CaptionModel, prompt: Prompt) -> list[str | Rejection]:
    usable = [one for one in seen if isinstance(one, Seen)]
    answers = iter(model(usable, prompt.text) if usable else [])
    return [one if isinstance(one, Rejection) else next(answers) for one in seen]


def _check_some(found: Sequence[str | Rejection], before: dict[str, Answer]) -> None:
    """Raises a FlowleyError if a model has refused several clips and answered none so far."""
    if any(isinstance(one, str) for one in found) or any("text" in one for one in before.values()):
        return
    refused = [one.detail for one in found if isinstance(one, Rejection) and one.reason == REFUSED]
    if len(refused) >= _TELLING:
        raise FlowleyError(f"the model refuses all of the first {len(refused)} clips ({refused[0]})")


def _stored(answer: str | Rejection) -> dict[str, str]:
    if isinstance(answer, Rejection):
        return {"reason": answer.reason, "detail": answer.detail}
    return {"text": answer}


def _judged(answer: Answer) -> tuple[str, Rejection | None]:
    """The caption in an answer, or why there is none."""
    if "text" not in answer:
        return "", Rejection(answer["reason"], answer["detail"])
    caption = cleaned(answer["text"])
    fault = fault_of(caption)
    return caption, None if fault is None else Rejection(fault[0], f"{fault[1]}: {caption[:200]}")


def _sorted_out(clips: Sequence[Clip], answers: dict[str, Answer]) -> Captioned:
    captioned = Captioned({}, {})
    for clip in clips:
        caption, rejection = _judged(answers[clip.id])
        if rejection is None:
            captioned.captions[clip.id] = caption
        else:
            captioned.rejected[clip.id] = rejection
    return captioned


def _write(out: Path, captioned: Captioned) -> None:
    lines = [f"{clip_id}\t{caption}\n" for clip_id, caption in captioned.captions.items()]
    write_text(out / CAPTIONS_FILE, "id\tcaption\n" + "".join(lines))
    lines = [
        f"{clip_id}\t{one.reason}\t{' '.join(one.detail.split())}\n"
        for clip_id, one in captioned.rejected.items()
    ]
    write_text(out / REJECTED_FILE, "id\treason\tdetail\n" + "".join(lines))
