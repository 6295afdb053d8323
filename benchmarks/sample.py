"""What an 8-second sound costs, stage by stage, at the published sizes: make benchmark-sample

Random weights. Each stage is one jitted program; its FLOPs are those of matrix products and convolutions
alone, and the floor is the time that these take at the machine's measured matrix-product rate. The vocoder
is also timed over long sounds, whose cost per second and memory must not grow with their length.
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.extend.core import jaxprs_in_params

from benchmarks.jax_tasks import device, matmul_rate
from flowley_jax.audio import bigvgan_vocoder
from flowley_jax.audio.bigvgan import BIGVGAN_16K, BIGVGAN_44K, BigVgan, BigVganConfig
from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.vae import VAE_16K, VAE_44K, AudioVae
from flowley_jax.cli import run_main
from flowley_jax.device_batches import DeviceBatches, Replicated
from flowley_jax.encoders.clip import CLIP_L14, ClipVision
from flowley_jax.encoders.clip_frames import embeddings
from flowley_jax.encoders.t5 import FLAN_T5_LARGE, T5Encoder
from flowley_jax.encoders.t5_text import normalised_states
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.sampling.latents import sample_latents
from flowley_jax.training.ahead import velocity_flops
from flowley_jax.training.chips import chip_of
from flowley_jax.whole_files import write_text

FRAMES, TOKENS, STEPS, GUIDANCE = 64, 77, 25, 7.5
LENGTHS = {"16k": 250, "44k": 345}
STAGES = ("clip", "t5", "flow", "vae_encode", "vae_decode", "vocoder", "long_vocoder")
LONG_SECONDS = (8, 32, 128)

_OUT = flags.DEFINE_string("out", "benchmarks/results/sample", "Folder for the figures.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_RATE = flags.DEFINE_enum("rate", "16k", list(LENGTHS), "Sample rate.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Clips at once.")
_ONLY = flags.DEFINE_list("only", [], "Stages to measure; all by default.")
_TURNS = flags.DEFINE_integer("turns", 3, "Times that every stage is timed.", lower_bound=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A stage ready to run, and the FLOPs of its products."""

    run: Callable[[], Any]
    flops: float


