"""Evaluation networks from a published file to a bundle, and from it to features."""

import numpy as np
import pytest
from golden_data import load, relative_error, state_dict

from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.networks.vggish import log_mel_examples


def _wave():
    return load("waves_16k")["wave"][0].astype(np.float32) / 32768


@pytest.fixture(params=["panns", "vggish"])
def network(request, tmp_path):
    """Name of a network, and the model of its bundle."""
    arrays = state_dict(f"{request.param}_small")
    # PANNs' file has the weights in an entry.
    content = {"model": arrays} if request.param == "panns" else arrays
    write_torch_file(tmp_path / "published.pth", content)
    bundle = convert(str(tmp_path / "published.pth"), tmp_path / "bundles")
    assert bundle.folder == tmp_path / "bundles" / request.param
    return request.param, Bundle.open(bundle.folder).load()


def test_features_of_a_bundle_are_those_of_the_published_file(network):
    name, model = network
    if name == "panns":
        embedding, logits = model(_wave()[None])
        assert relative_error(embedding[0], load("panns_small")["out/8s/2048"][0]) < 1e-5
        assert relative_error(logits[0], load("panns_small")["out/8s/logits"][0]) < 1e-5
    else:
        features = model(log_mel_examples(_wave()))
        assert relative_error(features, load("vggish_small")["out/8s/embedding"][0]) < 1e-5
