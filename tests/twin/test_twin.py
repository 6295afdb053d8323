"""The PyTorch twin against the golden data of the published model: make test-torch."""

import golden_data
import numpy as np
import pytest
import torch

from benchmarks.torch_tasks import flow_loss, guided_sample
from benchmarks.torch_twin import Twin
from flowley_jax.model import ModelConfig

pytestmark = pytest.mark.torch

# Two right implementations in float32 differ by up to 1e-5.
TOLERANCE = 1e-5
COVERED = [name for name in golden_data.VARIANTS if name != "b_dit"]


def twin_of(name: str) -> Twin:
    described = golden_data.settings(name)
    config = ModelConfig.from_torch_config({**described["model"], "unshared": described["unshared"]})
    sizes = described["model"]
    twin = Twin(config, (sizes["audio_seq_len"], sizes["visual_seq_len"], sizes["text_seq_len"]))
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in golden_data.state_dict(name).items()})
    return twin.eval()


def inputs_of(name: str, *keys: str):
    data = golden_data.load(name)
    return [torch.from_numpy(data[f"in/{key}"]) for key in keys]


@pytest.mark.parametrize("name", COVERED)
def test_velocity(name):
    latent, video, text, text_len, t = inputs_of(
        name, "audio_latent", "visual_feature", "text_feature", "text_len", "t"
    )
    with torch.no_grad():
        velocity = twin_of(name)(latent, video, text, text_len, t)
    assert golden_data.relative_error(velocity, golden_data.load(name)["out/flow"]) < TOLERANCE


def test_loss_and_gradients():
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
def test_guided_sample(run, steps, guidance):
    twin = twin_of("a_shared")
    noise, video, text, text_len = inputs_of(
        "d_sampling", "noise", "visual_feature", "text_feature", "text_len"
    )
    latents = guided_sample(twin, twin, noise, video, text, text_len, steps=steps, guidance=guidance)
    assert golden_data.relative_error(latents, golden_data.load("d_sampling")[f"out/{run}"]) < TOLERANCE
