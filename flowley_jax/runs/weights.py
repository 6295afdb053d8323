"""The weights that a run offers, the weights that a run starts from, and LoRA adapters in files.

The notes of a file that is written here name the latent space of its weights, the length of the clips that
they were trained on, and a SHA-256 of its arrays.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.audio.latent_space import LatentSpace
from flowley_jax.common.trees import describe_leaves, differences, named_leaves, summary
from flowley_jax.config import ExperimentConfig, LoraConfig, StartConfig
from flowley_jax.data.component_registry import Role
from flowley_jax.data.components import Components, components_file
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.interop.trained_length import length_note, noted_length
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant, abstract_model, merge_model
from flowley_jax.runs import lora
from flowley_jax.runs.hub_models import local_folder
from flowley_jax.runs.workdir import (
    BASE,
    MODEL,
    check_base,
    components_folder,
    load_components,
    read_config,
)

log = logging.getLogger(__name__)
_ADAPTER_NOTE = "flowley_jax.adapter"
# Note of a file of adapters with the `log_mel_max` of their training split.
_LEVEL_NOTE = "flowley_jax.log_mel_max"
# Note of weights that were trained as a flow map.
_FLOW_MAP_NOTE = "flowley_jax.flow_map"
# Note with the step of an average.
_STEP_NOTE = "step"
# Note with `content_sha256` of the file's arrays.
_CONTENT_NOTE = "flowley_jax.sha256"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's configuration, its trained weights and its constants.

    Attributes:
      config: configuration of the network.
      parameters, constants: nnx.State of nnx.Param and of Constant.
      step: step of the snapshot that they come from; 0 for a file that does not name it.
      latent_space: space of the latents that they were trained on; None if their file names none.
      seconds: length of the clips that they were trained on; None if their file names none.
      log_mel_max: bounds of the level of what they were trained on, see `Components`; None if not known.
      are_flow_map: whether they were trained as a flow map, see `flowley_jax.flow.flow_map`.
      adapters: LoRA adapters that the parameters already contain; empty without LoRA.
      base_sha256: `sha256` of the weights that the adapters were trained on.
    """

    config: ModelConfig
    parameters: Any
    constants: Any
    step: int = 0
    latent_space: LatentSpace | None = None
    seconds: float | None = None
    log_mel_max: np.ndarray | None = None
    are_flow_map: bool = False
    adapters: lora.Adapters = dataclasses.field(default_factory=dict)
    base_sha256: str = ""

    @property
    def model(self) -> Flowley:
        """The network with these weights."""
        return merge_model(self.config, self.parameters, self.constants)

    @property
    def sha256(self) -> str:
        """`content_sha256` of the arrays under the published names."""
        return content_sha256(flowley_to_torch(self.model))


def averaged_weights(workdir: Path, *, sigma_rel: float, step: int | None = None) -> Weights:
    """Return the weights of a run averaged with relative length `sigma_rel`, with LoRA merged.

    Args:
      workdir: folder of the run.
      sigma_rel: length of the average, relative to the run until `step`.
      step: step of the snapshot with which the average ends; None for the last one.

    Raises:
      FlowleyError: the folder holds no run, the run has no snapshots yet or none at this step, or a file in
        it is damaged or another run's.
    """
    config = read_config(workdir)
    components = _components_of(workdir)
    if (workdir / MODEL).exists():
        return _shared_weights(workdir, config, components, sigma_rel=sigma_rel, step=step)
    # Loads Orbax, which a shared model does not need.
    from flowley_jax.runs.snapshots import EmaSnapshots

    latent_space = components.latent_space if components else None
    base, base_sha256 = None, ""
    _, like, constants = abstract_model(config.model)
    if config.lora.rank:
        base = read_weights(workdir / BASE, config.model)
        base_sha256 = base.sha256
        if None not in (base.latent_space, latent_space) and base.latent_space != latent_space:
            raise FlowleyError(
                f"{workdir / BASE}: belongs to another run: it is for latents of {base.latent_space}, but "
                f"{components_folder(workdir)} is for latents of {latent_space}"
            )
        check_base(workdir, base_sha256, workdir / BASE)
        like = jax.eval_shape(
            lambda weights: lora.new_adapters(weights, config.lora, jax.random.key(0)), base.parameters
        )
    with EmaSnapshots(workdir) as snapshots:
        trained = snapshots.synthesise(like, sigma_rels=config.ema.sigma_rels, sigma_rel=sigma_rel, step=step)
        weights = Weights(
            config=config.model,
            parameters=trained,
            constants=snapshots.constants(constants),
            step=snapshots.last_step if step is None else step,
            latent_space=latent_space,
            seconds=components.seconds if components else None,
            log_mel_max=components.log_mel_max if components else None,
            are_flow_map=config.flow.map.enabled,
        )
    if base is None:
        return weights
    return dataclasses.replace(
        weights,
        parameters=lora.merged(base.parameters, trained, strength=config.lora.strength),
        adapters=trained,
        base_sha256=base_sha256,
    )


