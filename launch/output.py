"""What launchers write for other programs: a text on standard output, or in a file."""

from pathlib import Path
from typing import Any

import yaml
from absl import flags

from flowley_jax.whole_files import write_text

flags.disclaim_key_flags()


def define_output_flag() -> None:
    """The flag that names the file."""
    flags.DEFINE_string("out", None, "File to write instead of printing.")


def deliver(text: str) -> None:
    """Prints a text, or writes it to --out."""
    if flags.FLAGS.out:
        write_text(Path(flags.FLAGS.out), text)
    else:
        print(text, end="")


def as_yaml(manifest: dict[str, Any]) -> str:
    """A manifest in the order of its keys, scripts as they are typed."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
