"""VGGish compared with torchvggish, from a file of its weights: make test-torch."""

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvggish

from flowley_jax.interop.convert import convert
from flowley_jax.networks.vggish import log_mel_examples

pytestmark = pytest.mark.torch


def _twin():
    """Return torchvggish's network with random weights, without its last ReLU."""
    torch.manual_seed(0)
    model = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
    with torch.no_grad():
        # PyTorch's first weights would make every embedding nearly that of the biases.
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    model.embeddings = model.embeddings[:-1]
    return model.eval()


@pytest.mark.parametrize("samples", [128_000, 40_001, 15_600])
def test_examples_match_torchvggish(samples):
    for wave in golden_data.load("waves_16k")["wave"].astype(np.float32) / 32768:
        expected = torchvggish.waveform_to_examples(wave[:samples], 16_000, return_tensor=False)
        assert golden_data.relative_error(log_mel_examples(wave[:samples]), expected) < 1e-6


def test_embeddings_match_torchvggish(tmp_path):
    theirs = _twin()
    torch.save(theirs.state_dict(), tmp_path / "vggish-10086976.pth")
    ours = convert(str(tmp_path / "vggish-10086976.pth"), tmp_path / "bundles", expect="vggish").load()
    wave = golden_data.load("waves_16k")["wave"][0].astype(np.float32) / 32768
    examples = torchvggish.waveform_to_examples(wave, 16_000)
    with torch.no_grad():
        expected = theirs(examples)
    assert (expected < 0).any()
    found = ours(jnp.asarray(examples.detach().numpy()[:, 0]))
    assert golden_data.relative_error(found, expected) < 1e-5
