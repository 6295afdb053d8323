"""What PSCA costs beside the same attention without a mask: make benchmark-psca

Times are taken in pairs, one after the other and in alternating order, so that what else the machine does
falls on both alike. Huge pages (`GLIBC_TUNABLES`) keep the kernel's page faults out of them: a long clip's
temporaries are made anew in every run. With libtpu on the path, the TPU compiler's account is added; that
needs no TPU.
"""

import datetime
import functools
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.kernels.psca import psca
from flowley_jax.whole_files import replacing, write_text

# The published network: 8 s of video at 8 frames/s and of sound at 31.25 latents/s, 8 heads of 64.
BATCH, AUDIO_LENGTH, VIDEO_LENGTH, HEADS, DIM, VIDEO_FPS, LATENT_RATE = 4, 250, 64, 8, 64, 8.0, 31.25
MASK = {"fade_scale": 0.5, "window": 0, "fade_range": 4, "fade": "cosine", "video_fps": VIDEO_FPS}
LENGTHS = tuple(2**n for n in range(6, 15))
# Lengths from which time is no longer that of starting the program.
ASYMPTOTIC = 1024
KINDS = {
    "plain": {"window": -1},
    "psca": {},
    "hard cut": {"mask_floor": 0.0},
}

_OUT = flags.DEFINE_string("out", "benchmarks/results/psca", "Folder for psca.json and psca.png.")
_REPEATS = flags.DEFINE_integer("repeats", 40, "Pairs of runs at the published sizes.", lower_bound=3)
_LONGEST = flags.DEFINE_integer("longest", LENGTHS[-1], "Frames of the longest clip.", lower_bound=LENGTHS[0])


def main() -> int:
    """Measures, prints the ratios, and writes JSON and a plot."""
    result = {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "command": " ".join(["python -m benchmarks.psca", *sys.argv[1:]]),
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
        print(f"{direction}, to attention without a mask: {line}")
    print("growth exponents:", ", ".join(f"{k} {v['exponent']:.2f}" for k, v in result["growth"].items()))
    print(f"figures: {out / 'psca.json'}, picture: {out / 'psca.png'}")
    return 0


def _program(kind: str, direction: str, audio_length: int, video_length: int, **options):
    attend = functools.partial(
        psca, **{**MASK, "audio_fps": VIDEO_FPS * audio_length / video_length, **KINDS[kind], **options}
    )

    def both(q, k, v, cotangent):
        if direction == "forward":
            return attend(q, k, v)
        out, vjp = jax.vjp(attend, q, k, v)
        return out, *vjp(cotangent)

    return jax.jit(both)


def _inputs(audio_length: int, video_length: int, *, batch: int, heads: int):
    draw = np.random.default_rng(0)
    lengths = (audio_length, video_length, video_length, audio_length)
    return [jnp.asarray(draw.normal(size=(batch, n, heads, DIM)), jnp.float32) for n in lengths]


def _compare(direction: str, repeats: int) -> dict[str, float]:
    """Ratios of psca to the same attention without a mask, at the published sizes."""
    inputs = _inputs(AUDIO_LENGTH, VIDEO_LENGTH, batch=BATCH, heads=HEADS)
    compiled = {
        kind: _program(kind, direction, AUDIO_LENGTH, VIDEO_LENGTH).lower(*inputs).compile()
        for kind in ("psca", "plain")
    }
    for program in compiled.values():
        _seconds(program, inputs)
    ratios = []
    for pair in range(repeats):
        order = ("psca", "plain") if pair % 2 else ("plain", "psca")
        seconds = {kind: _seconds(compiled[kind], inputs, times=10) for kind in order}
        ratios.append(seconds["psca"] / seconds["plain"])
    costs = {kind: program.cost_analysis() for kind, program in compiled.items()}
    return {
        "time": float(np.median(ratios)),
        "time_low": float(np.percentile(ratios, 25)),
        "time_high": float(np.percentile(ratios, 75)),
        "flops": costs["psca"]["flops"] / costs["plain"]["flops"],
        "bytes": costs["psca"]["bytes accessed"] / costs["plain"]["bytes accessed"],
    }


def _seconds(program, inputs, *, times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        out = program(*inputs)
    jax.block_until_ready(out)
    return (time.perf_counter() - started) / times


def _growth(lengths: list[int]) -> dict[str, dict]:
    """Forward time over the length of the video, the sound growing with it; one head, batch one."""
    found = {kind: {"frames": [], "seconds": []} for kind in KINDS}
    for video_length in lengths:
        audio_length = round(video_length * LATENT_RATE / VIDEO_FPS)
        inputs = _inputs(audio_length, video_length, batch=1, heads=1)
        for kind in KINDS:
            program = _program(kind, "forward", audio_length, video_length).lower(*inputs).compile()
            _seconds(program, inputs)
            repeats = 3 if video_length > 4096 else 9
            seconds = float(np.median([_seconds(program, inputs) for _ in range(repeats)]))
            found[kind]["frames"].append(video_length)
            found[kind]["seconds"].append(seconds)
            print(f"{video_length} frames, {kind}: {1e3 * seconds:.2f} ms", file=sys.stderr, flush=True)
    for row in found.values():
        row["exponent"] = _exponent(row["frames"], row["seconds"])
    return found


def _exponent(frames, seconds) -> float:
    chosen = [(n, s) for n, s in zip(frames, seconds, strict=True) if n >= min(ASYMPTOTIC, frames[-2])]
    return float(np.polyfit(*np.log(np.asarray(chosen)).T, 1)[0])


def _tpu() -> dict[str, dict]:
    """The TPU compiler's bytes and memory at the published sizes, bfloat16, batch 32 on each chip."""
    from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs

    shapes = [
        jax.ShapeDtypeStruct((32, n, HEADS, DIM), jnp.bfloat16)
        for n in (AUDIO_LENGTH, VIDEO_LENGTH, VIDEO_LENGTH, AUDIO_LENGTH)
    ]
    found = {}
    for generation in TOPOLOGIES:
        for direction in ("forward", "forward+backward"):
            row = {}
            for name, kind, implementation in (
                ("psca, pallas", "psca", "pallas"),
                ("without a mask, pallas", "plain", "pallas"),
                ("without a mask, xla", "plain", "xla"),
            ):
                program = _program(kind, direction, AUDIO_LENGTH, VIDEO_LENGTH, implementation=implementation)
                row[name] = costs(compile_on(generation, program, shapes))
            found[f"{generation}, {direction}"] = row
    return found


def _plot(growth: dict[str, dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=130)
    axes = figure.subplots()
    for kind, row in growth.items():
        label = f"{kind}: length^{row['exponent']:.2f}"
        axes.plot(row["frames"], 1e3 * np.asarray(row["seconds"]), "o-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("frames of video")
    axes.set_ylabel("milliseconds, forward, one head")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run_main(main)
