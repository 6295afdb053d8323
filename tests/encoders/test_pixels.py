"""The pixel encoder: what a linear regression can read from its features, and its invariances."""

import numpy as np
import pytest

from flowley_jax.encoders.pixels import EarlierPixelEncoder, PixelEncoder
from flowley_jax.encoders.protocols import VideoEncoder
from flowley_jax.errors import FlowleyError

SIZE = 96
GREY = 96


def _disc(rows, columns, colour=(220, 60, 40), radius=7.0, ground=GREY):
    """Return frames (T, SIZE, SIZE, 3) of an antialiased disc centred at `rows` and `columns` in pixels."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    distance = np.hypot(y - np.reshape(rows, (-1, 1, 1)), x - np.reshape(columns, (-1, 1, 1)))
    cover = np.clip(radius + 0.5 - distance, 0.0, 1.0)[..., None]
    return np.round(ground + cover * (np.array(colour) - ground)).astype(np.uint8)


def _bounces(impact_frames, count=48):
    """Return the row, per frame, of a ball that hits row 80 at each (fractional) impact frame."""
    times = np.arange(count)
    impacts = np.concatenate([[-8.0], impact_frames, [count + 8.0]])
    after = np.searchsorted(impacts, times, side="right")
    start, end = impacts[after - 1], impacts[after]
    return 80.0 - 0.35 * (times - start) * (end - times)


def test_features_have_expected_shape_type_and_scale_and_are_deterministic():
    rng = np.random.default_rng(0)
    frames = _disc(20 + 50 * rng.random(40), np.linspace(10, 80, 40))
    encoder = PixelEncoder()
    features = encoder(frames)
    assert isinstance(encoder, VideoEncoder)
    assert features.shape == (40, encoder.dim) and features.dtype == np.float32
    np.testing.assert_array_equal(features, encoder(frames))
    assert 0.1 < features.std() < 3.0
    assert np.abs(features).max() < 40.0


def test_still_picture_has_colour_and_no_motion():
    still = np.repeat(_disc([50.0], [30.0]), 5, axis=0)
    features = PixelEncoder()(still)
    noise = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    changing = (np.abs(PixelEncoder()(noise)).max(axis=0) > 0) & (np.abs(features).max(axis=0) == 0)
    assert changing.sum() > features.shape[1] // 2
    np.testing.assert_array_equal(features, np.repeat(features[:1], 5, axis=0))
    assert np.abs(features).max() > 0.1


def test_reversed_video_has_the_opposite_signed_motion():
    frames = _disc(np.linspace(20, 70, 20), np.full(20, 48.0))
    forwards, backwards = PixelEncoder()(frames), PixelEncoder()(frames[::-1])[::-1]
    signed = np.abs(forwards + backwards).max(axis=0) < 1e-4
    signed &= np.abs(forwards).max(axis=0) > 0.5
    assert signed.sum() >= 10  # direction of motion is in the descriptor
    same = np.abs(forwards - backwards).max(axis=0) < 1e-4
    assert (same | signed | (np.abs(forwards).max(axis=0) <= 0.5)).all()


@pytest.mark.parametrize("lengths", [(20, 20), (12, 8, 9), (1, 9)])
def test_scenes_have_the_features_that_they_have_alone(lengths):
    """A cut is no motion. A few frames between two others are a flash, so scenes last longer."""
    grounds = (GREY, 190, 60)
    scenes = [
        _disc(_bounces([length / 2], length), np.linspace(20, 70, length), ground=ground)
        for length, ground in zip(lengths, grounds, strict=False)
    ]
    features = PixelEncoder()(np.concatenate(scenes))
    alone = np.concatenate([PixelEncoder()(scene) for scene in scenes])
    np.testing.assert_allclose(features, alone, rtol=1e-5, atol=1e-5)
    with_motion = EarlierPixelEncoder()(np.concatenate(scenes))
    assert np.abs(with_motion - alone).max() > 1.0


@pytest.mark.parametrize("kind", ["impacts", "flash", "noise", "appearing", "fade"])
def test_motion_and_flashes_are_no_cuts(kind):
    frames = _disc(_bounces([11.3, 30.0]), np.linspace(10, 80, 48), radius=14.0)
    if kind == "flash":
        frames[20:22] = 255
    elif kind == "noise":
        frames = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    elif kind == "appearing":
        frames[:20] = GREY
    elif kind == "fade":
        frames = (frames * np.linspace(0, 1, 48)[:, None, None, None]).astype(np.uint8)
    np.testing.assert_array_equal(PixelEncoder()(frames), EarlierPixelEncoder()(frames))


@pytest.mark.parametrize("rate", [4, 8, 10, 12, 15, 24, 25, 29.97, 30, 50])
@pytest.mark.parametrize("pixels_per_second", [30, 90, 200])
def test_pans_of_any_frame_rate_are_no_cuts(rate, pixels_per_second):
    """A change of the frame rate repeats or leaves out frames."""
    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(0, 256, (6, 80, 3)), 16, axis=0), 16, axis=1)
    shown = np.floor(np.arange(72) / 24 * rate + 1e-6) / rate
    starts = np.round(shown * pixels_per_second).astype(int)
    frames = np.stack([picture[:, start : start + SIZE] for start in starts]).astype(np.uint8)
    np.testing.assert_array_equal(PixelEncoder()(frames), EarlierPixelEncoder()(frames))


def test_position_is_readable_within_two_pixels():
    rng = np.random.default_rng(1)

    def data(count):
        rows, columns = rng.uniform(20, 76, (2, count))
        still = np.stack([PixelEncoder()(_disc([r], [c]))[0] for r, c in zip(rows, columns, strict=True)])
        return still, np.stack([rows, columns], axis=1)

    train, target = data(600)
    test, expected = data(100)
    assert np.median(np.abs(_ridge(train, target, test) - expected)) < 2.0


def test_time_since_impact_is_readable_within_a_fraction_of_a_frame():
    rng = np.random.default_rng(2)

    def data(clips):
        features, offsets = [], []
        for _ in range(clips):
            impact = rng.uniform(20, 28)
            video = PixelEncoder()(_disc(_bounces([impact]), np.full(48, rng.uniform(20, 76))))
            nearest = round(impact)
            features.append(video[nearest - 1 : nearest + 2].ravel())
            offsets.append([impact - nearest])
        return np.stack(features), np.array(offsets)

    train, target = data(200)
    test, expected = data(60)
    # A guess without any information is off by a quarter of a frame.
    assert np.median(np.abs(_ridge(train, target, test) - expected)) < 0.1


def test_colour_of_a_moving_object_is_readable_next_to_a_still_one():
    colours = [(220, 60, 40), (60, 90, 220), (230, 230, 230)]
    rng = np.random.default_rng(3)

    def data(count):
        choices = rng.integers(0, 3, count)
        features = []
        for choice in choices:
            frames = _disc(
                rng.uniform(20, 40) + 3.0 * np.arange(4), np.full(4, rng.uniform(20, 76)), colours[choice]
            )
            frames[:, 70:90, 40:60] = colours[rng.integers(3)]
            features.append(PixelEncoder()(frames)[1:3].mean(axis=0))
        return np.stack(features), np.eye(3)[choices]

    train, target = data(300)
    test, expected = data(100)
    guesses = _ridge(train, target, test).argmax(axis=1)
    assert (guesses == expected.argmax(axis=1)).mean() > 0.95


def test_other_widths_are_a_fixed_projection():
    frames = _disc(np.linspace(20, 70, 8), np.full(8, 48.0))
    native = PixelEncoder()(frames)
    projected = PixelEncoder(dim=900)(frames)
    assert projected.shape == (8, 900)
    expected = np.linalg.norm(native[0] - native[5])
    scale = np.sqrt(900 / native.shape[1])
    assert np.linalg.norm(projected[0] - projected[5]) == pytest.approx(expected * scale, rel=0.15)


def test_one_frame_is_encoded_and_invalid_frames_are_refused():
    assert np.isfinite(PixelEncoder()(_disc([40.0], [40.0]))).all()
    for frames in (
        np.zeros((0, 96, 96, 3), np.uint8),
        np.zeros((2, 64, 96, 3), np.uint8),
        np.zeros((2, 96, 96, 3)),
    ):
        with pytest.raises(FlowleyError, match="must be uint8"):
            PixelEncoder()(frames)
    with pytest.raises(FlowleyError, match="frame_size=97"):
        PixelEncoder(frame_size=97)


def _ridge(train, target, test, strength=1e-2):
    """Predict by a linear regression with a constant, in its dual form."""
    mean, offset = train.mean(axis=0), target.mean(axis=0)
    centred = (train - mean).astype(np.float64)
    gram = centred @ centred.T
    gram += strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    return (test - mean) @ (centred.T @ np.linalg.solve(gram, target - offset)) + offset
