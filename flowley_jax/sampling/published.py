"""The published system, loaded from a folder of bundles: network, encoders, codec and vocoder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.audio.latent_space import LatentSpace
from flowley_jax.config import SampleConfig
from flowley_jax.data.component_registry import ROLES, Role, pretrained_component
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.interop.bundles import MANIFEST_FILE, WEIGHTS_FILE, Bundle
from flowley_jax.interop.pretrained import Dtype
from flowley_jax.interop.registry import FORMATS
from flowley_jax.interop.trained_length import PUBLISHED_SECONDS
from flowley_jax.model import ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.runs.weights import of_flow_map
from flowley_jax.sampling.sampler import Sampler, check_solver


def load_published(
    folder: str | Path, *, settings: SampleConfig | None = None, dtype: Dtype = "float32"
) -> Sampler:
    """Return a sampler of the published system.

    Args:
      folder: folder with the bundles of the published system, in sub-folders named after their formats.
      settings: guidance and solver; by default `published_settings`. The averaging length has no effect,
        because published weights are already averages.
      dtype: compute type of all stages.

    Raises:
      FlowleyError: bundles are missing, damaged, or do not fit together; or `settings` asks for what these
        weights do not have.
    """
    folder = Path(folder)
    settings = settings or published_settings(folder)
    if settings.autoguidance_step:
        raise FlowleyError(
            f"{folder}: sample.autoguidance_step={settings.autoguidance_step} needs a training run; "
            "published weights have no earlier ones"
        )
    bundles = _open_bundles(folder)
    check_solver(settings, of_flow_map(bundles["flowley"].notes()), folder)
    components = _components(bundles, dtype, source=str(folder))
    _check_sizes(bundles["flowley"].config, components, folder)
    _check_latent_space(bundles["flowley"], components)
    model = bundles["flowley"].load(dtype=dtype)
    components = dataclasses.replace(
        components,
        latent_mean=np.asarray(model.latent_mean[...]),
        latent_std=np.asarray(model.latent_std[...]),
    )
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Sampler(
        graphdef=graphdef,
        variables=(parameters, constants),
        components=components,
        settings=settings,
        weights_path=str(bundles["flowley"].folder),
        origin={name: bundle.sha256[:16] for name, bundle in bundles.items()},
    )


def published_settings(folder: str | Path) -> SampleConfig:
    """Return the settings to sample published weights with: few steps without guidance for a flow map.

    Args:
      folder: folder with the bundles of the published system.

    Raises:
      FlowleyError: bundles are missing or damaged.
    """
    if of_flow_map(_open_bundles(Path(folder))["flowley"].notes()):
        return SampleConfig(solver=SolverConfig(name="flow_map", steps=4), guidance=1.0)
    return SampleConfig()


def _components(bundles: Mapping[str, Bundle], dtype: Dtype, source: str) -> Components:
    def component(role: Role, **settings: Any) -> Any:
        entry = pretrained_component(role)
        return entry.load()(bundle=bundles[entry.bundle_format], dtype=dtype, **settings)

    codec = component("codec")
    seconds, log_mel_max = bundles["flowley"].seconds, bundles["audio_vae"].log_mel_max
    return Components(
        # Bundles of earlier versions do not state it.
        seconds=PUBLISHED_SECONDS if seconds is None else seconds,
        video_encoder=component("video_encoder", fps=bundles["flowley"].config.video_fps),
        text_encoder=component("text_encoder"),
        codec=codec,
        vocoder=component("vocoder"),
        # Placeholders: the network file has the statistics, but is read only after the sizes are checked.
        latent_mean=np.zeros(codec.latent_dim, np.float32),
        latent_std=np.ones(codec.latent_dim, np.float32),
        log_mel_max=None if log_mel_max is None else np.asarray(log_mel_max, np.float32),
        source=source,
    )


def _check_sizes(config: ModelConfig, components: Components, folder: Path) -> None:
    sizes = {
        "video_dim": (config.video_dim, components.dims.video_dim, components.video_encoder),
        "text_dim": (config.text_dim, components.dims.text_dim, components.text_encoder),
        "audio_dim": (config.audio_dim, components.dims.audio_dim, components.codec),
    }
    problems = [
        f"flowley has {name}={expected}, {component.name} has {actual}"
        for name, (expected, actual, component) in sizes.items()
        if expected != actual
    ]
    if problems:
        raise FlowleyError(f"{folder}: the bundles do not fit together: {'; '.join(problems)}")


def _check_latent_space(flowley: Bundle, components: Components) -> None:
    """Check that the codec is the network's, if the network's file names one; the published file does not."""
    found, expected = LatentSpace.from_notes(flowley.notes()), components.latent_space
    if found and found != expected:
        raise FlowleyError(
            f"{flowley.folder}: is for latents of {found}, and the folder's codec is {expected}; together "
            "they make noise"
        )


def _open_bundles(folder: Path) -> dict[str, Bundle]:
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder")
    files = MANIFEST_FILE, WEIGHTS_FILE
    needed = {"flowley", *(pretrained_component(role).bundle_format for role in ROLES)}
    names = [name for name in FORMATS if name in needed]
    missing = [name for name in names if not all((folder / name / file).is_file() for file in files)]
    if missing:
        titles = ", ".join(f"{name} ({FORMATS[name].title})" for name in missing)
        raise FlowleyError(
            f"{folder}: lacks {titles}; python -m flowley_jax.convert --source FILE --out {folder} makes them"
        )
    bundles = {name: Bundle.open(folder / name) for name in names}
    for name, bundle in bundles.items():
        bundle.check_format(name)
    return bundles
