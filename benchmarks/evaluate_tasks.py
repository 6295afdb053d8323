"""The tasks of `benchmarks.evaluate`: networks with random weights, and the reading of a clip."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.common import seconds_of
from benchmarks.jax_tasks import device, matmul_rate
from flowley_jax.evaluation.captions import LENGTH
from flowley_jax.evaluation.extraction import Evaluator, Evaluators
from flowley_jax.evaluation.extractors import EXTRACTORS, MOTION, PICTURE, SOUND, Extractor
from flowley_jax.evaluation.frames import IMAGEBIND_RATE, ClipFrames
from flowley_jax.evaluation.preparation import ClipMedia, Preparation, prepare
from flowley_jax.evaluation.tagger import Tagger, TaggerConfig
from flowley_jax.evaluation.tagger_training import MOST_CLASSES
from flowley_jax.interop.registry import FORMATS
from flowley_jax.media.write import write_video
from flowley_jax.networks.clap_text import RobertaConfig
from flowley_jax.networks.synchformer_config import FRAME_RATE, IMAGE_SIZE

SECONDS = 8
# Extractors that need a network, those of one network next to each other.
NETWORKS = tuple(
    sorted((name for name, row in EXTRACTORS.items() if row.apply), key=lambda name: EXTRACTORS[name].bundle)
)
# What is prepared from one file, each by itself and together as an evaluation needs it.
READINGS = {
    **{name: (name,) for name in (*SOUND, *PICTURE, *MOTION)},
    "a sound": SOUND,
    "a video without AV-Align": (*SOUND, *PICTURE),
}
_WAVE_RATE, _FPS, _PICTURE = 48_000, 24, (360, 640)
_MATMUL_SIZE = 4096

Row = dict[str, Any]


def random_evaluator(bundle: str, dtype: str) -> Evaluator:
    """Return a network of the published size with random weights."""
    return Evaluator(
        identity="random weights", load=lambda: _network(bundle, dtype), is_exact=dtype == "float32"
    )


def measure_networks(names: Sequence[str], *, dtype: str, turns: int) -> Iterator[tuple[str, Row]]:
    """Yield the name and the figures of each extractor; one network is in memory at a time.

    Args:
      names: keys of `EXTRACTORS`, those of one network next to each other.
      dtype: compute type of the networks; the tagger always computes in float32.
      turns: measurements of each.
    """
    evaluators = Evaluators({})
    for name in names:
        extractor = EXTRACTORS[name]
        used = "float32" if extractor.bundle == "tagger" else dtype
        if extractor.bundle not in evaluators.networks:
            evaluators = Evaluators({extractor.bundle: random_evaluator(extractor.bundle, used)})
        yield name, _measure_network(extractor, evaluators, used, turns)


def _measure_network(extractor: Extractor, evaluators: Evaluators, dtype: str, turns: int) -> Row:
    clips = extractor.batch * jax.local_device_count()
    inputs = [noise_inputs(extractor.name)] * clips
    flops = program_flops(extractor, dtype, inputs) / clips
    run = functools.partial(evaluators.features, extractor, inputs)
    run()
    # The rate is measured in every turn, because the speed of a shared machine varies.
    times, rates = [], []
    for _ in range(turns):
        with evaluators.networks[extractor.bundle].precision():
            rates.append(matmul_rate("float32" if device() == "cpu" else dtype, _MATMUL_SIZE))
        times.append(seconds_of(run) / clips)
    rate = float(np.median(rates)) * jax.local_device_count()
    return {
        "dtype": dtype,
        "clips_at_once": clips,
        **_rates(times),
        "flops_per_clip": flops,
        "matmul_flops_per_second": rate,
        "share": flops / float(np.median(times)) / rate,
    }


def noise_inputs(name: str) -> dict[str, np.ndarray]:
    """Return the inputs of an extractor from `SECONDS` of noise, or from a caption that fills its tokens."""
    rng = np.random.default_rng(0)
    if name == "captions":
        return {"ids": rng.integers(4, RobertaConfig().vocab_size, LENGTH, np.int32)}
    wave = rng.uniform(-0.5, 0.5, SECONDS * _WAVE_RATE).astype(np.float32)
    media = ClipMedia.of_wave("noise", wave, _WAVE_RATE)
    square = (IMAGE_SIZE, IMAGE_SIZE, 3)
    media.frames = ClipFrames(
        synchformer=rng.integers(0, 256, (SECONDS * FRAME_RATE, *square), np.uint8),
        imagebind=rng.integers(0, 256, (int(SECONDS * IMAGEBIND_RATE), 3, *square), np.uint8),
    )
    return _checked(prepare(media, [name]))[name]


def program_flops(extractor: Extractor, dtype: str, inputs: Sequence[dict[str, np.ndarray]]) -> float:
    """Return the FLOPs of the program for a batch, as XLA counts them before it optimises the program.

    Raises:
      RuntimeError: JAX has no CPU device here.
    """
    function = extractor.apply
    assert function is not None
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _network(extractor.bundle, dtype)))
    shapes = [jax.ShapeDtypeStruct((len(inputs), *row.shape), row.dtype) for row in inputs[0].values()]
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))
        costs: Any = program.lower(state, *shapes).cost_analysis()
    return float(costs["flops"])


def measure_reading(folder: Path, *, turns: int) -> Iterator[tuple[str, Row]]:
    """Yield the figures of what is prepared from one clip of noise, in one process.

    Args:
      folder: folder for the clip.
      turns: measurements of each.
    """
    path = folder / "noise.mp4"
    rng, size = np.random.default_rng(0), (side // 8 for side in _PICTURE)
    frames = rng.integers(0, 255, (SECONDS * _FPS, *size, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    wave = rng.uniform(-0.5, 0.5, SECONDS * 44_100).astype(np.float32)
    write_video(path, frames, _FPS, audio=wave, sample_rate=44_100, crf=30)
    for title, names in READINGS.items():
        reader = functools.partial(Preparation(tuple(names), SECONDS), str(path))
        _checked(reader())
        yield title, _rates([seconds_of(reader) for _ in range(turns)])


def _network(bundle: str, dtype: str) -> nnx.Module:
    if bundle == "tagger":
        return Tagger(TaggerConfig(classes=tuple(map(str, range(MOST_CLASSES)))), rngs=nnx.Rngs(0))
    kind = FORMATS[bundle]
    return kind.module(kind.config_type(dtype=dtype), rngs=nnx.Rngs(0))


def _checked(prepared: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return inputs, none of which may be a reason why there are none."""
    assert not any(isinstance(inputs, str) for inputs in prepared.values()), prepared
    return prepared


def _rates(times: Sequence[float]) -> Row:
    """Return the median of the seconds of a clip, and the quartiles of the clips per second."""
    return {
        "seconds_per_clip": float(np.median(times)),
        "clips_per_second": np.quantile(1.0 / np.asarray(times), (0.25, 0.5, 0.75)).tolist(),
        "turns": len(times),
    }
