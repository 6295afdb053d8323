"""Rows of the table of scores, and differences between systems, on features that are known."""

import numpy as np
import pytest

from flowley_jax.evaluation.classes import kl_divergences
from flowley_jax.evaluation.comparison import compare_systems
from flowley_jax.evaluation.feature_metrics import ScoreOptions
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.features import write_features
from flowley_jax.evaluation.frechet import frechet_distance
from flowley_jax.evaluation.rows import CODEC, OTHER_CLIP, REAL, score_rows
from flowley_jax.evaluation.tables import difference_lines, table_text

NAMES = [f"clip_{index:02d}" for index in range(24)]


@pytest.fixture
def folders(tmp_path):
    """Features of two systems, of the codec and of the reference."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((24, 6))
    for name, noise in (("near", 0.1), ("far", 1.0), ("codec", 0.01), ("reference", 0.0)):
        logits = real + noise * rng.standard_normal(real.shape)
        by_clip = dict(zip(NAMES, logits.astype(np.float32), strict=True))
        write_features(tmp_path / name, {"passt_logits": by_clip, "passt_embed": by_clip}, {})
    return tmp_path


def _read(folders, name):

    return np.stack(list(FeatureSet(folders / name).read("passt_logits").values()))


def test_each_row_compares_what_its_meaning_says(folders):
    rows = score_rows(
        {name: FeatureSet(folders / name) for name in ("near", "far")},
        FeatureSet(folders / "reference"),
        ScoreOptions(),
        codec=FeatureSet(folders / "codec"),
    )
    assert list(rows) == ["near", "far", CODEC, REAL, OTHER_CLIP]
    real, near = _read(folders, "reference"), _read(folders, "near")
    assert rows["near"].metrics["KL-PASST-softmax"] == pytest.approx(kl_divergences(near, real).mean())
    # Chance: the first system's sound against the next clip.
    others = kl_divergences(near, np.roll(real, -1, axis=0)).mean()
    assert rows[OTHER_CLIP].metrics == {"KL-PASST-softmax": pytest.approx(others)}
    halves = frechet_distance(real[::2].astype(np.float64), real[1::2].astype(np.float64))
    assert rows[REAL].metrics["FD-PASST"] == pytest.approx(halves)
    assert rows["far"].metrics["KID-PASST"] > rows["near"].metrics["KID-PASST"]
    # These would be 0 for the real sound by definition.
    assert "KL-PASST-softmax" not in rows[REAL].metrics
    distances = [rows[name].metrics["FD-PASST"] for name in (CODEC, "near", "far")]
    assert distances == sorted(distances)


def test_differences_are_those_of_the_metrics(folders):
    systems = {name: FeatureSet(folders / name) for name in ("near", "far")}
    options = ScoreOptions(resamples=20)
    rows = score_rows(systems, FeatureSet(folders / "reference"), options)
    differences = compare_systems(systems, FeatureSet(folders / "reference"), options)
    assert list(differences) == ["far"]
    assert differences["far"].keys() == {"FD-PASST", "KAD-PASST", "KL-PASST-softmax", "ISC-PASST-mean"}
    for metric, interval in differences["far"].items():
        estimate = rows["far"].metrics[metric] - rows["near"].metrics[metric]
        assert interval.estimate == pytest.approx(estimate), metric
        assert interval.low < interval.estimate < interval.high
    assert differences["far"]["KL-PASST-softmax"].low > 0.0
    lines = difference_lines(differences, "near")
    assert lines[0].startswith("far minus near: ") and any("KL PaSST ↓: +" in line for line in lines)
    assert table_text(rows).splitlines()[0].split()[:2] == ["near", "far"]


def test_a_system_does_not_differ_from_itself(folders):
    systems = {"a": FeatureSet(folders / "near"), "b": FeatureSet(folders / "near")}
    differences = compare_systems(systems, FeatureSet(folders / "reference"), ScoreOptions(resamples=20))["b"]
    assert all(interval.low == interval.high == 0.0 for interval in differences.values())
    assert difference_lines({"b": differences}, "a") == [
        f"b minus a: 0 of {len(differences)} metrics differ beyond their 95 % intervals"
    ]


def test_differences_are_of_the_clips_that_both_systems_have(folders):
    by_clip = dict(zip(NAMES[4:], _read(folders, "far")[4:], strict=True))
    write_features(folders / "few", {"passt_logits": by_clip}, {})
    systems = {"near": FeatureSet(folders / "near"), "few": FeatureSet(folders / "few")}
    differences = compare_systems(systems, FeatureSet(folders / "reference"), ScoreOptions(resamples=20))[
        "few"
    ]
    real, near, far = (_read(folders, name)[4:] for name in ("reference", "near", "far"))
    expected = kl_divergences(far, real).mean() - kl_divergences(near, real).mean()
    assert differences["KL-PASST-softmax"].estimate == pytest.approx(expected)
    assert "FD-PASST" not in differences


def test_a_single_clip_has_no_chance_and_no_halves(folders):
    one = {
        name: FeatureSet(folders / name).only({"passt_logits": NAMES[:1]}) for name in ("near", "reference")
    }
    rows = score_rows({"near": one["near"]}, one["reference"], ScoreOptions())
    assert rows["near"].metrics.keys() == {"KL-PASST-softmax"}
    assert not rows[REAL].metrics and not rows[OTHER_CLIP].metrics


def test_systems_without_a_common_clip_have_no_differences(folders):
    systems = {
        name: FeatureSet(folders / "near").only({"passt_logits": NAMES[half::2]})
        for half, name in enumerate("ab")
    }
    differences = compare_systems(systems, FeatureSet(folders / "reference"), ScoreOptions(resamples=20))
    assert differences == {"b": {}}


def test_without_resamples_there_are_no_differences(folders):
    systems = {name: FeatureSet(folders / name) for name in ("near", "far")}
    assert compare_systems(systems, FeatureSet(folders / "reference"), ScoreOptions()) == {}
