"""Sound for clips: python -m flowley_jax.sample --workdir DIR --video a.mp4 --prompt "…" --out b.mp4

Instead of --workdir, --published takes a folder of bundles that python -m flowley_jax.convert made.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from flowley_jax.cli import USER_ERROR, run_main
from flowley_jax.errors import FlowleyError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
_PUBLISHED = flags.DEFINE_string("published", None, "Folder of bundles of published weights, instead.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type of published weights.")
_VIDEO = flags.DEFINE_string(
    "video", None, "A video, a folder of videos, or a clip table (.tsv).", required=True
)
_PROMPT = flags.DEFINE_string(
    "prompt", None, "What is to be heard; a table's captions are used if not given."
)
_SOUNDCAP = flags.DEFINE_string(
    "soundcap", None, "Model that captions each clip first: a folder or hub name (docs/soundcap.md)."
)
_SOUNDCAP_ADAPTER = flags.DEFINE_string("soundcap_adapter", "", "Folder of its LoRA adapter.")
_SOUNDCAP_SERVER = flags.DEFINE_string("soundcap_server", "", "http://HOST:8000/v1 of a server that has it.")
_OUT = flags.DEFINE_string("out", None, "File (.mp4 .mkv .mov .wav .flac), or a folder.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print stages, files, shapes and memory, and make no sound.")
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

    if bool(_WORKDIR.value) == bool(_PUBLISHED.value):
        raise FlowleyError("give one of --workdir and --published")
    if _SOUNDCAP.value and _PROMPT.value is not None:
        raise FlowleyError("give one of --prompt and --soundcap")
    if (_SOUNDCAP_ADAPTER.value or _SOUNDCAP_SERVER.value) and not _SOUNDCAP.value:
        raise FlowleyError("--soundcap-adapter and --soundcap-server need --soundcap, the model's name")
    if not _OUT.value and not _DRY_RUN.value:
        raise FlowleyError("--out must say where the sound goes")
    out, uncaptioned = Path(_OUT.value or "."), []
    sources = find_sources(Path(_VIDEO.value), prompt=_PROMPT.value, split=_SPLIT.value)
    if not _DRY_RUN.value:
        check_out(out, many=len(sources) > 1)
    sampler = (
        _published_sampler(_PUBLISHED.value) if _PUBLISHED.value else _trained_sampler(_WORKDIR.value or "")
    )
    if _DRY_RUN.value:
        _print_plan(sampler, sources)
        return 0
    if _SOUNDCAP.value:
        sources, uncaptioned = _captioned(sources, out)
    results = write_sounds(
        sampler,
        sources,
        out,
        kind=f".{_KIND.value}",
        seed=_SEED.value,
        num_samples=_NUM_SAMPLES.value,
    )
    failed = [*uncaptioned, *results.failed]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    for paths in results.written.values():
        print("\n".join(map(str, paths)))
    return USER_ERROR if failed else 0


def _trained_sampler(workdir: str):
    from flowley_jax.sampling.sampler import Sampler
    from flowley_jax.training.workdir import read_config

    return Sampler.load(
        workdir,
        settings=_settings(read_config(Path(workdir)).sample),
        adapter=_ADAPTER.value,
        adapter_factor=_ADAPTER_FACTOR.value,
    )


def _published_sampler(folder: str):
    from flowley_jax.config import SampleConfig
    from flowley_jax.sampling.published import load_published

    if _ADAPTER.value or _ADAPTER_FACTOR.present or _SIGMA_REL.value is not None:
        raise FlowleyError(
            "--adapter, --adapter-factor and --sigma-rel belong to --workdir, not to --published"
        )
    dtype = "bfloat16" if _DTYPE.value == "bfloat16" else "float32"
    return load_published(folder, settings=_settings(SampleConfig()), dtype=dtype)


def _captioned(sources, out: Path):
    """Clips with a caption from SoundCap as their prompt, and a line for each that got none."""
    from data_prep.soundcap.options import open_model
    from data_prep.soundcap.prompting import with_captions

    model = open_model(_SOUNDCAP.value or "", adapter=_SOUNDCAP_ADAPTER.value, server=_SOUNDCAP_SERVER.value)
    return with_captions(sources, model, None if out.suffix else out / "soundcap")


def _print_plan(sampler, sources) -> None:
    from flowley_jax.media.read import probe
    from flowley_jax.sampling.plan import plan, table

    seconds = probe(sources[0].path).duration
    frames = max(1, round(seconds * sampler.parts.video_fps))
    print(f"clips: {len(sources)}, sounds of each: {_NUM_SAMPLES.value}")
    print(f"stages for one of {seconds:.2f} s, such as {sources[0].path}:")
    print(table(plan(sampler, frames=frames, clips=_NUM_SAMPLES.value)))


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
