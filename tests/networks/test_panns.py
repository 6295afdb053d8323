"""The tagger of PANNs against outputs of the published implementation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import count_parameters, load, relative_error, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.panns import infer_config, panns_from_torch
from flowley_jax.networks import panns


def _waves():
    return load("waves_16k")["wave"].astype(np.float32) / 32768


def _model(**scales):
    arrays = {name: array * scales.get(name, 1.0) for name, array in state_dict("panns_small").items()}
    return panns_from_torch(arrays, infer_config(arrays, {}))


def test_the_front_end_is_the_published_one():
    golden = load("panns_small")
    np.testing.assert_allclose(panns._mel_matrix(), golden["const/melW"], rtol=1e-6, atol=1e-9)
    # Rounding shows in bins that are 90 dB below the loudest.
    np.testing.assert_allclose(panns.log_mel(_waves()), golden["mid/8s/logmel"], atol=2e-3)
    assert relative_error(panns.log_mel(_waves()), golden["mid/8s/logmel"]) < 2e-5


def test_outputs_are_the_published_ones():
    golden = load("panns_small")
    embedding, logits = _model()(_waves())
    assert relative_error(embedding, golden["out/8s/2048"]) < 1e-5
    assert relative_error(logits, golden["out/8s/logits"]) < 1e-5


def test_silence_and_a_constant_have_the_published_outputs():
    golden = load("panns_small")
    waves = np.stack([np.zeros(16_000), np.full(16_000, 0.25)]).astype(np.float32)
    np.testing.assert_allclose(panns.log_mel(waves)[:, :6], golden["mid/silence_dc/logmel_head"], atol=2e-2)
    embedding, logits = _model()(waves)
    assert relative_error(embedding, golden["out/silence_dc/2048"]) < 1e-4
    assert relative_error(logits, golden["out/silence_dc/logits"]) < 1e-4


def test_the_epsilons_are_the_published_ones():
    scales = {"bn0.running_var": 1e-6, "bn0.weight": 1e-3, "conv_block1.bn1.running_var": 1e-4}
    golden = load("panns_small")
    embedding, logits = _model(**scales)(_waves()[:, :32_000])
    assert relative_error(embedding, golden["out/eps/2048"]) < 1e-4
    assert relative_error(logits, golden["out/eps/logits"]) < 1e-4


def test_the_shortest_sound_has_an_embedding():
    assert panns.LEAST_SAMPLES == 4960
    embedding, _ = _model()(jnp.asarray(_waves()[:, : panns.LEAST_SAMPLES]))
    assert np.isfinite(embedding).all()


def test_bfloat16_is_close():
    arrays = state_dict("panns_small")
    config = infer_config(arrays, {})
    model = panns_from_torch(arrays, type(config)(widths=config.widths, dtype="bfloat16"))
    embedding, logits = model(_waves())
    assert embedding.dtype == logits.dtype == jnp.float32
    assert relative_error(embedding, load("panns_small")["out/8s/2048"]) < 3e-2


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: panns.Panns(panns.PannsConfig(), rngs=nnx.Rngs(0)))
    statistics = 2 * (64 + 2 * sum(panns.PannsConfig().widths))
    assert count_parameters(model) - statistics == 80_753_615


def test_other_taggers_are_refused():
    arrays = state_dict("panns_small")
    with pytest.raises(FlowleyError, match=r"front end of \(513, 64\) is not supported; .* Cnn14_16k"):
        infer_config({**arrays, "logmel_extractor.melW": np.zeros((513, 64))}, {})
    del arrays["conv_block3.conv1.weight"]
    with pytest.raises(FlowleyError, match=r"the PANNs tagger lacks conv_block3\.conv1\.weight"):
        infer_config(arrays, {})
