"""A published system in miniature: files of random weights as the hubs have them, and bundles of them."""

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

CAPTIONS = (
    "a dog barks at the gate",
    "rain falls on a tin roof",
    "two glasses clink",
    "a train passes slowly",
)
CLIP_DIM, T5_DIM = 24, 32
MODEL = ModelConfig(
    audio_dim=20, video_dim=CLIP_DIM, text_dim=T5_DIM, width=32, num_heads=2, multi_depth=1, single_depth=2
)
MODELS = {"16k": MODEL, "44k": dataclasses.replace(MODEL, audio_dim=40)}


def write_bundles(folder: Path, rate: str = "16k") -> Path:
    """Files of all five kinds in `folder`/files, and their bundles in the folder that is returned."""
    for source in write_files(folder / "files", rate):
        convert(str(source), folder / "bundles")
    return folder / "bundles"


def write_files(folder: Path, rate: str = "16k") -> list[Path]:
    """One folder or file for each kind."""
    for name in ("clip", "t5", "bigvgan"):
        (folder / name).mkdir(parents=True)
    save_file(clip_arrays(), folder / "clip" / "open_clip_model.safetensors")
    settings = {
        "embed_dim": CLIP_DIM,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    }
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    save_file(t5_arrays(), folder / "t5" / "model.safetensors")
    sizes = {"d_model": T5_DIM, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    (folder / "t5" / "config.json").write_text(
        json.dumps({"model_type": "t5", "feed_forward_proj": "gated-gelu", **sizes})
    )
    write_tokenizer(folder / "t5")
    save_file(golden_data.state_dict(f"g_vae{rate}"), folder / "vae.safetensors")
    vocoder = f"h_bigvgan{rate}"
    save_file(golden_data.state_dict(vocoder), folder / "bigvgan" / "bigvgan_generator.safetensors")
    (folder / "bigvgan" / "config.json").write_text(json.dumps(golden_data.settings(vocoder)["h"]))
    network = flowley_to_torch(Flowley(MODELS[rate], rngs=nnx.Rngs(0)))
    save_file({f"model.{name}": array for name, array in network.items()}, folder / "flowley.safetensors")
    return [folder / name for name in ("clip", "t5", "vae.safetensors", "bigvgan", "flowley.safetensors")]


def clip_arrays() -> dict[str, np.ndarray]:
    """Of an open_clip model: image encoder, and a weight of the text encoder that is to be ignored."""
    shapes = {
        "visual.class_embedding": (32,),
        "visual.positional_embedding": (5, 32),
        "visual.proj": (32, CLIP_DIM),
        "visual.conv1.weight": (32, 3, 16, 16),
        **_norm("visual.ln_pre", 32),
        **_norm("visual.ln_post", 32),
        "token_embedding.weight": (7, 16),
    }
    for layer in range(2):
        stem = f"visual.transformer.resblocks.{layer}"
        shapes |= {
            **_norm(f"{stem}.ln_1", 32),
            **_norm(f"{stem}.ln_2", 32),
            f"{stem}.attn.in_proj_weight": (96, 32),
            f"{stem}.attn.in_proj_bias": (96,),
            **_linear(f"{stem}.attn.out_proj", 32, 32),
            **_linear(f"{stem}.mlp.c_fc", 32, 128),
            **_linear(f"{stem}.mlp.c_proj", 128, 32),
        }
    return _random(shapes)


def t5_arrays() -> dict[str, np.ndarray]:
    """Of a FLAN-T5 encoder."""
    shapes = {
        "shared.weight": (200, T5_DIM),
        "encoder.final_layer_norm.weight": (T5_DIM,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4),
    }
    for layer in range(2):
        stem = f"encoder.block.{layer}.layer"
        shapes |= {f"{stem}.0.SelfAttention.{name}.weight": (32, T5_DIM) for name in "qkv"}
        shapes |= {
            f"{stem}.0.SelfAttention.o.weight": (T5_DIM, 32),
            f"{stem}.0.layer_norm.weight": (T5_DIM,),
            f"{stem}.1.DenseReluDense.wi_0.weight": (48, T5_DIM),
            f"{stem}.1.DenseReluDense.wi_1.weight": (48, T5_DIM),
            f"{stem}.1.DenseReluDense.wo.weight": (T5_DIM, 48),
            f"{stem}.1.layer_norm.weight": (T5_DIM,),
        }
    return _random(shapes)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of T5's kind, made from a few captions."""
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
    rng = np.random.default_rng(0)
    return {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
