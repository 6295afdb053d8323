"""Convert published weights to bundles, and back: python -m flowley_jax.convert --source FILE --out DIR

A source is a file (.safetensors, .pth, .pt, .bin, .ckpt or ….index.json), a folder with such a file, or the
name of a repository on the Hugging Face hub. The names of the weights show which model it is. Its bundle is
written to a folder of DIR that is named after the model: flowley, clip, t5, audio_vae or bigvgan, and for the
networks of the evaluation panns, vggish, passt, clap, imagebind or synchformer.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

# The keys of `interop.registry.FORMATS`, whose import takes seconds.
_MODELS = (
    *("flowley", "clip", "t5", "audio_vae", "bigvgan"),
    *("panns", "vggish", "passt", "clap", "imagebind", "synchformer"),
)
_SOURCE = flags.DEFINE_multi_string(
    "source",
    None,
    "File, folder or hub repository to convert; may be repeated. Without --out, it is only described.",
)
_OUT = flags.DEFINE_string("out", None, "Folder in which the bundles are written.")
_BUNDLE = flags.DEFINE_string("bundle", None, "Bundle whose weights are written to the file --to.")
_TO = flags.DEFINE_string(
    "to", None, "File for the weights of --bundle: .safetensors, or with PyTorch .pth, .pt, .bin or .ckpt."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file --to if it exists.")
_LEVEL_FROM = flags.DEFINE_string(
    "level_from",
    None,
    "Folder of records or of a run, at whose level the sounds of the audio VAE are kept.",
)
_EXPECT = flags.DEFINE_enum(
    "expect",
    None,
    _MODELS,
    "Fail if the source holds a different model.",
)


def main() -> int:
    """Run the command line. Without --out, describe the sources."""
    from flowley_jax.interop.convert import inspect, write_back

    sources = _SOURCE.value or []
    for flag in (_OUT, _BUNDLE, _TO, _LEVEL_FROM):
        if flag.value == "":
            raise FlowleyError(f"--{flag.name.replace('_', '-')}='' must not be empty")
    if _LEVEL_FROM.value and not _OUT.value:
        raise FlowleyError("--level-from needs --out, the folder of the audio VAE's bundle")
    if _BUNDLE.value and _TO.value and not sources and not _OUT.value:
        write_back(Path(_BUNDLE.value), Path(_TO.value), overwrite=_OVERWRITE.value)
        print(_TO.value)
        return 0
    if not sources or _BUNDLE.value or _TO.value:
        raise FlowleyError("give either --source (with --out to convert it), or --bundle and --to")
    if _OUT.value:
        _convert_all(sources, Path(_OUT.value))
    else:
        for source in sources:
            print(inspect(source, expect=_EXPECT.value))
    return 0


def _convert_all(sources: Sequence[str], out: Path) -> None:
    from flowley_jax.interop.convert import convert

    level = _log_mel_max(Path(_LEVEL_FROM.value)) if _LEVEL_FROM.value else None
    formats = set()
    for source in sources:
        bundle = convert(source, out, expect=_EXPECT.value, log_mel_max=level)
        formats.add(bundle.format)
        print(bundle.folder)
    if level and "audio_vae" not in formats:
        raise FlowleyError("--level-from belongs to the audio VAE, and no --source is one")


def _log_mel_max(folder: Path) -> tuple[float, ...]:
    """Return the `log_mel_max` of records or of a run."""
    from flowley_jax.data.components import Components, components_file
    from flowley_jax.runs.workdir import CONFIG, load_components

    is_records = components_file(folder).is_file()
    if not is_records and not (folder / CONFIG).is_file():
        raise FlowleyError(f"--level-from {folder}: holds neither records nor a run")
    components = Components.load(folder) if is_records else load_components(folder)
    if components.log_mel_max is None:
        raise FlowleyError(
            f"--level-from {folder}: an earlier version made it, without log_mel_max; prepare the records "
            "again in a new folder"
        )
    return tuple(components.log_mel_max.tolist())


if __name__ == "__main__":
    run_main(main)
