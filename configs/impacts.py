"""The demonstration: a small model on the generated clip set, for a laptop.

| option | effect |
|---|---|
| `debug` | a test run on any machine: four steps on eight random records; leaves about 0.1 GB on disk |
| `few_steps` | fine-tune the run that `--config.start.weights` names, for sampling in four steps |

Write one after a colon: `configs/impacts.py:debug`.
"""

import dataclasses

from ml_collections import ConfigDict

from flowley_jax.config import (
    DataConfig,
    EmaConfig,
    ExperimentConfig,
    FlowConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)
from flowley_jax.config_flag import config_dict_of
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.flow_map import FlowMapConfig
from flowley_jax.flow.losses import LossConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model.config import ModelConfig


def get_config(option: str = "") -> ConfigDict:
    """Return the configuration of the demonstration.

    Args:
      option: "", "debug" or "few_steps".

    Raises:
      FlowleyError: the option does not exist.
    """
    if option not in ("", "debug", "few_steps"):
        raise FlowleyError(f"configs/impacts.py has no option {option!r}; it has debug, few_steps")
    config = ExperimentConfig(
        model=ModelConfig(
            audio_dim=20,
            video_dim=352,
            text_dim=64,
            width=64,
            num_heads=2,
            multi_depth=2,
            single_depth=4,
            video_fps=24.0,
            dropout=0.0,
        ),
        data=DataConfig(records="runs/demo/records", batch_size=8),
        flow=FlowConfig(loss=LossConfig(alignment_weight=0.5)),
        optim=OptimConfig(kind="muon", learning_rate=2e-3, warmup_steps=50, schedule="cosine"),
        ema=EmaConfig(snapshot_every=300),
        train=TrainConfig(
            steps=1800,
            log_every=20,
            valid_every=300,
            preview_every=1800,
            checkpoint_every=300,
            keep_checkpoints=2,
        ),
        # The picture guides in the second half only: early, it makes sounds louder and their texture poorer.
        sample=SampleConfig(
            solver=SolverConfig(steps=8),
            guidance=2.0,
            guidance_text=1.25,
            guidance_from=0.5,
            sigma_rel=0.05,
        ),
    )
    if option == "debug":
        config = dataclasses.replace(
            config,
            data=DataConfig(generate=8, generate_seconds=4.0, generate_text_length=32, batch_size=4),
            train=TrainConfig(steps=4, log_every=1, valid_every=4, preview_every=4, checkpoint_every=2),
            ema=EmaConfig(snapshot_every=4),
        )
    if option == "few_steps":
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, batch_size=16),
            flow=FlowConfig(map=FlowMapConfig(guidance=2.0, guidance_text=1.25, guidance_from=0.5)),
            optim=OptimConfig(kind="muon", learning_rate=1e-3, warmup_steps=20, schedule="cosine"),
            ema=EmaConfig(snapshot_every=100),
            train=dataclasses.replace(
                config.train, steps=300, valid_every=100, preview_every=300, checkpoint_every=100
            ),
            sample=SampleConfig(solver=SolverConfig(name="flow_map", steps=4), guidance=1.0),
        )
    tree = config_dict_of(config)
    # Not above: without start.weights, which a flag names, a flow map is refused.
    tree.update_from_flattened_dict({"flow.map.enabled": option == "few_steps"})
    return tree
