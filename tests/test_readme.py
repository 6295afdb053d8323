"""The README's Python code runs, and commands, flags, files and links on every page exist."""

import re
from pathlib import Path

import numpy as np
import pytest

from flowley_jax.media.read import probe
from flowley_jax.media.write import write_video

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _python_block(text: str) -> str:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]


def test_the_python_example_writes_a_video_with_sound(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/train").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    write_video("a.mp4", frames, 24.0)
    block = _python_block(README)
    assert len(block.splitlines()) <= 12
    names: dict = {}
    exec(block, names)
    assert names["waves"].shape == (2, 16_000 * 30 // 24)
    assert np.abs(names["waves"]).max() > 0
    info = probe("a_first.mp4")
    assert info.has_audio and info.width == 64


def test_the_python_example_of_sampling_makes_sounds_from_text(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/train").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    block = _python_block((ROOT / "docs/sampling.md").read_text())
    names: dict = {}
    exec(block.replace("steps=50", "steps=2").replace("seconds=8.0", "seconds=1.5"), names)
    assert names["waves"].shape == (4, 16_000 * 3 // 2)


@pytest.mark.scale
def test_published_weights_convert_both_ways():
    import golden_data
    import jax.numpy as jnp

    block = _python_block((ROOT / "docs/published.md").read_text()).replace("ModelConfig()", "config")
    video, text, text_len = golden_data.conditions("a_shared")
    data = golden_data.load("a_shared")
    original = golden_data.state_dict("a_shared")
    names = {
        "state_dict": original,
        "config": golden_data.model("a_shared").config,
        "latent": jnp.asarray(data["in/audio_latent"]),
        "video": video,
        "text": text,
        "text_len": text_len,
        "t": jnp.asarray(data["in/t"]),
    }
    exec(block, names)
    assert golden_data.relative_error(names["velocity"], data["out/flow"]) < 1e-5
    assert names["state_dict"].keys() == original.keys()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_commands_and_files_exist(page):
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()
    for module in set(re.findall(r"python -m ((?!apache_beam)[a-z_.]+)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", text, re.MULTILINE)):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for file in re.findall(r"`(configs/\w+\.py|tests/\w+)`", text):
        assert (ROOT / file).exists(), file
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_flags_of_the_sampler_exist():
    sources = ("flowley_jax/sample.py", "flowley_jax/common/model_flags.py")
    sample = "".join((ROOT / source).read_text() for source in sources)
    section = README[README.index("## Sound for your clip") : README.index("## Train on your clips")]
    for flag in set(re.findall(r"--([a-z-]+)", section)) - {"help"}:
        assert f'"{flag.replace("-", "_")}"' in sample, flag


def test_the_readme_is_short():
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 900


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_sentences_are_short(page):
    long = [
        sentence for sentence in _sentences(page.read_text(encoding="utf-8")) if len(sentence.split()) > 30
    ]
    assert not long, "\n".join(long)


def _sentences(text: str) -> list[str]:
    """Return the sentences of a page, without code; list items and table cells count by themselves."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)|\|", text)
    return [
        " ".join(sentence.split()) for block in blocks for sentence in re.split(r"(?<=[.!?:;])\s+", block)
    ]
