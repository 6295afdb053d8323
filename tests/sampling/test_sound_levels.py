"""Remarks on sounds whose level stands out."""

import re
from pathlib import Path

import numpy as np
import pytest

from flowley_jax.media.level import integrated_loudness
from flowley_jax.sampling.sound_levels import SoundLevels

RATE = 16_000
TONE = np.sin(np.arange(RATE) / 5.0)
STRIKES = 0.9 * (np.arange(RATE) % 5000 == 99)


def _levelled(waves, loudness=None):
    levels = SoundLevels(RATE, loudness)
    paths = [Path(f"out/{index}.wav") for index in range(len(waves))]
    return levels.levelled(paths, np.stack(waves)), levels.remarks()


def test_ordinary_sounds_are_kept_and_need_no_remark():
    waves, remarks = _levelled([0.5 * TONE, 1.4 * TONE, 0.01 * TONE])
    np.testing.assert_array_equal(waves, [0.5 * TONE, 1.4 * TONE, 0.01 * TONE])
    assert remarks == []


def test_loud_and_silent_sounds_are_named():
    _, remarks = _levelled([2.0 * TONE, 0.5 * TONE, 1e-4 * TONE, 0.0 * TONE, *[3.0 * TONE] * 3])
    assert remarks == [
        "4 of 7 sounds (0.wav, 4.wav, 5.wav, …) had peaks far above full scale, which were limited; if they "
        "sound distorted, try another --seed or a lower --guidance",
        "2 of 7 sounds (2.wav, 3.wav) are almost silent, below -50 LUFS; try another --seed or prompt",
    ]


def test_a_loudness_that_peaks_do_not_allow_is_said():
    waves, (remark,) = _levelled([0.5 * TONE, STRIKES], loudness=-16.0)
    reached = [integrated_loudness(wave, RATE) for wave in waves]
    assert reached[0] == pytest.approx(-16.0, abs=0.05)
    match = re.fullmatch(
        r"1 of 2 sounds \(1\.wav\) did not reach -16 LUFS \(the quietest has (-\d+\.\d)\), because their "
        r"peaks are limited to -1 dBTP",
        remark,
    )
    assert float(match[1]) == pytest.approx(reached[1], abs=0.06) and reached[1] < -20.0


def test_silence_has_no_loudness_to_reach():
    waves, (remark,) = _levelled([0.0 * TONE], loudness=-23.0)
    np.testing.assert_array_equal(waves[0], 0.0 * TONE)
    assert "almost silent" in remark
