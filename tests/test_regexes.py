"""Every regular expression of the project takes linear time, whatever text it meets.

The patterns are found in the source code. For each repetition in a pattern, texts are made that repeat what
it matches, up to a place where the rest of the pattern fails: there, a pattern with several ways to match the
same text tries them all. Child processes run them with a limit of CPU time, which other load does not use.
"""

import ast
import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from re import _constants as codes
from re import _parser as parser

import children
import pytest

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = ("search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")
# Position of the flags in the arguments of the functions of `re`.
FLAGS_AT = {"compile": 1, "split": 3, "sub": 4, "subn": 4}
# Values of the names in patterns that depend on arguments, by file and expression.
ARGUMENTS = {
    ("data_prep/lint/rows.py", "kind"): [{"kind": "[a-z]"}, {"kind": "[A-Z]"}, {"kind": "[0-9]"}],
    ("flowley_jax/interop/clip.py", "pattern"): "_HUGGING_FACE",
    ("flowley_jax/interop/sources.py", "f'{stem}-\\\\d+-of-\\\\d+\\\\.{suffix}'"): [
        {"stem": "model", "suffix": "safetensors"}
    ],
    ("flowley_jax/training/sharding.py", "f'(^|/){pattern}(/|$)'"): "RULES",
    ("launch/job.py", "f\"({'|'.join(schemes)})://[\\\\w.-]+/?\""): [{"schemes": ("gs", "s3")}],
}
# Patterns that the user writes, about the names of this project's own layers.
OF_THE_USER = {("flowley_jax/config.py", "pattern"), ("flowley_jax/runs/lora.py", "pattern")}
# They read the text of a program that the compiler made from this project's code.
OF_THE_COMPILER = {("flowley_jax/aot/collectives.py", name) for name in ("_COLLECTIVE", "_CONDITION")}
LENGTH = 60_000
# A linear pattern needs a few milliseconds for LENGTH characters, a quadratic one more than this, in seconds.
CPU_LIMIT = 0.3
SLOW = {
    "exponential": r'["“](?:[^"”]*\s){2,}[^"”]*["”]',
    "nested words": r"^(\w+\s?)*$",
    "many starts": r"([^:]+) \[os_error_code",
    "many lazy starts": r"= (.*?) (all-gather|all-reduce)\(",
    "many lines": r"(?:^|\n)\s*(?:speaker|man)\s?\d*:",
}


def test_the_patterns_of_the_project_take_linear_time():
    found = dict(_patterns_of_the_project())
    assert len(found) > 30
    assert _slow(found) == []


def test_slow_patterns_are_found():
    found = {name: (pattern, 0, ["search"]) for name, pattern in SLOW.items()}
    assert _slow(found) == sorted(SLOW)


@pytest.mark.parametrize("package", ["flowley_jax", "data_prep", "launch"])
def test_patterns_are_only_used_through_the_module_re(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("re", "regex"), path
            if isinstance(node, ast.Import):
                assert not [
                    alias for alias in node.names if alias.name in ("re", "regex") and alias.asname
                ], path


def _slow(found):
    """Return the names of patterns that need more than CPU_LIMIT for one of their texts."""
    result = children.run([sys.executable, __file__, json.dumps(found)], check=True)
    return sorted(result.stdout.splitlines())


def _patterns_of_the_project():
    """Yield a name for each pattern, with the pattern, its flags and the functions that use it."""
    for package in ("data_prep", "flowley_jax", "launch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree, file = ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT))
            for call in _calls_of_re(tree):
                if (file, ast.unparse(call.args[0])) in OF_THE_USER:
                    continue
                compiled = _names_of(tree, call) if call.func.attr == "compile" else []
                if any((file, name) in OF_THE_COMPILER for name in compiled):
                    continue
                functions = _functions_of(tree, compiled) if compiled else [call.func.attr]
                for number, pattern in enumerate(_values(file, tree, call)):
                    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
                    yield f"{file}:{call.lineno} [{number}] {text}", (text, _flags(call), functions)


def _calls_of_re(tree):
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in ("compile", *FUNCTIONS)
        ):
            yield node


def _names_of(tree, call):
    """Return the names that a compiled pattern has in its module."""
    names = [
        node.targets[0].id for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.value is call
    ]
    assert names, ast.unparse(call)
    return names


def _functions_of(tree, names):
    """Return the methods of a compiled pattern that its module uses."""
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    }
    assert used and used <= set(FUNCTIONS), names
    return sorted(used)


