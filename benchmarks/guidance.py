"""Quality of sounds against evaluations of the network, for forms of guidance: make benchmark-guidance

Every trained run samples the test clips of the generated clip set with every form and number of steps. Sounds
and features stay in --out, and are not made again next time.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from benchmarks.common import header
from benchmarks.log_mel_distance import log_mel_distance_to_clips
from data_prep.worker_pool import mapping_pool
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import PROCESSES
from flowley_jax.config import SampleConfig
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.embedded_tagger import tagger_clips
from flowley_jax.evaluation.run import EvaluationSettings, evaluate_clips
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.flow.stretches import network_evaluations
from flowley_jax.runs.workdir import read_config
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler

# Changes of plain guidance with the run's own scale, solver and EMA length; "name", "shift" and "steps" are
# those of the solver, and an autoguidance_step of 1 stands for the run's first snapshot.
Form = Mapping[str, Any]
FORMS: dict[str, Form] = {
    "none": {"guidance": 1.0},
    "1.25": {"guidance": 1.25},
    "1.5": {"guidance": 1.5},
    "2": {"guidance": 2.0},
    "3": {"guidance": 3.0},
    "2, t < 0.5": {"guidance": 2.0, "guidance_to": 0.5},
    "2, t ≥ 0.3": {"guidance": 2.0, "guidance_from": 0.3},
    "2, t ≥ 0.5": {"guidance": 2.0, "guidance_from": 0.5},
    "3, t ≥ 0.5": {"guidance": 3.0, "guidance_from": 0.5},
    "2, 0.2 ≤ t < 0.7": {"guidance": 2.0, "guidance_from": 0.2, "guidance_to": 0.7},
    "2, CFG-Zero*": {"guidance": 2.0, "zero_star": True, "zero_until": 0.04},
    "2, rescale 0.7": {"guidance": 2.0, "guidance_rescale": 0.7},
    "video 2, text 1": {"guidance": 2.0, "guidance_text": 1.0},
    "text 2": {"guidance": 1.0, "guidance_text": 2.0},
    "text 1.25; video 2, t ≥ 0.5": {"guidance": 2.0, "guidance_text": 1.25, "guidance_from": 0.5},
    "text 2; video 3, t ≥ 0.7": {"guidance": 3.0, "guidance_text": 2.0, "guidance_from": 0.7},
    "2, shift 2": {"guidance": 2.0, "shift": 2.0},
    "2, shift 0.5": {"guidance": 2.0, "shift": 0.5},
    "autoguidance 2, first snapshot": {"guidance": 2.0, "autoguidance_step": 1},
}
# Metric, heading and digits of each column.
COLUMNS = (
    ("onset-F1", "F1", 3),
    ("onset-error-ms", "median error (ms)", 1),
    ("FD-TAGGER", "FD", 1),
    ("log-mel-FD", "log-mel FD", 0),
    ("KL-TAGGER-softmax", "KL", 2),
    ("material-accuracy", "materials", 2),
    ("motion-accuracy", "motions", 2),
    ("LUFS", "LUFS", 1),
)
# Metric, heading and direction of each panel of the picture.
_DRAWN = (
    ("onset-F1", "F1 of onsets (higher is better)", True),
    ("FD-TAGGER", "FD (lower is better)", False),
    ("log-mel-FD", "log-mel FD (lower is better)", False),
)
_TICKS = (1, 2, 4, 8, 16, 32)
_READ_SECONDS = 120.0

_RUNS = flags.DEFINE_multi_string("run", None, "Folder of a trained run; repeat it for more.", required=True)
_FLOW_MAPS = flags.DEFINE_multi_string(
    "flow_map", [], "Folder of the flow map that was trained from each --run, in the same order."
)
_CLIPS = flags.DEFINE_string("clips", "runs/demo/clips", "Folder of the clip set.")
_OUT = flags.DEFINE_string("out", "runs/guidance", "Folder for sounds, features and the table.")
_STEPS = flags.DEFINE_list("steps", ["25"], "Numbers of steps of the solver.")
_FORMS = flags.DEFINE_multi_string("form", [], "Name of a form, or NAME=JSON of settings; by default all.")
_WORKERS = define_int("workers", os.cpu_count() or 1, "Processes that read files.", PROCESSES)


# Guidance is part of a flow map already, so only the number of steps varies.
_FLOW_MAP, _FLOW_MAP_STEPS = "flow map", (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A form of guidance with a number of steps.

    Attributes:
      form: name of the form.
      settings: what to sample with.
      run: folder of the run to sample with.
    """

    form: str
    settings: SampleConfig
    run: Path

    @property
    def name(self) -> str:
        """Name of its folder and of its row."""
        return f"{self.form}; {self.settings.solver.steps} {self.settings.solver.name}".replace("/", "_")

    @property
    def evaluations(self) -> int:
        """Evaluations of the network per clip."""
        return network_evaluations(self.settings.solver, self.settings.guidance_form)


def main() -> int:
    """Sample and score; write table.json, table.md and pareto.png."""
    out, clips = Path(_OUT.value), Path(_CLIPS.value)
    if _FLOW_MAPS.value and len(_FLOW_MAPS.value) != len(_RUNS.value):
        raise FlowleyError(
            f"give one --flow-map for each --run (got {len(_FLOW_MAPS.value)} for {len(_RUNS.value)})"
        )
    flow_maps = _FLOW_MAPS.value or [None] * len(_RUNS.value)
    tables = [
        _scores(Path(run), Path(flow_map) if flow_map else None, clips, out, index)
        for index, (run, flow_map) in enumerate(zip(_RUNS.value, flow_maps, strict=True))
    ]
    rows = [_over_runs(index, tables) for index in range(len(tables[0]))]
    result = {**header("guidance"), "runs": len(tables), "rows": rows}
    write_text(out / "table.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.md", _markdown(rows))
    _picture(rows, out / "pareto.png")
    print(_markdown(rows), end="")
    print(f"table: {out / 'table.md'}")
    return 0


