"""The benchmark of the evaluation measures networks, reading and memory, and keeps older figures."""

import json

import pytest
import shell

from benchmarks import evaluate_tasks

SHAPES = {
    "panns": {"waves": (128_000,)},
    "vggish": {"examples": (8, 96, 64)},
    "passt": {"waves": (320_000,)},
    "clap": {"waves": (384_000,)},
    "captions": {"ids": (77,)},
    "imagebind": {"images": (3, 128, 204)},
    "synchformer": {"segments": (24, 10_240)},
    "imagebind_video": {"crops": (4, 3, 224, 224, 3)},
    "synchformer_video": {"frames": (200, 224, 224, 3)},
    "tagger": {"log_mels": (500, 80)},
}


def _measure(folder, *flags):
    result = shell.run("benchmarks.evaluate", "--turns=1", f"--out={folder}", *flags)
    assert result.returncode == 0, result.stderr
    assert (folder / "cpu.md").read_text() in result.stdout
    return json.loads((folder / "cpu.json").read_text()), result.stdout


def test_a_network_is_measured_and_older_figures_are_kept(tmp_path):
    older = {
        "reading": {"a sound": {"seconds_per_clip": 0.25, "clips_per_second": [3.0, 4.0, 5.0]}},
        "memory": {"64": {"clips": 64, "peak_bytes": 2**30, "seconds": 10.0}},
    }
    (tmp_path / "cpu.json").write_text(json.dumps(older))
    figures, shown = _measure(tmp_path, "--only=tagger")
    assert figures["float32"]["tagger"]["share"] > 0
    assert figures["reading"] == older["reading"] and figures["memory"] == older["memory"]
    for line in ("| tagger | 16 | ", "| a sound | 4 (3–5) | 0.250 |\n", "| 64 | 1,024 MiB | 10.0 |\n"):
        assert line in shown


@pytest.mark.scale
def test_memory_is_measured(tmp_path):
    figures, _ = _measure(tmp_path, "--only=memory", "--sounds=1")
    assert figures["memory"]["1"]["peak_bytes"] > 2**28


def test_unknown_parts_are_named(tmp_path):
    shell.fails_in_one_line(
        shell.run("benchmarks.evaluate", "--only=tager", f"--out={tmp_path}"),
        "--only=tager must be one of",
    )


def test_reading_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_tasks, "READINGS", {"a sound": ("panns", "level"), "level": ("level",)})
    rows = dict(evaluate_tasks.measure_reading(tmp_path, turns=3))
    low, middle, high = rows["a sound"]["clips_per_second"]
    assert 0 < low <= middle <= high
    assert rows["level"]["seconds_per_clip"] > 0


@pytest.mark.parametrize("name", evaluate_tasks.NETWORKS)
def test_inputs_are_of_eight_seconds(name):
    shapes = {key: array.shape for key, array in evaluate_tasks.noise_inputs(name).items()}
    assert shapes == SHAPES[name]


def test_flops_are_those_of_the_network():
    # Matrix products of 77 tokens in 12 layers of width 768; norms and GELUs add little.
    inputs = [evaluate_tasks.noise_inputs("captions")] * 2
    products = 12 * 2 * (12 * 77 * 768**2 + 2 * 77**2 * 768) * 2
    flops = evaluate_tasks.program_flops(evaluate_tasks.EXTRACTORS["captions"], "float32", inputs)
    assert 1.0 < flops / products < 1.05
