"""Sample sound for clips: python -m flowley_jax.sample --workdir DIR --video a.mp4 --prompt "…" --out b.mp4

Without --video, --prompt and --seconds make a sound from text.
Instead of --workdir, --published takes a folder of bundles from python -m flowley_jax.convert. Without
either, the demonstration's model is used, which comes with the package.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import USER_ERROR, run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.common.model_flags import ModelFlags
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import (
    FLOW_TIMES,
    GUIDANCES,
    LOUDNESSES,
    OVERLAPS,
    SECONDS,
    SEEDS,
    SHARES,
    SHIFTS,
    SIGMA_RELS,
    TIMES,
    Range,
)
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.config import SampleConfig
    from flowley_jax.media.mix import Mixing
    from flowley_jax.sampling.inputs import InputClip
    from flowley_jax.sampling.sampler import Sampler

_MODEL = ModelFlags()
_VIDEO = flags.DEFINE_string(
    "video",
    None,
    "A video, a folder of videos, or a clip table (.tsv); without it, --prompt and --seconds make a sound.",
)
_PROMPT = flags.DEFINE_string(
    "prompt",
    None,
    "Text that describes the sound of every clip; by default a table's captions, or the text of a .txt file "
    "of the video's name.",
)
_NEGATIVE_PROMPT = flags.DEFINE_string(
    "negative_prompt",
    None,
    "Text that guidance leads away from, for every clip; by default that of the clip table, or else of the "
    "configuration.",
)
_SECONDS = define_float(
    "seconds",
    None,
    "Length of a sound from text, or the most to use of each video, in seconds.",
    SECONDS,
)
_START = define_float("start", 0.0, "Start of the part of each video to use, in seconds.", TIMES)
_END = define_float("end", None, "End of the part of each video to use, in seconds.", TIMES)
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
    "dry_run", False, "Estimate the time and memory of each stage for these clips; write nothing."
)
_KIND = flags.DEFINE_enum(
    "kind", "mp4", ["mp4", "mkv", "mov", "wav", "flac"], "Format of the files in a folder."
)
_SPLIT = flags.DEFINE_string("split", None, "Rows of a clip table to take; by default all.")
_SEED = define_int(
    "seed",
    0,
    "Random seed. The same seed and clip id give the same sound in any batch, up to rounding.",
    SEEDS,
)
_NUM_SAMPLES = define_int("num_samples", 1, "Sounds per clip.", Range(least=1, most=1000))
_CANDIDATES = define_int(
    "candidates",
    0,
    "Sounds to make per clip, of which --num-samples are written: those that agree best with the others. 0 "
    "writes all that are made.",
    Range(least=0, most=1000),
)
_STEPS = define_int(
    "steps",
    None,
    "Steps of a fixed-step solver; by default those of the run's configuration.",
    Range(least=1, most=10_000),
)
_SOLVER = flags.DEFINE_enum(
    "solver",
    None,
    ["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5", "flow_map"],
    "ODE solver; tsit5 and dopri5 choose their own steps, and flow_map is for runs with flow.map.enabled; by "
    "default that of the run's configuration.",
)
_SHIFT = define_float(
    "shift", None, "Above 1, a fixed-step solver takes shorter steps near the noise.", SHIFTS
)
_GUIDANCE = define_float(
    "guidance",
    None,
    "Classifier-free guidance scale, of the video only if the text has one of its own; 1 or below means no "
    "guidance; by default that of the run's configuration.",
    GUIDANCES,
)
_GUIDANCE_TEXT = define_float(
    "guidance_text",
    None,
    "Guidance scale of the text, at all steps; by default that of --guidance.",
    GUIDANCES,
)
_GUIDANCE_FROM = define_float(
    "guidance_from",
    None,
    "--guidance applies only to steps that begin at this time or later: 0 is noise, 1 is sound.",
    SHARES,
)
_GUIDANCE_TO = define_float(
    "guidance_to", None, "--guidance applies only to steps that begin before this time.", SHARES
)
_GUIDANCE_RESCALE = define_float(
    "guidance_rescale", None, "Share of the guided velocity that gets the unguided deviation.", SHARES
)
_ZERO_STAR = flags.DEFINE_bool("zero_star", None, "Scale the empty branch by least squares (CFG-Zero*).")
_ZERO_UNTIL = define_float(
    "zero_until",
    None,
    "Keep the noise as it is in steps that begin before this time (CFG-Zero*).",
    FLOW_TIMES,
)
_AUTOGUIDANCE_STEP = define_int(
    "autoguidance_step",
    None,
    "Guide by the run's averaged weights of this step instead of the empty condition.",
    Range(least=0),
)
_AUTOGUIDANCE_SIGMA_REL = define_float(
    "autoguidance_sigma_rel",
    None,
    "Relative EMA length of these weights; by default --sigma-rel.",
    SIGMA_RELS,
)
_WINDOW = define_float(
    "window",
    None,
    "Length in seconds of the windows of a longer video; by default that of the training clips.",
    SECONDS,
)
_OVERLAP = define_float(
    "overlap", None, "Share of each window that overlaps the next one, such as 0.25.", OVERLAPS
)
_LOUDNESS = define_float(
    "loudness",
    None,
    "Integrated loudness of the sounds in LUFS, such as -23, as far as their peaks allow; by default, the "
    "model sets the level.",
    LOUDNESSES,
)
_KEEP_ORIGINAL = define_float(
    "keep_original", 0.0, "Factor of each video's own sound in the mix; 0 leaves it out.", SHARES
)
_STEREO = flags.DEFINE_bool("stereo", False, "Write two channels, even if both are the same.")
_KEEP = flags.DEFINE_string(
    "keep",
    None,
    "Parts of each video's own sound that stay, in seconds, such as 0-2.5,6-8; the rest is made to fit.",
)
_ADAPTER = flags.DEFINE_string("adapter", None, "File of LoRA adapters to add to the weights.")
_ADAPTER_FACTOR = define_float(
    "adapter_factor",
    1.0,
    "Strength of the adapters: 1 as trained, 0 turns them off.",
    Range(least=-100, most=100),
)
_SIGMA_REL = define_float(
    "sigma_rel", None, "Relative EMA length of the weights, such as 0.05 (docs/training.md).", SIGMA_RELS
)
_COMPILATION_CACHE = define_compilation_cache()


def main() -> int:
    """Run the command line; return 0, or 2 if a clip failed (the others are written)."""
    from flowley_jax.sampling.outputs import check_out, write_sounds

    _check_flags()
    mixing = _mixing()
    use_compilation_cache(_COMPILATION_CACHE.value)
    out, uncaptioned = Path(_OUT.value or "."), []
    clips = _inputs(out)
    if not _DRY_RUN.value:
        check_out(out, clips, num_samples=_NUM_SAMPLES.value, overwrite=_OVERWRITE.value)
        if _SOUNDCAP.value:
            # Before the sampler, which takes the memory of a GPU and keeps it.
            clips, uncaptioned = _captioned(clips, out)
    sampler = _published_sampler(_MODEL.published) if _MODEL.published else _run_sampler(_MODEL.workdir)
    if _DRY_RUN.value:
        return _print_dry_run(sampler, clips)
    results = write_sounds(
        sampler,
        clips,
        out,
        suffix=f".{_KIND.value}",
        seed=_SEED.value,
        num_samples=_NUM_SAMPLES.value,
        candidates=_CANDIDATES.value,
        overwrite=_OVERWRITE.value,
        mixing=mixing,
    )
    failed = [*uncaptioned, *results.failed]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    for paths in results.written.values():
        print("\n".join(map(str, paths)))
    return USER_ERROR if failed else 0


def _check_flags() -> None:
    from flowley_jax.sampling.plan import check_candidates

    check_candidates(_CANDIDATES.value, _NUM_SAMPLES.value)
    _MODEL.check()
    if not _VIDEO.value and (_KEEP_ORIGINAL.value or _KEEP.value is not None):
        raise FlowleyError("--keep-original and --keep need --video, which has the sound to keep")
    if not _VIDEO.value and (_SOUNDCAP.value or _SPLIT.value):
        raise FlowleyError("--soundcap and --split need --video")
    if _SOUNDCAP.value and (_START.value or _END.value is not None):
        raise FlowleyError("--soundcap captions whole videos; it does not go with --start and --end")
    if _SOUNDCAP.value and _PROMPT.value is not None:
        raise FlowleyError("give either --prompt or --soundcap")
    if (_SOUNDCAP_ADAPTER.value or _SOUNDCAP_SERVER.value) and not _SOUNDCAP.value:
        raise FlowleyError("--soundcap-adapter and --soundcap-server need --soundcap, the model's name")
    if _KEY_VARIABLE.present and not _SOUNDCAP_SERVER.value:
        raise FlowleyError("--key-variable needs --soundcap-server")
    if not _OUT.value and not _DRY_RUN.value:
        raise FlowleyError("--out must name a file or folder")
    if _MODEL.published and (_ADAPTER.value or _ADAPTER_FACTOR.present or _SIGMA_REL.value is not None):
        raise FlowleyError(
            "--adapter, --adapter-factor and --sigma-rel apply only to --workdir, not to --published"
        )
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
                f"--kind applies only to a folder; the extension of --out {_OUT.value} sets the format"
            )
    elif _OVERWRITE.value:
        raise FlowleyError(
            f"--overwrite applies only to a single file; in the folder --out {_OUT.value}, samples.jsonl "
            "decides which files may be replaced"
        )


def _inputs(out: Path) -> "list[InputClip]":
    from flowley_jax.sampling.inputs import Choices, find_inputs, text_input
    from flowley_jax.sampling.plan import is_file

    choices = Choices(
        prompt="" if _SOUNDCAP.value else _PROMPT.value,
        negative_prompt=_NEGATIVE_PROMPT.value,
        seed=_SEED.value if _SEED.present else None,
        start=_START.value,
        end=_END.value,
        seconds=_SECONDS.value,
    )
    if _VIDEO.value:
        return find_inputs(Path(_VIDEO.value), choices=choices, split=_SPLIT.value, out=out)
    clip = text_input(choices, clip_id=out.stem if is_file(out) else None)
    if _OUT.value and not is_file(out) and _KIND.value not in ("wav", "flac"):
        raise FlowleyError(f"--out {out}: a sound from text has no picture; add --kind wav")
    return [clip]


def _run_sampler(workdir: str | None) -> "Sampler":
    from flowley_jax.runs.hub_models import local_folder
    from flowley_jax.runs.included_model import DESCRIPTION, INCLUDED
    from flowley_jax.runs.workdir import read_config
    from flowley_jax.sampling.sampler import Sampler

    if not workdir:
        print(f"using {DESCRIPTION} (set --workdir for another)", file=sys.stderr)
    folder = local_folder(workdir or INCLUDED)
    return Sampler.from_run(
        folder,
        settings=_settings(read_config(folder).sample),
        adapter=_ADAPTER.value,
        adapter_factor=_ADAPTER_FACTOR.value,
    )


def _published_sampler(folder: str) -> "Sampler":
    from flowley_jax.sampling.published import published_settings
    from flowley_jax.sampling.sampler import Sampler

    settings = _settings(published_settings(folder))
    return Sampler.from_published(folder, settings=settings, dtype=_MODEL.dtype)


def _captioned(clips: "list[InputClip]", out: Path) -> "tuple[list[InputClip], list[str]]":
    """Return the clips with SoundCap's captions as prompts, and one line for each clip without a caption."""
    from data_prep.soundcap.models import key_from_flag, open_model
    from data_prep.soundcap.prompting import with_captions
    from flowley_jax.runs.hub_models import local_folder
    from flowley_jax.runs.workdir import read_config
    from flowley_jax.sampling.plan import is_file

    if _MODEL.workdir:
        # A wrong folder is named at once, not after all captions.
        read_config(local_folder(_MODEL.workdir))
    model = open_model(
        _SOUNDCAP.value or "",
        adapter=_SOUNDCAP_ADAPTER.value,
        server=_SOUNDCAP_SERVER.value,
        key=key_from_flag(),
    )
    with contextlib.closing(model):
        return with_captions(clips, model, None if is_file(out) else out / "soundcap")


