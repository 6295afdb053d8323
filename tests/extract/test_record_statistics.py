"""The highest log-mel values of the training clips, for all codecs and for features of earlier versions."""

import dataclasses
import types

import numpy as np
import pytest
import unusable

from data_prep.feature_pipeline import _encode_audio
from data_prep.feature_store import FeatureStore
from data_prep.read_clip import DecodedSound
from data_prep.record_components import RecordComponents
from data_prep.record_files import measure_latents
from flowley_jax.audio.mel import MEL_16K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.media.level import integrated_loudness

KEYS = ("aa1", "bb2", "cc3")


class PublishedCodec(PcaCodec):
    """A codec that encodes clips as they are read, as published ones do."""

    needs_fitting = False


def _codec(codec_type):
    components, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 4)))
    return codec_type(mel=MEL_16K, mean=np.zeros(160, np.float32), components=components.astype(np.float32))


@pytest.fixture
def log_mels():
    rng = np.random.default_rng(1)
    return [rng.standard_normal((64, 80)).astype(np.float32) for _ in KEYS]


def _measure(codec, features, folder):
    """Return the components of clips with these features."""
    store = FeatureStore(str(folder))
    for key, stored in zip(KEYS, features, strict=False):
        store.write("media", key, stored)
    clips = [types.SimpleNamespace(media_key=key) for key in KEYS[: len(features)]]
    return measure_latents(codec, clips, RecordComponents(unusable.SETTINGS), store, source="clips.tsv")


def _features(codec, log_mels):
    return _encode_audio(
        [DecodedSound(log_mel=log_mel, loudness=-20.0) for log_mel in log_mels],
        types.SimpleNamespace(reading_codec=None if codec.needs_fitting else codec),
    )


@pytest.mark.parametrize("codec_type", [PcaCodec, PublishedCodec])
def test_the_highest_values_are_those_of_the_sounds(codec_type, log_mels, tmp_path):
    codec = _codec(codec_type)
    components = _measure(codec, _features(codec, log_mels), tmp_path)
    np.testing.assert_array_equal(components.log_mel_max[:-1], np.max(log_mels, axis=(0, 1)))
    levels = np.log10((10.0 ** np.stack(log_mels, dtype=np.float64)).sum(axis=-1))
    assert components.log_mel_max[-1] == pytest.approx(levels.max(), abs=1e-6)
    assert components.log_mel_max.dtype == np.float32
    latents, _ = codec.encode_log_mel(np.stack(log_mels))
    np.testing.assert_allclose(components.latent_mean, latents.mean(axis=(0, 1)), atol=1e-6)


def test_decoded_training_sounds_have_their_loudness_on_average(log_mels, tmp_path):
    codec, quieter = _codec(PcaCodec), [log_mel - 3.0 for log_mel in log_mels]
    features = _features(codec, quieter)
    plain = _measure(codec, features, tmp_path / "plain")
    waves = dataclasses.replace(plain, wave_gain=1.0).decode_audio(codec.encode_log_mel(np.stack(quieter))[0])
    decoded = np.array([integrated_loudness(wave, 16_000) for wave in waves])
    for stored, loudness in zip(features, decoded + np.array([2.0, 5.0, -1.0]), strict=True):
        stored["loudness"] = np.asarray(loudness)
    components = _measure(codec, features, tmp_path / "louder")
    assert 20 * np.log10(components.wave_gain) == pytest.approx(2.0, abs=1e-3)
    # What the codec cannot hold, here 60 dB, counts as 12 dB.
    features[1]["loudness"] = np.asarray(decoded[1] + 60.0)
    components = _measure(codec, features, tmp_path / "outlier")
    assert 20 * np.log10(components.wave_gain) == pytest.approx((2.0 + 12.0 - 1.0) / 3, abs=1e-3)


def test_clips_without_a_loudness_do_not_decide_the_gain(log_mels, tmp_path):
    codec, features = _codec(PcaCodec), _features(_codec(PcaCodec), log_mels)
    expected = _measure(codec, features[:2], tmp_path / "two").wave_gain
    features[2]["loudness"] = np.asarray(-100.0)
    assert _measure(codec, features, tmp_path / "silent").wave_gain == expected != 1.0
    del features[2]["loudness"]
    assert _measure(codec, features, tmp_path / "earlier").wave_gain == expected
    for stored in features:
        stored["loudness"] = np.asarray(-100.0)
    assert _measure(codec, features, tmp_path / "all").wave_gain == 1.0


def test_a_codec_with_weights_needs_no_gain(log_mels, tmp_path):
    codec = _codec(PublishedCodec)
    assert _measure(codec, _features(codec, log_mels), tmp_path).wave_gain == 1.0


@pytest.mark.parametrize("lacking", [[0], [2], [0, 1, 2]])
def test_features_of_earlier_versions_leave_them_unknown(log_mels, tmp_path, lacking):
    codec = _codec(PublishedCodec)
    features = _features(codec, log_mels)
    for index in lacking:
        del features[index]["log_mel_max"]
    assert _measure(codec, features, tmp_path).log_mel_max is None
