"""Write the clip set: .mp4 files, clip table and event times, in parallel and reproducibly."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.impacts.captions import caption
from data_prep.impacts.render import FPS, render
from data_prep.impacts.scene import Scene, draw_scene
from data_prep.impacts.sound import SAMPLE_RATE, synthesise
from data_prep.table_making import make_clip
from flowley_jax.common.files import name_errors, remove_partials, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.locks import lock_folder
from flowley_jax.common.progress import progress_bar
from flowley_jax.data.clip_table import SPLITS, write_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_video

GENERATOR_VERSION = 2
SET_FILE, TABLE_FILE, EVENTS_FILE = "set.json", "clips.tsv", "events.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSetConfig:
    """The number of clips in each split, their length in seconds, and the random seed.

    A clip depends only on the seed, its split, its number and its length, so a larger set begins with the
    clips of a smaller one. Objects rest after six or seven impacts, so clips of more than about eight seconds
    end quietly.
    """

    train: int = 640
    valid: int = 32
    test: int = 64
    seconds: float = 4.0
    seed: int = 0

    def __post_init__(self):
        if min(self.train, self.valid, self.test) < 0 or self.train + self.valid + self.test == 0:
            raise FlowleyError(
                f"train={self.train}, valid={self.valid}, test={self.test} must not be negative, nor all zero"
            )
        if not 3.0 <= self.seconds <= 60.0:
            raise FlowleyError(f"seconds={self.seconds} must be between 3 and 60")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """The position of one clip in the set, which determines its content."""

    split: str
    index: int
    seed: int
    seconds: float

    @property
    def id(self) -> str:
        """Unique name of the clip."""
        return f"{self.split}_{self.index:05d}"

    @property
    def path(self) -> Path:
        """Path relative to the folder of the set."""
        return Path(self.split) / f"{self.id}.mp4"

    def draw(self) -> tuple[Scene, str, np.random.Generator]:
        """Return the scene, the caption, and the random generator in the state for the noise of the sound."""
        entropy = [self.seed, SPLITS.index(self.split), self.index, round(1000 * self.seconds)]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        scene = draw_scene(rng, self.seconds)
        return scene, caption(scene, rng), rng


def generate(config: ClipSetConfig, out: Path, *, workers: int = 2) -> None:
    """Generate the clips that are missing in `out`, then write the table and the event times.

    The files are out/{split}/{id}.mp4, out/clips.tsv and out/events.jsonl.

    Args:
      config: the clip set.
      out: folder of the set.
      workers: number of processes; the files do not depend on it.

    Raises:
      FlowleyError: the folder holds a set with a different seed, length or generator version, or files of
        another program that would be replaced, or another process is writing to it.
    """
    with lock_folder(out):
        _generate(config, out, workers)


def _generate(config: ClipSetConfig, out: Path, workers: int) -> None:
    clips = [
        GeneratedClip(split=split, index=index, seed=config.seed, seconds=config.seconds)
        for split in SPLITS
        for index in range(getattr(config, split))
    ]
    _check_same_set(config, out, clips)
    remove_partials(out)
    for split in SPLITS:
        with name_errors(out / split):
            (out / split).mkdir(exist_ok=True)
        remove_partials(out / split)
    missing = [clip for clip in clips if not (out / clip.path).exists()]
    print(f"generating {len(missing)} of {len(clips)} clips in {out}", flush=True)
    if missing:
        context = multiprocessing.get_context("spawn")
        with (
            concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool,
            progress_bar("generating", total=len(missing)) as progress,
        ):
            for _ in pool.map(_write_clip, missing, [out] * len(missing), chunksize=4):
                progress.update()
    _write_tables(clips, out)


def _check_same_set(config: ClipSetConfig, out: Path, clips: Sequence[GeneratedClip]) -> None:
    path = out / SET_FILE
    wanted = {"seed": config.seed, "seconds": config.seconds, "version": GENERATOR_VERSION}
    if path.exists():
        existing = read_json_object(path)
        if existing != wanted:
            raise FlowleyError(
                f"{path}: the folder holds a clip set with {_listed(existing)}, not {_listed(wanted)}; "
                "choose another folder"
            )
        return
    # Without that file, nothing here is ours.
    for file in (out / TABLE_FILE, out / EVENTS_FILE, *(out / clip.path for clip in clips)):
        if os.path.lexists(file):
            raise FlowleyError(f"{file}: data_prep.impacts did not write it; choose another folder")
    write_text(path, json.dumps(wanted) + "\n")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _write_clip(clip: GeneratedClip, out: Path) -> None:
    scene, _, rng = clip.draw()
    write_video(out / clip.path, render(scene), FPS, audio=synthesise(scene, rng), sample_rate=SAMPLE_RATE)


def _write_tables(clips: list[GeneratedClip], out: Path) -> None:
    rows, events = [], []
    for clip in clips:
        scene, text, _ = clip.draw()
        rows.append(
            make_clip(
                clip_id=clip.id, file=out / clip.path, caption=text, split=clip.split, label=_label(scene)
            )
        )
        events.append(json.dumps(_events(clip, scene)) + "\n")
    write_text(out / EVENTS_FILE, "".join(events))
    write_clip_table(out / TABLE_FILE, rows)


def _label(scene: Scene) -> str:
    names = [f"{actor.material.name} {actor.motion}" for actor in scene.actors]
    return " + ".join([*names, *([scene.drone.kind] if scene.drone else [])])


def _events(clip: GeneratedClip, scene: Scene) -> dict:
    drone = None
    if scene.drone is not None:
        t = np.arange(0.0, scene.seconds, 0.125)
        drone = {
            "kind": scene.drone.kind,
            "time": t.tolist(),
            "speed": scene.drone.speed(t).round(4).tolist(),
        }
    return {
        "id": clip.id,
        "seconds": scene.seconds,
        "impacts": [
            {
                "time": round(time, 5),
                "object": actor.shape,
                "motion": actor.motion,
                "material": actor.material.name,
                "strength": round(strength, 4),
            }
            for time, strength, actor in scene.impacts
        ],
        "continuous": drone,
    }