def main() -> int:
    """Measures, prints a table and writes JSON."""
    path = Path(_OUT.value) / f"{device().replace(' ', '_')}_{_DTYPE.value}_{_RATE.value}.json"
    stages = _ONLY.value or list(STAGES)
    rows = []
    for stage in stages:
        if stage == "long_vocoder":
            rows += [_measure(stage, 1, seconds) for seconds in LONG_SECONDS]
        else:
            rows += [_measure(stage, int(clips), 8) for clips in _BATCHES.value]
    older = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {_key(row): row for row in [*older, *rows]}
    rows = sorted(
        found.values(), key=lambda row: (STAGES.index(row["stage"]), row["clips"], row["seconds_of_sound"])
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
    # The rate is taken beside every turn, since a shared machine's changes.
    times, rates = [], []
    for _ in range(_TURNS.value):
        rates.append(matmul_rate("float32" if device() == "cpu" else _DTYPE.value, 4096))
        started = time.perf_counter()
        task.run()
        times.append(time.perf_counter() - started)
    taken, rate = statistics.median(times), statistics.median(rates)
    row = {
        "stage": stage,
        "clips": clips,
        "seconds_of_sound": seconds,
        "seconds": taken,
        "first_seconds": first,
        "flops": task.flops,
        "flops_per_second": task.flops / taken,
        "matmul_flops_per_second": rate,
        "share": task.flops / taken / rate,
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "host": f"{os.cpu_count()} cores, {platform.machine()}",
        "command": " ".join(["python -m benchmarks.sample", *sys.argv[1:]]),
        "jax": version("jax"),
    }
    chip = chip_of(device())
    if chip:
        row["mfu"] = row["flops_per_second"] / chip.peak_flops
    print(
        f"{stage}, {clips} clips, {seconds} s: {taken:.3f} s, {100 * row['share']:.0f} %",
        file=sys.stderr,
        flush=True,
    )
    return row


def _task(stage: str, clips: int, seconds: int) -> Task:
    rng, dtype, latents = np.random.default_rng(0), _DTYPE.value, LENGTHS[_RATE.value]
    vae = dataclasses.replace(VAE_16K if _RATE.value == "16k" else VAE_44K, dtype=dtype)
    vocoder = dataclasses.replace(BIGVGAN_16K if _RATE.value == "16k" else BIGVGAN_44K, dtype=dtype)
    rngs = nnx.Rngs(0)
    if stage == "clip":
        frames = rng.integers(0, 256, (clips * FRAMES, 224, 224, 3), np.uint8)
        model = ClipVision(dataclasses.replace(CLIP_L14, dtype=dtype), rngs=rngs)
        return _batched(embeddings, model, frames, batch_size=FRAMES)
    if stage == "t5":
        ids = rng.integers(3, FLAN_T5_LARGE.vocab_size, (clips, TOKENS), np.int32)
        model = T5Encoder(dataclasses.replace(FLAN_T5_LARGE, dtype=dtype), rngs=rngs)
        return _batched(normalised_states, model, ids, np.ones(ids.shape, np.bool_), batch_size=clips)
    if stage == "flow":
        return _flow(ModelConfig(audio_dim=vae.latent_dim, dtype=dtype), clips, latents)
    if stage.startswith("vae"):
        encodes = stage == "vae_encode"
        shape = (clips, 2 * latents, vae.bins) if encodes else (clips, latents, vae.latent_dim)
        function = AudioVae.encode if encodes else AudioVae.decode
        return _batched(
            function, AudioVae(vae, rngs=rngs), rng.standard_normal(shape, np.float32), batch_size=clips
        )
    mels = rng.standard_normal((clips, round(2 * latents * seconds / 8), vae.bins), np.float32)
    model = BigVgan(vocoder, rngs=rngs)
    batches = DeviceBatches(bigvgan_vocoder.waves, Replicated(model), batch_size=clips)

    def run():
        return in_windows(
            batches, mels, window=bigvgan_vocoder.WINDOW, context=vocoder.context, rate=vocoder.hop
        )

    return Task(run=run, flops=clips * convolution_flops(vocoder, mels.shape[1]))


def _batched(function, model: nnx.Module, *arrays: np.ndarray, batch_size: int) -> Task:
    batches = DeviceBatches(function, Replicated(model), batch_size=batch_size)
    return Task(run=lambda: batches(*arrays), flops=_product_flops(function, model, arrays))


def _product_flops(function, model: nnx.Module, arrays) -> float:
    """Of matrix products and convolutions, by the shapes in the traced program."""
    graphdef, state = nnx.split(model)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    traced = jax.make_jaxpr(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))(
        state, *shapes
    )
    return float(_flops_of(traced.jaxpr))


def _flops_of(jaxpr) -> int:
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
    """Of BigVGAN's convolutions; 902 GFLOP for the 500 frames of 8 s at 16 kHz, 873 of them in AMP blocks."""
    total, width, length = 7 * config.bins * config.width * frames, config.width, frames
    for rate, kernel in zip(config.rates, config.kernels, strict=True):
        total += kernel * width * (width // 2) * length
        width, length = width // 2, length * rate
        total += 2 * len(config.dilations) * sum(config.block_kernels) * width**2 * length
    return 2.0 * (total + 7 * width * length)


def _flow(config: ModelConfig, clips: int, latents: int) -> Task:
    graphdef, *variables = nnx.split(Flowley(config, rngs=nnx.Rngs(0)), nnx.Param, Constant)
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.standard_normal((clips, FRAMES, config.video_dim), np.float32))
    text = jnp.asarray(rng.standard_normal((clips, TOKENS, config.text_dim), np.float32))
    text_len, keys = jnp.full((clips,), 12), jax.random.split(jax.random.key(0), clips)

    def run():
        return jax.block_until_ready(
            sample_latents(
                graphdef,
                tuple(variables),
                keys,
                video,
                text,
                text_len,
                audio_length=latents,
                guidance=GUIDANCE,
                solver=SolverConfig(steps=STEPS),
            )
        )

    return Task(run=run, flops=STEPS * velocity_flops(config, 2 * clips, (latents, FRAMES, TOKENS)))


def _table(rows: list[dict]) -> str:
    """Markdown."""
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
