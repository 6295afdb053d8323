"""Fingerprints of clips and their copies, and the search for near pairs."""

import distinct
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import unusable
from hypothesis import given, settings

from data_prep.lint.fingerprints import Fingerprints, fingerprints_of, picture_bits, sound_bits
from data_prep.lint.near_pairs import THRESHOLD, codes_of, near_pairs
from flowley_jax.media.read import MediaError, read_frames_at

CLIPS = 6


def _apart(first, second):
    return (int(first, 16) ^ int(second, 16)).bit_count()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(CLIPS):
        distinct.write(folder / f"{seed}.mp4", seed)
    return [fingerprints_of(str(folder / f"{seed}.mp4")) for seed in range(CLIPS)]


@pytest.mark.parametrize(
    "change",
    [{"gain": 0.03}, {"gain": 1.3}, {"size": (480, 270)}, {"size": (96, 80)}, {"rate": 44_100, "crf": 34}],
)
def test_copies_are_near(originals, tmp_path, change):
    for seed in range(3):
        distinct.write_copy(tmp_path / "copy.mp4", seed, **change)
        copy = fingerprints_of(str(tmp_path / "copy.mp4"))
        assert _apart(copy.picture, originals[seed].picture) <= THRESHOLD
        assert _apart(copy.sound, originals[seed].sound) <= THRESHOLD


def test_different_clips_are_far_apart(originals):
    for i, one in enumerate(originals):
        for other in originals[:i]:
            assert min(_apart(one.picture, other.picture), _apart(one.sound, other.sound)) > 2 * THRESHOLD


def test_plain_quiet_and_short_clips_have_no_fingerprint(tmp_path):
    unusable.write_clip(tmp_path / "plain.mp4", 0, audio=False)
    assert fingerprints_of(str(tmp_path / "plain.mp4")) == Fingerprints(None, None, lacks="sound")
    frames, wave = distinct.draw(0)
    assert picture_bits(frames[:3]) is None and picture_bits(frames[:4]) is not None
    assert sound_bits(wave) is not None
    assert sound_bits(1e-4 * wave) is None and sound_bits(wave[:4000]) is None
    assert sound_bits(np.zeros(0)) is None


def test_an_unreadable_file_gives_a_rejection(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a film" * 99)
    rejection = fingerprints_of(str(tmp_path / "a.mp4"))
    assert rejection.reason == "unreadable" and "not readable" in rejection.detail
    assert fingerprints_of(str(tmp_path / "none.mp4")).reason == "missing"


@pytest.mark.parametrize("seconds", [8, 96])
def test_frames_at_positions_are_right_with_and_without_seeking(tmp_path, seconds):
    distinct.write_keyed(tmp_path / "a.mp4", seconds)
    frames = read_frames_at(tmp_path / "a.mp4", (0.125, 0.375, 0.5, 0.875, 1.5))
    expected = 20 + 2 * seconds * np.array([0.125, 0.375, 0.5, 0.875])
    np.testing.assert_allclose([frame.mean() for frame in frames], expected, atol=1.1)


def test_reading_frames_of_a_file_without_video_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(MediaError, match="has no video stream"):
        read_frames_at(tmp_path / "a.wav", (0.5,))


def _codes(rng, clips, shared):
    """Return random fingerprints, copies with flipped bits, and some that share bands."""
    codes = rng.integers(0, 256, (clips, 32), dtype=np.uint8)
    for place in range(max(clips // 2, 1), clips):
        bits = np.unpackbits(codes[rng.integers(place)])
        bits[rng.choice(256, rng.integers(0, 25), replace=False)] ^= 1
        codes[place] = np.packbits(bits)
    codes[rng.random(clips) < 0.5, : 2 * shared] = 0
    return np.ascontiguousarray(codes).view(np.uint64)


def _by_brute_force(codes, threshold, popular):
    """Return near pairs that agree in one to three bands in which at most `popular` agree."""
    bands, pairs = codes.view(np.uint16), []
    for i in range(len(codes)):
        for j in range(i + 1, len(codes)):
            if np.bitwise_count(codes[i] ^ codes[j]).sum() <= threshold:
                equal = np.flatnonzero(bands[i] == bands[j])
                sets = [(a, b, c) for a in equal for b in equal for c in equal if a <= b <= c]
                agree = [np.all(bands[:, list(s)] == bands[i, list(s)], axis=1).sum() for s in sets]
                if agree and min(agree) <= popular:
                    pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32), clips=st.integers(0, 24), shared=st.integers(0, 4), popular=st.integers(2, 30)
)
def test_near_pairs_equal_those_of_brute_force(seed, clips, shared, popular):
    codes = _codes(np.random.default_rng(seed), clips, shared)
    found = near_pairs(codes, threshold=THRESHOLD, popular=popular)
    np.testing.assert_array_equal(found, _by_brute_force(codes, THRESHOLD, popular))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), clips=st.integers(0, 60), shared=st.integers(0, 10))
def test_no_near_pair_is_missed_among_few_fingerprints(seed, clips, shared):
    codes = _codes(np.random.default_rng(seed), clips, shared)
    apart = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2)
    expected = np.argwhere(np.triu(apart <= THRESHOLD, k=1))
    np.testing.assert_array_equal(near_pairs(codes), expected)


def test_popular_bands_do_not_hide_pairs_that_agree_in_other_bands():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, (20_000, 4), dtype=np.uint64)
    codes[:, 0] = 0
    codes[-1], codes[-2] = codes[0], codes[1]
    codes[-2, 3] ^= np.uint64(0b111)
    np.testing.assert_array_equal(near_pairs(codes), [(0, 19_999), (1, 19_998)])


def test_hexadecimal_digits_become_codes():
    digits = ["00" * 31 + "01", "ff" * 32]
    assert np.bitwise_count(codes_of(digits)).sum(axis=1).tolist() == [1, 256]
    assert codes_of([]).shape == (0, 4)
