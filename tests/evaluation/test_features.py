"""Files of features: av-benchmark's, our own, and damaged or malicious ones; scores of whole folders."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import shell
from flax import nnx
from golden_data import load, settings, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation import feature_scores
from flowley_jax.evaluation.feature_metrics import ScoreOptions, clean_id
from flowley_jax.evaluation.feature_scores import AV_BENCHMARK
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.features import (
    KINDS,
    present_kinds,
    write_av_benchmark_features,
    write_features,
)
from flowley_jax.interop.modules import in_our_layout
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SynchformerConfig


def read_features(folder, kind):
    return FeatureSet(folder).read(kind)


def score_features(generated, reference, **options):
    return feature_scores.score_features(
        FeatureSet(generated), FeatureSet(reference), ScoreOptions(**options)
    )


# Names of the golden caches' arrays.
GOLDEN = {"imagebind": "ib", "clap_laion": "clap_laion", "clap_ms": "clap_ms"}


def _golden_side(side):
    """Return the features of one side of the small golden caches, by kind and clip."""
    golden = load("av_metrics_small")
    clips = [str(name) for name in golden[f"cache/{side}/names"]]
    ends = np.cumsum(golden[f"cache/{side}/vggish_counts"])[:-1]
    modality = "audio" if side == "pred" else "video"
    other = "audio" if side == "pred" else "text"
    names = {
        **{name: name for name in ("pann_2048", "pann_logits", "vggish", "passt_embed", "passt_logits")},
        f"imagebind_{modality}": "ib",
        f"clap_laion_{other}": "clap_laion",
        f"clap_ms_{other}": "clap_ms",
    }
    names[f"synchformer_{modality}"] = "sync"
    features = {}
    for kind, name in names.items():
        rows = golden[f"cache/{side}/{name}"]
        features[kind] = dict(zip(clips, np.split(rows, ends) if kind == "vggish" else rows, strict=True))
    return features


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both sides, as av-benchmark's files and as our own."""
    root = tmp_path_factory.mktemp("features")
    for side in ("pred", "gt"):
        features = _golden_side(side)
        (root / "theirs" / side).mkdir(parents=True)
        write_av_benchmark_features(root / "theirs" / side, features)
        (root / "ours" / side).mkdir(parents=True)
        for kind, by_clip in features.items():
            write_features(root / "ours" / side, {kind: by_clip}, {})
    return root


def _published_head():
    """Return the head that the golden offsets are of."""
    arrays = state_dict("av_metrics_small")
    layers, heads = 1, settings("av_metrics_small")["heads"]
    config = SynchformerConfig(
        width=16, mlp_width=64, layers=0, head_layers=layers, head_heads=heads, heads=4
    )
    model = Synchformer(config, rngs=nnx.Rngs(0))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if (name := ".".join(map(str, path))) in arrays:
            variable.set_value(jnp.asarray(in_our_layout(name, arrays[name])))
    return model.offset_logits


@pytest.mark.parametrize("form", ["theirs", "ours"])
@pytest.mark.parametrize("pairs", [True, False])
def test_scores_of_folders_are_av_benchmark_s(folders, form, pairs):
    golden = load("av_metrics_small")
    prefix = "expected/" if pairs else "expected_unpaired/"
    expected = {
        key.removeprefix(prefix): float(value)
        for key, value in golden.items()
        if key.startswith(prefix) and value.ndim == 0 and "sigmoid" not in key
    }
    scores = score_features(
        folders / form / "pred", folders / form / "gt", pairs=pairs, offset_logits=_published_head()
    )
    assert scores.metrics.keys() & set(AV_BENCHMARK) == expected.keys()
    for name, value in expected.items():
        assert scores.metrics[name] == pytest.approx(value, rel=1e-6), name
    name = "passt_embed_paired" if pairs else "passt_embed"
    kad = golden[f"kad/{name}/gaussian/f64/bandwidth_of_reference"]
    assert scores.metrics["KAD-PASST"] == pytest.approx(kad, rel=1e-6)
    assert scores.bandwidths["KAD-PASST"] == pytest.approx(golden[f"kad/{name}/median_reference"], rel=1e-6)
    assert scores.clips["FD-PANN"] == [40, 40]
    if pairs:
        assert all(scores.clips[name] == [38] for name in ("KL-PANNS-softmax", "FD-PASST", "IB-Score"))
        assert scores.without_reference["passt_embed"] == ["clip_40", "clip_41"]


