"""Evaluation of a run as it trains: clips of the valid split are sampled, decoded and scored.

Records hold latents and no sounds. So the reference is the sound of the clips' own latents, decoded by the
codec and the vocoder of the run. The processes of a run share the clips; each uses its own devices.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.common import distributed
from flowley_jax.config import ExperimentConfig
from flowley_jax.data.components import Components
from flowley_jax.data.record import Example, arrays_of, open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.captions import ClapCaptions
from flowley_jax.evaluation.decoded_tagger import AT_ONCE, decoded_sounds, decoded_tagger
from flowley_jax.evaluation.extraction import Arrays, Evaluator, Evaluators, available
from flowley_jax.evaluation.extractors import EXTRACTORS
from flowley_jax.evaluation.feature_scores import ScoreOptions, score_features
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.labels import classes_of, targets
from flowley_jax.evaluation.networks import find_networks
from flowley_jax.evaluation.preparation import ClipMedia, prepare
from flowley_jax.evaluation.shares import gathered, in_all, own_rows
from flowley_jax.flow.sampler import sample_latents
from flowley_jax.flow.windows import plan_windows
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.torch_files import StoredTensor
from flowley_jax.model.flowley import abstract_model
from flowley_jax.sampling.batches import Track, latents_of, room_for, window_batch
from flowley_jax.sampling.clips import EncodedClip
from flowley_jax.sampling.decoding import decode_tracks
from flowley_jax.sampling.sampler import Sampler
from flowley_jax.training import loop
from flowley_jax.training.evaluation import EvaluationStopped
from flowley_jax.training.loop import Outcome

# Extractors with metrics that need no picture.
NAMES = ("panns", "vggish", "passt", "clap", "tagger")
_DTYPE = "float32"


def train(config: ExperimentConfig, workdir: Path) -> Outcome:
    """Train as `training.loop.train` does, with the evaluations that `train.evaluate_every` asks for."""
    return loop.train(config, workdir, prepare_evaluation=start_evaluation)


def start_evaluation(config: ExperimentConfig, workdir: Path, components: Components) -> "RunEvaluation":
    """Prepare the evaluations of a run; this is a `training.evaluation.PrepareEvaluation`.

    Raises:
      FlowleyError: the valid split has fewer than two clips with sound; there are no networks, and the labels
        of the training clips do not allow to train the embedded tagger; or a bundle or a record is damaged.
    """
    records = Path(config.data.records)
    examples = in_all(lambda: _valid_clips(records, config.train.evaluate_clips))
    networks = in_all(lambda: _networks(config.train.evaluate_networks))
    tagger = decoded_tagger(records, workdir, components)
    if tagger is not None:
        networks["tagger"] = Evaluator(identity="", load=lambda: tagger)
    if not networks:
        raise FlowleyError(
            f"train.evaluate_every={config.train.evaluate_every} has nothing to score sounds with: name "
            f"bundles in train.evaluate_networks, or label the training clips of {records} for the embedded "
            "tagger"
        )
    classes = tagger.config.classes if tagger is not None else ()
    own = [examples[row] for row in own_rows(len(examples))]
    evaluators = Evaluators(networks)
    sounds = in_all(lambda: _features_of_records(own, components, evaluators))
    texts = in_all(lambda: _features_of_texts(examples, config, evaluators, classes))
    return RunEvaluation(
        config=config,
        workdir=workdir,
        components=components,
        own=own,
        count=len(examples),
        networks=networks,
        classes=classes,
        reference={**_by_clip(gathered(sounds, len(examples))), **texts},
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunEvaluation:
    """Samples and scores clips; this is a `training.evaluation.Evaluation`.

    Between two evaluations, the networks take no memory of the devices.

    Attributes:
      config: configuration of the run.
      workdir: folder of the run.
      components: codec and vocoder of the run.
      own: examples that this process samples.
      count: number of clips of all processes.
      networks: evaluation networks by name.
      classes: names of the embedded tagger's classes; empty without a tagger.
      reference: features of the reference by kind and clip.
    """

    config: ExperimentConfig
    workdir: Path
    components: Components
    own: Sequence[Example]
    count: int
    networks: Mapping[str, Evaluator]
    classes: tuple[str, ...]
    reference: Mapping[str, Arrays]

    def __call__(self, variables: tuple[Any, Any], *, stop: Callable[[], bool]) -> dict[str, float]:
        """Return the scores of a network's sounds by metric; none outside the first process."""
        sampler = in_all(lambda: self._sampler(variables))
        evaluators = Evaluators(self.networks)
        batches = list(sampler.batches(self._encoded(sampler)))
        # One size for all, so that one program is compiled.
        room = room_for(len(batches[0]), sampler.rooms)
        parts = []
        for batch in batches:
            if stop():
                raise EvaluationStopped
            parts.append(in_all(functools.partial(self._features, batch, sampler, evaluators, room)))
        features = gathered(_joined(parts), self.count)
        if not distributed.is_first():
            return {}
        generated = _HeldFeatures(Path("the sampled sounds"), features=_by_clip(features))
        reference = _HeldFeatures(Path("the valid split"), features=self.reference)
        return score_features(generated, reference, ScoreOptions(classes=self.classes)).metrics

    def _sampler(self, variables: tuple[Any, Any]) -> Sampler:
        return Sampler(
            graphdef=abstract_model(self.config.model)[0],
            variables=jax.tree.map(jnp.asarray, variables),
            components=self.components,
            # Whole clips, as in the training, which keeps no earlier weights in memory.
            settings=dataclasses.replace(self.config.sample, window=None, autoguidance_step=0),
            weights_path=str(self.workdir),
            origin={},
        )

    def _encoded(self, sampler: Sampler) -> Iterator[EncodedClip]:
        """Yield the conditions of this process's clips; the empty branch has the empty text."""
        constants, dims = sampler.variables[1], self.components.dims
        windows = plan_windows(dims.video_length, sampler.window, overlap=0.0)
        empty_video, empty_text = (
            np.asarray(constants[name][...], np.float32) for name in ("empty_video", "empty_text")
        )
        for example in self.own:
            arrays = arrays_of(example)
            text, video = arrays["text_features"], arrays["video_features"]
            yield EncodedClip(
                id=example["id"].decode(),
                seconds=self.components.seconds,
                windows=windows,
                video=video if arrays["has_video"] else np.broadcast_to(empty_video, video.shape),
                text=text,
                text_len=int(arrays["text_len"]),
                negative_text=np.broadcast_to(empty_text, text.shape),
                negative_len=int(arrays["text_len"]),
            )

    def _features(
        self, batch: Sequence[Track[EncodedClip]], sampler: Sampler, evaluators: Evaluators, room: int
    ) -> Arrays:
        """Return the features of sampled sounds by kind, (batch, …)."""
        solution = sample_latents(
            sampler.graphdef,
            sampler.device_variables,
            window_batch(batch, room=room, texts=sampler.texts(room), seed=self.config.seed),
            program=sampler.program(room),
        )
        latents = latents_of(batch, np.asarray(solution.latent))
        waves = decode_tracks(self.components, batch, latents, rooms=sampler.rooms)
        return _features_of_sounds(waves, self.components.sample_rate, evaluators)


