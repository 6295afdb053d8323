"""Installing: declared packages, lock file, make targets, the wheel and what it imports."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import children
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


def test_lock_has_versions_and_hashes_and_no_addresses():
    entries = [entry for entry in re.split(r"\n(?=\S)", LOCK) if entry.strip()]
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry) and "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in LOCK and "--index" not in LOCK and " @ " not in LOCK


def test_lock_has_no_other_deep_learning_framework():
    assert not {"torch", "tensorflow", "tensorflow-cpu", "torchaudio"} & locked().keys()


def test_lock_has_a_jax_for_every_supported_python():
    assert PROJECT["requires-python"] == ">=3.11"
    major, minor, _ = locked()["jax"].split(".")
    assert (int(major), int(minor)) == (0, 10)


def test_import_is_light():
    heavy = {"jax", "numpy", "flax", "matplotlib", "absl"}
    assert python(f"import sys, flowley_jax; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_public_names_are_imported_on_first_use():
    for name in flowley_jax.__all__:
        assert getattr(flowley_jax, name).__module__.startswith("flowley_jax."), name
    assert set(flowley_jax.__all__) <= set(dir(flowley_jax))
    with pytest.raises(AttributeError, match="module 'flowley_jax' has no attribute 'nothing'"):
        _ = flowley_jax.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_train_is_a_function_and_a_module():
    code = (
        "import flowley_jax.evaluation.during_training as during_training\n"
        "from flowley_jax import train; assert train is during_training.train\n"
        # Once the module is imported, Python finds it under this name: it can be called like the function.
        "import flowley_jax.train; assert flowley_jax.train.main.__name__ == 'main'\n"
        "during_training.train = lambda *arguments: arguments\n"
        "from flowley_jax import train; print(train('config', 'workdir'))"
    )
    assert python(code) == "('config', 'workdir')"


def python(code: str) -> str:
    return children.run([sys.executable, "-c", code], check=True, cwd=ROOT).stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the package installed from a wheel, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "src").mkdir()
    for name in ("flowley_jax", "data_prep", "configs", "pyproject.toml", "setup.py", "LICENSE", "README.md"):
        (folder / "src" / name).symlink_to(ROOT / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    children.run([*install, "--no-build-isolation", "--target", folder / "lib", folder / "src"], check=True)
    return folder / "lib"


def run_installed(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    return children.run([sys.executable, *arguments], cwd=cwd, env=environment)


def test_wheel_holds_code_and_data(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*")}
    assert {f"flowley_jax/{name}" for name in ("py.typed", "report/page.css", "report/page.js")} <= files
    assert {f"flowley_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= files
    for folder in ("flowley_jax", "data_prep"):
        for suffix in (".py", ".txt", ".css", ".js"):
            sources = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f"*{suffix}")}
            assert sources <= files
    assert not {name for name in files if name.startswith(("launch", "benchmarks", "tests", "configs"))}


CONFIGURED = ("data_prep.extract", "flowley_jax.demo", "flowley_jax.train")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("data_prep.extract",), "  seconds: float at least 0.01 and at most 3600 = 4.0"),
        (
            ("data_prep.extract", "--config=configs/records.py:published"),
            "  seconds: float at least 0.01 and at most 3600 = 8.0",
        ),
        (("flowley_jax.demo",), "  data.records: str = runs/demo/records"),
        (("flowley_jax.train", "--config", "vggsound.py:debug"), "  train.steps: int at least 1 = 2"),
        (("flowley_jax.train",), "  data.batch_size: int at least 1 = 512"),
    ],
)
def test_installed_commands_find_their_configuration(installed, tmp_path, arguments, line):
    result = run_installed(installed, "-m", *arguments, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert line in result.stdout.splitlines()
    assert str(installed) in result.stdout and str(ROOT) not in result.stdout


def test_installed_commands_show_help(installed, tmp_path):
    sources = [path for folder in ("flowley_jax", "data_prep") for path in (installed / folder).rglob("*.py")]
    commands = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__main__")
        for path in sources
        if "run_main(main" in path.read_text(encoding="utf-8")
    ]
    assert len(commands) >= 14
    # The other test has their help.
    commands = [command for command in commands if command not in CONFIGURED]
    # One process that forks: most of these commands take less time than the start of Python.
    script = (
        "import os, runpy, sys\n"
        "for module in sys.argv[1:]:\n"
        "    if not os.fork():\n"
        "        sys.argv = [module, '--help']\n"
        "        runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "        os._exit(9)\n"
        "    print(module, os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)\n"
    )
    result = run_installed(installed, "-c", script, *commands, cwd=tmp_path)
    assert result.stderr.splitlines() == [f"{command} 0" for command in commands]
    assert result.stdout.count("--[no]verbose") == len(commands)


def test_an_installed_extraction_needs_no_configuration_file(installed, tmp_path):
    flags = ("-m", "data_prep.extract", "--table=none.tsv", "--out=records")
    result = run_installed(installed, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: none.tsv: ")


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    (tmp_path / "apache_beam.py").write_text("raise ModuleNotFoundError('none', name='apache_beam')")
    flags = ("-m", "data_prep.extract", "--table=none.tsv", "--out=records")
    result = run_installed(tmp_path, *flags, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == "error: apache-beam is not installed: pip install apache-beam\n"


def make(folder: Path, *arguments: str, interpreters: str) -> subprocess.CompletedProcess[str]:
    """Run make in an empty copy where every Python on the path is the given script."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        script = folder / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(interpreters, encoding="utf-8")
        script.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    # Under `make test`, the outer make would pass on its own options.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    return children.run(["make", *arguments], cwd=folder, env=environment)


@pytest.mark.parametrize(
    ("interpreters", "line"),
    [(TOO_OLD, "Python 3.11 or later is needed"), (NO_ENSUREPIP, "apt-get install python3.13-venv")],
)
def test_make_reports_in_one_line_what_the_machine_lacks(tmp_path, interpreters, line):
    result = make(tmp_path, "test", interpreters=interpreters)
    assert result.returncode != 0
    complaints = [text for text in result.stderr.splitlines() if not text.startswith("make")]
    assert len(complaints) == 1 and complaints[0].startswith("error: ") and line in complaints[0]


def test_make_help_lists_every_target(tmp_path):
    result = make(tmp_path, interpreters=TOO_OLD)
    assert result.returncode == 0
    for target in ("venv", "test", "demo", "ablation", "lint", "lock", "clean"):
        assert f"make {target} " in result.stdout


def test_version_comes_from_the_package():
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", flowley_jax.__version__)