def test_clips_whose_features_are_not_finite_are_left_out_and_named(tmp_path):
    for side in ("pred", "gt"):
        features = _golden_side(side)["passt_embed"]
        if side == "pred":
            features["clip_05"] = np.full(10, np.nan, np.float32)
        else:
            features["clip_07"] = np.full(10, np.inf, np.float32)
        write_features(tmp_path / side, {"passt_embed": features}, {})
    scores = score_features(tmp_path / "pred", tmp_path / "gt")
    assert scores.clips["FD-PASST"] == [36] and np.isfinite(scores.metrics["FD-PASST"])
    assert list(scores.not_finite.values()) == [["clip_05"], ["clip_07"]]
    assert scores.without_reference["passt_embed"] == ["clip_07", "clip_40", "clip_41"]


def test_intervals_hold_the_values(folders):
    sides = folders / "ours" / "pred", folders / "ours" / "gt"
    values, scores = score_features(*sides), score_features(*sides, resamples=20)
    assert scores.metrics == pytest.approx(values.metrics)
    assert scores.intervals.keys() == {
        name for name in values.metrics if not name.endswith("-std") and not name.startswith("KID-")
    }
    for name, interval in scores.intervals.items():
        assert interval.low <= values.metrics[name] <= interval.high and interval.low < interval.high


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_read_back_as_written(tmp_path, kind):
    rng, shape = np.random.default_rng(0), (3, 2, 4)[: KINDS[kind].ndim]
    shape = (*shape[:-1], KINDS[kind].last or shape[-1])
    features = {name: rng.standard_normal(shape).astype(np.float32) for name in ("b", "a", "ü 1")}
    write_features(tmp_path, {kind: features}, {})
    (tmp_path / "pth").mkdir()
    folders = [tmp_path]
    assert present_kinds(tmp_path) == [kind]
    if KINDS[kind].file:
        write_av_benchmark_features(tmp_path / "pth", {kind: features})
        assert kind in present_kinds(tmp_path / "pth")
        # The order of the clips is part of the Inception score.
        assert list(read_features(tmp_path / "pth", kind)) == ["b", "a", "ü 1"]
        folders.append(tmp_path / "pth")
    for folder in folders:
        again = read_features(folder, kind)
        assert again.keys() == features.keys()
        for name, array in features.items():
            np.testing.assert_array_equal(again[name], array)
            assert again[name].dtype == np.float32


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("pann_features", {"pann_2048": "pann_features/2048", "pann_logits": "pann_features/logits"}),
        ("vggish_features", {"vggish": "vggish_features"}),
        ("synchformer_video", {"synchformer_video": "synchformer_video"}),
        ("passt_logits", {"passt_logits": "passt_logits"}),
        ("clap_laion_audio", {"clap_laion_audio": "clap_laion_audio"}),
    ],
)
def test_files_of_av_benchmark_are_read(tmp_path, file, kinds):
    """Their tensors share storages."""
    golden = load("av_cache_files")
    (tmp_path / f"{file}.pth").write_bytes(golden[f"file/{file}.pth"].tobytes())
    for kind, name in kinds.items():
        features = read_features(tmp_path, kind)
        assert list(features) == list(golden["names"])
        np.testing.assert_array_equal(np.stack(list(features.values())), golden[f"array/{name}"])


def test_ids_within_names_are_found_by_length():
    assert clean_id("x" * 10 + "abcdefghijk_000030" + "12") == "abcdefghijk_000030"
    assert clean_id("abcdefghijk_000030.m") == "abcdefghijk_000030"
    assert clean_id("_abcdefghijk_000030_x") == "abcdefghijk_000030"
    assert clean_id("clip_1") == "clip_1"


def test_only_caches_of_av_benchmark_have_ids_within_names(tmp_path):
    names = {"abcdefghijk_000010": 0.0, "abcdefghijk_000010_2": 1.0, "x": 2.0}
    rng = np.random.default_rng(0)
    features = {"passt_logits": {name: rng.standard_normal(5) for name in names}}
    for side in ("mine", "theirs"):
        write_features(tmp_path / side, features, {})
    own, cleaned = (
        score_features(tmp_path / "mine", tmp_path / "theirs", cleans_ids=x) for x in (False, True)
    )
    assert set(own.per_clip["KL-PASST-softmax"].values()) == {0.0}
    # The second name holds the first id.
    assert cleaned.per_clip["KL-PASST-softmax"]["abcdefghijk_000010_2"] > 0.0


