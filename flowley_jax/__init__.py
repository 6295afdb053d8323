"""Flowley in JAX: video-to-audio generation with rectified flow.

The names below are imported on first use: importing the package itself is cheap, and imports no JAX.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from flowley_jax.common.interrupt import end_imports_on_interrupt

if TYPE_CHECKING:
    from flowley_jax.config import ExperimentConfig, SampleConfig, experiment_from
    from flowley_jax.errors import FlowleyError
    from flowley_jax.evaluation.during_training import train
    from flowley_jax.flow.solver import SolverConfig
    from flowley_jax.kernels.psca import SoftMask, psca
    from flowley_jax.media.read import read_audio, read_frames
    from flowley_jax.media.write import mux_audio, write_audio
    from flowley_jax.model import Flowley, ModelConfig
    from flowley_jax.sampling import Clip, Sampler

# `python -m` finds the command in this package: its imports take seconds before it can handle Ctrl-C itself.
if sys.argv[:1] == ["-m"]:
    end_imports_on_interrupt()

__version__ = "0.1.0"
__all__ = [
    "Clip",
    "ExperimentConfig",
    "Flowley",
    "FlowleyError",
    "ModelConfig",
    "SampleConfig",
    "Sampler",
    "SoftMask",
    "SolverConfig",
    "experiment_from",
    "mux_audio",
    "psca",
    "read_audio",
    "read_frames",
    "train",
    "write_audio",
]

_MODULES = {
    "Clip": "sampling",
    "ExperimentConfig": "config",
    "Flowley": "model",
    "FlowleyError": "errors",
    "ModelConfig": "model",
    "SampleConfig": "config",
    "Sampler": "sampling",
    "SoftMask": "kernels.psca",
    "SolverConfig": "flow.solver",
    "experiment_from": "config",
    "mux_audio": "media.write",
    "psca": "kernels.psca",
    "read_audio": "media.read",
    "read_frames": "media.read",
    "train": "evaluation.during_training",
    "write_audio": "media.write",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
