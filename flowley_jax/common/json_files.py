"""JSON files that other programs, or a crash, may have changed."""

import json
import os
from pathlib import Path
from typing import Any

from flowley_jax.common.files import lfs_note
from flowley_jax.errors import FlowleyError


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      FlowleyError: the file is missing, cannot be read, or holds something other than one JSON object.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FlowleyError(f"{path}: no such file") from error
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        value = json.loads(content)
    # A deeply nested value ends in a RecursionError.
    except (ValueError, RecursionError) as error:
        reason = lfs_note(path) or " ".join(str(error).split())
        raise FlowleyError(f"{path}: is not valid JSON ({reason})") from error
    if not isinstance(value, dict):
        raise FlowleyError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value
