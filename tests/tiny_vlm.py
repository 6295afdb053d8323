"""Vision-language models with the real classes and file layout, but small random weights."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *(
        "<|vision_bos|>",
        "<|vision_eos|>",
        "<|VIDEO|>",
        "<|IMAGE|>",
        "<|AUDIO|>",
        "<|audio_bos|>",
        "<|audio_eos|>",
    ),
]
# The chat format of the published models, reduced to one video and one text.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VISION = dict(
    depth=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    out_hidden_size=64,
    fullatt_block_indexes=[1],
    window_size=56,
)
_LANGUAGE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    # Wide enough that adapters by themselves change the answers.
    initializer_range=0.15,
    max_position_embeddings=2048,
    rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e6},
)
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}


def write_silent(folder: Path) -> Path:
    """Write a Qwen2.5-VL, which only sees."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    template = _TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    tokenizer = _tokenizer(template, image_token="<|image_pad|>", video_token="<|video_pad|>")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={**_LANGUAGE, "vocab_size": len(tokenizer), **_special_ids(tokenizer)},
        vision_config=_VISION,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=_PIXELS),
        tokenizer,
        Qwen2VLVideoProcessor(size=_PIXELS),
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def write_audio_visual(folder: Path) -> Path:
    """Write the thinker of a Qwen2.5-Omni, which sees and hears."""
    import torch
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    template = _TEMPLATE.replace("VIDEO", "<|vision_bos|><|VIDEO|><|vision_eos|>")
    names = dict(
        image_token="<|IMAGE|>",
        audio_token="<|AUDIO|>",
        video_token="<|VIDEO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )
    tokenizer = _tokenizer(template, **names)
    ids = {key: tokenizer.convert_tokens_to_ids(value) for key, value in names.items()}
    torch.manual_seed(0)
    config = Qwen2_5OmniThinkerConfig(
        text_config={**_LANGUAGE, "vocab_size": len(tokenizer), **_special_ids(tokenizer)},
        vision_config=_VISION,
        audio_config=dict(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            num_mel_bins=80,
            max_source_positions=1500,
            output_dim=64,
        ),
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_token_id=ids["audio_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
    )
    Qwen2_5OmniThinkerForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(size=_PIXELS),
        Qwen2VLVideoProcessor(size=_PIXELS),
        WhisperFeatureExtractor(feature_size=80),
        tokenizer,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def _tokenizer(template, **tokens):
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["a dog barks at the gate while rain falls on a tin roof"],
        trainers.BpeTrainer(vocab_size=320, special_tokens=_SPECIAL, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=template,
        extra_special_tokens=tokens,
    )


def _special_ids(tokenizer):
    return {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
