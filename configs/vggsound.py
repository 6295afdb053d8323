"""The published network on VGGSound records (8 s clips), larger networks, 44.1 kHz audio, and TPU slices.

Write options after a colon, in any order and separated by commas: `configs/vggsound.py:large,44k,v6e-16`.

| option | effect |
|---|---|
| `base` | the published network, 171 million parameters (default) |
| `large`, `xl` | 0.64 and 1.77 billion parameters |
| `small` | 8 million parameters, to try things out |
| `16k`, `44k` | sample rate of the records, 16 kHz (default) or 44.1 kHz |
| `v5e-16`, `v5e-256`, `v5p-64`, `v6e-16` | mesh, batch size and memory settings for a TPU slice; bfloat16 |
| `soundcap` | draw half of the captions from SoundCap; the records must have them (docs/records.md) |
| `few_steps` | fine-tune the weights that `--config.start.weights` names, for sampling in four steps |
| `debug` | a test run on any machine: two steps on four generated records |

A `debug` run uses the `small` network and leaves about 0.2 GB on disk: one checkpoint and one snapshot of the
averaged weights. With `base,debug` it runs the published network and leaves about 4.2 GB.
"""

import dataclasses

from ml_collections import ConfigDict

from flowley_jax.config import (
    DataConfig,
    ExperimentConfig,
    FlowConfig,
    MeshConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)
from flowley_jax.config_flag import config_dict_of
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.flow_map import FlowMapConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model.config import ModelConfig

SIZES = {
    "small": ModelConfig(width=128, num_heads=2, multi_depth=2, single_depth=4),
    "base": ModelConfig(),
    "large": ModelConfig(width=1024, num_heads=16),
    "xl": ModelConfig(width=1280, num_heads=20, multi_depth=10, single_depth=20),
}
# Sample rate in Hz, latent channels, latents per second, and the folder of the records.
RATES = {
    "16k": (16_000, 20, 31.25, "data/vggsound/records"),
    "44k": (44_100, 40, 44_100 / 1024, "data/vggsound/records_44k"),
}
# Sources of captions, and how often each is drawn.
CAPTIONS = {
    "": {},
    "soundcap": {"captions": ("table", "soundcap"), "caption_weights": (0.5, 0.5)},
}
# Batch size, mesh.fsdp and model.remat by size, or by size and rate; all fit in memory (docs/scale.md).
SLICES = {
    "v5e-16": {"base": (512, 16, "none"), "base,44k": (512, 16, "block")},
    "v5e-256": {"base": (2048, 16, "none")},
    "v5p-64": {"base": (512, 1, "none"), "xl": (512, 32, "none")},
    "v6e-16": {"base": (512, 1, "none"), "large": (512, 16, "block")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    size: str
    rate: str
    slice: str
    captions: str
    few_steps: bool
    debug: bool


def get_config(options: str = "") -> ConfigDict:
    """Return the configuration of a training run.

    Args:
      options: comma-separated options from the table above.

    Raises:
      FlowleyError: an option does not exist, or there are no settings for this size on this slice.
    """
    chosen = _parse(options)
    sample_rate, audio_dim, latent_rate, records = RATES[chosen.rate]
    data = DataConfig(batch_size=512, latent_rate=latent_rate, generate_sample_rate=sample_rate)
    config = ExperimentConfig(
        model=dataclasses.replace(SIZES[chosen.size], audio_dim=audio_dim),
        data=dataclasses.replace(data, records=records, **CAPTIONS[chosen.captions]),
    )
    if chosen.slice:
        batch_size, fsdp, remat = _slice_settings(chosen)
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype="bfloat16", remat=remat),
            data=dataclasses.replace(config.data, batch_size=batch_size, num_workers=4),
            mesh=MeshConfig(fsdp=fsdp),
        )
    if chosen.few_steps:
        config = dataclasses.replace(
            config,
            flow=FlowConfig(map=FlowMapConfig(guidance=7.5)),
            optim=OptimConfig(learning_rate=1e-4),
            train=TrainConfig(steps=20_000),
            sample=SampleConfig(solver=SolverConfig(name="flow_map", steps=4), guidance=1.0),
        )
    if chosen.debug:
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(data, generate=4, batch_size=2),
            train=TrainConfig(
                steps=2,
                log_every=1,
                valid_every=2,
                # Never: a preview would take longer than the training.
                preview_every=10**9,
                checkpoint_every=2,
                keep_checkpoints=1,
            ),
            mesh=MeshConfig(),
        )
    tree = config_dict_of(config)
    # Not above: without start.weights, which a flag names, a flow map is refused.
    tree.update_from_flattened_dict({"flow.map.enabled": chosen.few_steps})
    return tree


def _parse(options: str) -> _Options:
    choices = {
        "size": SIZES,
        "rate": RATES,
        "slice": SLICES,
        "captions": CAPTIONS,
        "few_steps": ("few_steps",),
        "debug": ("debug",),
    }
    chosen: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        kind = next((kind for kind, values in choices.items() if option in values), None)
        if kind is None:
            known = [name for values in choices.values() for name in values if name]
            raise FlowleyError(f"configs/vggsound.py has no option {option!r}; it has {', '.join(known)}")
        chosen[kind] = option
    debug = "debug" in chosen
    return _Options(
        # With a slice, `debug` tries out the network that the slice will train.
        size=chosen.get("size", "small" if debug and "slice" not in chosen else "base"),
        rate=chosen.get("rate", "16k"),
        slice=chosen.get("slice", ""),
        captions=chosen.get("captions", ""),
        few_steps="few_steps" in chosen,
        debug=debug,
    )


def _slice_settings(chosen: _Options) -> tuple[int, int, str]:
    by_size = SLICES[chosen.slice]
    settings = by_size.get(f"{chosen.size},{chosen.rate}", by_size.get(chosen.size))
    if settings is None:
        raise FlowleyError(
            f"configs/vggsound.py has no settings for {chosen.size} on {chosen.slice}: set mesh.fsdp yourself"
        )
    return settings
