"""Sample sound for clips: python -m flowley_jax.sample --workdir DIR --video a.mp4 --prompt "…" --out b.mp4

Instead of --workdir, --published takes a folder of bundles from python -m flowley_jax.convert.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import USER_ERROR, run_main
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.config import SampleConfig
    from flowley_jax.sampling.inputs import InputClip
    from flowley_jax.sampling.sampler import Sampler

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
_PUBLISHED = flags.DEFINE_string(
    "published", None, "Folder of bundles of published weights, instead of --workdir."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type of published weights.")
_VIDEO = flags.DEFINE_string(
    "video", None, "A video, a folder of videos, or a clip table (.tsv).", required=True
)
_PROMPT = flags.DEFINE_string(
    "prompt", None, "Text that describes the sound of every clip; by default a table's captions."
)
_SOUNDCAP = flags.DEFINE_string(
    "soundcap", None, "Model that captions each clip first: a folder or hub name (docs/soundcap.md)."
)
_SOUNDCAP_ADAPTER = flags.DEFINE_string(
    "soundcap_adapter", "", "Folder of a LoRA adapter for the --soundcap model."
)
_SOUNDCAP_SERVER = flags.DEFINE_string(
    "soundcap_server", "", "Server that runs the --soundcap model, such as http://HOST:8000/v1."
)
_OUT = flags.DEFINE_string(
    "out", None, "Where the sounds go: a file (.mp4 .mkv .mov .wav .flac), or a folder."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the stages with their files, shapes and memory; sample nothing."
)
_KIND = flags.DEFINE_enum(
    "kind", "mp4", ["mp4", "mkv", "mov", "wav", "flac"], "Format of the files in a folder."
)
_SPLIT = flags.DEFINE_string("split", None, "Rows of a clip table to take; by default all.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Random seed. The same seed and clip id give the same sound, in any batch."
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Sounds per clip.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of a fixed-step solver.", lower_bound=1)
_SOLVER = flags.DEFINE_enum(
    "solver",
    None,
    ["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5"],
    "ODE solver; tsit5 and dopri5 choose their own steps.",
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Classifier-free guidance scale; values below 1 disable guidance."
)
_ADAPTER = flags.DEFINE_string("adapter", None, "File of LoRA adapters to add to the weights.")
_ADAPTER_FACTOR = flags.DEFINE_float(
    "adapter_factor", 1.0, "Strength of the adapters: 1 as trained, 0 without effect."
)
_SIGMA_REL = flags.DEFINE_float(
    "sigma_rel", None, "Relative EMA length of the weights, such as 0.05 (docs/training.md).", lower_bound=0.0
)


def main() -> int:
    """Run the command line; return 0, or 2 if a clip failed (the others are written)."""
    from flowley_jax.sampling.inputs import find_inputs
    from flowley_jax.sampling.outputs import check_out, write_sounds

    _check_flags()
    out, uncaptioned = Path(_OUT.value or "."), []
    clips = find_inputs(Path(_VIDEO.value), prompt=_PROMPT.value, split=_SPLIT.value)
    if not _DRY_RUN.value:
        check_out(out, many=len(clips) > 1)
    sampler = _published_sampler(_PUBLISHED.value) if _PUBLISHED.value else _run_sampler(_WORKDIR.value or "")
    if _DRY_RUN.value:
        _print_dry_run(sampler, clips)
        return 0
    if _SOUNDCAP.value:
        clips, uncaptioned = _captioned(clips, out)
    results = write_sounds(
        sampler,
        clips,
        out,
        suffix=f".{_KIND.value}",
        seed=_SEED.value,
        num_samples=_NUM_SAMPLES.value,
    )
    failed = [*uncaptioned, *results.failed]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    for paths in results.written.values():
        print("\n".join(map(str, paths)))
    return USER_ERROR if failed else 0


def _check_flags() -> None:
    if bool(_WORKDIR.value) == bool(_PUBLISHED.value):
        raise FlowleyError("give either --workdir or --published")
    if _SOUNDCAP.value and _PROMPT.value is not None:
        raise FlowleyError("give either --prompt or --soundcap")
    if (_SOUNDCAP_ADAPTER.value or _SOUNDCAP_SERVER.value) and not _SOUNDCAP.value:
        raise FlowleyError("--soundcap-adapter and --soundcap-server need --soundcap, the model's name")
    if not _OUT.value and not _DRY_RUN.value:
        raise FlowleyError("--out must name a file or folder")
    if _PUBLISHED.value and (_ADAPTER.value or _ADAPTER_FACTOR.present or _SIGMA_REL.value is not None):
        raise FlowleyError(
            "--adapter, --adapter-factor and --sigma-rel belong to --workdir, not to --published"
        )


def _run_sampler(workdir: str) -> "Sampler":
    from flowley_jax.runs.workdir import read_config
    from flowley_jax.sampling.sampler import Sampler

    return Sampler.from_run(
        workdir,
        settings=_settings(read_config(Path(workdir)).sample),
        adapter=_ADAPTER.value,
        adapter_factor=_ADAPTER_FACTOR.value,
    )


def _published_sampler(folder: str) -> "Sampler":
    from flowley_jax.config import SampleConfig
    from flowley_jax.sampling.sampler import Sampler

    dtype = "bfloat16" if _DTYPE.value == "bfloat16" else "float32"
    return Sampler.from_published(folder, settings=_settings(SampleConfig()), dtype=dtype)


def _captioned(clips: "list[InputClip]", out: Path) -> "tuple[list[InputClip], list[str]]":
    """Return the clips with SoundCap's captions as prompts, and one line for each clip without a caption."""
    from data_prep.soundcap.models import open_model
    from data_prep.soundcap.prompting import with_captions

    model = open_model(_SOUNDCAP.value or "", adapter=_SOUNDCAP_ADAPTER.value, server=_SOUNDCAP_SERVER.value)
    return with_captions(clips, model, None if out.suffix else out / "soundcap")


def _print_dry_run(sampler: "Sampler", clips: "list[InputClip]") -> None:
    from flowley_jax.media.read import probe
    from flowley_jax.sampling.dry_run import dry_run, format_reports

    seconds = probe(clips[0].path).duration
    frames = max(1, round(seconds * sampler.components.video_fps))
    print(f"clips: {len(clips)}, sounds per clip: {_NUM_SAMPLES.value}")
    print(f"stages for a clip of {seconds:.2f} s ({clips[0].path}):")
    print(format_reports(dry_run(sampler, frames=frames, clips=_NUM_SAMPLES.value)))


def _settings(default: "SampleConfig") -> "SampleConfig":
    """Return the settings, overridden by the flags that are set."""
    solver = {"name": _SOLVER.value, "steps": _STEPS.value}
    solver = {key: value for key, value in solver.items() if value is not None}
    changes = {"guidance": _GUIDANCE.value, "sigma_rel": _SIGMA_REL.value}
    changes = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(default, solver=dataclasses.replace(default.solver, **solver), **changes)


if __name__ == "__main__":
    run_main(main)
