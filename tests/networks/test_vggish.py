"""VGGish against outputs of the published implementation."""

import numpy as np
import pytest
from flax import nnx
from golden_data import count_parameters, load, relative_error, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.vggish import infer_config, vggish_from_torch
from flowley_jax.networks import vggish
from flowley_jax.networks.vggish import LEAST_SAMPLES, log_mel_examples


def _model():
    arrays = state_dict("vggish_small")
    return vggish_from_torch(arrays, infer_config(arrays, {}))


def test_the_front_end_is_the_published_one():
    golden = load("vggish_small")
    np.testing.assert_allclose(vggish._mel_matrix(), golden["const/mel_matrix"], rtol=1e-6, atol=1e-7)
    for wave, expected in zip(load("waves_16k")["wave"], golden["mid/8s/examples"], strict=True):
        examples = log_mel_examples(wave.astype(np.float32) / 32768)
        assert examples.dtype == np.float32
        assert relative_error(examples, expected) < 1e-6


def test_embeddings_are_the_published_ones():
    golden, model = load("vggish_small"), _model()
    for wave, expected in zip(load("waves_16k")["wave"], golden["out/8s/embedding"], strict=True):
        assert relative_error(model(log_mel_examples(wave.astype(np.float32) / 32768)), expected) < 1e-5
    for level, expected in zip((0.0, 0.25), golden["out/silence_dc/embedding"], strict=True):
        wave = np.full(16_000, level, np.float32)
        assert relative_error(model(log_mel_examples(wave)), expected) < 1e-5


def test_the_shortest_sound_has_one_example():
    assert LEAST_SAMPLES == 15_600
    assert log_mel_examples(np.zeros(LEAST_SAMPLES, np.float32)).shape == (1, 96, 64)
    assert log_mel_examples(np.zeros(LEAST_SAMPLES - 1, np.float32)).shape == (0, 96, 64)


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: vggish.Vggish(vggish.VggishConfig(), rngs=nnx.Rngs(0)))
    assert count_parameters(model) == 72_141_184


def test_other_files_are_refused():
    arrays = state_dict("vggish_small")
    del arrays["embeddings.2.weight"]
    with pytest.raises(FlowleyError, match=r"VGGish lacks embeddings\.2\.weight"):
        infer_config(arrays, {})
