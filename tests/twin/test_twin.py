"""The PyTorch twin against the published model's golden data, and the JAX network against the twin.

Run with `make test-torch`.
"""

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks.torch_tasks import flow_loss, guided_sample
from benchmarks.torch_twin import Twin
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.interop.flowley import infer_config
from flowley_jax.model import ModelConfig

pytestmark = pytest.mark.torch

# Two correct float32 implementations differ by up to 1e-5.
TOLERANCE = 1e-5
COVERED = [name for name in golden_data.VARIANTS if name != "b_dit"]


def twin_of(name: str) -> Twin:
    sizes = golden_data.settings(name)["model"]
    config = golden_data.config(name)
    twin = Twin(config, (sizes["audio_seq_len"], sizes["visual_seq_len"], sizes["text_seq_len"]))
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in golden_data.state_dict(name).items()})
    return twin.eval()


def inputs_of(name: str, *keys: str):
    data = golden_data.load(name)
    return [torch.from_numpy(data[f"in/{key}"]) for key in keys]


@pytest.mark.parametrize("name", COVERED)
def test_velocity_of_the_twin_matches_the_golden_data(name):
    latent, video, text, text_len, t = inputs_of(
        name, "audio_latent", "visual_feature", "text_feature", "text_len", "t"
    )
    with torch.no_grad():
        velocity = twin_of(name)(latent, video, text, text_len, t)
    assert golden_data.relative_error(velocity, golden_data.load(name)["out/flow"]) < TOLERANCE


def test_loss_and_gradients_of_the_twin_match_the_golden_data():
    data, twin = golden_data.load("c_loss"), twin_of("a_shared")
    video, text, text_len, t = inputs_of("c_loss", "visual_feature", "text_feature", "text_len", "t")
    noisy, target = (torch.from_numpy(data[f"out/{key}"]) for key in ("xt", "tgt_flow"))
    loss = flow_loss(twin(noisy, video, text, text_len, t), target, direction_weight=0.5)
    assert golden_data.relative_error(loss.detach(), data["out/mse/w0.5/total"]) < TOLERANCE
    loss.backward()
    golden = golden_data.load("c_grads_0") | golden_data.load("c_grads_1")
    compared = 0
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        assert golden_data.relative_error(parameter.grad, golden[f"grad/{name}"]) < 2 * TOLERANCE, name
        compared += 1
    assert compared == sum(key.startswith("grad/") for key in golden)


@pytest.mark.parametrize(
    ("run", "steps", "guidance"), [("euler_cfg7.5", 25, 7.5), ("euler_steps4_cfg2.0", 4, 2.0)]
)
def test_guided_sample_of_the_twin_matches_the_golden_data(run, steps, guidance):
    twin = twin_of("a_shared")
    noise, video, text, text_len = inputs_of(
        "d_sampling", "noise", "visual_feature", "text_feature", "text_len"
    )
    latents = guided_sample(twin, twin, noise, video, text, text_len, steps=steps, guidance=guidance)
    assert golden_data.relative_error(latents, golden_data.load("d_sampling")[f"out/{run}"]) < TOLERANCE


@pytest.mark.parametrize(
    ("num_heads", "single_num_heads", "qk_scale", "share_single"),
    [(4, 2, None, True), (2, 8, 0.2, False), (4, None, 0.7, True)],
)
def test_jax_network_matches_the_twin_with_other_head_counts_and_softmax_scales(
    num_heads, single_num_heads, qk_scale, share_single
):
    config = ModelConfig(
        audio_dim=6,
        video_dim=10,
        text_dim=9,
        width=32,
        num_heads=num_heads,
        single_num_heads=single_num_heads,
        qk_scale=qk_scale,
        multi_depth=2,
        single_depth=3,
        share_single=share_single,
    )
    twin = randomised(Twin(config, (25, 8, 7))).eval()
    state_dict = {name: value.numpy() for name, value in twin.state_dict().items()}
    model = flowley_from_torch(state_dict, config)
    draw = np.random.default_rng(0)
    latent, video, text = (
        draw.normal(size=shape).astype(np.float32) for shape in ((2, 25, 6), (2, 8, 10), (2, 7, 9))
    )
    inputs = (latent, video, text, np.asarray([3, 7], np.int32), np.asarray([0.2, 0.7], np.float32))
    with torch.no_grad():
        expected = twin(*(torch.from_numpy(x) for x in inputs))
    assert golden_data.relative_error(nnx.jit(model)(*(jnp.asarray(x) for x in inputs)), expected) < TOLERANCE

    returned = flowley_to_torch(model)
    assert returned.keys() == state_dict.keys()
    for name, value in returned.items():
        np.testing.assert_array_equal(value, state_dict[name])
    inferred = infer_config(state_dict, {})
    assert (inferred.multi_heads, inferred.single_heads) == (config.multi_heads, config.single_heads)


def randomised(twin: Twin) -> Twin:
    """Draw every trained parameter at random, so that none is hidden by an initial zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return twin
