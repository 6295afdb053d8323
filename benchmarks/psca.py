"""Measure the cost of PSCA relative to the same attention without a mask: make benchmark-psca

Times are taken in pairs, in alternating order, so that other work on the machine affects both equally. Huge
pages (`GLIBC_TUNABLES`) keep the operating system's page faults out of the times: every run allocates a long
clip's temporaries again. With libtpu on the path, the TPU compiler's costs are added; that needs no TPU.
"""

import functools
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import header, host
from flowley_jax.cli import run_main
from flowley_jax.common.files import atomic_write, write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.kernels.psca import SoftMask, psca
from flowley_jax.kernels.psca.api import Implementation

# The published network: 8 s of video at 8 frames/s and of audio at 31.25 latents/s, 8 heads of 64.
BATCH, AUDIO_LENGTH, VIDEO_LENGTH, HEADS, DIM, VIDEO_FPS, LATENT_RATE = 4, 250, 64, 8, 64, 8.0, 31.25
MASK = {"window": 0, "fade_range": 4, "fade": "cosine"}
FADE_SCALE = 0.5
LENGTHS = tuple(2**n for n in range(6, 15))
# Below this length, the start of the program dominates the time.
ASYMPTOTIC = 1024
# Settings of the mask in each variant.
VARIANTS = {
    "plain": {"window": -1},
    "psca": {},
    "hard cut": {"floor": 0.0},
}

_OUT = flags.DEFINE_string("out", "benchmarks/results/psca", "Folder to write psca.json and psca.png to.")
_REPEATS = define_int(
    "repeats", 40, "Number of paired runs at the published size.", Range(least=3, most=1000)
)
_LONGEST = define_int(
    "longest", LENGTHS[-1], "Length of the longest clip in frames.", Range(least=LENGTHS[0], most=2**20)
)


def main() -> int:
    """Measure, print the ratios, and write JSON and a plot."""
    result = {
        **header("psca"),
        "device": f"{jax.devices()[0].device_kind}, {host()}",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "published": {
            direction: _compare(direction, _REPEATS.value) for direction in ("forward", "forward+backward")
        },
        "growth": _growth([n for n in LENGTHS if n <= _LONGEST.value]),
    }
    if importlib.util.find_spec("libtpu"):
        result["tpu"] = _tpu()
    out = Path(_OUT.value)
    write_text(out / "psca.json", json.dumps(result, indent=2) + "\n")
    _plot(result["growth"], out / "psca.png")
    for direction, ratios in result["published"].items():
        line = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
        print(f"{direction}, relative to attention without a mask: {line}")
    print("growth exponents:", ", ".join(f"{k} {v['exponent']:.2f}" for k, v in result["growth"].items()))
    print(f"wrote {out / 'psca.json'} and {out / 'psca.png'}")
    return 0


def _program(
    variant: str,
    direction: str,
    audio_length: int,
    video_length: int,
    *,
    implementation: Implementation | None = None,
) -> Any:
    """Return the jitted attention of a variant, with its gradients if the direction asks for them."""
    settings: dict[str, Any] = {**MASK, **VARIANTS[variant]}
    mask = SoftMask(video_fps=VIDEO_FPS, audio_fps=VIDEO_FPS * audio_length / video_length, **settings)
    attend = functools.partial(psca, mask=mask, fade_scale=FADE_SCALE, implementation=implementation)

    def run(q, k, v, dout):
        if direction == "forward":
            return attend(q, k, v)
        out, vjp = jax.vjp(attend, q, k, v)
        return out, *vjp(dout)

    return jax.jit(run)


def _inputs(audio_length: int, video_length: int, *, batch: int, heads: int) -> list[jax.Array]:
    """Return random q, k, v and a gradient of the output, in float32."""
    draw = np.random.default_rng(0)
    lengths = (audio_length, video_length, video_length, audio_length)
    return [jnp.asarray(draw.normal(size=(batch, n, heads, DIM)), jnp.float32) for n in lengths]


