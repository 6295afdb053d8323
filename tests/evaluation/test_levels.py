"""Levels of sounds against closed forms."""

import json

import numpy as np
import pytest
import shell

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.levels import clip_level, levels
from flowley_jax.media.write import write_audio

RATE = 48_000
TIMES = np.arange(2 * RATE) / RATE
# BS.1770: a sine of 997 Hz at full scale in one channel has -3.01 LUFS.
SINE = np.sin(2 * np.pi * 997 * TIMES)


def test_levels_of_a_sine_are_those_of_the_standard():
    level = clip_level(0.5 * SINE, RATE)
    assert level.lufs == pytest.approx(-3.01 - 6.02, abs=0.05)
    assert level.true_peak == pytest.approx(0.5, rel=1e-3)
    assert (level.is_clipped, level.silent_share) == (False, 0.0)


def test_clipping_needs_two_samples_in_a_row():
    click = np.zeros(RATE)
    click[1000] = 1.0
    assert not clip_level(click, RATE).is_clipped
    click[1001] = -1.0
    assert clip_level(click, RATE).is_clipped
    assert clip_level(np.clip(2.0 * SINE, -1.0, 1.0), RATE).is_clipped
    assert not clip_level(0.999 * SINE, RATE).is_clipped


@pytest.mark.parametrize("rest", [0, 480])
def test_the_silent_share_is_that_of_the_time(rest):
    wave = np.concatenate([0.1 * SINE[:RATE], 1e-4 * SINE[:RATE], 0.1 * SINE[:RATE], np.zeros(rest)])
    assert clip_level(wave, RATE).silent_share == pytest.approx((RATE + rest) / len(wave))
    assert clip_level(np.zeros(10), RATE).silent_share == 1.0
    assert clip_level(np.zeros(0), RATE).silent_share == 1.0


def test_a_set_has_means_and_shares():
    found = levels({"a": SINE, "b": 0.1 * SINE, "c": np.zeros(RATE)}, RATE)
    assert found.lufs == pytest.approx(-3.01 - 10.0, abs=0.05)
    assert found.lufs_deviation == pytest.approx(20.0 / np.sqrt(2), abs=0.05)
    assert found.true_peak_db == pytest.approx(0.0, abs=0.02)
    assert (found.silent, found.silent_share) == pytest.approx((1 / 3, 1 / 3))
    silence = levels({"a": np.zeros(100)}, RATE)
    assert (silence.lufs, silence.lufs_deviation, silence.true_peak_db, silence.silent) == (
        None,
        None,
        None,
        1.0,
    )


def test_the_command_prints_levels_of_a_folder_without_events(tmp_path):
    write_audio(tmp_path / "a.wav", 0.25 * SINE, RATE)
    result = shell.run("flowley_jax.evaluate", f"--sounds={tmp_path}", f"--real={tmp_path}")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["level"]["generated"]["lufs"] == pytest.approx(-3.01 - 12.04, abs=0.1)
    assert report["level"]["generated"] == report["level"]["real"]
    assert "clips" not in report


def test_sounds_without_a_level_are_refused():
    with pytest.raises(FlowleyError, match="there are no sounds"):
        levels({}, RATE)
    with pytest.raises(FlowleyError, match=r"^b: .*finite"):
        levels({"a": SINE, "b": SINE * np.nan}, RATE)
