"""Convert published weights to bundles, and back: python -m flowley_jax.convert --source FILE --out DIR

A source is a file (.safetensors, .pth, .pt, .bin, .ckpt or ….index.json), a folder with such a file, or the
name of a repository on the Hugging Face hub. The names of the weights show which model it is. Its bundle is
written to DIR/flowley, DIR/clip, DIR/t5, DIR/audio_vae or DIR/bigvgan.
"""

from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

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
_EXPECT = flags.DEFINE_enum(
    "expect",
    None,
    ["flowley", "clip", "t5", "audio_vae", "bigvgan"],
    "Fail if the source holds a different model.",
)


def main() -> int:
    """Run the command line. Without --out, describe the sources."""
    from flowley_jax.interop.convert import convert, inspect, write_back

    sources = _SOURCE.value or []
    for flag in (_OUT, _BUNDLE, _TO):
        if flag.value == "":
            raise FlowleyError(f"--{flag.name}='' must not be empty")
    if _BUNDLE.value and _TO.value and not sources and not _OUT.value:
        write_back(Path(_BUNDLE.value), Path(_TO.value), overwrite=_OVERWRITE.value)
        print(_TO.value)
        return 0
    if not sources or _BUNDLE.value or _TO.value:
        raise FlowleyError("give either --source (with --out to convert it), or --bundle and --to")
    for source in sources:
        if _OUT.value:
            print(convert(source, Path(_OUT.value), expect=_EXPECT.value).folder)
        else:
            print(inspect(source, expect=_EXPECT.value))
    return 0


if __name__ == "__main__":
    run_main(main)