def _compare(direction: str, repeats: int) -> dict[str, float]:
    """Return the ratios of PSCA to the same attention without a mask, at the published size."""
    inputs = _inputs(AUDIO_LENGTH, VIDEO_LENGTH, batch=BATCH, heads=HEADS)
    compiled = {
        variant: _program(variant, direction, AUDIO_LENGTH, VIDEO_LENGTH).lower(*inputs).compile()
        for variant in ("psca", "plain")
    }
    for program in compiled.values():
        _mean_seconds(program, inputs)
    ratios = []
    for pair in range(repeats):
        order = ("psca", "plain") if pair % 2 else ("plain", "psca")
        seconds = {variant: _mean_seconds(compiled[variant], inputs, times=10) for variant in order}
        ratios.append(seconds["psca"] / seconds["plain"])
    costs = {variant: program.cost_analysis() for variant, program in compiled.items()}
    return {
        "time": float(np.median(ratios)),
        "time_low": float(np.percentile(ratios, 25)),
        "time_high": float(np.percentile(ratios, 75)),
        "flops": costs["psca"]["flops"] / costs["plain"]["flops"],
        "bytes": costs["psca"]["bytes accessed"] / costs["plain"]["bytes accessed"],
    }


def _mean_seconds(program: Any, inputs: list[jax.Array], *, times: int = 1) -> float:
    """Return the mean time of a run."""
    started = time.perf_counter()
    for _ in range(times):
        out = program(*inputs)
    jax.block_until_ready(out)
    return (time.perf_counter() - started) / times


def _growth(lengths: list[int]) -> dict[str, dict[str, Any]]:
    """Return the forward time by the length of the video, with audio in proportion; batch 1, one head."""
    rows: dict[str, dict[str, Any]] = {variant: {"frames": [], "seconds": []} for variant in VARIANTS}
    for video_length in lengths:
        audio_length = round(video_length * LATENT_RATE / VIDEO_FPS)
        inputs = _inputs(audio_length, video_length, batch=1, heads=1)
        for variant, row in rows.items():
            program = _program(variant, "forward", audio_length, video_length).lower(*inputs).compile()
            _mean_seconds(program, inputs)
            repeats = 3 if video_length > 4096 else 9
            seconds = float(np.median([_mean_seconds(program, inputs) for _ in range(repeats)]))
            row["frames"].append(video_length)
            row["seconds"].append(seconds)
            print(f"{video_length} frames, {variant}: {1e3 * seconds:.2f} ms", file=sys.stderr, flush=True)
    for row in rows.values():
        row["exponent"] = _exponent(row["frames"], row["seconds"])
    return rows


def _exponent(frames: list[int], seconds: list[float]) -> float:
    """Return the exponent of the time's growth, fitted to the long clips."""
    long = [(n, s) for n, s in zip(frames, seconds, strict=True) if n >= min(ASYMPTOTIC, frames[-2])]
    return float(np.polyfit(*np.log(np.asarray(long)).T, 1)[0])


def _tpu() -> dict[str, dict[str, Any]]:
    """Return the TPU compiler's costs at the published size in bfloat16, with batch 32 on each chip."""
    from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs

    shapes = [
        jax.ShapeDtypeStruct((32, n, HEADS, DIM), jnp.bfloat16)
        for n in (AUDIO_LENGTH, VIDEO_LENGTH, VIDEO_LENGTH, AUDIO_LENGTH)
    ]
    programs: tuple[tuple[str, str, Implementation], ...] = (
        ("psca, pallas", "psca", "pallas"),
        ("without a mask, pallas", "plain", "pallas"),
        ("without a mask, xla", "plain", "xla"),
    )
    rows = {}
    for generation in TOPOLOGIES:
        for direction in ("forward", "forward+backward"):
            row = {}
            for name, variant, implementation in programs:
                program = _program(
                    variant, direction, AUDIO_LENGTH, VIDEO_LENGTH, implementation=implementation
                )
                row[name] = costs(compile_on(generation, program, shapes))
            rows[f"{generation}, {direction}"] = row
    return rows


def _plot(growth: dict[str, dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=130)
    axes = figure.subplots()
    for variant, row in growth.items():
        label = f"{variant}: length^{row['exponent']:.2f}"
        axes.plot(row["frames"], 1e3 * np.asarray(row["seconds"]), "o-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("video frames")
    axes.set_ylabel("forward pass of one head (ms)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run_main(main)
