"""What a fresh clone relies on: declared packages, lock file, make targets, a light import."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flowley_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
TOO_OLD = "#!/bin/sh\nexit 1\n"
NO_ENSUREPIP = f'#!/bin/sh\n[ "$2" = "import ensurepip, venv" ] && exit 1\nexec {sys.executable} "$@"\n'


def normalised(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", LOCK, re.MULTILINE))


def test_lock_covers_every_requirement():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert {normalised(requirement) for requirement in wanted} <= locked().keys()


def test_lock_is_pinned_hashed_and_free_of_places():
    entries = [entry for entry in re.split(r"\n(?=\S)", LOCK) if entry.strip()]
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry) and "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in LOCK and "--index" not in LOCK and " @ " not in LOCK


def test_lock_holds_no_second_framework():
    assert not {"torch", "tensorflow", "tensorflow-cpu", "torchaudio"} & locked().keys()


def test_lock_keeps_a_jax_that_every_supported_python_has():
    assert PROJECT["requires-python"] == ">=3.11"
    major, minor, _ = locked()["jax"].split(".")
    assert (int(major), int(minor)) == (0, 10)


def test_import_is_light():
    command = (
        "import sys, flowley_jax; print(sorted({'jax', 'numpy', 'flax', 'matplotlib'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_wheel_holds_code_and_data(tmp_path):
    (tmp_path / "src").mkdir()
    for name in ("flowley_jax", "data_prep", "pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            (tmp_path / "src" / name).symlink_to(ROOT / name)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=tmp_path / "src", check=True, capture_output=True)
    built = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*")}
    assert {f"flowley_jax/{name}" for name in ("py.typed", "report/page.css", "report/page.js")} <= built
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "flowley_jax").rglob("*.py")}
    assert sources <= built


def make(folder: Path, *arguments: str, interpreters: str) -> subprocess.CompletedProcess[str]:
    """Runs make in an empty copy where every Python on the path is the given script."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        script = folder / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(interpreters, encoding="utf-8")
        script.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    # Under `make test` the outer make would pass its own options on.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("interpreters", "line"),
    [(TOO_OLD, "Python 3.11 or later is needed"), (NO_ENSUREPIP, "apt-get install python3.13-venv")],
)
def test_make_says_in_one_line_what_the_machine_lacks(tmp_path, interpreters, line):
    result = make(tmp_path, "test", interpreters=interpreters)
    assert result.returncode != 0
    complaints = [text for text in result.stderr.splitlines() if not text.startswith("make")]
    assert len(complaints) == 1 and complaints[0].startswith("error: ") and line in complaints[0]


def test_make_help_lists_every_target(tmp_path):
    result = make(tmp_path, interpreters=TOO_OLD)
    assert result.returncode == 0
    for target in ("venv", "test", "demo", "ablation", "lint", "lock", "clean"):
        assert f"make {target} " in result.stdout


def test_version_is_that_of_the_package():
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", flowley_jax.__version__)
