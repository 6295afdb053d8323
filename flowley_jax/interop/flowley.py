"""The state dict of the published PyTorch model: names and layouts, in both directions.

| weight | PyTorch | here |
|---|---|---|
| linear | (out, in) | (in, out) |
| convolution | (out, in, kernel) | (kernel, in, out) |
| outputs of fused attention maps | (head, channel, q/k/v) | (q/k/v, head, channel) |
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from flowley_jax.common.trees import differences, summary
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import in_float32, is_float, wrong_type
from flowley_jax.model import Flowley, ModelConfig, abstract_model, merge_model
from flowley_jax.model.attention import CrossProjection, QkvProjection
from flowley_jax.model.layers import Conv1d, GatedMlp, Linear
from flowley_jax.model.multi_stream import Branch
from flowley_jax.model.single_stream import SingleStreamBlock

PREFIX = "model."
# Name of a single-stream block's self-attention, by variant.
_SELF_ATTENTION = {"psca": "self_attn", "dit": "attn"}
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """The conversion of one tensor in both directions."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


_PLAIN = _Layout(to_torch=lambda x: x, from_torch=lambda x: x)
_LINEAR = _Layout(to_torch=lambda x: x.T, from_torch=lambda x: x.T)
_CONV = _Layout(to_torch=lambda x: x.transpose(2, 1, 0), from_torch=lambda x: x.transpose(2, 1, 0))
_ROW = _Layout(to_torch=lambda x: x[None], from_torch=lambda x: x.reshape(-1))
_LATENT = _Layout(to_torch=lambda x: x[None, None], from_torch=lambda x: x.reshape(-1))


