"""Shared models on the Hugging Face hub, which take the place of a run's folder as hf:ORG/NAME."""

import re
from collections.abc import Sequence
from pathlib import Path

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.hub import download
from flowley_jax.runs.workdir import COMPONENTS, CONFIG, MODEL

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def local_folder(source: str | Path) -> Path:
    """Return the path that an argument names; hf:ORG/NAME is downloaded first, or taken from the cache.

    Raises:
      FlowleyError: the name has another form, the repository does not exist, holds no shared model, or
        cannot be reached.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return Path(source)
    name = repository_name(text.removeprefix(PREFIX))
    return download(
        name,
        _model_files,
        needed=(MODEL,),
        missing="the hub has no such repository, or it is private; for a private one, run "
        "`hf auth login` first",
        advice="the hub cannot be reached ({reason}), and there is no earlier download",
    )


def repository_name(name: str) -> str:
    """Return the name of a repository; raise FlowleyError if it is not of the form ORG/NAME."""
    if not _NAME.fullmatch(name):
        raise FlowleyError(f"{name!r}: a repository on the hub is named ORG/NAME")
    return name


def _model_files(available: Sequence[str]) -> list[str]:
    missing = [name for name in (CONFIG, MODEL) if name not in available]
    if missing:
        raise FlowleyError(f"holds no model of flowley_jax.publish ({' and '.join(missing)} missing)")
    return [CONFIG, MODEL, *(name for name in available if name.startswith(f"{COMPONENTS}/"))]
