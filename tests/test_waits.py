"""No test can hang: every program that a test starts has a time limit."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def _calls(name: str) -> list[tuple[str, ast.Call]]:
    """Return the calls `subprocess.<name>(…)` in all test files but `children.py`, each with its place."""
    calls = []
    for path in TESTS.rglob("*.py"):
        if path.name == "children.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"subprocess.{name}":
                calls.append((f"{path.relative_to(TESTS)}:{node.lineno}", node))
    return calls


def test_programs_in_the_background_are_started_by_children():
    assert [place for place, _ in _calls("Popen")] == []


def test_programs_run_with_a_time_limit():
    runs = _calls("run")
    assert runs
    unlimited = [place for place, call in runs if "timeout" not in {word.arg for word in call.keywords}]
    assert unlimited == []
