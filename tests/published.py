"""A miniature of the published system: random weights in the published formats, and their bundles."""

import dataclasses
import json
from pathlib import Path

import golden_data
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from flowley_jax.interop import flowley_to_torch
from flowley_jax.interop.convert import convert
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.networks.clip import ClipConfig
from flowley_jax.networks.t5 import T5Config

CAPTIONS = (
    "a dog barks at the gate",
    "rain falls on a tin roof",
    "two glasses clink",
    "a train passes slowly",
)
CLIP_DIM, T5_DIM = 24, 32
CLIP = ClipConfig(
    image_size=32,
    patch_size=16,
    width=32,
    layers=2,
    heads=2,
    mlp_width=128,
    dim=CLIP_DIM,
    activation="quick_gelu",
)
T5 = T5Config(vocab_size=200, d_model=T5_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
MODEL = ModelConfig(
    audio_dim=20, video_dim=CLIP_DIM, text_dim=T5_DIM, width=32, num_heads=2, multi_depth=1, single_depth=2
)
MODELS = {"16k": MODEL, "44k": dataclasses.replace(MODEL, audio_dim=40)}


def write_bundles(folder: Path, rate: str = "16k") -> Path:
    """Write and convert files of all five formats, and return the folder of the bundles."""
    for source in write_files(folder / "files", rate):
        convert(str(source), folder / "bundles")
    return folder / "bundles"


def write_files(folder: Path, rate: str = "16k") -> list[Path]:
    """Write one folder or file per format and return their paths."""
    vocoder = f"h_bigvgan{rate}"
    (folder / "bigvgan").mkdir(parents=True)
    save_file(golden_data.state_dict(vocoder), folder / "bigvgan" / "bigvgan_generator.safetensors")
    (folder / "bigvgan" / "config.json").write_text(json.dumps(golden_data.settings(vocoder)["h"]))
    save_file(golden_data.state_dict(f"g_vae{rate}"), folder / "vae.safetensors")
    return [
        write_clip(folder / "clip", CLIP),
        write_t5(folder / "t5", T5),
        folder / "vae.safetensors",
        folder / "bigvgan",
        write_network(folder / "flowley.safetensors", MODELS[rate]),
    ]


def write_clip(folder: Path, config: ClipConfig) -> Path:
    """Write open_clip's files, with a weight of the text encoder that must be ignored."""
    folder.mkdir()
    save_file(_random(_clip_shapes(config)), folder / "open_clip_model.safetensors")
    settings = {
        "embed_dim": config.dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "width": config.width,
            "layers": config.layers,
            "head_width": config.width // config.heads,
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    return folder


def write_t5(folder: Path, config: T5Config) -> Path:
    """Write a FLAN-T5 encoder, its settings and its tokenizer."""
    folder.mkdir()
    save_file(_random(_t5_shapes(config)), folder / "model.safetensors")
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    settings = {name: getattr(config, name) for name in names}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "t5", "feed_forward_proj": "gated-gelu", **settings})
    )
    write_tokenizer(folder)
    return folder


def write_network(path: Path, config: ModelConfig) -> Path:
    """Write a checkpoint of Flowley's network."""
    network = flowley_to_torch(Flowley(config, rngs=nnx.Rngs(0)))
    save_file({f"model.{name}": array for name, array in network.items()}, path)
    return path


def torch_weights(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the weights of an evaluation network under their published names and in PyTorch's layout."""
    arrays = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, array = ".".join(map(str, path)), np.asarray(variable[...])
        if name.endswith("pos_embed") and array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        elif array.ndim in (4, 5):
            array = np.moveaxis(array, (-2, -1), (1, 0))
        elif array.ndim == 2 and not name.endswith(("embeddings.weight", "bias_table")):
            array = array.T
        arrays[name] = np.asarray(array, order="C")
    return arrays


def _clip_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    width, mlp, patch = config.width, config.mlp_width, config.patch_size
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((config.image_size // patch) ** 2 + 1, width),
        "visual.proj": (width, config.dim),
        "visual.conv1.weight": (width, 3, patch, patch),
        **_norm("visual.ln_pre", width),
        **_norm("visual.ln_post", width),
        "token_embedding.weight": (7, 16),
    }
    for layer in range(config.layers):
        stem = f"visual.transformer.resblocks.{layer}"
        shapes |= {
            **_norm(f"{stem}.ln_1", width),
            **_norm(f"{stem}.ln_2", width),
            f"{stem}.attn.in_proj_weight": (3 * width, width),
            f"{stem}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{stem}.attn.out_proj", width, width),
            **_linear(f"{stem}.mlp.c_fc", width, mlp),
            **_linear(f"{stem}.mlp.c_proj", mlp, width),
        }
    return shapes


def _t5_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    width, inner = config.d_model, config.num_heads * config.d_kv
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes = {
        "shared.weight": (config.vocab_size, width),
        "encoder.final_layer_norm.weight": (width,),
        bias: (config.relative_attention_num_buckets, config.num_heads),
    }
    for layer in range(config.num_layers):
        stem = f"encoder.block.{layer}.layer"
        shapes |= {f"{stem}.0.SelfAttention.{name}.weight": (inner, width) for name in "qkv"}
        shapes |= {
            f"{stem}.0.SelfAttention.o.weight": (width, inner),
            f"{stem}.0.layer_norm.weight": (width,),
            f"{stem}.1.DenseReluDense.wi_0.weight": (config.d_ff, width),
            f"{stem}.1.DenseReluDense.wi_1.weight": (config.d_ff, width),
            f"{stem}.1.DenseReluDense.wo.weight": (width, config.d_ff),
            f"{stem}.1.layer_norm.weight": (width,),
        }
    return shapes


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of T5's type, trained on a few captions."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CAPTIONS * 5, trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return random weights with which layers preserve magnitudes, as trained ones do."""
    rng = np.random.default_rng(0)
    return {
        name: min(0.2, shape[-1] ** -0.5) * rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
