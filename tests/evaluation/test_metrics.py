"""Metrics of features against the field's programs, closed forms, and sets that they are not defined for."""

import functools
import zlib

import numpy as np
import pytest
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import bootstrap_interval, paired_difference
from flowley_jax.evaluation.classes import inception_score, kl_divergences
from flowley_jax.evaluation.desync import offset_magnitudes
from flowley_jax.evaluation.frechet import frechet_distance
from flowley_jax.evaluation.kernel_distance import kernel_audio_distance, kernel_inception_distance
from flowley_jax.evaluation.similarity import cosine_similarities

SIZES = ("small", "full")
# Evaluated clips 2 to 41, reference clips 0 to 39: the pairs are rows from 0 and from 2 on.
EVALUATED, REFERENCE = slice(0, 38), slice(2, 40)


@functools.cache
def _golden(size):
    return load(f"av_metrics_{size}")


@functools.cache
def _features(size, side, name):
    """Return features of the golden caches; the large ones follow from a formula."""
    if size == "small":
        return _golden(size)[f"cache/{side}/{name}"]
    widths = {
        **{"pann_2048": 2048, "pann_logits": 527, "vggish": 128, "passt_embed": 768, "passt_logits": 527},
        **{"ib": 1024, "clap_laion": 512, "clap_ms": 1024},
    }
    first = 0 if side == "gt" else 2
    rows = []
    for index in range(first, first + 40):
        # One clip has a window more than the others.
        windows = [9 if index == 5 else 8] if name == "vggish" else []
        rows.append(_formula(side, name, f"clip_{index:02d}", (*windows, widths[name])))
    features = np.concatenate(rows) if name == "vggish" else np.stack(rows)
    fifth = rows[5 - first].ravel()[:6]
    np.testing.assert_allclose(fifth, _golden(size)[f"probe/{side}/{name}"], rtol=1e-6, atol=1e-7)
    return features


def _formula(side, name, clip, shape):
    values = _normal(f"gt/{name}/{clip}", shape)
    if side == "pred":
        values = 0.8 * values + 0.6 * _normal(f"pred/{name}/{clip}", shape) + 0.1
    scaled = {
        "pann_2048": lambda x: np.maximum(x, 0.0),
        "pann_logits": lambda x: 2.0 * x,
        "passt_logits": lambda x: 3.0 * x - 4.0,
        "ib": lambda x: (0.2 if side == "gt" else 4.0) * x,
    }
    return scaled.get(name, lambda x: x)(values).astype(np.float32)


def _normal(path, shape):
    return np.random.RandomState((zlib.crc32(path.encode()) + 42) % 2**32).standard_normal(shape)


def _pair(size, name, *, paired=False):
    evaluated, reference = _features(size, "pred", name), _features(size, "gt", name)
    return (evaluated[EVALUATED], reference[REFERENCE]) if paired else (evaluated, reference)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["pann_2048", "passt_embed", "passt_embed_paired"])
