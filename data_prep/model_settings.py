"""Settings whose records fit an existing model, so that it can be fine-tuned on them."""

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any

from data_prep.record_components import RecordComponents, load_model_components
from data_prep.settings import RecordSettings
from flowley_jax.data.component_registry import ROLES, embedded_component
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError

_COMPONENT_SETTINGS = ("video", "text", "codec", "vocoder")


def settings_for_model(source: str, settings: RecordSettings, *, given: Set[str]) -> RecordSettings:
    """Return settings that make the same features and latents as those that a model was trained on.

    Components, frame rate, front end and sizes are the model's. The length of the clips is too, unless it is
    given: a model learns from any length. All other settings stay.

    Args:
      source: folder of a run, or of the records that it was trained on.
      settings: the settings that the user has chosen.
      given: names of the settings that may not be replaced.

    Raises:
      FlowleyError: the folder holds no components, a given setting contradicts the model, or these settings
        cannot make the model's features.
    """
    model = load_model_components(source)
    needed = _settings_of(model, source)
    chosen = {name: getattr(settings, name) for name in given}
    if chosen.pop("published", ""):
        published = {role: settings.component(role) for role in ROLES}
        chosen |= {role.removesuffix("_encoder"): choice for role, choice in published.items()}
    wrong = [
        f"{name}={chosen[name]} must be {value}"
        for name, value in needed.items()
        if name in chosen and not _same(name, chosen[name], value)
    ]
    if wrong:
        raise FlowleyError(
            f"--codec-from {source}: {', '.join(sorted(wrong))} for this model; leave these settings out"
        )
    seconds = settings.seconds if "seconds" in given else model.seconds
    result = dataclasses.replace(settings, **needed, published="", seconds=seconds)
    _check_equal(RecordComponents(result), model, source)
    return result


def _settings_of(model: Components, source: str) -> dict[str, Any]:
    """Return the settings that name a model's components."""
    choices = {
        role.removesuffix("_encoder"): _choice(role, getattr(model, role))
        for role in ROLES
        if role != "codec"
    }
    needed = {**choices, "video_fps": model.video_fps, "mel": model.codec.mel.name}
    if embedded_component("video_encoder", model.video_encoder.name):
        needed["frame_size"] = model.video_encoder.frame_size
    if embedded_component("text_encoder", model.text_encoder.name):
        needed |= {"text_dim": model.text_encoder.dim, "max_tokens": model.text_encoder.max_tokens}
    if model.codec.needs_fitting:
        return needed | {"codec": source, "latent_dim": model.codec.latent_dim}
    return needed | {"codec": _choice("codec", model.codec)}


def _choice(role: Any, component: Any) -> str:
    """Return the name of an embedded component, or the folder where a published one's bundle is now."""
    return component.name if embedded_component(role, component.name) else str(component.bundle.locate())


def _same(name: str, given: Any, needed: Any) -> bool:
    if name not in _COMPONENT_SETTINGS or not given:
        return given in ("", needed)
    return given == needed or Path(given).resolve() == Path(needed).resolve()


def _check_equal(components: RecordComponents, model: Components, source: str) -> None:
    """Raise a FlowleyError unless the components are the model's, up to where their files are."""
    codec = components.codec
    assert codec is not None
    made = dataclasses.replace(
        model,
        video_encoder=components.video_encoder,
        text_encoder=components.text_encoder,
        codec=codec,
        vocoder=components.vocoder_for(codec),
    )
    if different := model.differences(made):
        raise FlowleyError(
            f"--codec-from {source}: no settings make records for this model: {'; '.join(different)}"
        )
