"""The text encoder by hashed word vectors."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.protocols import TextEncoder
from flowley_jax.errors import FlowleyError


def test_features_have_expected_shapes_lengths_and_padding():
    encoder = HashedTextEncoder(dim=16, max_tokens=6)
    features, lengths = encoder(["a glass ball", "", "bounces"])
    assert isinstance(encoder, TextEncoder)
    assert features.shape == (3, 6, 16) and features.dtype == np.float32
    np.testing.assert_array_equal(lengths, np.array([4, 1, 2], np.int32))
    for row, length in zip(features, lengths, strict=True):
        np.testing.assert_allclose(np.linalg.norm(row[:length], axis=1), 1.0, atol=1e-6)
        np.testing.assert_array_equal(row[length:], 0.0)
    np.testing.assert_array_equal(features[0, 3], features[1, 0])  # end of text


def test_only_the_words_matter_not_case_or_punctuation():
    encoder = HashedTextEncoder()
    a, _ = encoder(["A glass ball, bouncing!"])
    b, _ = encoder(["a glass  BALL bouncing"])
    c, _ = encoder(["a metal ball bouncing"])
    np.testing.assert_array_equal(a, b)
    differs = np.abs(a - c).max(axis=(0, 2)) > 0
    assert differs[:5].tolist() == [False, True, False, False, False]


def test_values_are_fixed_on_every_machine():
    features, _ = HashedTextEncoder(dim=4)(["glass"])
    np.testing.assert_allclose(features[0, 0], [-0.6354235, -0.0489246, 0.1840097, -0.7483206], atol=1e-6)


def test_different_words_are_almost_orthogonal():
    words = [a + b + c for a in string.ascii_lowercase for b in "aeiou" for c in "lnrst"]
    features, _ = HashedTextEncoder(dim=64, max_tokens=len(words) + 1)([" ".join(words)])
    cosines = features[0, :-1] @ features[0, :-1].T - np.eye(len(words))
    assert np.abs(cosines).max() < 0.7
    assert np.sqrt(np.square(cosines).mean()) == pytest.approx(1 / 8, rel=0.05)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_is_encoded_or_refused_with_its_length(captions):
    encoder = HashedTextEncoder(dim=8, max_tokens=8)
    try:
        features, lengths = encoder(captions)
    except FlowleyError as error:
        assert "max_tokens=8" in str(error)
        return
    assert np.isfinite(features).all()
    assert ((lengths >= 1) & (lengths <= 8)).all()


def test_very_long_prompt_is_refused_in_a_short_message():
    with pytest.raises(FlowleyError, match=r"10001 tokens.*max_tokens=32") as caught:
        HashedTextEncoder()(["word " * 10_000])
    assert len(str(caught.value)) < 200
