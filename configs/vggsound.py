"""The published network on VGGSound records (8 s clips), larger ones, 16 and 44.1 kHz, and TPU slices.

Options stand behind a colon, in any order: `configs/vggsound.py:large,44k,v6e-16`.

| option | what |
|---|---|
| `base` | the published network, 171 M parameters; the default |
| `large`, `xl` | 0.64 and 1.77 billion parameters |
| `16k`, `44k` | sample rate of the records; 16 kHz is the default |
| `v5e-16`, `v5e-256`, `v5p-64`, `v6e-16` | mesh, batch and memory settings for a TPU slice, bfloat16 |
| `soundcap` | half of the captions from SoundCap, which the records must have (docs/records.md) |
| `debug` | two steps on a few generated records, on any machine |
"""

import dataclasses

from ml_collections import ConfigDict

from flowley_jax.cli import config_dict_of
from flowley_jax.config import DataConfig, ExperimentConfig, MeshConfig, TrainConfig
from flowley_jax.model.config import ModelConfig

SIZES = {
    "base": ModelConfig(),
    "large": ModelConfig(width=1024, num_heads=16),
    "xl": ModelConfig(width=1280, num_heads=20, multi_depth=10, single_depth=20),
}
# Sample rate, channels and rate of the latents, and the folder of the records.
RATES = {
    "16k": (16_000, 20, 31.25, "data/vggsound/records"),
    "44k": (44_100, 40, 44_100 / 1024, "data/vggsound/records_44k"),
}
# Where captions come from, and how often.
CAPTIONS = {
    "": {},
    "soundcap": {"captions": ("table", "soundcap"), "caption_weights": (0.5, 0.5)},
}
# Batch, devices along fsdp, and model.remat; all of them fit (docs/scale.md).
SLICES = {
    "v5e-16": {"base": (512, 16, "none"), "base,44k": (512, 16, "block")},
    "v5e-256": {"base": (2048, 16, "none")},
    "v5p-64": {"base": (512, 1, "none"), "xl": (512, 32, "none")},
    "v6e-16": {"base": (512, 1, "none"), "large": (512, 16, "block")},
}


def get_config(options: str = "") -> ConfigDict:
    """Configuration of a run; see the table above for the options."""
    size, rate, place, captions, debug = _chosen(options)
    sample_rate, audio_dim, latent_rate, records = RATES[rate]
    data = DataConfig(batch_size=512, latent_rate=latent_rate, generate_sample_rate=sample_rate)
    config = ExperimentConfig(
        model=dataclasses.replace(SIZES[size], audio_dim=audio_dim),
        data=dataclasses.replace(data, records=records, **CAPTIONS[captions]),
    )
    if place:
        batch, fsdp, remat = _settings(size, rate, place)
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype="bfloat16", remat=remat),
            data=dataclasses.replace(config.data, batch_size=batch, num_workers=4),
            mesh=MeshConfig(fsdp=fsdp),
        )
    if debug:
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(data, generate=4, batch_size=2),
            train=TrainConfig(steps=2, log_every=1, valid_every=2, preview_every=10**9, checkpoint_every=2),
            mesh=MeshConfig(),
        )
    return config_dict_of(config)


def _settings(size: str, rate: str, place: str) -> tuple[int, int, str]:
    found = SLICES[place].get(f"{size},{rate}", SLICES[place].get(size))
    if found is None:
        raise ValueError(f"configs/vggsound.py has no settings of {size} for {place}: set mesh.fsdp")
    return found


def _chosen(options: str) -> tuple[str, str, str, str, bool]:
    chosen = {"size": "base", "rate": "16k", "slice": "", "captions": "", "debug": ""}
    known = {"size": SIZES, "rate": RATES, "slice": SLICES, "captions": CAPTIONS, "debug": ("debug",)}
    for option in filter(None, options.split(",")):
        kind = next((kind for kind, values in known.items() if option in values), None)
        if kind is None:
            names = [name for values in known.values() for name in values if name]
            raise ValueError(f"configs/vggsound.py has no option {option!r}; it has {', '.join(names)}")
        chosen[kind] = option
    return chosen["size"], chosen["rate"], chosen["slice"], chosen["captions"], bool(chosen["debug"])