def test_scores_that_are_not_finite_are_no_scores(tmp_path):
    for side in ("mine", "theirs"):
        huge = dict(zip("abcd", 1e200 * np.random.default_rng(0).standard_normal((4, 3)), strict=True))
        logits = dict(zip("abcd", 1e4 * np.random.default_rng(1).standard_normal((4, 3)), strict=True))
        write_features(tmp_path / side, {"passt_embed": huge, "passt_logits": logits}, {})
    scores = score_features(tmp_path / "mine", tmp_path / "theirs")
    assert scores.metrics.keys() == {"KL-PASST-softmax"}
    assert {"FD-PASST", "KAD-PASST", "KID-PASST"} <= scores.undefined.keys()


def test_one_kind_that_does_not_fit_costs_no_other_metric(tmp_path):
    rng = np.random.default_rng(0)
    for side, classes in (("mine", 5), ("theirs", 6)):
        logits, embed = (dict(zip("abcd", rng.standard_normal((4, n)), strict=True)) for n in (classes, 3))
        write_features(tmp_path / side, {"passt_logits": logits, "passt_embed": embed}, {})
    scores = score_features(tmp_path / "mine", tmp_path / "theirs")
    assert "FD-PASST" in scores.metrics and "5 dims" in scores.undefined["KL-PASST-softmax"]
    with pytest.raises(FlowleyError, match=r"level of a is \(3,\), expected \(…, 4\)"):
        write_features(tmp_path, {"level": {"a": np.zeros(3)}}, {})


