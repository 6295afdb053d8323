"""Packages import one way: only from lower layers, function bodies and TYPE_CHECKING blocks included."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From low to high. Packages of one layer do not import each other.
LAYERS = (
    ("errors",),
    ("common",),
    ("kernels", "media", "report"),
    ("model",),
    ("flow",),
    ("config",),
    ("networks",),
    ("interop",),
    ("audio", "encoders"),
    ("data",),
    ("runs",),
    ("training", "sampling"),
    ("aot", "evaluation"),
    ("config_help", "config_file"),
    ("config_flag",),
    ("cli",),
    ("demo", "app"),
    ("train", "sample", "evaluate", "compile", "convert", "ema", "mux", "publish"),
    # The package itself offers the public names.
    ("__init__",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
# Command lines that prepare data too.
MAY_IMPORT_DATA_PREP = ("flowley_jax.demo", "flowley_jax.evaluate", "flowley_jax.sample")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a module imports, wherever in its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the package that they name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {
    module_name(path): sorted(imports_of(path))
    for package in ("flowley_jax", "data_prep", "launch")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def package_of(name: str) -> str:
    """Return the member of flowley_jax that a full name is in; a public name is in `__init__`."""
    member = name.split(".")[1] if "." in name else "__init__"
    exists = (ROOT / "flowley_jax" / member).is_dir() or (ROOT / "flowley_jax" / f"{member}.py").exists()
    return member if exists else "__init__"


def test_every_member_of_the_package_has_a_layer():
    members = {path.stem for path in (ROOT / "flowley_jax").glob("*.py")}
    members |= {path.parent.name for path in (ROOT / "flowley_jax").glob("*/__init__.py")}
    assert members == LEVELS.keys()


def test_packages_import_only_from_lower_layers():
    upward = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if module.startswith("flowley_jax.") and name.split(".")[0] == "flowley_jax"
        if package_of(module) != package_of(name)
        if LEVELS[package_of(name)] >= LEVELS[package_of(module)]
    ]
    assert not upward, "\n".join(upward)


def test_the_package_imports_data_prep_only_in_a_few_commands():
    users = ("data_prep", "launch", "benchmarks", "configs", "tests")
    found = {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if module.split(".")[0] == "flowley_jax" and name.split(".")[0] in users
    }
    allowed = {
        (module, name)
        for module, name in found
        if name.startswith("data_prep.") and ".".join(module.split(".")[:2]) in MAY_IMPORT_DATA_PREP
    }
    assert found == allowed
    assert {".".join(module.split(".")[:2]) for module, _ in allowed} == set(MAY_IMPORT_DATA_PREP)


def test_sample_imports_data_prep_only_for_soundcap():
    tree = ast.parse((ROOT / "flowley_jax/sample.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    outside = [node for node in tree.body if node not in functions]
    assert "data_prep" not in "\n".join(map(ast.unparse, outside))
    assert all(
        "soundcap" in ast.unparse(node).lower() for node in functions if "data_prep" in ast.unparse(node)
    )


def test_no_packages_import_each_other():
    """Repeatedly remove members that import no remaining member; a cycle would remain."""
    members = {member_of(module) for module in IMPORTS}
    arrows = {
        (member_of(module), member_of(name))
        for module, names in IMPORTS.items()
        for name in names
        if member_of(name) in members and member_of(name) != member_of(module)
    }
    while free := members - {importer for importer, imported in arrows if imported in members}:
        members -= free
    assert not members, sorted(arrow for arrow in arrows if set(arrow) <= members)


def member_of(name: str) -> str:
    """Return the package or module right below a top-level package that a full name is in."""
    return ".".join(name.split(".")[:2])
