"""Picture and sound of a clip are on one timeline: in its features, in rejections and in lint's findings."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
import unusable
from flash_clips import FlashClip, click, origin_of, write_flash_clip
from hypothesis import given, settings

from data_prep.lint.check import LintOptions, lint
from data_prep.read_clip import ClipReader
from data_prep.record_components import RecordComponents
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.audio.protocols import samples_for

SETTINGS = RecordSettings(seconds=2.0, latent_dim=4, video_fps=25.0, frame_size=48)
COMPONENTS = RecordComponents(SETTINGS)
READER = ClipReader.create(COMPONENTS)
# Codecs of sound that fit into a container, with the delays that their encoders add.
FORMATS = ((".mkv", "flac"), (".mkv", "aac"), (".mov", "pcm_s16le"), (".mp4", "aac"), (".avi", "pcm_s16le"))
LATE = (".mkv", ".mov")


@st.composite
def _clips(draw):
    """Return a suffix and a clip with a flash and a click at random times, and tracks that begin apart."""
    suffix, codec = draw(st.sampled_from(FORMATS))
    late = draw(st.sampled_from(("video", "audio", "")) if suffix in LATE else st.just(""))
    start = draw(st.integers(1, 20)) / 25
    frame, event = draw(st.integers(25, 40)), draw(st.integers(1000, 1600)) / 1000
    clip = FlashClip(
        video_codec="libx264",
        audio_codec=codec,
        seconds=4.0,
        flashes=(frame / 25,),
        clicks=(event,),
        video_start=start if late == "video" else 0.0,
        audio_start=start if late == "audio" else 0.0,
    )
    return suffix, clip


@settings(max_examples=10, deadline=None)
@given(made=_clips())
def test_flashes_and_clicks_are_in_the_features_at_their_times(tmp_path_factory, made):
    suffix, clip = made
    path = tmp_path_factory.mktemp("clip") / f"a{suffix}"
    write_flash_clip(path, clip)
    decoded, start = READER(str(path)), origin_of(path, clip)
    white = COMPONENTS.video_encoder(np.full((1, 48, 48, 3), 235, np.uint8))[0]
    dark = COMPONENTS.video_encoder(np.full((1, 48, 48, 3), 20, np.uint8))[0]
    apart = [np.linalg.norm(decoded.video_features - one, axis=1) for one in (white, dark)]
    flash = np.flatnonzero(apart[0] < apart[1])[0] / SETTINGS.video_fps
    # One frame, and the rounding of times in the file.
    assert abs(flash - (clip.flashes[0] - start)) <= 1 / SETTINGS.video_fps + 1e-3
    assert abs(_click_error(decoded.sound.log_mel, clip.clicks[0] - start)) <= 0.005


def _click_error(mel, time):
    """Return by how many seconds a click is late: the shift of an ideal one that fits the spectrogram."""
    shifts = np.arange(-15.0, 15.1, 2.5) / 1000
    loud = np.exp(mel)
    return shifts[np.argmin([np.square(loud - np.exp(_ideal_mel(time + shift))).sum() for shift in shifts])]


def _ideal_mel(time):
    wave = np.zeros(samples_for(SETTINGS.seconds, MEL_16K), np.float32)
    begin = round(time * 16_000)
    wave[begin : begin + len(click(16_000))] = click(16_000)
    return log_mel(wave, MEL_16K)


@pytest.mark.parametrize(
    ("changes", "seconds", "reason"),
    [
        (
            {"audio_start": 0.9},
            2.0,
            ("offset", "sound begins 0.90 s after the picture; they overlap by 1.30 s"),
        ),
        (
            {"video_start": 0.88},
            2.0,
            ("offset", "sound begins 0.88 s before the picture; they overlap by 1.32 s"),
        ),
        ({"audio_start": 0.9}, 1.2, None),
        ({"audio_start": 0.06}, 2.0, None),
        ({"hole": (0.5, 0.9)}, 2.0, ("hole", "s within its sound are missing")),
        ({"hole": (1.6, 1.9)}, 1.0, None),
    ],
)
def test_clips_whose_tracks_do_not_cover_them_are_rejected(tmp_path, changes, seconds, reason):
    write_flash_clip(tmp_path / "a.mkv", _described(**changes))
    settings = dataclasses.replace(SETTINGS, seconds=seconds)
    result = ClipReader.create(RecordComponents(settings))(str(tmp_path / "a.mkv"))
    if reason is None:
        assert result.sound is not None and len(result.video_features) == round(25 * seconds)
    else:
        assert result.reason == reason[0] and reason[1] in result.detail


def _described(**changes):
    clip = FlashClip(audio_codec="flac", seconds=2.2, flashes=(0.4, 1.2), clicks=(0.95, 1.2))
    return dataclasses.replace(clip, **changes)


def test_lint_reports_offsets_and_holes(tmp_path):
    clips = {
        "whole": {},
        "late": {"audio_start": 0.9},
        "late_but_long": {"audio_start": 0.9, "seconds": 4.0},
        "hole": {"hole": (0.5, 0.9)},
        "mute": {"audio_codec": None},
    }
    for name, changes in clips.items():
        write_flash_clip(tmp_path / f"{name}.mkv", _described(**changes))
    table = unusable.write_table(tmp_path, [(name, f"{name}.mkv", "x", "train", "x") for name in clips])
    options = LintOptions(workers=1, seconds=2.0)
    # The second run takes the measurements from the cache.
    for _ in range(2):
        findings = {one.code: one for one in lint(table, out=tmp_path / "lint", options=options)}
        assert [case.id for case in findings["offset"].cases] == ["late"]
        detail = "sound begins 0.90 s after the picture; they overlap by 1.30 s"
        assert findings["offset"].cases[0].detail == detail and findings["offset"].severity == "warning"
        assert [case.id for case in findings["begin_apart"].cases] == ["late_but_long"]
        assert [case.id for case in findings["hole"].cases] == ["hole"]