def _features(**changes):
    return {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32), **changes}


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FlowleyError, match=r"none: no such folder"):
        present_kinds(tmp_path / "none")
    with pytest.raises(FlowleyError, match=r"no passt_embed; .* in passt_features_embed\.pth or features-"):
        read_features(tmp_path, "passt_embed")
    with pytest.raises(FlowleyError, match=r"passt_embed of b is \(2,\), but that of a is \(3,\)"):
        write_features(tmp_path, {"passt_embed": _features(b=np.zeros(2, np.float32))}, {})
    with pytest.raises(FlowleyError, match=r"of b is \(3,\) of int64; floating-point numbers with 1 axes"):
        write_features(tmp_path, {"passt_embed": _features(b=np.zeros(3, int))}, {})
    with pytest.raises(FlowleyError, match=r"holds passt_embed of no clip"):
        write_features(tmp_path, {"passt_embed": {}}, {})
    write_features(tmp_path, {"passt_embed": _features()}, {})
    write_av_benchmark_features(tmp_path, {"passt_embed": _features()})
    with pytest.raises(
        FlowleyError, match=r"holds passt_embed in passt_features_embed\.pth and in features-"
    ):
        present_kinds(tmp_path)
    different = {"pann_2048": _features(), "pann_logits": {"a": np.zeros(3, np.float32)}}
    with pytest.raises(FlowleyError, match=r"pann_features\.pth: its features .* are of different clips"):
        write_av_benchmark_features(tmp_path, different)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cos\nsystem\nq\x00.", "is not a PyTorch checkpoint|is damaged"),
        (b"", "is empty"),
    ],
)
def test_caches_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / "passt_logits.pth").write_bytes(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        read_features(tmp_path, "passt_logits")
    assert "passt_logits.pth" in str(caught.value)


def test_a_cache_without_the_tensors_of_its_kind_is_refused(tmp_path):
    write_av_benchmark_features(tmp_path, {"pann_2048": _features()})
    with pytest.raises(
        FlowleyError, match=r"entry 'a' is not a clip id with a dictionary with the tensor 'log"
    ):
        read_features(tmp_path, "pann_logits")
    (tmp_path / "pann_features.pth").rename(tmp_path / "passt_logits.pth")
    with pytest.raises(FlowleyError, match=r"passt_logits\.pth: entry 'a' is not a clip id with a tensor"):
        read_features(tmp_path, "passt_logits")


def test_folders_without_a_common_metric_or_pair_are_refused(tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    write_features(tmp_path / "mine", {"passt_embed": _features()}, {})
    with pytest.raises(FlowleyError, match=r"mine has passt_embed, .*theirs has none: no metric"):
        score_features(tmp_path / "mine", tmp_path / "theirs")
    write_features(tmp_path / "theirs", {"passt_embed": {"c": np.ones(3, np.float32)}}, {})
    with pytest.raises(
        FlowleyError, match=r"none of the clips with passt_embed has a reference .* like 'a' and 'c'"
    ):
        score_features(tmp_path / "mine", tmp_path / "theirs")


def _score(folders, *flags):
    sides = (f"--generated-cache={folders / 'theirs/pred'}", f"--reference-cache={folders / 'theirs/gt'}")
    return shell.run("flowley_jax.evaluate", *sides, *flags)


def test_the_command_writes_the_scores_of_folders(folders, tmp_path):
    golden = load("av_metrics_small")
    result = _score(folders, f"--out={tmp_path / 'scores'}", "--resamples=3", "--kad-bandwidth=evaluated")
    assert result.returncode == 0, result.stderr
    theirs = json.loads((tmp_path / "scores" / "output_metrics.json").read_text())
    assert "no DeSync: it needs Synchformer" in result.stderr
    assert theirs["FD-PANN"] == pytest.approx(golden["expected/FD-PANN"], rel=1e-6)
    assert set(theirs) <= set(AV_BENCHMARK)
    report = json.loads((tmp_path / "scores" / "scores.json").read_text())
    per_clip = report["per_clip"]
    assert report == {**json.loads(result.stdout), "per_clip": per_clip}
    assert len(per_clip["IB-Score"]) == 38
    kad = golden["kad/passt_embed_paired/gaussian/f64"]
    assert report["metrics"]["KAD-PASST"] == pytest.approx(kad, rel=1e-6)
    assert report["kad_bandwidth"] == "evaluated"
    assert report["intervals"]["FD-PANN"]["low"] < theirs["FD-PANN"]
    assert "passt_embed: clips without a reference: 2 (clip_40, clip_41)" in result.stderr
    again = _score(folders, f"--out={tmp_path / 'scores'}", "--resamples=0")
    shell.fails_in_one_line(again, "output_metrics.json: already exists")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --table, --sounds, or --generated-cache and --reference-cache"),
        (["--generated-cache=a"], "--generated-cache and --reference-cache must be given together"),
        (
            ["--sounds=a", "--generated-cache=c", "--reference-cache=d"],
            "must be given together, and not with --sounds or --table",
        ),
        (["--sounds=a", "--workdir=b"], "--workdir needs --events"),
        (
            ["--sounds=a", "--events=b", "--resamples=3"],
            "--resamples applies only to --table or --generated-cache",
        ),
        (
            ["--generated-cache=a", "--reference-cache=b", "--real=c"],
            "--real applies only to --sounds without --table",
        ),
        (["--generated-cache=none", "--reference-cache=b"], "none: no such folder"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags, message):
    shell.fails_in_one_line(shell.run("flowley_jax.evaluate", *flags), message)


def test_features_are_exported_as_av_benchmark_s_files(folders, tmp_path):
    flags = (f"--export-features={folders / 'ours/pred'}", f"--out={tmp_path / 'caches'}")
    result = shell.run("flowley_jax.evaluate", *flags)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "caches/pann_features.pth") in result.stdout.splitlines()
    assert present_kinds(tmp_path / "caches") == present_kinds(folders / "theirs/pred")
    for kind in present_kinds(tmp_path / "caches"):
        for clip, array in read_features(folders / "theirs/pred", kind).items():
            np.testing.assert_array_equal(read_features(tmp_path / "caches", kind)[clip], array)
    shell.fails_in_one_line(shell.run("flowley_jax.evaluate", *flags), "pann_features.pth: already exists")
    wrong = shell.run("flowley_jax.evaluate", *flags, "--resamples=3")
    shell.fails_in_one_line(wrong, "--resamples does not go with --export-features")


def test_metrics_that_are_not_defined_are_named_and_the_others_computed(tmp_path):
    """Too few segments for DeSync, and a kind without a finite clip."""
    rng = np.random.default_rng(0)
    for side, modality, count in (("pred", "audio", 6), ("gt", "video", 8)):
        shape = (4, 11, count, 16)
        synchformer = dict(zip("abcd", rng.standard_normal(shape).astype(np.float32), strict=True))
        passt = {clip: np.full(3, np.nan, np.float32) for clip in "abcd"}
        features = {f"synchformer_{modality}": synchformer, "passt_embed": passt}
        features["vggish"] = dict(zip("abcd", rng.standard_normal((4, 2, 3)).astype(np.float32), strict=True))
        write_features(tmp_path / side, features, {})
    scores = score_features(tmp_path / "pred", tmp_path / "gt", offset_logits=_published_head())
    assert "14 segments (4.8 s)" in scores.undefined["DeSync"]
    assert scores.without_value["DeSync"] == list("abcd")
    assert "no clip has finite passt_embed" in scores.undefined["FD-PASST"]
    assert scores.metrics.keys() == {"FD-VGG", "KAD-VGG", "KID-VGG"}
