"""The output of launchers: a script or a manifest, on standard output or in a file."""

from pathlib import Path
from typing import Any

import yaml
from absl import flags

from flowley_jax.common.files import check_new_file, write_text

# --help of a launcher shows this flag as its own.
flags.disclaim_key_flags()


def define_output_flag() -> None:
    """Define --out and --overwrite."""
    flags.DEFINE_string("out", None, "File to write instead of printing.")
    flags.DEFINE_bool("overwrite", False, "Replace the file --out if it exists.")


def write_output(text: str) -> None:
    """Print a text, or write it to --out.

    Raises:
      FlowleyError: the file exists and --overwrite is not given, or it cannot be written.
    """
    if flags.FLAGS.out:
        path = Path(flags.FLAGS.out)
        check_new_file(path, overwrite=flags.FLAGS.overwrite)
        write_text(path, text)
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
