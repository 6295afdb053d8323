"""Published state dicts: exact round trips, and errors that list the problems."""

import golden_data
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.interop.flowley import infer_config
from flowley_jax.model import Flowley, ModelConfig


@pytest.mark.parametrize("name", golden_data.VARIANTS)
def test_round_trip_of_golden_weights_is_exact(name):
    original = golden_data.state_dict(name)
    returned = flowley_to_torch(golden_data.model(name))
    assert returned.keys() == original.keys()
    for key, value in original.items():
        assert returned[key].shape == value.shape and returned[key].dtype == np.float32
        np.testing.assert_array_equal(returned[key], value)


@settings(max_examples=8, deadline=None)
@given(
    single_type=st.sampled_from(["psca", "dit"]),
    share=st.booleans(),
    balance=st.sampled_from([None, 0.25]),
    heads=st.sampled_from([1, 2, 4]),
    single_heads=st.sampled_from([None, 1, 2, 4]),
    multi=st.integers(1, 2),
    single=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_round_trip_of_any_model_is_exact(
    single_type, share, balance, heads, single_heads, multi, single, seed
):
    config = ModelConfig(
        audio_dim=3,
        video_dim=5,
        text_dim=4,
        width=16,
        num_heads=heads,
        single_num_heads=single_heads,
        multi_depth=multi,
        single_depth=single,
        single_type=single_type,
        share_single=share,
        balance=balance,
    )
    model = Flowley(config, rngs=nnx.Rngs(seed))
    state_dict = flowley_to_torch(model)
    returned = flowley_from_torch(state_dict, config)
    leaves = [jax.tree.leaves_with_path(nnx.state(each)) for each in (model, returned)]
    for (path, value), (returned_path, returned_value) in zip(*leaves, strict=True):
        assert path == returned_path
        np.testing.assert_array_equal(value, returned_value)
    inferred = infer_config(state_dict, {})
    assert (inferred.multi_heads, inferred.single_heads) == (config.multi_heads, config.single_heads)


def test_checkpoint_prefix_is_removed():
    prefixed = {f"model.{key}": value for key, value in golden_data.state_dict("a_shared").items()}
    config = golden_data.model("a_shared").config
    np.testing.assert_array_equal(
        flowley_from_torch(prefixed, config).final_conv.kernel[...],
        golden_data.model("a_shared").final_conv.kernel[...],
    )


def test_an_error_counts_the_problems_and_lists_the_first():
    state = golden_data.state_dict("a_shared")
    del state["latent_mean"], state["audio_projector.0.bias"]
    state["text_projector.0.weight"] = state["text_projector.0.weight"].T
    state["extra.weight"] = np.zeros(3)
    shared = "audio_projector.0.bias: found none, expected (32,); "
    wrong = "text_projector.0.weight: found (24, 32), expected (32, 24)"
    lists = []
    for name in ("extra.weight", "none"):
        with pytest.raises(FlowleyError) as caught:
            flowley_from_torch(state, golden_data.model("a_shared").config)
        lists.append(str(caught.value).partition("the configuration; ")[2])
        state.pop(name, None)
    extra = "extra.weight: found (3,), expected none; "
    missing = "latent_mean: found none, expected (1, 1, 8); "
    assert lists == [
        f"4 weights differ: {shared}{extra}{missing}and 1 more",
        f"3 weights differ: {shared}{missing}{wrong}",
    ]


def test_a_different_fixed_balance_is_refused():
    config = ModelConfig.from_torch_config(
        {**golden_data.settings("b_balance025")["model"], "balance_hparam": 0.75}
    )
    with pytest.raises(FlowleyError, match=r"cross_weight: found 0\.25, expected config\.balance=0\.75"):
        flowley_from_torch(golden_data.state_dict("b_balance025"), config)


def test_blocks_with_different_weights_are_not_shared(caplog):
    config = ModelConfig.from_torch_config(golden_data.settings("b_unshared")["model"])
    assert config.share_single
    model = flowley_from_torch(golden_data.state_dict("b_unshared"), config)
    assert not model.config.share_single
    assert "share_single=False" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 3}, "unknown keywords of the PyTorch model: colour"),
        ({"multi_n_heads": 3}, r"model\.width=32 must be a multiple of 2·num_heads=6"),
        ({"single_n_heads": 3}, r"model\.width=32 must be a multiple of 2·single_num_heads=6"),
        ({"qk_scale": 0.0}, r"model\.qk_scale=0\.0 must be above 0"),
        ({"single_type": "UNet"}, "single_type='UNet'"),
    ],
)
def test_invalid_torch_keywords_are_refused(change, message):
    with pytest.raises(FlowleyError, match=message):
        ModelConfig.from_torch_config({**golden_data.settings("a_shared")["model"], **change})


def test_torch_keywords_set_the_head_counts_and_the_softmax_scale():
    keywords = golden_data.settings("a_shared")["model"]
    assert ModelConfig.from_torch_config(keywords).single_num_heads is None
    config = ModelConfig.from_torch_config({**keywords, "single_n_heads": 2, "qk_scale": 0.3})
    assert (config.multi_heads, config.single_heads, config.qk_scale) == (4, 2, 0.3)


def test_a_single_head_count_among_torch_keywords_is_refused():
    keywords = dict(golden_data.settings("a_shared")["model"])
    del keywords["single_n_heads"]
    with pytest.raises(FlowleyError, match="must be given together"):
        ModelConfig.from_torch_config(keywords)
