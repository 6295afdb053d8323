"""The demonstration end to end on a few clips: every stage, its files, and their reuse (make test-scale)."""

import json

import pytest

from configs.impacts import get_config
from data_prep.impacts.generate import ClipSetConfig
from flowley_jax.config import experiment_from
from flowley_jax.demo.stages import run_demonstration
from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.sampler import Sampler

pytestmark = pytest.mark.scale

CLIPS = ClipSetConfig(train=6, valid=2, test=4, seconds=3.0)


def _experiment():
    config = get_config()
    config.model.update(width=16, multi_depth=1, single_depth=2)
    config.data.batch_size = 3
    config.train.update(steps=3, log_every=1, valid_every=3, preview_every=3, checkpoint_every=3)
    config.ema.snapshot_every = 3
    config.sample.solver.steps = 2
    return experiment_from(config.to_dict())


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demonstration(_experiment(), CLIPS, out, workers=2)


def test_figures_are_json_and_in_range(demonstration):
    _, figures = demonstration
    figures = json.loads(json.dumps(figures))
    for name in ("f1", "precision", "recall", "ceiling_f1", "floor_f1", "real_f1"):
        assert 0.0 <= figures[name] <= 1.0
    # Six training clips are too few for a tagger.
    assert figures["fd"] is None and figures["material_accuracy"] is None
    assert figures["ceiling_f1"] > 0.8 and figures["real_f1"] > 0.8
    assert 1 <= figures["clips"] <= 4


def test_videos_report_and_picture_are_written(demonstration):
    out, figures = demonstration
    assert len(list((out / "samples").glob("*.mp4"))) == 4
    page = (out / "report.html").read_text()
    assert page.count("<video") == 2 * figures["clips"]
    assert page.count('alt="soft mask of layer') == 2
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_files_of_someone_else_are_kept(tmp_path):
    for name in ("report.html", "overview.png"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(FlowleyError, match=f"{name}: already exists and was not written by this program"):
            run_demonstration(_experiment(), CLIPS, out, workers=2)
        assert (out / name).read_text() == "mine" and len(list(out.iterdir())) == 1


def test_a_second_run_reuses_every_file(demonstration, monkeypatch):
    out, figures = demonstration
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}

    def never(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(Sampler, "sample", never)
    again = run_demonstration(_experiment(), CLIPS, out, workers=2)
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == kept
