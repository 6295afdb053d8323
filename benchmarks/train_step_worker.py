"""One side of one task of `benchmarks.train_step`, in a process of its own that runs when it is told to.

It answers in lines of JSON: once it is ready, and after every line `run` (seconds) or `matmul` (FLOPs per
second) of its input; when the input ends, its peak memory.
"""

import contextlib
import dataclasses
import json
import resource
import sys
import time

import numpy as np
from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.config import DataConfig, ExperimentConfig
from flowley_jax.model import ModelConfig

# The published network's clip of 8 s.
AUDIO_LENGTH, VIDEO_LENGTH, TEXT_LENGTH, TEXT_TOKENS = 250, 64, 77, 20
STEPS, GUIDANCE = 25, 7.5

_SIDE = flags.DEFINE_enum("side", "jax", ["jax", "eager", "compiled"], "Whose work it is.")
_TASK = flags.DEFINE_enum("task", "forward", ["forward", "train", "sample"], "What it is.")
_BATCH = flags.DEFINE_integer("batch", 1, "Clips.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_MATMUL_SIZE = flags.DEFINE_integer("matmul_size", 4096, "Rows of the matrices of `matmul`.", lower_bound=1)


def main() -> int:
    """Prepares the task, runs it once, and then as often as asked."""
    answers = sys.stdout
    # Whatever a library prints would not be JSON.
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
        _answer(answers, first_seconds=_seconds(run), flops=flops, device=tasks.device())
        for line in sys.stdin:
            if line.strip() == "matmul":
                _answer(answers, rate=tasks.matmul_rate(_DTYPE.value, _MATMUL_SIZE.value))
            else:
                _answer(answers, seconds=_seconds(run))
        on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _answer(answers, peak_bytes=tasks.peak_memory() or on_host)
    return 0


def _inputs(config: ExperimentConfig) -> dict[str, np.ndarray]:
    draw, clips, model = np.random.default_rng(0), config.data.batch_size, config.model
    shapes = {
        "audio_mean": (AUDIO_LENGTH, model.audio_dim),
        "video_features": (VIDEO_LENGTH, model.video_dim),
        "text_features": (TEXT_LENGTH, model.text_dim),
    }
    inputs = {name: draw.standard_normal((clips, *shape), np.float32) for name, shape in shapes.items()}
    inputs["audio_std"] = draw.random(inputs["audio_mean"].shape, np.float32)
    inputs["text_len"] = np.full(clips, TEXT_TOKENS, np.int32)
    inputs["has_video"] = np.ones(clips, np.bool_)
    inputs["t"] = draw.random(clips, np.float32)
    return inputs


def _seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _answer(stream, **values) -> None:
    print(json.dumps(values), file=stream, flush=True)


if __name__ == "__main__":
    run_main(main)
