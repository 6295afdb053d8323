"""Sound for clips: python -m flowley_jax.sample --workdir DIR --video a.mp4 --prompt "…" --out b.mp4"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from flowley_jax.cli import USER_ERROR, run_main

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
_VIDEO = flags.DEFINE_string(
    "video", None, "A video, a folder of videos, or a clip table (.tsv).", required=True
)
_PROMPT = flags.DEFINE_string(
    "prompt", None, "What is to be heard; a table's captions are used if not given."
)
_OUT = flags.DEFINE_string("out", None, "File (.mp4 .mkv .mov .wav .flac), or a folder.", required=True)
_KIND = flags.DEFINE_enum(
    "kind", "mp4", ["mp4", "mkv", "mov", "wav", "flac"], "Kind of files written to a folder."
)
_SPLIT = flags.DEFINE_string("split", None, "Rows of a clip table to take; all if not given.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed and clip id give the same sound, in any batch.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Sounds per clip.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of a fixed-step solver.", lower_bound=1)
_SOLVER = flags.DEFINE_enum(
    "solver", None, ["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5"], "How the ODE is solved."
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Classifier-free guidance scale; below 1 the condition alone."
)
_ADAPTER = flags.DEFINE_string("adapter", None, "File of LoRA adapters to add to the weights.")
_ADAPTER_FACTOR = flags.DEFINE_float("adapter_factor", 1.0, "How strongly; 1 as trained, 0 not at all.")
_SIGMA_REL = flags.DEFINE_float("sigma_rel", None, "EMA length of the weights.", lower_bound=0.0)


def main() -> int:
    """Command line; returns 0, or 2 when a clip failed (the others are written)."""
    from flowley_jax.sampling.clips import find_sources
    from flowley_jax.sampling.files import check_out, write_sounds
    from flowley_jax.sampling.sampler import Sampler
    from flowley_jax.training.workdir import read_config

    out = Path(_OUT.value)
    sources = find_sources(Path(_VIDEO.value), prompt=_PROMPT.value, split=_SPLIT.value)
    check_out(out, many=len(sources) > 1)
    workdir = Path(_WORKDIR.value)
    sampler = Sampler.load(
        workdir,
        settings=_settings(read_config(workdir).sample),
        adapter=_ADAPTER.value,
        adapter_factor=_ADAPTER_FACTOR.value,
    )
    results = write_sounds(
        sampler, sources, out, kind=f".{_KIND.value}", seed=_SEED.value, num_samples=_NUM_SAMPLES.value
    )
    for line in results.failed:
        print(f"error: {line}", file=sys.stderr)
    for paths in results.written.values():
        print("\n".join(map(str, paths)))
    return USER_ERROR if results.failed else 0


def _settings(default):
    solver = {"name": _SOLVER.value, "steps": _STEPS.value}
    solver = dataclasses.replace(
        default.solver, **{key: value for key, value in solver.items() if value is not None}
    )
    changes = {"guidance": _GUIDANCE.value, "sigma_rel": _SIGMA_REL.value}
    changes = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(default, solver=solver, **changes)


if __name__ == "__main__":
    run_main(main)
