"""The clip set on disk: .mp4 files, clip table and event times, made in parallel and reproducible."""

import concurrent.futures
import csv
import dataclasses
import io
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.impacts.captions import caption
from data_prep.impacts.render import FPS, render
from data_prep.impacts.scene import Scene, draw_scene
from data_prep.impacts.sound import SAMPLE_RATE, synthesise
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_video
from flowley_jax.whole_files import write_text

SPLITS = ("train", "valid", "test")
GENERATOR_VERSION = 2
COLUMNS = ("id", "video_path", "text_description", "split", "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSetConfig:
    """How many clips of each split, how long, and the seed of all of them.

    A clip depends on the seed, its split, its number and the length alone: a larger set begins with the
    clips of a smaller one. An object rests after six or seven impacts, so clips longer than about eight
    seconds end quietly.
    """

    train: int = 640
    valid: int = 32
    test: int = 64
    seconds: float = 4.0
    seed: int = 0

    def __post_init__(self):
        if min(self.train, self.valid, self.test) < 0 or self.train + self.valid + self.test == 0:
            raise FlowleyError(
                f"clip counts {self.train}, {self.valid}, {self.test}: none may be negative, nor all zero"
            )
        if not 3.0 <= self.seconds <= 60.0:
            raise FlowleyError(f"seconds={self.seconds} must be between 3 and 60")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """One clip's place in the set."""

    split: str
    index: int
    seed: int
    seconds: float

    @property
    def id(self) -> str:
        return f"{self.split}_{self.index:05d}"

    @property
    def path(self) -> Path:
        """Relative to the set's folder."""
        return Path(self.split) / f"{self.id}.mp4"

    def draw(self) -> tuple[Scene, str, np.random.Generator]:
        """Scene, caption, and the generator that the sound's noise goes on with."""
        entropy = [self.seed, SPLITS.index(self.split), self.index, round(1000 * self.seconds)]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        scene = draw_scene(rng, self.seconds)
        return scene, caption(scene, rng), rng


def generate(config: ClipSetConfig, out: Path, *, workers: int = 2) -> None:
    """Makes the clips that are missing in `out`, then the table and the event times.

    Writes: out/{split}/{id}.mp4, out/clips.tsv and out/events.jsonl. Files do not depend on `workers`.

    Raises:
      FlowleyError: the folder holds a set of another seed, length or version of the generator.
    """
    clips = [
        GeneratedClip(split=split, index=index, seed=config.seed, seconds=config.seconds)
        for split in SPLITS
        for index in range(getattr(config, split))
    ]
    _claim(config, out)
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in clips if not (out / clip.path).exists()]
    print(f"generating {len(missing)} of {len(clips)} clips in {out}", flush=True)
    if missing:
        context = multiprocessing.get_context("spawn")
        with (
            concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool,
            tqdm(
                total=len(missing),
                desc="generating",
                unit="clip",
                mininterval=1.0 if sys.stderr.isatty() else 30.0,
            ) as progress,
        ):
            for _ in pool.map(_make, missing, [out] * len(missing), chunksize=4):
                progress.update()
    _write_tables(clips, out)


def _claim(config: ClipSetConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "set.json"
    wanted = {"seed": config.seed, "seconds": config.seconds, "version": GENERATOR_VERSION}
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise FlowleyError(f"{path}: damaged ({error})") from error
        if found != wanted:
            raise FlowleyError(
                f"{path}: the folder holds a clip set of {found}, not of {wanted}; choose another folder"
            )
    else:
        write_text(path, json.dumps(wanted) + "\n")


def _make(clip: GeneratedClip, out: Path) -> None:
    scene, _, rng = clip.draw()
    write_video(out / clip.path, render(scene), FPS, audio=synthesise(scene, rng), sample_rate=SAMPLE_RATE)


def _write_tables(clips: list[GeneratedClip], out: Path) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
    writer.writeheader()
    events = []
    for clip in clips:
        scene, text, _ = clip.draw()
        writer.writerow(
            {
                "id": clip.id,
                "video_path": clip.path.as_posix(),
                "text_description": text,
                "split": clip.split,
                "label": _label(scene),
            }
        )
        events.append(json.dumps(_events(clip, scene)) + "\n")
    write_text(out / "events.jsonl", "".join(events))
    write_text(out / "clips.tsv", table.getvalue())


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