def _values(file, tree, call):
    """Return the patterns that the first argument of a call can be."""
    pattern = call.args[0]
    if isinstance(pattern, ast.Constant):
        return [pattern.value]
    module = importlib.import_module(file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    arguments = ARGUMENTS.get((file, ast.unparse(pattern)), [{}])
    if isinstance(arguments, str):
        arguments = [{"pattern": row[0]} for row in getattr(module, arguments)]
    return [_evaluated(pattern, {**vars(module), **values}, tree, call) for values in arguments]


def _evaluated(expression, names, tree, call):
    """Return the value of an expression beside a call, whose local variables are looked up where needed."""
    try:
        return eval(ast.unparse(expression), names)
    except NameError as error:
        value = _evaluated(_assigned(tree, call, error.name), names, tree, call)
        return _evaluated(expression, {**names, error.name: value}, tree, call)


def _assigned(tree, call, name):
    """Return what is assigned to a name in the function that holds a call."""
    (value,) = (
        node.value
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and any(node is call for node in ast.walk(function))
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return value


def _flags(call):
    position = FLAGS_AT.get(call.func.attr, 2)
    given = [keyword.value for keyword in call.keywords if keyword.arg == "flags"] or call.args[position:]
    return int(eval(ast.unparse(given[0]), {"re": re})) if given else 0


def _texts(pattern, flags):
    """Yield texts on which a pattern with several ways to match may try them all."""
    whole = _example(parser.parse(pattern, flags))
    yield whole * (LENGTH // max(len(whole), 1))
    for before, body in _repetitions(parser.parse(pattern, flags), ""):
        for part in {_example(body, choice) for choice in range(3)} - {""}:
            for unit, lead in ((part, before), (before + part, "")):
                pumped = lead + unit * (LENGTH // len(unit))
                yield from (pumped, pumped + "\x00", pumped + "\n\x00")


def _repetitions(nodes, before):
    """Yield the body of each repetition without an upper bound, and an example of what is before it."""
    for code, value in nodes:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            if value[1] is codes.MAXREPEAT:
                yield before, value[2]
            yield from _repetitions(value[2], before)
        elif code is codes.SUBPATTERN:
            yield from _repetitions(value[3], before)
        elif code is codes.ATOMIC_GROUP:
            yield from _repetitions(value, before)
        elif code is codes.BRANCH:
            for branch in value[1]:
                yield from _repetitions(branch, before)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            yield from _repetitions(value[1], before)
        before += _example([(code, value)])


def _example(nodes, choice=0):
    """Return a text that matches; `choice` selects among the characters that do."""
    text = ""
    for code, value in nodes:
        if code is codes.LITERAL:
            text += chr(value)
        elif code in (codes.ANY, codes.NOT_LITERAL, codes.IN):
            matching = [mark for mark in "a 0\t_-.b/\"':\n" if _matches(code, value, mark)]
            text += (matching or [chr(_first(value))])[choice % max(len(matching), 1)]
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += _example(value[2], choice) * max(value[0], min(value[1], 1))
        elif code is codes.SUBPATTERN:
            text += _example(value[3], choice)
        elif code is codes.ATOMIC_GROUP:
            text += _example(value, choice)
        elif code is codes.BRANCH:
            text += _example(value[1][choice % len(value[1])], choice)
        else:
            # It matches no character.
            assert code in (codes.AT, codes.ASSERT, codes.ASSERT_NOT), code
    return text


def _matches(code, value, mark):
    if code is codes.ANY:
        return mark != "\n"
    if code is codes.NOT_LITERAL:
        return ord(mark) != value
    negated = value[0][0] is codes.NEGATE
    return negated != any(_in(item, mark) for item in value[negated:])


def _in(item, mark):
    code, value = item
    if code is codes.LITERAL:
        return ord(mark) == value
    if code is codes.RANGE:
        return value[0] <= ord(mark) <= value[1]
    classes = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
    _, *negation, name = str(value).split("_")
    return bool(negation) != bool(re.match(classes[name], mark))


def _first(items):
    code, value = items[0]
    return value if code is codes.LITERAL else value[0]


def _run(pattern, flags, functions):
    """Apply a pattern to its texts; a text that takes too long kills the process."""
    compiled = re.compile(pattern, flags)
    for text in _texts(pattern, flags):
        for function in functions:
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
            arguments = ("", text) if function in ("sub", "subn") else (text,)
            matches = getattr(compiled, function)(*arguments)
            if function == "finditer":
                list(matches)
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    for name, arguments in json.loads(sys.argv[1]).items():
        child = os.fork()
        if not child:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            _run(*arguments)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            print(name, flush=True)
        elif status:
            sys.exit(f"{name}: status {status}")
