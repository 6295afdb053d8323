"""The output of launchers: a script or a manifest, on standard output or in a file."""

from pathlib import Path
from typing import Any

import yaml
from absl import flags

from flowley_jax.common.files import write_text

# --help of a launcher shows this flag as its own.
flags.disclaim_key_flags()


def define_output_flag() -> None:
    """Define --out."""
    flags.DEFINE_string("out", None, "File to write instead of printing.")


def write_output(text: str) -> None:
    """Print a text, or write it to --out."""
    if flags.FLAGS.out:
        write_text(Path(flags.FLAGS.out), text)
    else:
        print(text, end="")


def to_yaml(manifest: dict[str, Any]) -> str:
    """Return a manifest as YAML, with its keys in order and scripts as literal blocks."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes multi-line strings as literal blocks."""


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_str)