def _scores(run: Path, flow_map: Path | None, clips: Path, out: Path, index: int) -> list[dict[str, Any]]:
    """Return the name, the evaluations and the metrics of each system of one run."""
    config, folder = read_config(run), out / f"run_{index}"
    systems, sampler, folders = _systems(run, config.sample, config.ema.snapshot_every), None, {}
    if flow_map:
        systems += _flow_map_systems(flow_map)
    inputs = find_inputs(clips / "clips.tsv", split="test")
    for system in systems:
        sampler = Sampler.from_run(system.run, settings=system.settings)
        folders[system.name] = folder / system.name
        results = write_sounds(sampler, inputs, folders[system.name], suffix=".wav", seed=config.seed)
        if results.failed:
            raise FlowleyError(f"{folders[system.name]}: {results.failed[0]}")
    assert sampler is not None
    table = read_clip_table(clips / "clips.tsv")
    held_out = [clip for clip in table if clip.split == "test"]
    evaluation = evaluate_clips(
        held_out,
        folders,
        folder,
        EvaluationSettings(
            seconds=sampler.components.seconds, tagger=out / "tagger.safetensors", av_align=False, resamples=0
        ),
        readers=functools.partial(mapping_pool, count=_WORKERS.value, time_limit=_READ_SECONDS),
        training=tagger_clips(table),
        events=read_events(clips / "events.jsonl"),
    )
    return [
        {
            "form": system.form,
            "steps": system.settings.solver.steps,
            "evaluations": system.evaluations,
            **evaluation.rows[system.name].metrics,
            "log-mel-FD": log_mel_distance_to_clips(folders[system.name], held_out[0].video_path.parent),
        }
        for system in systems
    ]


def _flow_map_systems(run: Path) -> list[System]:
    settings = read_config(run).sample
    return [
        System(
            form=_FLOW_MAP,
            settings=dataclasses.replace(settings, solver=dataclasses.replace(settings.solver, steps=steps)),
            run=run,
        )
        for steps in _FLOW_MAP_STEPS
    ]


def _systems(run: Path, default: SampleConfig, first_snapshot: int) -> list[System]:
    plain = SampleConfig(solver=default.solver, guidance=default.guidance, sigma_rel=default.sigma_rel)
    systems = []
    for name, form in _forms().items():
        values = dict(form)
        solver = {key: values.pop(key) for key in ("shift", "name") if key in values}
        if values.get("autoguidance_step") == 1:
            values["autoguidance_step"] = first_snapshot
        for steps in values.pop("steps", _STEPS.value):
            fixed = dataclasses.replace(plain.solver, steps=int(steps), **solver)
            settings = dataclasses.replace(plain, solver=fixed, **values)
            systems.append(System(form=name, settings=settings, run=run))
    return systems


def _forms() -> dict[str, Form]:
    if not _FORMS.value:
        return FORMS
    forms = {}
    for given in _FORMS.value:
        name, _, text = given.partition("=")
        if not text and name not in FORMS:
            raise FlowleyError(f"--form={name!r} must be one of {', '.join(map(repr, FORMS))}, or NAME=JSON")
        forms[name] = json.loads(text) if text else FORMS[name]
    return forms


def _over_runs(index: int, tables: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return a row with each metric's mean, standard deviation and values over the runs."""
    rows = [table[index] for table in tables]
    metrics = {name: [float(row[name]) for row in rows] for name, *_ in COLUMNS}
    return {
        **{name: rows[0][name] for name in ("form", "steps", "evaluations")},
        **{
            name: {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=min(1, len(values) - 1))),
                "runs": values,
            }
            for name, values in metrics.items()
        },
    }


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = ["guidance", "steps", "evaluations", *(heading for _, heading, *_ in COLUMNS)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        cells = [
            f"{row[name]['mean']:.{digits}f} ± {row[name]['std']:.{digits}f}" for name, _, digits in COLUMNS
        ]
        lines.append(f"| {row['form']} | {row['steps']} | {row['evaluations']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw metrics against evaluations, with standard deviations over the runs and the Pareto fronts."""
    figure, axes = plt.subplots(1, len(_DRAWN), figsize=(15, 4.6), layout="constrained")
    forms = list(dict.fromkeys(row["form"] for row in rows))
    for axis, (name, heading, larger) in zip(axes, _DRAWN, strict=True):
        for form, colour in zip(forms, plt.colormaps["tab20"](np.arange(len(forms))), strict=True):
            own = sorted(
                (row["evaluations"], row[name]["mean"], row[name]["std"])
                for row in rows
                if row["form"] == form
            )
            evaluations, means, deviations = zip(*own, strict=True)
            axis.errorbar(
                evaluations, means, deviations, marker="o", color=colour, linewidth=1, capsize=2, label=form
            )
        front = pareto_front([(row["evaluations"], row[name]["mean"]) for row in rows], larger=larger)
        axis.step(*zip(*front, strict=True), where="post", color="black", linestyle="--", label="best")
        axis.set(xscale="log", xlabel="evaluations of the network per clip", ylabel=heading)
        axis.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        axis.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def pareto_front(points: Sequence[tuple[float, float]], *, larger: bool) -> list[tuple[float, float]]:
    """Return the points (cost, value) that no cheaper or equally cheap point exceeds, by ascending cost.

    Args:
      larger: whether a larger value is better.
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1] if larger else point[1])):
        if not front or (value > front[-1][1] if larger else value < front[-1][1]):
            front.append((cost, value))
    return front


if __name__ == "__main__":
    run_main(main)
