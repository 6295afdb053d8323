"""The report: complete, self-contained, escaped, and never half written."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowley_jax.errors import FlowleyError
from flowley_jax.report import ReportClip, write_report
from flowley_jax.report.curves import column, running_mean
from flowley_jax.report.images import heat_map
from flowley_jax.report.plot import ticks

HOSTILE = "a <script>alert('x')</script> & \"glass\" ball"


class Page(HTMLParser):
    """Tags, attributes and text of a page, in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    def sources(self, tag: str) -> list[str]:
        return [attributes["src"] or "" for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def make_clip(folder: Path, title: str, *, real: bool = True) -> ReportClip:
    generator = np.random.default_rng(len(title))
    video, real_video = folder / f"{len(title)}_generated.mp4", folder / f"{len(title)}_real.mp4"
    video.write_bytes(generator.bytes(1000))
    real_video.write_bytes(generator.bytes(900))
    return ReportClip(
        title=title,
        video=video,
        real_video=real_video if real else None,
        events=np.array([0.5, 1.0]),
        detected=np.array([0.52]),
        real_mel=generator.normal(size=(100, 20)),
        generated_mel=generator.normal(size=(80, 20)),
        frame_rate=50.0,
        remarks="F1 0.67 · 2 true events, 1 onset",
    )


def make_report(folder: Path, **changes) -> Page:
    content = {
        "title": "Impacts & more",
        "figures": {"F1": ("0.91", "Higher is better."), "floor": ("0.33", "What <chance> gives.")},
        "history": [{"step": 10, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0, "valid/loss": 1.5}],
        "masks": np.linspace(0, 1, 3 * 8 * 6).reshape(3, 8, 6),
        "clips": [make_clip(folder, HOSTILE), make_clip(folder, "water runs", real=False)],
        "settings": {"optim": {"learning_rate": 0.001}, "data": "<b>here</b>"},
    } | changes
    write_report(folder / "report.html", **content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def decoded(uri: str) -> bytes:
    head, body = uri.split(",", 1)
    assert head.startswith("data:") and head.endswith(";base64")
    return base64.b64decode(body, validate=True)


def test_every_input_is_shown(tmp_path):
    page = make_report(tmp_path)
    for expected in ("F1", "0.91", "Higher is better.", "What <chance> gives.", "water runs", "F1 0.67"):
        assert expected in page.text
    for expected in ("2 true events, 1 onset", "optim.learning_rate", "0.001", "layer 3", "training, last 1"):
        assert expected in page.text
    assert sum(name == "article" for name, _ in page.tags) == 2
    assert len(page.sources("img")) == 2 * 2 + 3


def test_videos_are_embedded_byte_for_byte(tmp_path):
    names = [f"{len(HOSTILE)}_generated.mp4", f"{len(HOSTILE)}_real.mp4", "10_generated.mp4"]
    embedded = [decoded(uri) for uri in make_report(tmp_path).sources("video")]
    assert embedded == [(tmp_path / name).read_bytes() for name in names]


def test_the_page_fetches_nothing(tmp_path):
    page = make_report(tmp_path)
    for name, attributes in page.tags:
        assert name not in {"link", "iframe", "base", "object", "embed"}
        assert not {"href", "srcset", "poster", "data", "action"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http:" not in source and "https:" not in source and "@import" not in source
    assert "default-src 'none'" in source


def test_text_never_becomes_markup(tmp_path):
    page = make_report(tmp_path)
    assert HOSTILE in page.text and "<b>here</b>" in page.text and "Impacts & more" in page.text
    assert sum(name == "script" for name, _ in page.tags) == 1
    assert "alert" not in (tmp_path / "report.html").read_text(encoding="utf-8").split("<script>")[1]


def test_a_missing_video_is_named_and_the_older_report_stays(tmp_path):
    make_report(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    clip = make_clip(tmp_path, "gone")
    clip.video.unlink()
    with pytest.raises(FlowleyError, match=r"4_generated\.mp4: the report needs this video"):
        make_report(tmp_path, clips=[clip])
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_failed_write_keeps_the_older_report_and_leaves_no_partial_file(tmp_path, monkeypatch):
    make_report(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowley_jax.common.files.os.replace", full_disk)
    with pytest.raises(FlowleyError, match="cannot be written"):
        make_report(tmp_path, title="another")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_empty_inputs_leave_no_empty_sections(tmp_path):
    page = make_report(tmp_path, history=[], masks=None, clips=[], settings={}, figures={})
    assert "h2" not in {name for name, _ in page.tags}
    assert "Impacts & more" in page.text


def test_losses_that_are_missing_or_not_finite_are_skipped(tmp_path):
    rows = [
        {"step": 1, "train/loss": float("nan")},
        {"step": 2, "train/loss": 3.0},
        {"step": 3},
        {"step": 4, "train/loss": float("inf")},
    ]
    steps, values = column(rows, "train/loss")
    np.testing.assert_array_equal(steps, [2])
    np.testing.assert_array_equal(values, [3.0])
    page = make_report(tmp_path, history=rows)
    paths = [attributes["d"] or "" for name, attributes in page.tags if name == "path"]
    assert "training, last 3" in page.text and paths
    assert not any("nan" in path or "inf" in path for path in paths)


def test_a_long_history_shows_raw_values_and_their_mean(tmp_path):
    rows = [{"step": step, "train/loss": 1.0, "step_time": 0.2, "data_wait": 0.01} for step in range(1, 500)]
    page = make_report(tmp_path, history=rows)
    styles = [attributes.get("class") for name, attributes in page.tags if name == "path"]
    assert styles.count("faint first") == styles.count("first") == 1
    assert "200 ms (10.0 ms of it waiting for data)" in page.text


def test_marks_are_at_the_times_of_the_events(tmp_path):
    page = make_report(tmp_path, clips=[make_clip(tmp_path, "one")])
    lines = [(attributes["class"], attributes["x1"]) for name, attributes in page.tags if name == "line"]
    # The axis spans the longer sound: 100 frames at 50 frames per second are 2 s.
    assert lines.count(("true", "25.00%")) == lines.count(("true", "50.00%")) == 3
    assert lines.count(("heard", "26.00%")) == 1
    widths = [
        attributes["style"] for name, attributes in page.tags if name == "img" and "style" in attributes
    ]
    assert widths == ["width:100.00%", "width:80.00%"]


def test_heat_maps_clip_and_order_levels():
    values = np.array([[-5.0, 0.0, 0.5], [1.0, 9.0, np.nan]])
    image = Image.open(io.BytesIO(decoded(heat_map(values, low=0.0, high=1.0))))
    np.testing.assert_array_equal(np.asarray(image), [[0, 0, 128], [255, 255, 0]])
    brightness = np.asarray(image.convert("L"), np.int64)
    assert brightness[0, 0] < brightness[0, 2] < brightness[1, 0]


def test_the_running_mean_equals_direct_sums():
    values = np.random.default_rng(0).normal(size=40)
    direct = [values[max(0, i - 3) : i + 4].mean() for i in range(40)]
    np.testing.assert_allclose(running_mean(values, 7), direct, rtol=0, atol=1e-12)


def test_ticks_are_round_and_inside_the_range():
    assert ticks(0.0, 2.0, 5) == [(0.0, "0"), (0.25, "0.5"), (0.5, "1"), (0.75, "1.5"), (1.0, "2")]
    assert all(0 <= at <= 1 for at, _ in ticks(0.013, 7.77, 5))


@pytest.mark.parametrize("shape", [(0, 20), (20,), (1, 2, 3)])
def test_a_spectrogram_of_a_different_rank_is_refused(tmp_path, shape):
    clip = make_clip(tmp_path, "one")
    with pytest.raises(ValueError, match=r"one: real_mel must be \(frames, bins\)"):
        ReportClip(**(vars(clip) | {"real_mel": np.zeros(shape)}))
