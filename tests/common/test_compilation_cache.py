"""The folder of the compilation cache, and folders that cannot be used."""

import jax
import pytest

from flowley_jax.common import compilation_cache
from flowley_jax.common.compilation_cache import use_compilation_cache
from flowley_jax.errors import FlowleyError

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """JAX's own settings, with a user's folder for the test."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    for name, value in zip(SETTINGS, (True, None, -1, 1.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _used(folder=None):
    """Return JAX's settings after a command used the cache."""
    use_compilation_cache(folder)
    return {name: jax.config.values[name] for name in SETTINGS}


def _cache(folder):
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("{}/xdg", "xdg/flowley-jax"), ("xdg", "home/.cache/flowley-jax"), ("", "home/.cache/flowley-jax")],
)
def test_the_default_is_in_the_users_cache_folder(tmp_path, monkeypatch, variable, expected):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", variable.format(tmp_path))
    used = _used()
    assert used["jax_compilation_cache_dir"] == str(_cache(tmp_path / expected))
    assert 0 < used["jax_compilation_cache_max_size"] < 2**33
    assert used["jax_persistent_cache_min_compile_time_secs"] == 0


def test_a_flag_comes_before_the_variable_and_the_variable_before_the_default(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "variable"))
    used = _used()
    assert used["jax_compilation_cache_dir"] == str(tmp_path / "variable")
    # JAX's own settings hold in its folder.
    assert used["jax_compilation_cache_max_size"] == -1
    assert list(tmp_path.iterdir()) == []
    used = _used(str(tmp_path / "flag"))
    assert used["jax_compilation_cache_dir"] == str(_cache(tmp_path / "flag"))


def test_jaxs_variables_for_the_time_and_for_no_cache_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    assert _used()["jax_persistent_cache_min_compile_time_secs"] == 1
    jax.config.update("jax_enable_compilation_cache", False)
    used = _used(str(tmp_path / "flag"))
    assert not used["jax_enable_compilation_cache"] and not (tmp_path / "flag").exists()


def test_none_turns_the_cache_off_and_empty_text_is_refused(tmp_path):
    assert not _used("none")["jax_enable_compilation_cache"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FlowleyError, match="--compilation-cache='' must name a folder"):
        use_compilation_cache("")


def test_cpus_with_other_features_have_a_cache_of_their_own(tmp_path, monkeypatch):
    def folder_of(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(compilation_cache, "_CPU_INFO", tmp_path / "cpuinfo")
        return _used(str(tmp_path / "caches"))["jax_compilation_cache_dir"]

    first = folder_of("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n")
    assert folder_of("cpu MHz\t: 2100\nflags\t\t: avx2 fpu\n") == first
    others = {folder_of("flags\t\t: fpu avx2 avx512f\n"), folder_of("Features\t: asimd\n")}
    assert len({first, *others}) == 3


def test_only_programs_that_were_written_to_their_end_are_kept(tmp_path):
    use_compilation_cache(str(tmp_path))
    cache = _cache(tmp_path)
    names = ("whole-cache", "whole-atime", "cut-cache")
    for name in names:
        (cache / name).write_bytes(b"1")
    use_compilation_cache(str(tmp_path))
    assert {path.name for path in cache.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    used = _used(str(tmp_path / "file" / "cache"))
    assert not used["jax_enable_compilation_cache"]
    (record,) = caplog.records
    assert str(tmp_path / "file" / "cache") in record.getMessage()
    assert "--compilation-cache names another folder, or none" in record.getMessage()


def test_a_user_without_a_home_has_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation_cache.Path, "home", no_home)
    assert not _used()["jax_enable_compilation_cache"]
    (record,) = caplog.records
    assert "home directory" in record.getMessage()
