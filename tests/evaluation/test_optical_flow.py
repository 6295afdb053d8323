"""Optical flow against OpenCV's, and flow that is known."""

import itertools

import numpy as np
import pytest
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.optical_flow import flow, gray, mean_magnitudes


def _film():
    """Return the gray frames of the golden film."""
    return [gray(frame[..., ::-1]) for frame in load("av_align")["film_bgr"]]


def _texture(height, width, seed=0):
    """Return a smooth pattern that has no flat parts and does not repeat."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    for axis, shift in itertools.product((0, 1), (1, 2, 4)):
        noise = noise + np.roll(noise, shift, axis)
    return (128 + 40 * noise / max(1e-6, noise.std())).clip(0, 255).astype(np.uint8)


def test_gray_is_opencvs():
    np.testing.assert_array_equal(_film()[8], load("av_align")["gray_8"])


@pytest.mark.parametrize(
    ("color", "luma"),
    [((255, 255, 255), 255), ((0, 0, 0), 0), ((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)],
)
def test_gray_of_plain_colors(color, luma):
    assert gray(np.array(color, np.uint8).reshape(1, 1, 3)).item() == luma


@pytest.mark.parametrize("name", ["one_level", "two_levels", "three_levels", "four_levels"])
def test_flow_of_textured_images_is_opencvs(name):
    golden = load("optical_flow")
    step = 4 if name == "four_levels" else 1
    found = flow(golden[f"{name}/first"], golden[f"{name}/second"])
    assert found.dtype == np.float32
    assert np.abs(found[::step, ::step] - golden[f"{name}/flow"]).max() < 2e-5


def test_flow_of_a_film_is_opencvs_where_its_flat_parts_allow():
    film, golden = _film(), load("av_align")
    assert np.abs(flow(film[7], film[8]) - golden["flow_7_8"]).max() < 2e-4
    magnitudes = list(mean_magnitudes(film))
    np.testing.assert_allclose(magnitudes, golden["flow_magnitude"][1:], rtol=0, atol=5e-4)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-3, 2), (6, -5)])
def test_a_shift_is_the_flow(right, down):
    image = _texture(140, 170)
    found = flow(image[20:120, 20:150], image[20 - down : 120 - down, 20 - right : 150 - right])
    median = np.median(found[15:-15, 15:-15].reshape(-1, 2), axis=0)
    np.testing.assert_allclose(median, [right, down], atol=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1000))
def test_every_size_has_a_finite_flow(height, width, seed):
    found = flow(_texture(height, width, seed), _texture(height, width, seed + 1))
    assert found.shape == (height, width, 2) and np.isfinite(found).all()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_does_not_move(level):
    image = np.full((64, 80), level, np.uint8)
    assert np.abs(flow(image, image)).max() < 1e-3


def test_exchanging_rows_and_columns_exchanges_the_flow():
    first, second = _texture(60, 90, 1), np.roll(_texture(60, 90, 1), (1, 2), (0, 1))
    turned = flow(first.T, second.T).transpose(1, 0, 2)[..., ::-1]
    np.testing.assert_allclose(flow(first, second), turned, atol=1e-4)


def test_images_are_read_one_at_a_time():
    taken = []

    def images():
        for image in _film()[:6]:
            taken.append(image)
            yield image

    for count, _ in enumerate(mean_magnitudes(images()), start=2):
        assert len(taken) == count
    assert len(taken) == 6


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_flow(count):
    assert list(mean_magnitudes(_film()[:count])) == []


def test_images_of_several_sizes_are_refused():
    with pytest.raises(FlowleyError, match="80×60 and 90×60 pixels"):
        flow(_texture(60, 80), _texture(60, 90))
