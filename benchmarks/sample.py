"""Time every stage of sampling an 8-second sound at the published sizes: make benchmark-sample

Weights are random. Each stage is one jitted program. Its FLOPs are those of matrix products and convolutions
only, and the floor is their duration at the measured rate of a large matrix product. The vocoder is also
timed on long sounds: its cost per second of sound must not grow with the length.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.extend.core import jaxprs_in_params

from benchmarks.common import header, host
from benchmarks.jax_tasks import device, matmul_rate
from flowley_jax.audio.bigvgan_vocoder import WINDOW
from flowley_jax.audio.chunks import in_windows
from flowley_jax.cli import run_main
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.common.devices import device_spec
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.encoders.t5_text import normalised_states
from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.sampler import SamplingProgram, sample_latents, whole_clips
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.flow.stretches import network_evaluations
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.networks.audio_vae import VAE_16K, VAE_44K, AudioVae
from flowley_jax.networks.bigvgan import BIGVGAN_16K, BIGVGAN_44K, BigVgan, BigVganConfig
from flowley_jax.networks.clip import CLIP_L14, ClipVision
from flowley_jax.networks.t5 import FLAN_T5_LARGE, T5Encoder
from flowley_jax.training.flops import velocity_flops

FRAMES, TOKENS = 64, 77
# The published solver, and that of a flow map, whose guidance is folded in.
SOLVERS = {
    "flow": (SolverConfig(steps=25), Guidance(scale=7.5)),
    "flow_map": (SolverConfig(name="flow_map", steps=4), Guidance(scale=1.0)),
}
LENGTHS = {"16k": 250, "44k": 345}
STAGES = ("clip", "t5", *SOLVERS, "vae_encode", "vae_decode", "vocoder", "long_vocoder")
LONG_SECONDS = (8, 32, 128)

_OUT = flags.DEFINE_string("out", "benchmarks/results/sample", "Folder for the figures.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_RATE = flags.DEFINE_enum("rate", "16k", list(LENGTHS), "Sample rate.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Batch sizes in clips.")
_ONLY = flags.DEFINE_list("only", [], "Stages to measure; all by default.")
_TURNS = define_int("turns", 3, "Measurements per stage.", Range(least=1, most=1000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A stage that is ready to run.

    Attributes:
      run: runs the stage once and waits for its result.
      flops: FLOPs of its matrix products and convolutions.
    """

    run: Callable[[], Any]
    flops: float


def main() -> int:
    """Measure the stages, print a table and write it with the figures.

    Older figures of other stages are kept.
    """
    path = Path(_OUT.value) / f"{device().replace(' ', '_')}_{_DTYPE.value}_{_RATE.value}.json"
    stages = _ONLY.value or list(STAGES)
    rows = []
    for stage in stages:
        if stage == "long_vocoder":
            rows += [_measure(stage, 1, seconds) for seconds in LONG_SECONDS]
        else:
            rows += [_measure(stage, int(clips), 8) for clips in _BATCHES.value]
    older = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {_key(row): row for row in [*older, *rows]}
    rows = sorted(
        merged.values(), key=lambda row: (STAGES.index(row["stage"]), row["clips"], row["seconds_of_sound"])
    )
    write_text(path, json.dumps({"dtype": _DTYPE.value, "rate": _RATE.value, "rows": rows}, indent=2) + "\n")
    table = _table(rows)
    write_text(path.with_suffix(".md"), table)
    print(table)
    print(f"figures: {path}")
    return 0


def _key(row: dict) -> tuple:
    return row["stage"], row["clips"], row["seconds_of_sound"]


def _measure(stage: str, clips: int, seconds: int) -> dict:
    task = _task(stage, clips, seconds)
    started = time.perf_counter()
    task.run()
    first = time.perf_counter() - started
    # The rate is measured in every turn, because the speed of a shared machine varies.
    times, rates = [], []
    for _ in range(_TURNS.value):
        rates.append(matmul_rate("float32" if device() == "cpu" else _DTYPE.value, 4096))
        started = time.perf_counter()
        task.run()
        times.append(time.perf_counter() - started)
    seconds_taken, rate = statistics.median(times), statistics.median(rates)
    row = {
        "stage": stage,
        "clips": clips,
        "seconds_of_sound": seconds,
        "seconds": seconds_taken,
        "first_seconds": first,
        "flops": task.flops,
        "flops_per_second": task.flops / seconds_taken,
        "matmul_flops_per_second": rate,
        "share": task.flops / seconds_taken / rate,
        **header("sample"),
        "device": device(),
        "host": host(),
        "jax": version("jax"),
    }
    chip = device_spec(device())
    if chip:
        row["mfu"] = row["flops_per_second"] / chip.peak_flops
    print(
        f"{stage}, {clips} clips, {seconds} s: {seconds_taken:.3f} s, {100 * row['share']:.0f} %",
        file=sys.stderr,
        flush=True,
    )
    return row


