"""The length of the clips that a network was trained on: notes, settings and the published length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.trained_length import length_note, noted_length, trained_length

lengths = st.floats(0.01, 3600)


@given(seconds=lengths, frames=st.integers(1, 100))
def test_a_note_is_read_exactly_and_comes_before_the_settings(seconds, frames):
    notes = {"format": "pt", **length_note(seconds)}
    assert noted_length(notes) == seconds
    assert trained_length(notes, {"visual_seq_len": frames}, video_fps=8.0) == seconds


def test_without_a_note_the_settings_say_it_or_it_is_the_published_length():
    assert length_note(None) == {} and noted_length({"format": "pt"}) is None
    assert trained_length({}, {"visual_seq_len": 50}, video_fps=12.5) == 4.0
    assert trained_length({}, {"hidden_dim": 512}, video_fps=8.0) == 8.0


@pytest.mark.parametrize("text", ["", "eight", "nan", "inf", "0", "-8", "3601"])
def test_damaged_notes_are_refused(text):
    with pytest.raises(FlowleyError, match=r"its note flowley_jax\.seconds=.* must be "):
        noted_length({"flowley_jax.seconds": text})


@pytest.mark.parametrize("frames", ["64", None, True, 0, -1, 6.4, 10**9])
def test_damaged_settings_are_refused(frames):
    with pytest.raises(FlowleyError, match=r"visual_seq_len=.* of the PyTorch model .*must be "):
        trained_length({}, {"visual_seq_len": frames}, video_fps=8.0)
