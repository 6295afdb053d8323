"""What is made of the training split: the embedded codec, and the statistics of the latents."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_prep.progress import progress_bar
from data_prep.rows import Row
from data_prep.settings import RecordSettings
from data_prep.store import FeatureStore
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec
from flowley_jax.data.parts import Parts


def codec_of(training: Sequence[Row], settings: RecordSettings, store: FeatureStore) -> AudioCodec:
    """The published codec, or the embedded one fitted to the training clips."""
    if settings.fixed_codec:
        return settings.fixed_codec
    log_mels = (features["log_mel"] for features in _features(training, store, "fitting the codec"))
    return PcaCodec.fit(log_mels, mel=settings.mel_config, latent_dim=settings.latent_dim)


def parts_of(
    codec: AudioCodec, training: Sequence[Row], settings: RecordSettings, store: FeatureStore, *, source: str
) -> Parts:
    """The parts, with the statistics over the training clips of latents drawn from their posteriors."""
    count, total, squares = 0, np.zeros(codec.latent_dim), np.zeros(codec.latent_dim)
    for features in _features(training, store, "measuring the latents"):
        mean, std = (x.astype(np.float64) for x in posterior(codec, features))
        count += len(mean)
        total += mean.sum(axis=0)
        squares += (np.square(mean) + np.square(std)).sum(axis=0)
    mean = total / count
    return Parts(
        seconds=settings.seconds,
        video_encoder=settings.video_encoder,
        text_encoder=settings.text_encoder,
        codec=codec,
        vocoder=settings.vocoder_for(codec),
        latent_mean=mean.astype(np.float32),
        latent_std=np.sqrt(np.maximum(squares / count - mean**2, 0.0)).astype(np.float32),
        source=source,
    )


def posterior(codec: AudioCodec | None, features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a clip's latents, each (Ta, C).

    Args:
      codec: needed where it is the embedded one; another has encoded the clip already.
    """
    if isinstance(codec, PcaCodec):
        mean = codec.encode_log_mel(features["log_mel"][None])[0]
        return mean, np.zeros_like(mean)
    return features["audio_mean"], features["audio_std"]


def _features(rows: Sequence[Row], store: FeatureStore, label: str) -> Iterator[dict[str, np.ndarray]]:
    with progress_bar(label, total=len(rows)) as bar:
        for row in rows:
            yield store.read("media", row.media)
            bar.update()