@dataclasses.dataclass(frozen=True)
class _HeldFeatures(FeatureSet):
    """Features in memory; the folder is their name in messages."""

    features: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)

    def kinds(self) -> list[str]:
        return list(self.features)

    @contextlib.contextmanager
    def open(self, kind: str) -> Iterator[dict[str, StoredTensor]]:
        yield {
            clip: StoredTensor(read=lambda array=array: array) for clip, array in self.features[kind].items()
        }


def _valid_clips(records: Path, count: int) -> list[Example]:
    """Return the first examples of the valid split that have a sound."""
    examples = open_records(records, "valid")
    found = list(itertools.islice((clip for clip in examples if clip["has_audio"]), count))
    if len(found) < 2:
        raise FlowleyError(
            f"{records}: the split 'valid' has {len(found)} clips with sound; an evaluation needs two"
        )
    return found


def _networks(folder: str) -> dict[str, Evaluator]:
    """Return the networks of a folder that need no picture; none for an empty name."""
    if not folder:
        return {}
    networks = {
        name: network for name, network in find_networks(Path(folder), _DTYPE).items() if name in NAMES
    }
    if not networks:
        raise FlowleyError(f"{folder}: holds no network that scores sounds alone, such as {', '.join(NAMES)}")
    return networks


def _features_of_records(clips: Sequence[Example], components: Components, evaluators: Evaluators) -> Arrays:
    """Return the features of the clips' own sounds by kind, (clips, …)."""
    return _joined(
        [
            _features_of_sounds(
                decoded_sounds(clips[start : start + AT_ONCE], components), components.sample_rate, evaluators
            )
            for start in range(0, len(clips), AT_ONCE)
        ]
    )


def _features_of_sounds(waves: Sequence[np.ndarray], rate: int, evaluators: Evaluators) -> Arrays:
    names = available(NAMES, evaluators)
    prepared = [prepare(ClipMedia.of_wave("a clip", wave, rate), names) for wave in waves]
    features: Arrays = {}
    for name in names:
        inputs = []
        for clip in prepared:
            if isinstance(found := clip[name], str):
                raise FlowleyError(f"{name} cannot take the sounds: {found}")
            inputs.append(found)
        features |= evaluators.features(EXTRACTORS[name], inputs)
    return features


def _features_of_texts(
    examples: Sequence[Example], config: ExperimentConfig, evaluators: Evaluators, classes: tuple[str, ...]
) -> dict[str, Arrays]:
    """Return the features of captions and labels by kind and clip, for the process that scores."""
    if not distributed.is_first():
        return {}
    features: dict[str, Arrays] = {}
    captions, labels = (
        {_clip(row): text for row, example in enumerate(examples) if (text := example[field].decode())}
        for field in ("caption", "label")
    )
    if "clap" in evaluators.networks and captions:
        tokens = ClapCaptions(bundle=Bundle.open(Path(config.train.evaluate_networks) / "clap"))
        inputs = [{"ids": ids} for ids in tokens(list(captions.values()))]
        for kind, rows in evaluators.features(EXTRACTORS["captions"], inputs).items():
            features[kind] = dict(zip(captions, rows, strict=True))
    # The others name a class that no training clip has.
    known = {clip: label for clip, label in labels.items() if set(classes_of(label)) <= {*classes}}
    if known:
        features["tagger_labels"] = dict(zip(known, targets(known.values(), classes), strict=True))
    return features


def _clip(row: int) -> str:
    """Return the name of a clip in the scores. Ids of records could look like av-benchmark's file names."""
    return f"{row:06d}"


def _by_clip(features: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    return {kind: {_clip(row): array for row, array in enumerate(rows)} for kind, rows in features.items()}


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
