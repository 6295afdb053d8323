"""Clip table to training records: python -m data_prep.records --clips DIR/clips.tsv --out DIR/records"""

from pathlib import Path

from absl import flags

from data_prep.clip_features import RecordSettings
from data_prep.prepare import prepare_records
from flowley_jax.cli import run_main

_CLIPS = flags.DEFINE_string("clips", None, "Clip table (TSV).", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the records.", required=True)
_PUBLISHED = flags.DEFINE_string(
    "published", None, "Folder of bundles: all parts from there, clips of 8 s, 8 frames per second."
)
_VIDEO = flags.DEFINE_string("video_encoder", "pixels", "pixels, or the bundle of a CLIP image encoder.")
_TEXT = flags.DEFINE_string("text_encoder", "hashed_words", "hashed_words, or the bundle of a T5 encoder.")
_CODEC = flags.DEFINE_string("codec", "pca", "pca, or the bundle of an audio VAE.")
_VOCODER = flags.DEFINE_string("vocoder", "griffin_lim", "griffin_lim, or the bundle of a BigVGAN.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Length that every clip is cut to.")
_MEL = flags.DEFINE_enum("mel", "16k", ["16k", "44k"], "Mel front end, which fixes the sample rate.")
_LATENT_DIM = flags.DEFINE_integer("latent_dim", 20, "Channels of the PCA codec's latents.")
_VIDEO_FPS = flags.DEFINE_float("video_fps", 24.0, "Frames per second that the picture encoder sees.")
_FRAME_SIZE = flags.DEFINE_integer("frame_size", 96, "Height and width of those frames.")
_TEXT_DIM = flags.DEFINE_integer("text_dim", 64, "Width of a word vector.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 32, "Longest caption in tokens, end of text included.")
_PAD_SECONDS = flags.DEFINE_float("pad_seconds", 0.0, "Clips that are short by at most this much are padded.")
_NORMALIZE_PEAK = flags.DEFINE_bool("normalize_peak", False, "Scale each track to a peak of 0.95.")
_FEATURE_DTYPE = flags.DEFINE_enum(
    "feature_dtype",
    "float32",
    ["float32", "float16"],
    "Type of the stored features; float16 halves the records.",
)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that read clips; 1 reads in this one.")


def main() -> None:
    """Command line."""
    if _PUBLISHED.value:
        _choose_published(Path(_PUBLISHED.value))
    settings = RecordSettings(
        video=_VIDEO.value,
        text=_TEXT.value,
        codec=_CODEC.value,
        vocoder=_VOCODER.value,
        seconds=_SECONDS.value,
        mel=_MEL.value,
        latent_dim=_LATENT_DIM.value,
        video_fps=_VIDEO_FPS.value,
        frame_size=_FRAME_SIZE.value,
        text_dim=_TEXT_DIM.value,
        max_tokens=_MAX_TOKENS.value,
        pad_seconds=_PAD_SECONDS.value,
        normalize_peak=_NORMALIZE_PEAK.value,
        feature_dtype="float16" if _FEATURE_DTYPE.value == "float16" else "float32",
    )
    prepare_records(_CLIPS.value, _OUT.value, settings, workers=_WORKERS.value)


def _choose_published(folder: Path) -> None:
    """Sets what the command line leaves open as it was for the published model."""
    chosen = {
        "video_encoder": str(folder / "clip"),
        "text_encoder": str(folder / "t5"),
        "codec": str(folder / "audio_vae"),
        "vocoder": str(folder / "bigvgan"),
        "seconds": 8.0,
        "video_fps": 8.0,
    }
    for name, value in chosen.items():
        if not flags.FLAGS[name].present:
            flags.FLAGS[name].value = value


if __name__ == "__main__":
    run_main(main)
