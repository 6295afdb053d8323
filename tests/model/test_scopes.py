"""Operations carry the names of the network's parts, so that a profile reads like the code."""

import jax
import jax.numpy as jnp

from flowley_jax.model import ModelConfig, abstract_model, merge_model


def test_operations_are_named_after_the_parts_of_the_network():
    config = ModelConfig(
        audio_dim=6,
        video_dim=10,
        text_dim=8,
        width=16,
        num_heads=2,
        multi_depth=1,
        single_depth=1,
        layers="unrolled",
    )
    _, parameters, constants = abstract_model(config)
    shapes = ((2, 25, 6), (2, 8, 10), (2, 7, 8), (2,), (2,))
    dtypes = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    inputs = [jax.ShapeDtypeStruct(*spec) for spec in zip(shapes, dtypes, strict=True)]

    @jax.jit
    def run(parameters, constants, *inputs):
        return merge_model(config, parameters, constants)(*inputs)

    text = run.lower(parameters, constants, *inputs).as_text(debug_info=True)
    for scope in (
        "flowley/audio/input_projection/gated_mlp",
        "flowley/global_condition/time_embedding",
        "flowley/multi_stream_block/adaln",
        "flowley/multi_stream_block/attention",
        "flowley/cross_input",
        "flowley/single_stream_block/attention",
        "flowley/single_stream_block/condition_reader/attention",
        "flowley/single_stream_block/condition_reader/psca",
        "flowley/single_stream_block/gated_mlp",
        "flowley/final_layer/adaln",
    ):
        assert f"{scope}/" in text, scope
