"""Evaluate systems on the clips of a table: extract features, and score them in the rows of one table."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.common.files import sha256, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.progress import progress_bar
from flowley_jax.data.clip_table import TableClip
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import Interval
from flowley_jax.evaluation.captions import ClapCaptions
from flowley_jax.evaluation.comparison import compare_systems
from flowley_jax.evaluation.embedded_tagger import Readers, embedded_tagger
from flowley_jax.evaluation.extraction import (
    Evaluator,
    Evaluators,
    available,
    extract,
    file_fingerprint,
)
from flowley_jax.evaluation.extractors import EXTRACTORS, MOTION, PICTURE, SOUND
from flowley_jax.evaluation.feature_metrics import ScoreOptions
from flowley_jax.evaluation.feature_scores import FeatureScores
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.labels import classes_of, targets
from flowley_jax.evaluation.networks import find_networks, offset_head
from flowley_jax.evaluation.preparation import Preparation
from flowley_jax.evaluation.rows import CODEC, score_rows
from flowley_jax.evaluation.sounds import one_form, sound_files
from flowley_jax.evaluation.synchrony import round_trip
from flowley_jax.interop.bundles import Bundle
from flowley_jax.media.read import read_audio
from flowley_jax.media.write import write_audio

log = logging.getLogger(__name__)
TAGGER_FILE = "tagger.safetensors"
FEATURES_FOLDER, CODEC_FOLDER = "features", "codec"
REFERENCE = "reference"
_CODEC_NOTE, _CODEC_SOURCES = "codec.txt", "sources.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How clips are evaluated.

    Attributes:
      seconds: length that the networks take, from the start of each clip.
      networks: folder of bundles of evaluation networks; None for none of them.
      tagger: file of the embedded tagger, which is trained if there is none; None for one in the folder of
        the evaluation.
      dtype: compute type of the networks.
      captions: text that LAION-CLAP compares sounds with: "caption" (column text_description) or "label".
      real_sound: whether the videos of the table have the real sound.
      av_align: whether to compute AV-Align, whose optical flow takes long for large pictures.
      bandwidth: the side that decides the bandwidth of KAD.
      resamples: resampled sets of clips for the intervals of distances and Inception scores; 0 for no
        intervals and no differences.
      tolerance: largest distance of an onset from its event, in seconds.
    """

    seconds: float = 8.0
    networks: Path | None = None
    tagger: Path | None = None
    dtype: str = "float32"
    captions: str = "caption"
    real_sound: bool = True
    av_align: bool = True
    bandwidth: str = "reference"
    resamples: int = 100
    tolerance: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of systems on the clips of a table.

    Attributes:
      rows: scores by row, see `rows`.
      differences: metrics minus those of the first system, by system and metric; see `comparison`.
      missing: ids of clips of the table without a sound, by system.
      left_out: ids of sounds that are not in the table, by system.
      failed: one line for each clip, or each extractor of a clip, that gave no features, by folder.
      networks: names of the networks that were available.
    """

    rows: dict[str, FeatureScores]
    differences: dict[str, dict[str, Interval]]
    missing: dict[str, list[str]]
    left_out: dict[str, list[str]]
    failed: dict[str, list[str]]
    networks: list[str]


def evaluate_clips(
    clips: Sequence[TableClip],
    systems: Mapping[str, Path],
    out: Path,
    settings: EvaluationSettings,
    *,
    readers: Readers,
    training: Sequence[TableClip] = (),
    events: Mapping[str, np.ndarray] | None = None,
    components: Components | None = None,
) -> Evaluation:
    """Extract the features of the clips and of each system's sounds, and score them.

    Features stay in the sub-folder `features` of `out`, and are not computed again next time.

    Args:
      clips: clips to evaluate; their videos are the reference.
      systems: folder of each system's sounds, which are named by clip id, by the name of the system.
      out: folder for the features, the tagger and the sounds of the codec.
      settings: how to evaluate.
      readers: source of the processes that read files.
      training: clips whose real sounds and labels train the embedded tagger; without any, there is none.
      events: true times of events in seconds, by clip id, for the scores of onsets.
      components: components of a run, for the row of its codec.

    Raises:
      FlowleyError: a folder cannot be used, no clip of the table has a sound of some system, or no metric has
        a value.
    """
    run = _Run(clips, out, settings, readers, events)
    # First, because all else takes long.
    sounds = {name: run.sounds_of(name, folder) for name, folder in systems.items()}
    run.add_networks(training)
    run.extract_reference()
    for name, files in sounds.items():
        run.extract(name, files, SOUND)
    if components is not None and settings.real_sound:
        run.extract(CODEC, run.round_trips(components), SOUND)
    log.info("scoring")
    features, options = {name: run.features(name) for name in systems}, run.score_options()
    codec = run.features(CODEC) if CODEC in run.extracted else None
    try:
        rows = score_rows(features, run.features(REFERENCE), options, codec=codec)
    except FlowleyError as error:
        lines = [line for lines in run.failed.values() for line in lines]
        if not lines:
            raise
        raise FlowleyError(f"{error}; {len(lines)} features are missing, the first: {lines[0]}") from error
    return Evaluation(
        rows=rows,
        differences=compare_systems(features, run.features(REFERENCE), options),
        missing=run.missing,
        left_out=run.left_out,
        failed=run.failed,
        networks=list(run.evaluators.networks),
    )


class _Run:
    """One evaluation: its networks, and what has been extracted."""

    def __init__(
        self,
        clips: Sequence[TableClip],
        out: Path,
        settings: EvaluationSettings,
        readers: Readers,
        events: Mapping[str, np.ndarray] | None,
    ):
        self.clips = {one_form(clip.id): clip for clip in clips}
        self.out, self.settings, self.readers = out, settings, readers
        self.events = None if events is None else self._known_events(events)
        self.evaluators, self.classes = Evaluators({}), ()
        # Clips by folder and kind of features; others may be left from an earlier evaluation.
        self.extracted: dict[str, dict[str, set[str]]] = {}
        self.missing: dict[str, list[str]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.failed: dict[str, list[str]] = {}

    def folder(self, name: str) -> Path:
        """Return the folder of features of a system, or of the reference."""
        return self.out / FEATURES_FOLDER / name

    def features(self, name: str) -> FeatureSet:
        """Return the features that this evaluation has extracted into a folder."""
        return FeatureSet(self.folder(name)).only(self.extracted[name])

    def add_networks(self, training: Sequence[TableClip]) -> None:
        """Find the bundles, and train the embedded tagger or load it."""
        networks = {}
        if self.settings.networks is not None:
            networks = find_networks(self.settings.networks, self.settings.dtype)
            if "clap" in networks:
                # Not after hours of extraction.
                self._bundle("clap").check_tokenizer()
        if training:
            path = self.settings.tagger or self.out / TAGGER_FILE
            tagger = embedded_tagger(training, path, seconds=self.settings.seconds, readers=self.readers)
            networks["tagger"] = Evaluator(identity=sha256(path), load=lambda: tagger)
            self.classes = tagger.config.classes
        self.evaluators = Evaluators(networks)

    def sounds_of(self, system: str, folder: Path) -> dict[str, str]:
        """Return the files of a system's sounds by clip id, of clips that are in the table."""
        files = sound_files(folder)
        self.failed[system] = [*files.unreadable]
        self.missing[system] = sorted(self.clips.keys() - files.paths.keys())
        self.left_out[system] = sorted(files.paths.keys() - self.clips.keys())
        if close := _differ_in_case(self.missing[system], self.left_out[system]):
            self.failed[system].append(f"{close[0]}: {close[1]} differs in upper and lower case only")
        found = {clip: str(path) for clip, path in files.paths.items() if clip in self.clips}
        if not found:
            raise FlowleyError(
                f"{folder}: none of its sounds belongs to a clip of the table; the ids are like "
                f"{next(iter(files.paths), '(none)')!r} and {next(iter(self.clips))!r}"
            )
        return found

    def extract_reference(self) -> None:
        """Extract the features of real sounds, pictures, captions, labels and events."""
        videos = {name: str(clip.video_path) for name, clip in self.clips.items()}
        # A picture that takes too long costs no features of the sound.
        if self.settings.real_sound:
            self.extract(REFERENCE, videos, SOUND)
        if pictures := available(PICTURE, self.evaluators):
            self.extract(REFERENCE, videos, pictures)
        if self.settings.av_align:
            self.extract(REFERENCE, videos, MOTION)
        if "clap" in self.evaluators.networks:
            tokens = ClapCaptions(bundle=self._bundle("clap"))
            captions = {
                name: text
                for name, clip in self.clips.items()
                if (text := clip.label if self.settings.captions == "label" else clip.caption)
            }
            self._extract_texts("captions", captions, lambda text: {"ids": tokens([text])[0]})
        if self.classes:
            labels = self._known_labels()
            self._extract_texts(
                "labels", labels, lambda label: {"tagger_labels": targets([label], self.classes)[0]}
            )
        if self.events is not None:
            events = {name: json.dumps(times.tolist()) for name, times in self.events.items()}
            self._extract_texts("events", events, lambda text: {"events": np.array(json.loads(text), float)})

    def extract(self, name: str, files: Mapping[str, str], extractors: Iterable[str]) -> None:
        """Extract the features of files by clip id into a folder."""
        names = available(extractors, self.evaluators)
        preparation = Preparation(tuple(names), self.settings.seconds)
        log.info("%s: extracting %s", name, ", ".join(names))
        with self.readers(preparation) as read, progress_bar(name, total=len(files)) as bar:
            failed = extract(
                files,
                names,
                self.evaluators,
                self.folder(name),
                seconds=self.settings.seconds,
                read=read,
                fingerprint=file_fingerprint,
                progress=bar.update,
            )
        self.failed.setdefault(name, []).extend(failed)
        self._add_extracted(name, files, names)

    def round_trips(self, components: Components) -> dict[str, str]:
        """Encode and decode the real sounds, write them, and return the files by clip id."""
        folder, rate = self.out / CODEC_FOLDER, components.sample_rate
        self._claim_codec_folder(folder, components)
        sources = read_json_object(folder / _CODEC_SOURCES) if (folder / _CODEC_SOURCES).exists() else {}
        files = {}
        log.info("encoding and decoding the real sounds")
        bar = progress_bar(CODEC, total=len(self.clips))
        for name, clip in self.clips.items():
            bar.update()
            path = folder / f"{name}.wav"
            files[name], source = str(path), file_fingerprint(str(clip.video_path))
            if path.is_file() and sources.get(name) == source:
                continue
            try:
                wave = read_audio(clip.video_path, sample_rate=rate, seconds=self.settings.seconds)
                write_audio(path, round_trip(wave, components)[: len(wave)], rate)
                sources[name] = source
            except FlowleyError as error:
                self.failed.setdefault(CODEC, []).append(f"{name}: {error}")
                del files[name]
        bar.close()
        write_text(folder / _CODEC_SOURCES, json.dumps(sources) + "\n")
        return files

    def score_options(self) -> ScoreOptions:
        """Return how features are compared."""
        return ScoreOptions(
            bandwidth=self.settings.bandwidth,
            resamples=self.settings.resamples,
            offset_logits=offset_head(self.evaluators),
            classes=self.classes,
            tolerance=self.settings.tolerance,
        )

    def _claim_codec_folder(self, folder: Path, components: Components) -> None:
        """Create the folder of the codec's sounds, or check that they are of this codec and length."""
        note, path = f"{components.identity} {self.settings.seconds:g} s\n", folder / _CODEC_NOTE
        if not path.exists():
            if folder.is_dir() and any(folder.iterdir()):
                raise FlowleyError(
                    f"{folder}: holds files of another program; choose another folder for --out"
                )
            write_text(path, note)
        elif path.read_text(encoding="utf-8") != note:
            raise FlowleyError(f"{folder}: has sounds of another codec, or of another length; remove it")

    def _known_events(self, events: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = {name: times for name, times in events.items() if name in self.clips}
        if not known:
            raise FlowleyError(
                "the file of events names no clip of the table; its ids are like "
                f"{next(iter(events), '')!r}, those of the table like {next(iter(self.clips))!r}"
            )
        return known

    def _known_labels(self) -> dict[str, str]:
        """Return the labels by clip id that the tagger knows; other clips are named and left out."""
        labels = {}
        for name, clip in self.clips.items():
            unknown = [part for part in classes_of(clip.label) if part not in self.classes]
            if unknown:
                self.failed.setdefault(REFERENCE, []).append(
                    f"{name}: labels: no training clip of the tagger has the class {unknown[0]!r}"
                )
            elif clip.label:
                labels[name] = clip.label
        return labels

    def _add_extracted(self, name: str, clips: Iterable[str], extractors: Iterable[str]) -> None:
        by_kind, ids = self.extracted.setdefault(name, {}), set(clips)
        for extractor in extractors:
            for kind in EXTRACTORS[extractor].kinds:
                by_kind.setdefault(kind, set()).update(ids)

    def _extract_texts(
        self, extractor: str, texts: Mapping[str, str], prepare: Callable[[str], dict[str, np.ndarray]]
    ) -> None:
        def read(calls: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[Any]:
            return ({extractor: prepare(text)} for text, _ in calls)

        self._add_extracted(REFERENCE, texts, [extractor])
        extract(
            texts,
            [extractor],
            self.evaluators,
            self.folder(REFERENCE),
            seconds=self.settings.seconds,
            read=read,
        )

    def _bundle(self, name: str) -> Bundle:
        assert self.settings.networks is not None
        return Bundle.open(self.settings.networks / name)


def _differ_in_case(ids: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first id and name that differ in case only."""
    by_folded = {name.casefold(): name for name in names}
    return next(((name, by_folded[name.casefold()]) for name in ids if name.casefold() in by_folded), None)
