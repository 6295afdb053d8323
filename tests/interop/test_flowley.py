"""Published weights in and out: exact round trip, and errors that list everything."""

import golden_data
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.model import Flowley, ModelConfig


@pytest.mark.parametrize("name", golden_data.VARIANTS)
def test_round_trip_is_exact(name):
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
    multi=st.integers(1, 2),
    single=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_model_to_torch_and_back(single_type, share, balance, heads, multi, single, seed):
    config = ModelConfig(
        audio_dim=3,
        video_dim=5,
        text_dim=4,
        width=16,
        num_heads=heads,
        multi_depth=multi,
        single_depth=single,
        single_type=single_type,
        share_single=share,
        balance=balance,
    )
    model = Flowley(config, rngs=nnx.Rngs(seed))
    again = flowley_from_torch(flowley_to_torch(model), config)
    leaves = [jax.tree.leaves_with_path(nnx.state(either)) for either in (model, again)]
    for (path, one), (other_path, other) in zip(*leaves, strict=True):
        assert path == other_path
        np.testing.assert_array_equal(one, other)


def test_checkpoint_prefix_is_accepted():
    prefixed = {f"model.{key}": value for key, value in golden_data.state_dict("a_shared").items()}
    config = golden_data.model("a_shared").config
    np.testing.assert_array_equal(
        flowley_from_torch(prefixed, config).final_conv.kernel[...],
        golden_data.model("a_shared").final_conv.kernel[...],
    )


def test_every_problem_is_listed():
    state = golden_data.state_dict("a_shared")
    del state["latent_mean"], state["audio_projector.0.bias"]
    state["text_projector.0.weight"] = state["text_projector.0.weight"].T
    state["extra.weight"] = np.zeros(3)
    with pytest.raises(FlowleyError) as caught:
        flowley_from_torch(state, golden_data.model("a_shared").config)
    message = str(caught.value)
    for part in (
        "4 problems",
        "missing latent_mean",
        "missing audio_projector.0.bias",
        "left over extra.weight",
        "text_projector.0.weight has shape (24, 32), expected (32, 24)",
    ):
        assert part in message


def test_another_fixed_balance_is_an_error():
    config = ModelConfig.from_torch_config(
        {**golden_data.settings("b_balance025")["model"], "balance_hparam": 0.75}
    )
    with pytest.raises(FlowleyError, match=r"cross_weight is 0\.25, config\.balance is 0\.75"):
        flowley_from_torch(golden_data.state_dict("b_balance025"), config)


def test_blocks_that_differ_are_not_taken_for_shared_ones(caplog):
    described = golden_data.settings("b_unshared")
    model = flowley_from_torch(
        golden_data.state_dict("b_unshared"), ModelConfig.from_torch_config(described["model"])
    )
    assert not model.config.share_single
    assert "share_single=False" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 3}, "unknown keywords of the PyTorch model: colour"),
        ({"single_n_heads": 2}, "must be equal"),
        ({"single_type": "UNet"}, "single_type='UNet'"),
    ],
)
def test_unknown_torch_configurations_are_refused(change, message):
    with pytest.raises(FlowleyError, match=message):
        ModelConfig.from_torch_config({**golden_data.settings("a_shared")["model"], **change})