def _print_dry_run(sampler: "Sampler", clips: "list[InputClip]") -> int:
    """Print what sampling would take; return 0, or 2 if a clip cannot be used."""
    from flowley_jax.sampling.dry_run import dry_run
    from flowley_jax.sampling.estimate_text import format_estimate

    estimate, failed = dry_run(
        sampler,
        clips,
        Path(_OUT.value) if _OUT.value else None,
        suffix=f".{_KIND.value}",
        seed=_SEED.value,
        num_samples=_NUM_SAMPLES.value,
        candidates=_CANDIDATES.value,
        mixing=_mixing(),
    )
    if estimate:
        print(format_estimate(estimate))
    elif not failed:
        print("nothing to sample: every clip has its sound")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return USER_ERROR if failed else 0


def _mixing() -> "Mixing":
    from flowley_jax.media.mix import Mixing, parse_keep

    keep = () if _KEEP.value is None else parse_keep(_KEEP.value)
    return Mixing(keep_original=_KEEP_ORIGINAL.value, stereo=_STEREO.value, keep=keep)


def _settings(default: "SampleConfig") -> "SampleConfig":
    """Return the settings, overridden by the flags that are set."""
    solver = {"name": _SOLVER.value, "steps": _STEPS.value, "shift": _SHIFT.value}
    solver = {key: value for key, value in solver.items() if value is not None}
    changes = {
        "window": _WINDOW.value,
        "overlap": _OVERLAP.value,
        "loudness": _LOUDNESS.value,
        "guidance": _GUIDANCE.value,
        "guidance_text": _GUIDANCE_TEXT.value,
        "guidance_from": _GUIDANCE_FROM.value,
        "guidance_to": _GUIDANCE_TO.value,
        "guidance_rescale": _GUIDANCE_RESCALE.value,
        "zero_star": _ZERO_STAR.value,
        "zero_until": _ZERO_UNTIL.value,
        "autoguidance_step": _AUTOGUIDANCE_STEP.value,
        "autoguidance_sigma_rel": _AUTOGUIDANCE_SIGMA_REL.value,
        "sigma_rel": _SIGMA_REL.value,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    settings = dataclasses.replace(default, solver=dataclasses.replace(default.solver, **solver), **changes)
    _check_effect(settings)
    if _KEEP.value is not None and settings.loudness is not None:
        raise FlowleyError(
            f"--keep does not go with a loudness ({settings.loudness:g} LUFS, of --loudness or "
            "sample.loudness), which would change the level at the joints"
        )
    return settings


def _check_effect(settings: "SampleConfig") -> None:
    """Refuse flags that have no effect, because no step is guided or the solver chooses its own steps."""
    from flowley_jax.flow.solver import ADAPTIVE
    from flowley_jax.flow.stretches import stretches

    steps = [stretch.guidance for stretch in stretches(settings.solver, settings.guidance_form)]
    if not any(form.scales[0] > 1.0 for form in steps):
        _refuse((_GUIDANCE_FROM, _GUIDANCE_TO, _ZERO_STAR), "no step has a --guidance above 1")
    if not any(form.branches > 1 for form in steps):
        _refuse((_GUIDANCE_RESCALE, _AUTOGUIDANCE_STEP), "no step is guided; see --guidance")
    if _SHIFT.present and settings.solver.name in ADAPTIVE:
        raise FlowleyError(f"--shift needs a fixed-step solver; {settings.solver.name} chooses its own steps")


def _refuse(given: Sequence[flags.FlagHolder], reason: str) -> None:
    """Refuse the first of these flags that was given a value."""
    for flag in given:
        if flag.present and flag.value:
            raise FlowleyError(f"--{flag.name.replace('_', '-')} has no effect, because {reason}")


if __name__ == "__main__":
    run_main(main)
