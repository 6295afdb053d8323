"""The evaluation networks whose bundles are in a folder."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.extraction import Evaluator, Evaluators
from flowley_jax.evaluation.extractors import EXTRACTORS
from flowley_jax.evaluation.feature_metrics import OffsetLogits
from flowley_jax.interop.bundles import MANIFEST_FILE, Bundle


def find_networks(folder: Path, dtype: str) -> dict[str, Evaluator]:
    """Return the evaluation networks in a folder, by name; none is loaded yet.

    Args:
      folder: folder of bundles, as `flowley_jax.convert` makes it; bundles of other models are not used.
      dtype: compute type.

    Raises:
      FlowleyError: the folder holds no bundle of an evaluation network, or a damaged one.
    """
    names = sorted({extractor.bundle for extractor in EXTRACTORS.values()} - {"", "tagger"})
    bundles = [Bundle.open(folder / name) for name in names if (folder / name / MANIFEST_FILE).is_file()]
    if not bundles:
        raise FlowleyError(
            f"{folder}: holds none of the bundles {', '.join(names)}, which flowley_jax.convert makes"
        )
    return {
        bundle.format: Evaluator(
            identity=f"{bundle.sha256} {dtype}",
            load=functools.partial(bundle.load, dtype=dtype),
            is_exact=dtype == "float32",
        )
        for bundle in bundles
    }


def offset_head(evaluators: Evaluators) -> OffsetLogits | None:
    """Return the part of Synchformer that finds offsets; None without Synchformer."""
    if "synchformer" not in evaluators.networks:
        return None

    def logits(pictures: np.ndarray, sounds: np.ndarray) -> np.ndarray:
        return evaluators.apply("synchformer", _offsets, pictures, sounds)

    return logits


def _offsets(model: Any, pictures: jax.Array, sounds: jax.Array) -> jax.Array:
    return model.offset_logits(pictures, sounds)
