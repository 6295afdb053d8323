"""Train and score variants of the demonstration on the same clips with the same budget: make ablation

One study varies the attention, the other one what decides how fast a model learns. They share the runs of the
demonstration's own settings. Every run trains on one core, and all cores are used. Running it again skips
finished runs and resumes interrupted ones.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import PROCESSES, Range
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.run import TAGGER_FILE

DEMONSTRATION = "PSCA"
_BATCH = 8
_BATCH_FLAG = "--config.data.batch_size="
_BATCH_16 = [f"{_BATCH_FLAG}16", "--config.optim.learning_rate=4e-3"]
# Flags of each variant, by study.
STUDIES: dict[str, dict[str, list[str]]] = {
    # With balance α = 1, cross-attention reads only text; video then enters only through the joint attention.
    "attention": {
        DEMONSTRATION: [],
        "PSCA without β": ["--config.model.progressive=False"],
        "plain cross-attention": ["--config.model.window=-1"],
        "no visual cross-attention": ["--config.model.balance=1.0"],
    },
    "learning": {
        DEMONSTRATION: [],
        "no alignment": ["--config.flow.loss.alignment_weight=0.0"],
        "AdamW": ["--config.optim.kind=adamw"],
        "AdamW, no alignment": ["--config.optim.kind=adamw", "--config.flow.loss.alignment_weight=0.0"],
        "batch 16": _BATCH_16,
        "uniform times": ["--config.flow.time.kind=uniform"],
        "logit-normal times": ["--config.flow.time.kind=logit_normal", "--config.flow.time.std=1.0"],
        "no coupling": ["--config.flow.immiscible=False"],
        "no direction loss": ["--config.flow.loss.direction_weight=0.0"],
        "dropout 0.1": ["--config.model.dropout=0.1"],
    },
}
# Metric, heading, digits and unit of each column.
FIGURES = (
    ("onset-F1", "F1", 3, ""),
    ("onset-error-ms", "median error", 1, " ms"),
    ("onset-precision", "precision", 3, ""),
    ("onset-recall", "recall", 3, ""),
    ("AV-Align", "AV-Align", 3, ""),
    ("FD-TAGGER", "FD", 1, ""),
    ("log-mel-FD", "log-mel FD", 0, ""),
    ("KAD-TAGGER", "KAD", 2, ""),
    ("KL-TAGGER-softmax", "KL", 2, ""),
    ("material-accuracy", "materials", 2, ""),
    ("motion-accuracy", "motions", 2, ""),
    ("LUFS", "LUFS", 1, ""),
    ("valid_loss", "validation loss", 4, ""),
)
POLL_SECONDS = 20.0

_STUDY = flags.DEFINE_enum("study", "attention", list(STUDIES), "What to vary.")
_OUT = flags.DEFINE_string("out", "runs/ablation", "Folder for the runs and the tables.")
_SEEDS = define_int("seeds", 3, "Runs per variant.", Range(least=1, most=1000))
_STEPS = define_int(
    "steps", 1200, "Training steps with a batch of 8; other batches see as many clips.", Range(least=1)
)
_JOBS = define_int("jobs", os.cpu_count() or 1, "Concurrent runs, one core each.", PROCESSES)


class Run:
    """A process, pinned to one core, that trains and scores one variant with one seed."""

    def __init__(self, variant: str, changes: list[str], steps: int, seed: int, folder: Path):
        self.variant, self.steps, self.seed, self.folder = variant, steps, seed, folder
        self._changes = changes
        self._process: subprocess.Popen | None = None

    @property
    def result(self) -> dict[str, float] | None:
        """Figures of the run; None before it is finished."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def step(self) -> int:
        """Last step in the run's metrics."""
        path = self.folder / "train" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def start(self, clips: Path, records: Path, core: int) -> None:
        """Start the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "benchmarks.ablation_run"),
            *(f"--out={self.folder}", f"--clips={clips}"),
            f"--tagger={self.folder.parent / TAGGER_FILE}",
            *("--config=configs/impacts.py", f"--config.data.records={records}"),
            *(f"--config.seed={self.seed}", f"--config.train.steps={self.steps}"),
            # Never: previews cost time and are not scored.
            f"--config.train.preview_every={10 * self.steps}",
        ]
        with (self.folder / "log.txt").open("a") as log:
            self._process = subprocess.Popen(command + self._changes, stdout=log, stderr=log)
        os.sched_setaffinity(self._process.pid, {core})

    def has_ended(self) -> bool:
        """Return whether the process has ended.

        Raises:
          FlowleyError: it failed.
        """
        assert self._process is not None
        code = self._process.poll()
        if code:
            raise FlowleyError(
                f"{self.variant}, seed {self.seed} failed with code {code}; see {self.folder}/log.txt"
            )
        return code == 0


def main() -> int:
    """Train and score every run; print the table and write it as Markdown and JSON."""
    from data_prep.impacts.generate import ClipSetConfig
    from flowley_jax.demo.stages import prepare_clips

    out, variants = Path(_OUT.value), STUDIES[_STUDY.value]
    clips, records = prepare_clips(ClipSetConfig(), out, workers=_JOBS.value)
    runs = [
        Run(variant, changes, _steps(changes), seed, out / f"{_folder_name(variant)}_{seed}")
        for seed in range(_SEEDS.value)
        for variant, changes in variants.items()
    ]
    _run_all(runs, clips, records, _JOBS.value)
    table, path = _table(runs), out / f"{_STUDY.value}.md"
    path.with_suffix(".json").write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    path.write_text(_markdown(table))
    print(_markdown(table), end="")
    print(f"table: {path}")
    return 0


def _steps(changes: list[str]) -> int:
    """Return the steps of a variant, in which it sees as many clips as the demonstration."""
    batches = [int(change.removeprefix(_BATCH_FLAG)) for change in changes if change.startswith(_BATCH_FLAG)]
    return _STEPS.value * _BATCH // (batches[0] if batches else _BATCH)


def _folder_name(variant: str) -> str:
    return variant.replace(" ", "_").replace(",", "").replace("β", "beta")


def _run_all(runs: list[Run], clips: Path, records: Path, jobs: int) -> None:
    unfinished = [run for run in runs if run.result is None]
    print(f"{len(runs) - len(unfinished)} of {len(runs)} runs are already finished", file=sys.stderr)
    cores = sorted(os.sched_getaffinity(0))
    free_cores, active = [cores[job % len(cores)] for job in range(jobs)], {}
    total, started = len(unfinished), time.monotonic()
    all_steps = sum(run.steps for run in unfinished)
    earlier_steps = sum(run.step for run in unfinished)
    queue = list(unfinished)
    while queue or active:
        while queue and free_cores:
            run, core = queue.pop(0), free_cores.pop(0)
            run.start(clips, records, core)
            active[run] = core
        time.sleep(POLL_SECONDS)
        for run in [run for run in active if run.has_ended()]:
            free_cores.append(active.pop(run))
        new_steps = sum(run.step for run in unfinished) - earlier_steps
        seconds_per_step = (time.monotonic() - started) / max(1, new_steps)
        minutes_left = seconds_per_step * (all_steps - earlier_steps - new_steps) / 60
        running = ", ".join(f"{run.variant} {run.seed}: {run.step}/{run.steps}" for run in active)
        finished = total - len(queue) - len(active)
        print(
            f"{finished}/{total} finished; {running}; about {minutes_left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


def _table(runs: list[Run]) -> dict[str, dict]:
    rows = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        results = [run.result or {} for run in runs if run.variant == variant]
        rows[variant] = {
            name: {
                "mean": float(np.mean([result[name] for result in results])),
                "std": float(np.std([result[name] for result in results], ddof=min(1, len(results) - 1))),
                "runs": [result[name] for result in results],
            }
            for name, *_ in FIGURES
        }
    return rows


def _markdown(table: dict[str, dict]) -> str:
    lines = [
        f"| variant | {' | '.join(heading for _, heading, *_ in FIGURES)} |",
        "|---" * (1 + len(FIGURES)) + "|",
    ]
    for variant, row in table.items():
        cells = (_cell(row[name], digits) + unit for name, _, digits, unit in FIGURES)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: dict, digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


if __name__ == "__main__":
    run_main(main)