def _task(stage: str, clips: int, seconds: int) -> Task:
    rng, latents = np.random.default_rng(0), LENGTHS[_RATE.value]
    dtype = "bfloat16" if _DTYPE.value == "bfloat16" else "float32"
    vae = dataclasses.replace(VAE_16K if _RATE.value == "16k" else VAE_44K, dtype=dtype)
    vocoder = dataclasses.replace(BIGVGAN_16K if _RATE.value == "16k" else BIGVGAN_44K, dtype=dtype)
    rngs = nnx.Rngs(0)
    if stage == "clip":
        frames = rng.integers(0, 256, (clips * FRAMES, 224, 224, 3), np.uint8)
        model = ClipVision(dataclasses.replace(CLIP_L14, dtype=dtype), rngs=rngs)
        return _batched(ClipVision.__call__, model, frames, batch_size=FRAMES)
    if stage == "t5":
        ids = rng.integers(3, FLAN_T5_LARGE.vocab_size, (clips, TOKENS), np.int32)
        model = T5Encoder(dataclasses.replace(FLAN_T5_LARGE, dtype=dtype), rngs=rngs)
        return _batched(normalised_states, model, ids, np.ones(ids.shape, np.bool_), batch_size=clips)
    if stage in SOLVERS:
        return _flow(ModelConfig(audio_dim=vae.latent_dim, dtype=dtype), clips, latents, *SOLVERS[stage])
    if stage.startswith("vae"):
        if stage == "vae_encode":
            function, shape = AudioVae.encode, (clips, 2 * latents, vae.bins)
        else:
            function, shape = AudioVae.decode, (clips, latents, vae.latent_dim)
        return _batched(
            function, AudioVae(vae, rngs=rngs), rng.standard_normal(shape, np.float32), batch_size=clips
        )
    mels = rng.standard_normal((clips, round(2 * latents * seconds / 8), vae.bins), np.float32)
    model = BigVgan(vocoder, rngs=rngs)
    batches = DeviceBatches(BigVgan.__call__, Replicated(model), batch_size=clips)

    def run() -> Any:
        return in_windows(batches, mels, window=WINDOW, context=vocoder.context, rate=vocoder.hop)

    return Task(run=run, flops=clips * convolution_flops(vocoder, mels.shape[1]))


def _batched(function: Callable[..., Any], model: nnx.Module, *arrays: np.ndarray, batch_size: int) -> Task:
    batches = DeviceBatches(function, Replicated(model), batch_size=batch_size)
    return Task(run=lambda: batches(*arrays), flops=_product_flops(function, model, arrays))


def _product_flops(function: Callable[..., Any], model: nnx.Module, arrays: Sequence[np.ndarray]) -> float:
    """Return the FLOPs of matrix products and convolutions, from the shapes in the traced program."""
    graphdef, state = nnx.split(model)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    traced = jax.make_jaxpr(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))(
        state, *shapes
    )
    return float(_flops_of(traced.jaxpr))


def _flops_of(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out.size * int(np.prod([shape[axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            numbers = equation.params["dimension_numbers"]
            total += 2 * out.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
        for inner in jaxprs_in_params(equation.params):
            total += _flops_of(inner)
    return total


def convolution_flops(config: BigVganConfig, frames: int) -> float:
    """Return the FLOPs of BigVGAN's convolutions.

    For the 500 frames of 8 s at 16 kHz they are 902 GFLOP, 873 of them in AMP blocks.
    """
    total, width, length = 7 * config.bins * config.width * frames, config.width, frames
    for rate, kernel in zip(config.rates, config.kernels, strict=True):
        total += kernel * width * (width // 2) * length
        width, length = width // 2, length * rate
        total += 2 * len(config.dilations) * sum(config.block_kernels) * width**2 * length
    return 2.0 * (total + 7 * width * length)


def _flow(config: ModelConfig, clips: int, latents: int, solver: SolverConfig, guidance: Guidance) -> Task:
    graphdef, *variables = nnx.split(Flowley(config, rngs=nnx.Rngs(0)), nnx.Param, Constant)
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.standard_normal((clips, FRAMES, config.video_dim), np.float32))
    text = jnp.asarray(rng.standard_normal((clips, TOKENS, config.text_dim), np.float32))
    text_len, keys = jnp.full((clips,), 12), jax.random.split(jax.random.key(0), clips)

    def run() -> Any:
        return jax.block_until_ready(
            sample_latents(
                graphdef,
                tuple(variables),
                whole_clips(keys, video, text, text_len, audio_length=latents),
                program=SamplingProgram(video_length=FRAMES, guidance=guidance, solver=solver, at_once=clips),
            )
        )

    evaluations = network_evaluations(solver, guidance)
    return Task(run=run, flops=evaluations * velocity_flops(config, clips, (latents, FRAMES, TOKENS)))


def _table(rows: list[dict]) -> str:
    """Return a Markdown table."""
    peak = max(row["matmul_flops_per_second"] for row in rows) / 1e9
    lines = [
        f"{rows[0]['device']}, {_DTYPE.value}, {_RATE.value}, matmul {peak:.0f} GFLOP/s",
        "",
        "| stage | clips | sound | seconds | GFLOP | floor | share of matmul | first call |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = row["flops"] / row["matmul_flops_per_second"]
        lines.append(
            f"| {row['stage']} | {row['clips']} | {row['seconds_of_sound']} s | {row['seconds']:.2f} | "
            f"{row['flops'] / 1e9:,.0f} | {floor:.2f} s | {100 * row['share']:.0f} % | "
            f"{row['first_seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
