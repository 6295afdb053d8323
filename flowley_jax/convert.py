"""Published weights into bundles of this project, and back: python -m flowley_jax.convert --source FILE
--out DIR

A source is a file (.safetensors, .pth, .pt, .bin, .ckpt, ….index.json), a folder with one, or the name of a
repository on the Hugging Face hub. What it holds is told by its weights; the bundle is DIR/flowley, DIR/clip,
DIR/t5, DIR/audio_vae or DIR/bigvgan.
"""

from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

_SOURCE = flags.DEFINE_multi_string(
    "source", None, "File, folder or hub repository; may be given several times."
)
_OUT = flags.DEFINE_string("out", None, "Folder for the bundles.")
_BUNDLE = flags.DEFINE_string("bundle", None, "Bundle to write back to --to.")
_TO = flags.DEFINE_string(
    "to", None, "File for the published form (.safetensors; .pth, .pt, .bin with PyTorch)."
)
_EXPECT = flags.DEFINE_enum(
    "expect",
    None,
    ["flowley", "clip", "t5", "audio_vae", "bigvgan"],
    "Refuse a source that is something else.",
)


def main() -> int:
    """Command line; without --out it says what the sources are."""
    from flowley_jax.interop.convert import convert, inspect, write_back

    sources = _SOURCE.value or []
    backwards = bool(_BUNDLE.value)
    if bool(sources) == backwards or backwards != bool(_TO.value) or (backwards and _OUT.value):
        raise FlowleyError("give either --source, with --out, or --bundle and --to")
    if _BUNDLE.value and _TO.value:
        write_back(Path(_BUNDLE.value), Path(_TO.value))
        print(_TO.value)
    for source in sources:
        if _OUT.value:
            print(convert(source, Path(_OUT.value), expect=_EXPECT.value).folder)
        else:
            print(inspect(source, expect=_EXPECT.value))
    return 0


if __name__ == "__main__":
    run_main(main)
