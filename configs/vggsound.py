"""The published base model (16 kHz, 8 s clips, 169 M parameters) on VGGSound records.

`:debug` shrinks batch and length of the run, not the network, and trains on a few generated records.
"""

import dataclasses

from ml_collections import ConfigDict

from flowley_jax.cli import config_dict_of
from flowley_jax.config import DataConfig, ExperimentConfig, TrainConfig


def get_config(variant: str = "") -> ConfigDict:
    """Configuration of the published run; `variant` is "" or "debug"."""
    if variant not in ("", "debug"):
        raise ValueError(f"configs/vggsound.py has no variant {variant!r}; it has debug")
    config = ExperimentConfig(data=DataConfig(records="data/vggsound/records", batch_size=512))
    if variant == "debug":
        config = dataclasses.replace(
            config,
            data=DataConfig(generate=4, batch_size=2),
            train=TrainConfig(steps=2, log_every=1, valid_every=2, preview_every=10**9, checkpoint_every=2),
        )
    return config_dict_of(config)
