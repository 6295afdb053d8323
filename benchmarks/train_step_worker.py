"""A worker of `benchmarks.train_step`: one task of one library, run on request.

It writes lines of JSON: one when it is ready, one after every input line `run` (with seconds) or `matmul`
(with FLOPs per second), and one with its peak memory when the input ends.
"""

import contextlib
import dataclasses
import json
import resource
import sys
from typing import Any, TextIO

import numpy as np
from absl import flags

from benchmarks.common import seconds_of
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.config import DataConfig, ExperimentConfig
from flowley_jax.model import ModelConfig

# Lengths of an 8 s clip in the published network.
AUDIO_LENGTH, VIDEO_LENGTH, TEXT_LENGTH, TEXT_TOKENS = 250, 64, 77, 20
STEPS, GUIDANCE = 25, 7.5

_SIDE = flags.DEFINE_enum(
    "side",
    "jax",
    ["jax", "eager", "compiled"],
    "Library that runs the task: JAX, PyTorch, or PyTorch with torch.compile.",
)
_TASK = flags.DEFINE_enum("task", "forward", ["forward", "train", "sample"], "Task to run.")
_BATCH = define_int("batch", 1, "Clips per batch.", Range(least=1, most=65_536))
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_MATMUL_SIZE = define_int(
    "matmul_size", 4096, "Rows of the square matrices of `matmul`.", Range(least=1, most=2**18)
)


def main() -> int:
    """Prepare the task, run it once, then run it for every line of input."""
    answers = sys.stdout
    # Libraries may print lines that are not JSON.
    with contextlib.redirect_stdout(sys.stderr):
        config = ExperimentConfig(
            model=dataclasses.replace(ModelConfig(), dtype=_DTYPE.value),
            data=DataConfig(batch_size=_BATCH.value),
        )
        inputs, flops = _inputs(config), None
        if _SIDE.value == "jax":
            from benchmarks import jax_tasks as tasks

            run = tasks.prepare(_TASK.value, config, inputs, steps=STEPS, guidance=GUIDANCE)
            flops = tasks.flops(_TASK.value, config, inputs, steps=STEPS)
        else:
            from benchmarks import torch_tasks as tasks

            compiled = _SIDE.value == "compiled"
            run = tasks.prepare(
                _TASK.value, config, inputs, steps=STEPS, guidance=GUIDANCE, compiled=compiled
            )
        _answer(answers, first_seconds=seconds_of(run), flops=flops, device=tasks.device())
        for line in sys.stdin:
            if line.strip() == "matmul":
                _answer(answers, rate=tasks.matmul_rate(_DTYPE.value, _MATMUL_SIZE.value))
            else:
                _answer(answers, seconds=seconds_of(run))
        host_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _answer(answers, peak_bytes=tasks.peak_memory() or host_peak)
    return 0


def _inputs(config: ExperimentConfig) -> dict[str, np.ndarray]:
    rng, clips, model = np.random.default_rng(0), config.data.batch_size, config.model
    shapes = {
        "audio_mean": (AUDIO_LENGTH, model.audio_dim),
        "video_features": (VIDEO_LENGTH, model.video_dim),
        "text_features": (TEXT_LENGTH, model.text_dim),
    }
    inputs: dict[str, np.ndarray] = {
        name: rng.standard_normal((clips, *shape), np.float32) for name, shape in shapes.items()
    }
    inputs["audio_std"] = rng.random(inputs["audio_mean"].shape, np.float32)
    inputs["text_len"] = np.full(clips, TEXT_TOKENS, np.int32)
    inputs["has_video"] = np.ones(clips, np.bool_)
    inputs["t"] = rng.random(clips, np.float32)
    return inputs


def _answer(stream: TextIO, **values: Any) -> None:
    print(json.dumps(values), file=stream, flush=True)


if __name__ == "__main__":
    run_main(main)
