"""A model learns a new material from a handful of clips, with all weights and by LoRA, as its sounds show."""

import dataclasses

import numpy as np
import pytest

from data_prep.impacts import scene
from data_prep.impacts.captions import caption
from data_prep.impacts.materials import MATERIALS, Material
from data_prep.impacts.render import FPS, render
from data_prep.impacts.sound import SAMPLE_RATE, synthesise
from data_prep.model_settings import settings_for_model
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import MEL_16K, from_log, log_mel
from flowley_jax.config import (
    DataConfig,
    EmaConfig,
    ExperimentConfig,
    LoraConfig,
    OptimConfig,
    SampleConfig,
    StartConfig,
    TrainConfig,
)
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.media.write import write_video
from flowley_jax.model.config import ModelConfig
from flowley_jax.runs.weights import averaged_weights, write_adapters
from flowley_jax.sampling import Sampler
from flowley_jax.sampling.sampler import Clip
from flowley_jax.training.loop import train

pytestmark = pytest.mark.scale

SECONDS = 2.0
OLD = [MATERIALS[name] for name in ("wooden", "metal", "rubber")]
# Higher and longer than all that the model has heard.
NEW = Material(
    name="crystal",
    colour=(0.9, 0.4, 0.9),
    gloss=0.9,
    pitch=3300.0,
    modes=(1.0, 1.35, 1.8),
    decay=0.12,
    noise=0.05,
    restitution=0.8,
)
LORA = LoraConfig(rank=8)
SIGMA = 0.05
MODEL = ModelConfig(
    audio_dim=20,
    video_dim=352,
    text_dim=64,
    width=32,
    num_heads=2,
    multi_depth=1,
    single_depth=2,
    video_fps=FPS,
    dropout=0.0,
)
# Fall of the distance below, in decades. Before fine-tuning it is 0.9; between two real clips it is 0.5.
MARGIN = 0.2


def _write_clips(folder, materials, count, *, seed, monkeypatch):
    """Write clips of one object each, and return their frames, captions and waves by id."""
    monkeypatch.setattr(scene, "MATERIALS", {material.name: material for material in materials})
    monkeypatch.setattr(scene, "CONTINUOUS_SHARE", 0.0)
    monkeypatch.setattr(scene, "SECOND_OBJECT_SHARE", 0.0)
    folder.mkdir()
    clips, rows = {}, ["video_path\ttext_description\tsplit\tlabel"]
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        drawn = scene.draw_scene(rng, SECONDS)
        text, wave, frames = caption(drawn, rng), synthesise(drawn, rng), np.asarray(render(drawn))
        write_video(folder / f"c{index}.mp4", frames, FPS, audio=wave, sample_rate=SAMPLE_RATE)
        rows.append(f"c{index}.mp4\t{text}\ttrain\t{drawn.actors[0].material.name}")
        clips[f"c{index}"] = frames, text, wave
    (folder / "clips.tsv").write_text("\n".join(rows) + "\n")
    return clips


def _experiment(records, *, steps, learning_rate, **changes):
    config = ExperimentConfig(
        model=MODEL,
        data=DataConfig(records=str(records), batch_size=8),
        optim=OptimConfig(learning_rate=learning_rate, warmup_steps=10, schedule="cosine"),
        ema=EmaConfig(snapshot_every=steps),
        train=TrainConfig(steps=steps, log_every=20, checkpoint_every=steps),
        sample=SampleConfig(solver=SolverConfig(steps=8), guidance=2.0, sigma_rel=SIGMA),
    )
    return dataclasses.replace(config, **changes)


def _spectrum(wave):
    """Return the mean mel energies (bins,) of a wave, in decades."""
    return np.log10(from_log(log_mel(wave[None].astype(np.float32), MEL_16K)[0], MEL_16K).mean(axis=0) + 1e-5)


def _distance(sampler, clips):
    """Return the mean distance of generated from real spectra, in decades (rms over the bins)."""
    silent = [Clip(id=name, frames=frames, prompt=text) for name, (frames, text, _) in clips.items()]
    distances = []
    for clip, waves in sampler.sounds(silent):
        difference = _spectrum(waves[0]) - _spectrum(clips[clip.id][2])
        distances.append(np.sqrt(np.mean(difference**2)))
    return float(np.mean(distances))


def test_sounds_of_a_new_material_move_towards_the_real_ones(tmp_path, monkeypatch):
    for name, materials, count, seed in (("old", OLD, 32, 0), ("new", [NEW], 8, 1)):
        _write_clips(tmp_path / name, materials, count, seed=seed, monkeypatch=monkeypatch)
    held_out = _write_clips(tmp_path / "held_out", [NEW], 6, seed=2, monkeypatch=monkeypatch)
    records, base = tmp_path / "old/records", tmp_path / "base"
    prepare_records(
        tmp_path / "old/clips.tsv", records, RecordSettings(seconds=SECONDS), RunOptions(decoders=1)
    )
    train(_experiment(records, steps=120, learning_rate=4e-3), base)

    own = tmp_path / "new/records"
    settings = settings_for_model(str(base), RecordSettings(), given=set())
    prepare_records(tmp_path / "new/clips.tsv", own, settings, RunOptions(decoders=1))
    start = StartConfig(weights=str(base))
    train(_experiment(own, steps=60, learning_rate=2e-3, start=start), tmp_path / "tuned")
    train(_experiment(own, steps=60, learning_rate=6e-3, start=start, lora=LORA), tmp_path / "adapted")
    adapter = tmp_path / "own.safetensors"
    write_adapters(adapter, averaged_weights(tmp_path / "adapted", sigma_rel=SIGMA), LORA)

    before = _distance(Sampler.from_run(base), held_out)
    tuned = _distance(Sampler.from_run(tmp_path / "tuned"), held_out)
    adapted = _distance(Sampler.from_run(base, adapter=adapter), held_out)
    print(f"distance to the real sounds: {before:.3f} before, {tuned:.3f} tuned, {adapted:.3f} with LoRA")
    assert tuned < before - MARGIN
    assert adapted < before - MARGIN