def _shared_weights(
    workdir: Path,
    config: ExperimentConfig,
    components: Components | None,
    *,
    sigma_rel: float,
    step: int | None,
) -> Weights:
    """Return the weights of a shared model, which holds one average."""
    weights = read_weights(workdir / MODEL, config.model)
    if step not in (None, weights.step):
        raise FlowleyError(
            f"{workdir}: a shared model has the weights of step {weights.step} only, not {step}"
        )
    if sigma_rel != config.sample.sigma_rel:
        raise FlowleyError(
            f"{workdir}: a shared model has one average, of sigma_rel={config.sample.sigma_rel:g}, not "
            f"{sigma_rel:g}"
        )
    if components is None:
        return weights
    found, expected = weights.latent_space, components.latent_space
    hint = "download the whole folder again"
    check_latent_space(found, expected, what=f"{workdir / MODEL}", where=str(workdir), hint=hint)
    return dataclasses.replace(
        weights,
        latent_space=expected,
        seconds=components.seconds,
        log_mel_max=components.log_mel_max,
    )


def latent_space_of(workdir: Path) -> LatentSpace | None:
    """Return the latent space of a run; None, with a warning, if its components are missing.

    Raises:
      FlowleyError: its components are damaged or another run's.
    """
    components = _components_of(workdir)
    return components.latent_space if components else None


def _components_of(workdir: Path) -> Components | None:
    if components_file(components_folder(workdir)).exists():
        return load_components(workdir)
    log.warning("%s: its components are missing, so nothing says which codec its weights are for", workdir)
    return None


