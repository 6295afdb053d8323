"""The published system from a folder of bundles: network, encoders, codec, vocoder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx

from flowley_jax.audio.bigvgan_vocoder import BigVganVocoder
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.config import SampleConfig
from flowley_jax.data.parts import Parts
from flowley_jax.encoders.clip_frames import ClipFrames
from flowley_jax.encoders.t5_text import T5Text
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import MANIFEST_FILE, WEIGHTS_FILE, Bundle
from flowley_jax.interop.kinds import KINDS
from flowley_jax.model import ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.sampling.sampler import Sampler

Dtype = Literal["float32", "bfloat16"]
SECONDS = 8.0


def load_published(
    folder: str | Path, *, settings: SampleConfig | None = None, dtype: Dtype = "float32"
) -> Sampler:
    """A sampler of the bundles in a folder, one for each kind.

    Args:
      settings: guidance scale and solver; the averaging length does not matter, since published weights are
        averages already.
      dtype: compute type of all stages.

    Raises:
      FlowleyError: bundles are missing, damaged, or do not fit together.
    """
    folder = Path(folder)
    bundles = _open_all(folder)
    parts = _parts(bundles, dtype, source=str(folder))
    _check_sizes(bundles["flowley"].config, parts, folder)
    model = bundles["flowley"].load(dtype=dtype)
    parts = dataclasses.replace(
        parts,
        latent_mean=np.asarray(model.latent_mean[...]),
        latent_std=np.asarray(model.latent_std[...]),
    )
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Sampler(
        graphdef=graphdef,
        variables=(parameters, constants),
        parts=parts,
        settings=settings or SampleConfig(),
        place=str(bundles["flowley"].folder),
        origin={name: bundle.sha256[:16] for name, bundle in bundles.items()},
    )


def _parts(bundles: Mapping[str, Bundle], dtype: Dtype, source: str) -> Parts:
    channels = bundles["audio_vae"].config.latent_dim
    return Parts(
        seconds=SECONDS,
        video_encoder=ClipFrames(
            bundle=bundles["clip"], fps=bundles["flowley"].config.video_fps, dtype=dtype
        ),
        text_encoder=T5Text(bundle=bundles["t5"], dtype=dtype),
        codec=VaeCodec(bundle=bundles["audio_vae"], dtype=dtype),
        vocoder=BigVganVocoder(bundle=bundles["bigvgan"], dtype=dtype),
        # The network has them; its file is not read before all sizes fit.
        latent_mean=np.zeros(channels, np.float32),
        latent_std=np.ones(channels, np.float32),
        source=source,
    )


def _check_sizes(config: ModelConfig, parts: Parts, folder: Path) -> None:
    wanted = {
        "clip": ("video_dim", config.video_dim, parts.dims.video_dim),
        "t5": ("text_dim", config.text_dim, parts.dims.text_dim),
        "audio_vae": ("audio_dim", config.audio_dim, parts.dims.audio_dim),
    }
    wrong = [
        f"flowley's {name} is {mine}, {kind} gives {theirs}"
        for kind, (name, mine, theirs) in wanted.items()
        if mine != theirs
    ]
    if wrong:
        raise FlowleyError(f"{folder}: bundles do not fit together: {'; '.join(wrong)}")


def _open_all(folder: Path) -> dict[str, Bundle]:
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder")
    files = MANIFEST_FILE, WEIGHTS_FILE
    missing = [kind for kind in KINDS if not all((folder / kind / name).is_file() for name in files)]
    if missing:
        titles = ", ".join(f"{kind} ({KINDS[kind].title})" for kind in missing)
        raise FlowleyError(
            f"{folder}: lacks {titles}; python -m flowley_jax.convert --source FILE --out {folder} makes them"
        )
    bundles = {kind: Bundle.open(folder / kind) for kind in KINDS}
    for kind, bundle in bundles.items():
        bundle.check_kind(kind)
    return bundles
