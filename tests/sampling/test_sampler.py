"""The sampler: shapes of its sounds, and what the random draw depends on."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.flow import solver
from flowley_jax.flow.sampler import item_key
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.runs.workdir import open_workdir
from flowley_jax.sampling import Clip, EncodedClip, Sampler
from flowley_jax.sampling.decoding import fit_length


@pytest.fixture(scope="module")
def sampler(tiny_run):
    return Sampler.from_run(tiny_run)


def _clip(sampler, name, length=10, prompt="a ball"):
    size = sampler.components.video_encoder.frame_size
    seed = int.from_bytes(name.encode(), "little")
    frames = np.random.default_rng(seed).integers(0, 256, (length, size, size, 3), dtype=np.uint8)
    return Clip(id=name, frames=frames, prompt=prompt)


def _waves(sampler, clips, **options):
    return {clip.id: waves for clip, waves in sampler.sounds(clips, **options)}


def _settings(sampler, **changes):
    return dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, **changes))


def test_sounds_are_as_long_as_their_videos(sampler):
    clips = [_clip(sampler, name, length) for name, length in (("a", 10), ("b", 7), ("c", 10), ("d", 31))]
    waves = _waves(sampler, clips, num_samples=2)
    assert waves.keys() == {"a", "b", "c", "d"}
    for clip in clips:
        samples = round(len(clip.frames) / tiny.FPS * sampler.components.sample_rate)
        assert waves[clip.id].shape == (2, samples) and waves[clip.id].dtype == np.float32
        assert np.isfinite(waves[clip.id]).all() and np.abs(waves[clip.id]).max() > 0


def test_a_clip_sounds_the_same_in_any_batch(sampler):
    clips = [_clip(sampler, name, length) for name, length in zip("abcdefghij", range(4, 24, 2), strict=True)]
    expected = _waves(sampler, clips, seed=3)["e"]
    reversed_batch = _waves(sampler, clips[::-1], seed=3)["e"]
    single = _waves(sampler, clips[4:5], seed=3)["e"]
    several = _waves(sampler, clips[4:5], seed=3, num_samples=2)["e"][:1]
    for waves in (reversed_batch, single, several):
        # Rounding depends on the batch size, and the iterations that find the phases amplify it.
        np.testing.assert_allclose(waves, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_repeats_are_equal_bit_for_bit(sampler):
    clip = _clip(sampler, "a")
    waves = sampler.sound(clip.frames, "a ball", seed=1, num_samples=2)
    np.testing.assert_array_equal(waves, sampler.sound(clip.frames, "a ball", seed=1, num_samples=2))


def test_the_origin_distinguishes_weights(tiny_run, sampler):
    assert Sampler.from_run(tiny_run).origin == sampler.origin
    longer = dataclasses.replace(sampler.settings, sigma_rel=0.1)
    assert Sampler.from_run(tiny_run, settings=longer).origin["digest"] != sampler.origin["digest"]


def test_a_single_sound_uses_the_clip_id(sampler):
    clip = _clip(sampler, "a")
    by_id = sampler.sound(clip.frames, clip.prompt, clip_id="a", seed=2)
    np.testing.assert_array_equal(by_id, _waves(sampler, [clip], seed=2)["a"])


def test_seed_sample_id_prompt_and_picture_change_the_sound(sampler):
    clip = _clip(sampler, "a")
    base = _waves(sampler, [clip], num_samples=2)["a"]
    others = [
        base[1:],
        _waves(sampler, [clip], seed=1)["a"],
        _waves(sampler, [dataclasses.replace(clip, id="b")])["b"],
        _waves(sampler, [dataclasses.replace(clip, prompt="a glass")])["a"],
        _waves(sampler, [dataclasses.replace(clip, frames=255 - clip.frames)])["a"],
        _waves(_settings(sampler, guidance=6.0), [clip])["a"],
        _waves(_settings(sampler, solver=SolverConfig(steps=5)), [clip])["a"],
    ]
    for other in others:
        assert np.abs(other[0] - base[0]).max() > 1e-4 * np.abs(base[0]).max()


def test_a_clip_without_prompt_gets_the_empty_text(sampler):
    prompts = {"a": "", "b": " \n", "c": "ball"}
    encoded = [sampler.encode(_clip(sampler, name, prompt=prompt)) for name, prompt in prompts.items()]
    empty = np.asarray(sampler.variables[1]["empty_text"][...])
    for clip in encoded:
        assert clip.video.shape == (tiny.VIDEO, tiny.MODEL.video_dim) and clip.text.shape[1:] == empty.shape
    for clip in encoded[:2]:
        np.testing.assert_array_equal(clip.text, np.broadcast_to(empty, clip.text.shape))
    assert [clip.text_len for clip in encoded] == [1, 1, 2]
    assert np.abs(encoded[2].text - empty).max() > 0


def test_encoded_clips_sound_like_the_clips(sampler):
    clips = [_clip(sampler, name) for name in "ab"]
    expected = _waves(sampler, clips)
    encoded = [sampler.encode(clip) for clip in clips]
    for clip, waves in sampler.sounds(encoded):
        assert isinstance(clip, EncodedClip)
        np.testing.assert_array_equal(waves, expected[clip.id])


def test_adaptive_solvers_agree_with_many_small_steps(sampler):
    clip = _clip(sampler, "a")

    def wave(**options):
        return _waves(_settings(sampler, solver=SolverConfig(**options)), [clip])["a"]

    fine = wave(name="rk4", steps=40)
    adaptive = wave(name="dopri5", rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(adaptive, fine, atol=2e-3 * np.abs(fine).max())


def test_a_solver_that_cannot_finish_is_an_error(sampler, monkeypatch):
    monkeypatch.setattr(solver, "MAX_ADAPTIVE_STEPS", 2)
    impossible = _settings(sampler, solver=SolverConfig(name="tsit5", rtol=1e-12, atol=1e-13))
    with pytest.raises(FlowleyError, match="tsit5 did not reach t = 1"):
        _waves(impossible, [_clip(sampler, "a")])


@pytest.mark.parametrize("scale", [1e9, np.nan])
def test_a_result_that_is_no_sound_is_an_error_that_names_the_clip(sampler, scale):
    wild = dataclasses.replace(sampler, variables=jax.tree.map(lambda leaf: scale * leaf, sampler.variables))
    with pytest.raises(FlowleyError, match=r"^loud: sampling diverged.*lower the guidance") as caught:
        _waves(wild, [_clip(sampler, "loud")])
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_named(sampler):
    clip = _clip(sampler, "a")
    for options, message in (
        ({"prompt": None}, "prompt=None .* must be text"),
        ({"clip_id": 3}, "id=3 .* must be text"),
        ({"num_samples": 0}, "num_samples=0 must be"),
        ({"num_samples": 1.5}, "num_samples=1.5 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"seed": 10**20}, "seed=10+ must be"),
    ):
        with pytest.raises(FlowleyError, match=message):
            sampler.sound(clip.frames, **options)
    with pytest.raises(FlowleyError, match="frames"):
        sampler.sound(clip.frames[0])


def test_a_sound_that_does_not_fit_into_memory_is_refused(sampler, monkeypatch):
    free, clip = 10**12, _clip(sampler, "a")
    monkeypatch.setattr("flowley_jax.sampling.sampler._ESTIMATED_SECONDS", 0.0)
    monkeypatch.setattr("flowley_jax.sampling.sampler.free_device_memory", lambda: free)
    assert _waves(dataclasses.replace(sampler), [clip])["a"].any()
    free = 10
    with pytest.raises(
        FlowleyError, match=r"a: 1 × 1 s of sound needs about .* GiB of memory, and only 0\.0 GiB are"
    ):
        _waves(dataclasses.replace(sampler), [clip])


def test_a_negative_prompt_changes_the_empty_branch_only(sampler):
    # Others have compiled larger programs, which round differently.
    sampler, clip = _settings(sampler), _clip(sampler, "a")
    plain = _waves(sampler, [clip])["a"]
    named = dataclasses.replace(clip, negative_prompt="glass")
    of_clip = _waves(sampler, [named])["a"]
    of_settings = _waves(_settings(sampler, negative_prompt="glass"), [clip])["a"]
    assert np.abs(of_clip - plain).max() > 1e-4 * np.abs(plain).max()
    np.testing.assert_array_equal(of_settings, of_clip)
    # An empty one of its own takes the place of that of the settings.
    emptied = dataclasses.replace(clip, negative_prompt="")
    np.testing.assert_array_equal(_waves(_settings(sampler, negative_prompt="glass"), [emptied])["a"], plain)
    # Without guidance there is no empty branch.
    unguided = _settings(sampler, guidance=0.5)
    np.testing.assert_array_equal(_waves(unguided, [named])["a"], _waves(unguided, [clip])["a"])


def test_a_seed_of_its_own_takes_the_place_of_the_call_s(sampler):
    clip = _clip(sampler, "a")
    own = dataclasses.replace(clip, seed=7)
    np.testing.assert_array_equal(_waves(sampler, [own], seed=1)["a"], _waves(sampler, [clip], seed=7)["a"])


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.3])
def test_a_sound_from_text_reads_the_empty_video(sampler, seconds):
    clip = Clip(id="a", prompt="a ball", seconds=seconds)
    encoded = sampler.encode(clip)
    empty = np.asarray(sampler.variables[1]["empty_video"][...])
    np.testing.assert_array_equal(encoded.video, np.broadcast_to(empty, encoded.video.shape))
    waves = _waves(sampler, [clip])["a"]
    assert waves.shape == (1, round(seconds * sampler.components.sample_rate)) and waves.any()


def test_frames_may_come_in_blocks(sampler):
    clip = _clip(sampler, "a", 31)
    streamed = dataclasses.replace(clip, frames=iter([clip.frames[:7], clip.frames[7:20], clip.frames[20:]]))
    features = sampler.encode(streamed)
    expected = sampler.encode(clip)
    assert features.seconds == expected.seconds == 31 / tiny.FPS
    # The encoder's rounding depends on the number of frames in a block.
    np.testing.assert_allclose(
        features.video, expected.video, rtol=0, atol=1e-6 * np.abs(expected.video).max()
    )


def test_a_short_clip_is_filled_by_its_last_frame(sampler):
    clip = _clip(sampler, "a", 6)
    filled = np.concatenate([clip.frames, np.repeat(clip.frames[-1:], tiny.VIDEO - 6, axis=0)])
    whole = _waves(sampler, [dataclasses.replace(clip, frames=filled)])["a"]
    waves = _waves(sampler, [clip])["a"]
    np.testing.assert_array_equal(waves, whole[:, : waves.shape[1]])


@pytest.mark.parametrize("num_samples", [1, 3, 20])
def test_few_programs_serve_all_lengths(sampler, num_samples, monkeypatch):
    # Vocoders have programs of their own.
    monkeypatch.setattr(Components, "vocode", lambda self, log_mels: np.zeros((len(log_mels), 1), np.float32))
    fresh = dataclasses.replace(sampler)
    clips = [_clip(sampler, str(length), length) for length in range(1, 11)]
    waves = _waves(fresh, clips, num_samples=num_samples)
    assert {clip.id: len(waves[clip.id]) for clip in clips} == dict.fromkeys(waves, num_samples)
    assert fresh._compiled == {8}
    longer = [_clip(sampler, str(length), length) for length in range(15, 120, 9)]
    _waves(fresh, longer)
    # One for many sounds of several windows each.
    assert fresh._compiled == {8, 32}


def test_windows_and_overlaps_are_settings(sampler):
    clip = _clip(sampler, "a", 40)
    windows = {
        (window, overlap): len(_settings(sampler, window=window, overlap=overlap).encode(clip).windows)
        for window, overlap in ((None, 0.25), (1.0, 0.5), (2.0, 0.25), (10.0, 0.25))
    }
    assert windows[None, 0.25] < windows[1.0, 0.5]
    assert windows[2.0, 0.25] < windows[None, 0.25] and windows[10.0, 0.25] == 1
    with pytest.raises(FlowleyError, match=r"window=0\.01 s is shorter than a frame"):
        _ = _settings(sampler, window=0.01).window


def test_a_missing_run_and_a_run_without_averages_are_refused(tmp_path):
    with pytest.raises(FlowleyError, match="none: no training run here"):
        Sampler.from_run(tmp_path / "none")
    records = tiny.write_records(tmp_path / "records")
    open_workdir(tmp_path / "run", tiny.experiment(records), Components.load(records), records)
    with pytest.raises(FlowleyError, match="no EMA snapshots yet"):
        Sampler.from_run(tmp_path / "run")


def test_keys_depend_on_seed_id_and_sample_number_only():
    keys = [item_key(0, "a"), item_key(1, "a"), item_key(0, "b"), item_key(0, "a", 1)]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == 4
    np.testing.assert_array_equal(jax.random.key_data(item_key(0, "a")), jax.random.key_data(keys[0]))


@pytest.mark.parametrize("samples", [3, 5, 8])
def test_waves_are_cut_or_filled_with_silence(samples):
    waves = np.arange(1.0, 11.0).reshape(2, 5)
    fitted = fit_length(waves, samples)
    assert fitted.shape == (2, samples)
    np.testing.assert_array_equal(fitted[:, :5], waves[:, :samples])
    assert not fitted[:, 5:].any()