def read_weights(path: Path, config: ModelConfig) -> Weights:
    """Read weights under the published names (.safetensors, .pth).

    Raises:
      FlowleyError: the file cannot be read, is damaged, or does not fit the configuration.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE in notes:
        raise FlowleyError(
            f"{path}: holds LoRA adapters, not whole weights; `sample --adapter` adds them to the weights "
            "that they were trained on"
        )
    _check_content(path, arrays, notes)
    try:
        model = flowley_from_torch(arrays, config)
        seconds = noted_length(notes)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    if model.config != config:
        raise FlowleyError(f"{path}: its single-stream blocks differ; set model.share_single=False")
    _, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Weights(
        config=config,
        parameters=parameters,
        constants=constants,
        step=_noted_step(notes),
        latent_space=LatentSpace.from_notes(notes),
        seconds=seconds,
        are_flow_map=of_flow_map(notes),
    )


def _noted_step(notes: Mapping[str, str]) -> int:
    step = notes.get(_STEP_NOTE, "")
    return int(step) if step.isascii() and step.isdigit() else 0


def starting_weights(start: StartConfig, config: ModelConfig, components: Components) -> Weights:
    """Return the weights that `start.weights` names: a run's averages, or a file.

    They keep their own latent statistics, which are part of what they compute. With `start.any_codec`,
    weights for another latent space get the statistics of the records.

    Args:
      components: the components of the records.

    Raises:
      FlowleyError: they cannot be read, are for another latent space, or do not fit the network; every array
        that differs is listed.
    """
    path = local_folder(start.weights)
    if not path.is_dir():
        weights = read_weights(path, config)
    else:
        weights = averaged_weights(path, sigma_rel=start.sigma_rel)
        _, parameters, _ = abstract_model(config)
        lines = differences(
            describe_leaves(named_leaves(parameters)), describe_leaves(named_leaves(weights.parameters))
        )
        if lines:
            raise FlowleyError(f"{path}: another network; {summary(lines, 'arrays')}")
        _warn_of_other_encoders(path, components)
    if weights.seconds is not None and weights.seconds != components.seconds:
        log.warning(
            "start.weights=%s: was trained on clips of %g s; those of the records have %g s",
            *(path, weights.seconds, components.seconds),
        )
    found, records = weights.latent_space, components.latent_space
    if start.any_codec and found != records:
        log.warning(
            "start.weights=%s: for latents of %s; the records have those of %s, which must be learned again",
            *(path, found or "an unknown codec", records),
        )
        weights.constants["latent_mean"].set_value(jnp.asarray(components.latent_mean))
        weights.constants["latent_std"].set_value(jnp.asarray(components.latent_std))
    else:
        run = path if path.is_dir() else "RUN"
        hint = (
            f"prepare the clips with data_prep.extract --codec-from {run}, or let these weights learn the "
            "latents again with start.any_codec=True"
        )
        check_latent_space(found, records, what=f"start.weights={path}", where="the records", hint=hint)
    return dataclasses.replace(weights, latent_space=records)


def _warn_of_other_encoders(workdir: Path, components: Components) -> None:
    """Warn if the features that a run was trained on came from other encoders than those of the records."""
    if not components_file(components_folder(workdir)).exists():
        return
    theirs = load_components(workdir)
    roles: tuple[Role, ...] = ("video_encoder", "text_encoder")
    if others := [role for role in roles if theirs.identity_of(role) != components.identity_of(role)]:
        log.warning(
            "start.weights=%s: the records come from another %s",
            workdir,
            " and ".join(others),
        )


def check_latent_space(
    found: LatentSpace | None, expected: LatentSpace | None, *, what: str, where: str, hint: str
) -> None:
    """Check that two things belong to one latent space; warn if one of them does not say to which it belongs.

    Args:
      found: latent space of the first thing.
      expected: latent space of the second one.
      what, where: names of the two.
      hint: advice for the message.

    Raises:
      FlowleyError: the spaces differ.
    """
    if found is None or expected is None:
        log.warning(
            "%s: does not say which codec its latents are from; make sure that it is %s, as for %s",
            *((what, expected, where) if found is None else (where, found, what)),
        )
    elif found != expected:
        raise FlowleyError(
            f"{what}: is for latents of {found}, but {where} for those of {expected}; together they make "
            f"noise; {hint}"
        )


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def _check_content(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    if _CONTENT_NOTE in notes and content_sha256(arrays) != notes[_CONTENT_NOTE]:
        raise FlowleyError(
            f"{path}: is damaged, or was changed by another program (its arrays differ from the SHA-256 in "
            f"its note {_CONTENT_NOTE})"
        )


def _notes_of(arrays: Mapping[str, np.ndarray], latent_space: LatentSpace | None) -> dict[str, str]:
    return {**(latent_space.notes if latent_space else {}), _CONTENT_NOTE: content_sha256(arrays)}


def of_flow_map(notes: Mapping[str, str]) -> bool:
    """Return whether the notes of a file say that its weights were trained as a flow map."""
    return _FLOW_MAP_NOTE in notes


def write_weights(
    path: Path,
    weights: Weights,
    notes: Mapping[str, str],
    *,
    dtype: str = "float32",
    compact: bool = False,
) -> None:
    """Write all weights under the published names, for `read_weights` and for PyTorch users.

    Args:
      path: the file.
      weights: the weights.
      notes: further notes.
      dtype: type of the stored arrays.
      compact: whether a shared block is stored once, which only `read_weights` can read.
    """
    arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in flowley_to_torch(weights.model).items()}
    own = {**_notes_of(arrays, weights.latent_space), **length_note(weights.seconds)}
    if weights.are_flow_map:
        own[_FLOW_MAP_NOTE] = "true"
    write_arrays(path, arrays, {**notes, **own}, compact=compact)


def write_adapters(path: Path, weights: Weights, config: LoraConfig) -> None:
    """Write the LoRA adapters of weights, for use on the weights that they were trained on."""
    arrays = {
        f"{layer}.{factor}": np.asarray(value)
        for layer, pair in weights.adapters.items()
        for factor, value in pair.items()
    }
    note = {"strength": config.strength, "base_sha256": weights.base_sha256}
    notes = {_ADAPTER_NOTE: json.dumps(note), **_notes_of(arrays, weights.latent_space)}
    if weights.log_mel_max is not None:
        notes[_LEVEL_NOTE] = json.dumps(weights.log_mel_max.tolist())
    write_arrays(path, arrays, notes)


def with_adapters(weights: Weights, path: Path, *, factor: float) -> Weights:
    """Return weights with the adapters of a file added.

    Their bounds of the level allow what either was trained on. Earlier versions wrote adapters without
    bounds, and the result then has none.

    Args:
      factor: 1 for the strength that they were trained with, 0 for no effect.

    Raises:
      FlowleyError: the file holds no adapters, is damaged, or belongs to another network or latent space.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE not in notes:
        raise FlowleyError(f"{path}: holds no LoRA adapters (flowley_jax.ema --adapter writes them)")
    _check_content(path, arrays, notes)
    strength, base_sha256 = _read_adapter_note(path, notes[_ADAPTER_NOTE])
    check_latent_space(
        LatentSpace.from_notes(notes),
        weights.latent_space,
        what=f"--adapter {path}",
        where="the run",
        hint="take the run that the adapters were trained on",
    )
    if base_sha256 and weights.sha256 != base_sha256:
        log.warning(
            "--adapter %s: was trained on other weights than these; it belongs to those that start.weights "
            "and start.sigma_rel named",
            path,
        )
    adapters = _pairs(path, arrays)
    try:
        parameters = lora.merged(weights.parameters, adapters, strength=factor * strength)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    log_mel_max = weights.log_mel_max
    if factor and log_mel_max is not None:
        log_mel_max = _higher(log_mel_max, notes.get(_LEVEL_NOTE), path)
    return dataclasses.replace(
        weights,
        parameters=parameters,
        adapters=adapters,
        base_sha256=base_sha256,
        log_mel_max=log_mel_max,
    )