def _fused(parts: int, num_heads: int) -> _Layout:
    """Return the layout of a fused attention map.

    PyTorch has rows (head, channel, part) of an (out, in) weight or an (out,) bias. Here they are columns
    (part, head, channel).
    """

    def to_torch(x: np.ndarray) -> np.ndarray:
        rows = x.T if x.ndim == 2 else x
        rows = rows.reshape(parts, num_heads, -1, *rows.shape[1:])
        return np.moveaxis(rows, 0, 2).reshape(-1, *rows.shape[3:])

    def from_torch(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(num_heads, -1, parts, *x.shape[1:])
        rows = np.moveaxis(rows, 2, 0).reshape(-1, *x.shape[1:])
        return rows.T if x.ndim == 2 else rows

    return _Layout(to_torch=to_torch, from_torch=from_torch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """A variable of the model and the layout of its tensor."""

    variable: nnx.Variable
    layout: _Layout


def flowley_from_torch(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> Flowley:
    """Build the model from a published state dict.

    The published configuration does not say whether the single-stream blocks share weights. If
    `config.share_single` is set but the blocks' tensors differ, the model gets separate blocks, and a warning
    is logged.

    Args:
      state_dict: arrays by PyTorch name, with or without the checkpoint's prefix "model.".
      config: sizes and variant; see `ModelConfig.from_torch_config`.

    Raises:
      FlowleyError: a key is missing, unexpected or of the wrong shape, or a fixed α differs from
        config.balance; the message names the first ones.
    """
    state_dict = _without_prefix(state_dict)
    if config.share_single and _blocks_differ(state_dict):
        log.warning(
            "the single-stream blocks of this state dict differ: building a model with share_single=False"
        )
        config = dataclasses.replace(config, share_single=False)
    _, parameters, constants = abstract_model(config)
    model = merge_model(config, parameters, constants)
    entries = _entries(model)
    _check(state_dict, entries, config)
    # In one call, which takes much less time than one for each array.
    values = jax.device_put(
        [entry.layout.from_torch(np.asarray(state_dict[name], np.float32)) for name, entry in entries.items()]
    )
    for entry, value in zip(entries.values(), values, strict=True):
        entry.variable.set_value(value)
    return model


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of a state dict.

    It is read from `settings` if they have the keywords of the PyTorch model, and otherwise inferred from the
    shapes. Shapes say nothing about the mask's windows and fade, the softmax scale and the frame rate, which
    are then the published base model's.

    Args:
      arrays: the state dict, with or without the checkpoint's prefix "model.".
      settings: values stored with it, by keyword; may be empty.

    Raises:
      FlowleyError: a weight that a size is read from is missing, or no configuration has these sizes.
    """
    named = _without_prefix(arrays)
    if "hidden_dim" in settings:
        return ModelConfig.from_torch_config(settings)
    try:
        width, audio_dim, _ = named["audio_projector.0.weight"].shape
        single_type = "psca" if "single_modal_stream.0.vis_aud_cross_atn.q_prj.weight" in named else "dit"
        num_heads = _heads(named, width, "multimodal_stream.0.audio_block.attn")
        single_num_heads = _heads(named, width, f"single_modal_stream.0.{_SELF_ATTENTION[single_type]}")
        config = ModelConfig(
            audio_dim=audio_dim,
            video_dim=named["visual_projector.0.weight"].shape[1],
            text_dim=named["text_projector.0.weight"].shape[1],
            width=width,
            num_heads=num_heads,
            single_num_heads=None if single_num_heads == num_heads else single_num_heads,
            multi_depth=_depth(named, "multimodal_stream"),
            single_depth=_depth(named, "single_modal_stream"),
            single_type=single_type,
            share_single=not _blocks_differ(named),
        )
        inner = len(named["multimodal_stream.0.text_block.ffn.w1.weight"])
    except KeyError as error:
        raise FlowleyError(f"the Flowley state dict lacks {error.args[0]}") from error
    if inner == config.mlp_width:
        return config
    # The inner width is rounded up to 256. This ratio gives exactly `inner` before rounding.
    config = dataclasses.replace(config, mlp_ratio=1.5 * inner / width)
    if inner != config.mlp_width:
        raise FlowleyError(f"no mlp_ratio gives feed-forward nets of inner width {inner} at width {width}")
    return config


def _heads(named: Mapping[str, np.ndarray], width: int, attention: str) -> int:
    return width // len(named[f"{attention}.qk_norm.query_norm.scale"])


def _depth(named: Mapping[str, np.ndarray], stack: str) -> int:
    return len({name.split(".")[1] for name in named if name.startswith(f"{stack}.")})


def flowley_to_torch(model: Flowley) -> dict[str, np.ndarray]:
    """Return the model's float32 state dict under the published names, without the checkpoint's prefix.

    Shared single-stream blocks are repeated under every index, as in the published file.
    """
    result = {
        name: entry.layout.to_torch(np.asarray(jax.device_get(entry.variable[...]))).copy(order="C")
        for name, entry in _entries(model).items()
    }
    if model.config.balance is not None and model.config.single_type == "psca":
        balance = np.asarray(model.config.balance, np.float32)
        result.update({_balance_name(index): balance for index in range(model.config.single_depth)})
    return result


def _without_prefix(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if state_dict and all(name.startswith(PREFIX) for name in state_dict):
        return {name.removeprefix(PREFIX): value for name, value in state_dict.items()}
    return dict(state_dict)


def _blocks_differ(state_dict: Mapping[str, np.ndarray]) -> bool:
    first = "single_modal_stream.0."
    for name, value in state_dict.items():
        stem, _, rest = name.removeprefix("single_modal_stream.").partition(".")
        if not name.startswith("single_modal_stream.") or first + rest not in state_dict or stem == "0":
            continue
        if not np.array_equal(value, state_dict[first + rest]):
            return True
    return False


def _check(state_dict: Mapping[str, np.ndarray], entries: Mapping[str, _Entry], config: ModelConfig) -> None:
    fixed_balances = set()
    if config.balance is not None and config.single_type == "psca":
        fixed_balances = {_balance_name(index) for index in range(config.single_depth)}
    expected = {
        name: str(entry.layout.to_torch(np.empty(entry.variable.shape, np.bool_)).shape)
        for name, entry in entries.items()
    }
    shapes = {name: str(np.shape(x)) for name, x in state_dict.items() if name not in fixed_balances}
    problems = differences(expected, shapes)
    for name, array in state_dict.items():
        if not is_float(np.asarray(array)):
            problems.append(wrong_type(name, np.asarray(array)))
        elif not np.isfinite(in_float32(np.asarray(array))).all():
            problems.append(f"{name}: not finite")
    for name in sorted(fixed_balances & set(state_dict)):
        value = float(np.asarray(state_dict[name]))
        if not np.isclose(value, config.balance or 0.0, rtol=0, atol=1e-6):
            problems.append(f"{name}: found {value}, expected config.balance={config.balance}")
    if problems:
        raise FlowleyError(f"the state dict does not match the configuration; {summary(problems, 'weights')}")


def _balance_name(index: int) -> str:
    return f"single_modal_stream.{index}.cross_weight"


def _entries(model: Flowley) -> dict[str, _Entry]:
    """Return the variable and layout of every PyTorch name, in the order of the network."""
    entries: dict[str, _Entry] = {}

    def add(name: str, variable: nnx.Variable, layout: _Layout) -> None:
        entries[name] = _Entry(variable=variable, layout=layout)

    def linear(name: str, layer: Linear | Conv1d, layout: _Layout = _LINEAR) -> None:
        add(f"{name}.weight", layer.kernel, layout)
        if layer.bias is not None:
            add(f"{name}.bias", layer.bias, layout if layout not in (_LINEAR, _CONV) else _PLAIN)

    def linear_or_conv(name: str, layer: Linear | Conv1d) -> None:
        linear(name, layer, _CONV if layer.kernel.ndim == 3 else _LINEAR)

    def gated(name: str, mlp: GatedMlp) -> None:
        for part in ("w1", "w2", "w3"):
            linear_or_conv(f"{name}.{part}", getattr(mlp, part))

    def self_attention(name: str, qkv: QkvProjection) -> None:
        linear(f"{name}.qkv_prj", qkv.qkv, _fused(3, qkv.num_heads))
        add(f"{name}.qk_norm.query_norm.scale", qkv.query_norm.scale, _PLAIN)
        add(f"{name}.qk_norm.key_norm.scale", qkv.key_norm.scale, _PLAIN)

    def cross_attention(name: str, cross: CrossProjection) -> None:
        linear(f"{name}.q_prj", cross.q)
        linear(f"{name}.kv_prj", cross.kv, _fused(2, cross.num_heads))
        add(f"{name}.q_norm.scale", cross.query_norm.scale, _PLAIN)
        add(f"{name}.k_norm.scale", cross.key_norm.scale, _PLAIN)

    def block_tail(name: str, block: Branch | SingleStreamBlock) -> None:
        linear_or_conv(f"{name}.linear1", block.out)
        gated(f"{name}.ffn", block.ffn)
        linear(f"{name}.adaLN_modulation.adaLN_modulation.1", block.modulation.linear)

    add("latent_mean", model.latent_mean, _LATENT)
    add("latent_std", model.latent_std, _LATENT)
    add("empty_visual_feature", model.empty_video, _ROW)
    add("empty_text_feature", model.empty_text, _ROW)
    for name, projection in (
        ("text_projector", model.text_input),
        ("visual_projector", model.video_input),
        ("audio_projector", model.audio_input),
    ):
        linear_or_conv(f"{name}.0", projection.first)
        gated(f"{name}.2", projection.mlp)
    linear("text_cond_projector", model.global_condition.text)
    linear("visual_cond_projector", model.global_condition.video)
    gated("global_cond_projector", model.global_condition.mlp)
    linear("timestep_embedder.mlp.0", model.global_condition.time.first)
    linear("timestep_embedder.mlp.2", model.global_condition.time.second)
    for index, block in enumerate(model.multi_stream):
        for torch_name, branch in (("audio", block.audio), ("visual", block.video), ("text", block.text)):
            name = f"multimodal_stream.{index}.{torch_name}_block"
            self_attention(f"{name}.attn", branch.qkv)
            block_tail(name, branch)
    for name, cross in (("cross_visual_proj", model.cross_video), ("cross_textual_proj", model.cross_text)):
        if cross is not None:
            linear(f"{name}.proj.0", cross.first)
            linear(f"{name}.proj.3", cross.second)
    for index in range(model.config.single_depth):
        block = model.single_stream[0 if model.config.share_single else index]
        name = f"single_modal_stream.{index}"
        if block.reader is not None and block.reader.balance is not None:
            add(_balance_name(index), block.reader.balance, _PLAIN)
        self_attention(f"{name}.{_SELF_ATTENTION[model.config.single_type]}", block.qkv)
        if block.reader is not None:
            cross_attention(f"{name}.vis_aud_cross_atn", block.reader.video)
            cross_attention(f"{name}.tex_aud_cross_atn", block.reader.text)
        block_tail(name, block)
    linear("final_layer.adaLN_modulation.adaLN_modulation.1", model.final_modulation.linear)
    linear_or_conv("final_layer.conv", model.final_conv)
    return entries