def test_frechet_distances_are_the_published_ones(size, name):
    golden = _golden(size)
    distance = frechet_distance(*_pair(size, name.removesuffix("_paired"), paired=name.endswith("_paired")))
    assert distance == pytest.approx(golden[f"fd/{name}/exact_nuclear"], rel=1e-10)
    assert distance == pytest.approx(golden[f"fd/{name}/avbench"], rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_metrics_have_the_published_values(size):
    """The field's program computes divergences and cosines in float32."""
    golden = _golden(size)
    for key, name in {"PANNS": "pann_logits", "PASST": "passt_logits"}.items():
        for kind in ("softmax", "sigmoid"):
            mean = kl_divergences(*_pair(size, name, paired=True), kind=kind).mean()
            assert mean == pytest.approx(golden[f"expected/KL-{key}-{kind}"], rel=1e-6)
    scores = {
        "expected/ISC-PANNS": _features(size, "pred", "pann_logits"),
        "expected/ISC-PASST": _features(size, "pred", "passt_logits")[EVALUATED],
        "expected_unpaired/ISC-PASST": _features(size, "pred", "passt_logits"),
    }
    for key, logits in scores.items():
        score = inception_score(logits)
        assert score.mean == pytest.approx(golden[f"{key}-mean"], rel=1e-12)
        assert score.std == pytest.approx(golden[f"{key}-std"], rel=1e-10)
    backwards = inception_score(_features(size, "pred", "pann_logits")[::-1])
    np.testing.assert_allclose(
        [backwards.mean, backwards.std], golden["expected/ISC-PANNS-reversed_order"], rtol=1e-10
    )
    for key, name in {"LAION-CLAP-Score": "clap_laion", "MS-CLAP-Score": "clap_ms", "IB-Score": "ib"}.items():
        mean = cosine_similarities(*_pair(size, name, paired=True)).mean()
        assert mean == pytest.approx(golden[f"expected/{key}"], rel=1e-6)
    assert frechet_distance(*_pair(size, "vggish")) == pytest.approx(golden["expected/FD-VGG"], rel=1e-6)
    logits = np.stack([golden["expected/sync_logits_first"], golden["expected/sync_logits_last"]])
    assert offset_magnitudes(logits).mean() == golden["expected/DeSync"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["pann_2048", "passt_embed", "passt_embed_paired"])
@pytest.mark.parametrize("kernel", ["gaussian", "iq", "imq"])
@pytest.mark.parametrize("bandwidth", ["evaluated", "reference"])
def test_kernel_audio_distances_are_the_published_ones(size, name, kernel, bandwidth):
    golden = _golden(size)
    evaluated, reference = _pair(size, name.removesuffix("_paired"), paired=name.endswith("_paired"))
    distance = kernel_audio_distance(evaluated, reference, kernel=kernel, bandwidth=bandwidth)
    suffix = "/bandwidth_of_reference" if bandwidth == "reference" else ""
    assert distance.score == pytest.approx(golden[f"kad/{name}/{kernel}/f64{suffix}"], rel=1e-6)
    assert distance.bandwidth == pytest.approx(golden[f"kad/{name}/median_{bandwidth}"], rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_kernel_inception_distance_is_the_published_one(size):
    distance = kernel_inception_distance(*_pair(size, "pann_2048"), subsets=5, size=20, seed=2020)
    np.testing.assert_allclose([distance.mean, distance.std], _golden(size)["expected/KID"], atol=5e-7)


def test_metrics_of_formulas():
    i, j, c = np.arange(40)[:, None], np.arange(4), np.arange(6)
    reference = np.sin(i * (j + 1)) + 0.1 * j
    evaluated = 1.2 * np.cos(0.7 * i * (j + 1)) - 0.005 * i
    theirs, mine = 3 * np.sin(0.5 * i + c), 3 * np.cos(0.3 * i + c)
    assert frechet_distance(evaluated, reference) == pytest.approx(0.361733315719, abs=1e-11)
    assert abs(frechet_distance(reference, reference)) < 1e-13
    distance = kernel_audio_distance(evaluated, reference)
    assert distance.bandwidth == pytest.approx(2.019968826664, abs=1e-11)
    assert distance.score == pytest.approx(3.131407396357, abs=1e-9)
    swapped = kernel_audio_distance(evaluated, reference, bandwidth="evaluated")
    assert swapped.score == pytest.approx(2.001113841751, abs=1e-9)
    assert kernel_audio_distance(reference, reference).score == pytest.approx(-1.886945764877, abs=1e-9)
    assert kl_divergences(mine, theirs).mean() == pytest.approx(2.107784714797, abs=1e-11)
    assert kl_divergences(mine, theirs, kind="sigmoid").mean() == pytest.approx(1.988955523880, abs=1e-11)
    score = inception_score(mine)
    assert (score.mean, score.std) == pytest.approx((2.012643102579, 0.282039412682), abs=1e-11)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 30), m=st.integers(2, 30), dims=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_the_two_forms_of_the_root_agree(n, m, dims, seed):
    """Dims of zeros make the number of dims exceed the number of clips, and change nothing else."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dims)), 2.0 * rng.standard_normal((m, dims)) + 0.3
    wide = [np.pad(rows, ((0, 0), (0, 40))) for rows in (x, y)]
    distance = frechet_distance(x, y)
    assert distance == pytest.approx(frechet_distance(*wide), rel=1e-6, abs=1e-6)
    assert distance == pytest.approx(frechet_distance(y, x), rel=1e-6, abs=1e-6)
    assert distance >= -1e-9


def test_the_blocks_of_the_kernel_do_not_show():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1500, 3)), rng.standard_normal((1100, 3)) + 0.2
    width = kernel_audio_distance(x, y).bandwidth

    def kernel(a, b):
        return np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / (2 * width**2 + 1e-8))

    within = [(kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y)]
    expected = 100 * (sum(within) - 2 * kernel(x, y).mean())
    assert kernel_audio_distance(x, y).score == pytest.approx(expected, rel=1e-9)


def test_a_zero_embedding_is_like_no_other():
    pair = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [6.0, 8.0]])
    np.testing.assert_allclose(cosine_similarities(*pair), [0.0, 1.0], atol=1e-15)


ONES, TWO = np.ones((12, 3)), np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(ONES[:1], ONES), "the evaluated set has 1 rows of features; at least 2"),
        (lambda: frechet_distance(ONES, ONES[:0]), "the reference set has 0 rows"),
        (lambda: frechet_distance(ONES, ONES[:, :2]), "3 dims and reference features 2"),
        (
            lambda: frechet_distance(ONES * [1, np.nan, 1], TWO),
            "12 evaluated features .* rows 0, 1, 2, 3, 4, …",
        ),
        (
            lambda: frechet_distance(TWO, TWO * [[1], [np.inf]]),
            "1 reference features have values .*: rows 1$",
        ),
        (lambda: frechet_distance(ONES[0], ONES), r"\(3,\); \(clips, dims\) is expected"),
        (lambda: kernel_audio_distance(ONES[:1], ONES), "at least 2"),
        (lambda: kernel_audio_distance(ONES, TWO, kernel="cubic"), "kernel='cubic' must be one of gaussian"),
        (lambda: kernel_audio_distance(ONES, TWO, bandwidth="all"), "one of reference, evaluated"),
        (lambda: kernel_inception_distance(ONES, ONES, size=13), "12 rows of features; at least 13"),
        (lambda: kernel_inception_distance(ONES, ONES, subsets=0), "subsets=0 must be at least 1"),
        (lambda: inception_score(ONES[:9]), "9 rows of features; at least 10"),
        (lambda: kl_divergences(ONES, TWO), "12 evaluated and 2 reference clips are not pairs"),
        (lambda: kl_divergences(ONES[:0], ONES[:0]), "has 0 rows"),
        (lambda: kl_divergences(TWO * [1, -np.inf, 1], TWO), "values that are not finite"),
        (lambda: cosine_similarities(ONES, TWO), "12 evaluated and 2 reference embeddings are not pairs"),
        (lambda: offset_magnitudes(np.zeros((2, 20))), r"logits \(2, 20\) must be \(…, 21\)"),
        (lambda: offset_magnitudes(np.full((1, 21), np.nan)), "not numbers"),
        (lambda: offset_magnitudes(np.zeros((0, 21))), r"logits \(0, 21\)"),
        (lambda: bootstrap_interval(np.mean, 1), "clips=1 and resamples=1000 must be at least 2"),
    ],
)
def test_sets_without_a_metric_are_refused(call, message):
    with pytest.raises(FlowleyError, match=message):
        call()


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(300):
        values = rng.exponential(2.0, 80)
        interval = bootstrap_interval(lambda rows, v=values: v[rows].mean(), 80, resamples=200, seed=trial)
        assert interval.estimate == pytest.approx(values.mean())
        covered += interval.low <= 2.0 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_difference_of_the_same_clips_is_known_better_than_its_parts():
    rng = np.random.default_rng(1)
    first = rng.normal(size=200)
    second = first + 0.1 + 0.01 * rng.normal(size=200)
    difference = paired_difference(
        lambda rows: first[rows].mean(), lambda rows: second[rows].mean(), 200, resamples=500
    )
    assert difference.estimate == pytest.approx(0.1, abs=0.005)
    assert 0.0005 < difference.high - difference.low < 0.005
    alone = bootstrap_interval(lambda rows: second[rows].mean(), 200, resamples=500)
    assert alone.high - alone.low > 0.2