def _higher(log_mel_max: np.ndarray, note: str | None, path: Path) -> np.ndarray | None:
    """Return the higher ones of a network's bounds and those in a note; None without a note."""
    if note is None:
        return None
    try:
        noted = np.asarray(json.loads(note), np.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise FlowleyError(f"{path}: its note {_LEVEL_NOTE} is damaged ({error})") from error
    if noted.shape != log_mel_max.shape or not np.isfinite(noted).all():
        raise FlowleyError(f"{path}: its note {_LEVEL_NOTE} must be {len(log_mel_max)} numbers")
    return np.maximum(log_mel_max, noted)


def _read_adapter_note(path: Path, note: str) -> tuple[float, str]:
    """Return the strength of adapters, and the SHA-256 of the weights that they were trained on, or ""."""
    try:
        stored = json.loads(note)
        strength, base_sha256 = float(stored["strength"]), str(stored.get("base_sha256", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FlowleyError(f"{path}: its note {_ADAPTER_NOTE} is damaged ({error})") from error
    if not math.isfinite(strength):
        raise FlowleyError(f"{path}: the strength of its adapters is {strength}, expected a number")
    return strength, base_sha256


def _pairs(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    adapters: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        layer, _, low_rank_factor = name.rpartition(".")
        adapters.setdefault(layer, {})[low_rank_factor] = jnp.asarray(value)
    for layer, pair in adapters.items():
        if pair.keys() != {"a", "b"} or pair["b"].ndim != 2 or pair["a"].shape[-1:] != pair["b"].shape[:1]:
            raise FlowleyError(f"{path}: the adapter of {layer!r} is not a pair of low-rank matrices a and b")
    return adapters
