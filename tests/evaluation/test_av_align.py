"""AV-Align against the published program, and on files."""

import json
from fractions import Fraction

import av
import librosa
import numpy as np
import pytest
from flash_clips import FlashClip, write_flash_clip
from golden_data import load
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowley_jax.evaluation.av_align import audio_peaks, av_align, peak_times, video_peaks
from flowley_jax.media.inputs import MediaError
from flowley_jax.media.read import read_audio
from flowley_jax.media.write import write_audio, write_video

FPS = 25
RATE = 22_050


def _golden():
    return load("av_align")


def _film():
    """Return the frames of the golden film, RGB."""
    return _golden()["film_bgr"][..., ::-1]


def _wave():
    return _golden()["wave_int16_22050"].astype(np.float32) / 32768


def _write(path, frames, times):
    """Write frames that are shown at the given times, and sound from 0 on."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("ffv1", rate=FPS)
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt, picture.codec_context.time_base = "bgr0", Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))


@pytest.fixture(scope="module")
def film_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    _write(path, _film(), np.arange(50) / FPS)
    return path


@pytest.mark.parametrize(
    "name", ["plain", "shared", "two_near", "edge", "greedy", "none", "no_audio", "fps30"]
)
def test_values_are_the_published_ones(name):
    case = json.loads(str(_golden()["iou_cases"]))[name]
    assert av_align(np.array(case["audio"]), np.array(case["video"]), case["fps"]) == case["iou"]


def test_without_any_peak_there_is_no_value():
    assert av_align(np.zeros(0), np.zeros(0), FPS) is None
    assert av_align(np.array([1.0]), np.zeros(0), FPS) == 0.0


@given(
    st.lists(st.integers(0, 86), max_size=12, unique=True),
    st.lists(st.integers(0, 49), max_size=12, unique=True),
    st.sampled_from([12.5, 24.0, 25.0, 30000 / 1001]),
)
def test_no_other_matching_has_more_pairs(onsets, frames, fps):
    audio, video = np.sort(onsets) * 512 / RATE, np.sort(frames) / fps
    value = av_align(audio, video, fps)
    near = (video - 1 / fps < audio[:, None]) & (audio[:, None] < video + 1 / fps)
    pairs = int(near[linear_sum_assignment(near, maximize=True)].sum())
    peaks = len(audio) + len(video) - pairs
    assert value == (pairs / peaks if peaks else None)


def test_peaks_of_motion_are_strict_maxima_of_at_least_a_tenth_of_a_pixel():
    golden = _golden()
    np.testing.assert_array_equal(peak_times(golden["local_max_in"], 10), golden["local_max_out_fps10"])
    np.testing.assert_array_equal(peak_times(golden["flow_magnitude"], FPS), golden["video_peaks"])


@pytest.mark.parametrize("count", range(3))
def test_fewer_than_three_frames_have_no_peak(count):
    assert peak_times(np.ones(count), FPS).shape == (0,)


def test_onsets_are_the_published_ones():
    np.testing.assert_allclose(audio_peaks(_wave(), RATE), _golden()["audio_peaks"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_onsets_hardly_depend_on_the_sample_rate(rate):
    wave = librosa.resample(_wave(), orig_sr=RATE, target_sr=rate)
    hop = 512 / RATE
    np.testing.assert_allclose(audio_peaks(wave, rate), _golden()["audio_peaks"], rtol=0, atol=1.1 * hop)


@pytest.mark.parametrize("count", [0, 1, 1000, RATE])
def test_silence_has_no_onset(count):
    assert audio_peaks(np.zeros(count, np.float32), RATE).shape == (0,)


def test_a_higher_prominence_leaves_fewer_onsets():
    assert 0 < len(audio_peaks(_wave(), RATE, prominence=0.5)) < len(audio_peaks(_wave(), RATE))


def test_a_film_scores_as_published(film_file, tmp_path):
    golden, found = _golden(), video_peaks(film_file)
    np.testing.assert_allclose(found.times, golden["video_peaks"], rtol=0, atol=1e-9)
    assert (found.fps, found.width, found.height) == (FPS, 160, 120)
    path = tmp_path / "film.wav"
    write_audio(path, _wave(), RATE)
    onsets = audio_peaks(read_audio(path, sample_rate=RATE), RATE)
    assert av_align(onsets, found.times, found.fps) == golden["iou_film"]


@pytest.mark.parametrize("seconds", [0.3, 0.34, 0.8, 1.0, 9.0])
def test_only_the_wanted_part_counts(film_file, seconds):
    expected = _golden()["video_peaks"]
    found = video_peaks(film_file, seconds=seconds).times
    np.testing.assert_allclose(found, expected[expected < seconds], rtol=0, atol=1e-9)


def test_pictures_that_begin_late_move_late(tmp_path):
    path = tmp_path / "late.mkv"
    _write(path, _film(), 0.4 + np.arange(50) / FPS)
    found = video_peaks(path)
    np.testing.assert_allclose(found.times, 0.4 + _golden()["video_peaks"], rtol=0, atol=1e-3)


def test_pictures_at_uneven_times_count_as_even(tmp_path):
    path = tmp_path / "uneven.mkv"
    late = np.arange(50) % 2 * 0.01
    _write(path, _film(), np.arange(50) / FPS + late)
    found = video_peaks(path)
    np.testing.assert_allclose(found.times * found.fps, _golden()["video_peaks"] * FPS, rtol=0, atol=1e-6)


def test_lossy_films_have_the_same_peaks(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, _film(), FPS, audio=_wave(), sample_rate=RATE)
    np.testing.assert_allclose(video_peaks(path).times, _golden()["video_peaks"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_short_videos_have_no_peak(tmp_path, count):
    path = tmp_path / "short.mp4"
    write_video(path, _film()[:count], FPS)
    assert video_peaks(path).times.shape == (0,)


def test_files_without_a_picture_are_refused(tmp_path):
    write_audio(tmp_path / "sound.wav", _wave(), RATE)
    with pytest.raises(MediaError, match="has no video stream"):
        video_peaks(tmp_path / "sound.wav")
    with pytest.raises(MediaError, match="no such file"):
        video_peaks(tmp_path / "none.mp4")


def test_pictures_of_several_sizes_are_refused(tmp_path):
    paths = [tmp_path / f"{index}.ts" for index in range(2)]
    write_flash_clip(paths[0], FlashClip(audio_codec=None, seconds=0.4))
    with av.open(str(paths[1]), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for index, image in enumerate(_film()[:10]):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index + 10, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(path.read_bytes() for path in paths))
    with pytest.raises(MediaError, match="its picture changes from 64×48 to 160×120 pixels"):
        video_peaks(both)
