"""Sample sound for clips: python -m flowley_jax.sample --workdir DIR --video a.mp4 --prompt "…" --out b.mp4

Instead of --workdir, --published takes a folder of bundles from python -m flowley_jax.convert.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import USER_ERROR, run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import GUIDANCES, SEEDS, SIGMA_RELS, Range
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
    "prompt",
    None,
    "Text that describes the sound of every clip; by default a table's captions, or the text of a .txt file "
    "of the video's name.",
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
_KEY_VARIABLE = flags.DEFINE_string(
    "key_variable", "OPENAI_API_KEY", "Environment variable with the API key of --soundcap-server."
)
_OUT = flags.DEFINE_string(
    "out", None, "Where the sounds go: a file (.mp4 .mkv .mov .wav .flac), or a folder."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace the file --out if it exists. In a folder, samples.jsonl decides."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the stages with their files, shapes and memory; sample nothing."
)
_KIND = flags.DEFINE_enum(
    "kind", "mp4", ["mp4", "mkv", "mov", "wav", "flac"], "Format of the files in a folder."
)
_SPLIT = flags.DEFINE_string("split", None, "Rows of a clip table to take; by default all.")
_SEED = define_int(
    "seed",
    0,
    "Random seed. The same seed and clip id give the same sound; with a fixed-step solver, in any batch.",
    SEEDS,
)
_NUM_SAMPLES = define_int("num_samples", 1, "Sounds per clip.", Range(least=1, most=1000))
_STEPS = define_int("steps", None, "Steps of a fixed-step solver.", Range(least=1, most=10_000))
_SOLVER = flags.DEFINE_enum(
    "solver",
    None,
    ["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5"],
    "ODE solver; tsit5 and dopri5 choose their own steps.",
)
_GUIDANCE = define_float(
    "guidance",
    None,
    "Classifier-free guidance scale; values below 1 disable guidance.",
    GUIDANCES,
)
_ADAPTER = flags.DEFINE_string("adapter", None, "File of LoRA adapters to add to the weights.")
_ADAPTER_FACTOR = define_float(
    "adapter_factor",
    1.0,
    "Strength of the adapters: 1 as trained, 0 without effect.",
    Range(least=-100, most=100),
)
_SIGMA_REL = define_float(
    "sigma_rel", None, "Relative EMA length of the weights, such as 0.05 (docs/training.md).", SIGMA_RELS
)


def main() -> int:
    """Run the command line; return 0, or 2 if a clip failed (the others are written)."""
    from flowley_jax.sampling.inputs import find_inputs
    from flowley_jax.sampling.outputs import check_out, write_sounds

    _check_flags()
    out, uncaptioned = Path(_OUT.value or "."), []
    prompt = "" if _SOUNDCAP.value else _PROMPT.value
    clips = find_inputs(Path(_VIDEO.value), prompt=prompt, split=_SPLIT.value, out=out)
    if not _DRY_RUN.value:
        check_out(out, clips, num_samples=_NUM_SAMPLES.value, overwrite=_OVERWRITE.value)
        if _SOUNDCAP.value:
            # Before the sampler, which takes the memory of a GPU and keeps it.
            clips, uncaptioned = _captioned(clips, out)
    sampler = _published_sampler(_PUBLISHED.value) if _PUBLISHED.value else _run_sampler(_WORKDIR.value or "")
    if _DRY_RUN.value:
        _print_dry_run(sampler, clips)
        return 0
    results = write_sounds(
        sampler,
        clips,
        out,
        suffix=f".{_KIND.value}",
        seed=_SEED.value,
        num_samples=_NUM_SAMPLES.value,
        overwrite=_OVERWRITE.value,
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
    if _KEY_VARIABLE.present and not _SOUNDCAP_SERVER.value:
        raise FlowleyError("--key-variable names the key of --soundcap-server, which is missing")
    if not _OUT.value and not _DRY_RUN.value:
        raise FlowleyError("--out must name a file or folder")
    if _PUBLISHED.value and (_ADAPTER.value or _ADAPTER_FACTOR.present or _SIGMA_REL.value is not None):
        raise FlowleyError(
            "--adapter, --adapter-factor and --sigma-rel belong to --workdir, not to --published"
        )
    if _WORKDIR.value and _DTYPE.present:
        raise FlowleyError("--dtype belongs to --published; a run's configuration has model.dtype")
    if _ADAPTER_FACTOR.present and not _ADAPTER.value:
        raise FlowleyError("--adapter-factor needs --adapter, the file of the adapters")
    _check_flags_of_out()


def _check_flags_of_out() -> None:
    from flowley_jax.sampling.plan import is_file

    if not _OUT.value:
        return
    if is_file(Path(_OUT.value)):
        if _KIND.present:
            raise FlowleyError(
                f"--kind belongs to a folder; the extension of the file --out {_OUT.value} says its format"
            )
    elif _OVERWRITE.value:
        raise FlowleyError(
            f"--overwrite belongs to a file; in the folder --out {_OUT.value}, samples.jsonl says which "
            "files may be replaced"
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
    from data_prep.soundcap.models import key_from_flag, open_model
    from data_prep.soundcap.prompting import with_captions
    from flowley_jax.runs.workdir import read_config
    from flowley_jax.sampling.plan import is_file

    if _WORKDIR.value:
        # A wrong folder is named at once, not after all captions.
        read_config(Path(_WORKDIR.value))
    model = open_model(
        _SOUNDCAP.value or "",
        adapter=_SOUNDCAP_ADAPTER.value,
        server=_SOUNDCAP_SERVER.value,
        key=key_from_flag(),
    )
    with contextlib.closing(model):
        return with_captions(clips, model, None if is_file(out) else out / "soundcap")


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
