"""The documentation names everything there is, and nothing that is not; its examples run."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer

import asyncq
from asyncq import JobInfo, QueueSettings, Retry, RunningJob, WorkerSettings, errors, scripts
from asyncq.cli.app import app
from asyncq.config import ENVIRONMENT
from asyncq.keys import CATALOGUE, PATTERNS
from asyncq.lifecycle import REASONS, STATES, Dead, Outcome, Puzzling, decide
from asyncq.options import CallOptions, TaskOptions
from tests.servers import TestServer

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
REFERENCE, HOW = PAGES["reference.md"], PAGES["how-it-works.md"]


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = f"\n{page}".partition(f"\n{heading}\n")
    assert found, f"there is no {heading!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and lines[number + 1].startswith("|---")
        if line.startswith("|") and not line.startswith("|---") and not is_head:
            found.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return found


def words(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def first_words(text: str) -> list[str]:
    return [word for row in rows(text) for word in words(row[0])]


# -- settings, errors, commands -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("## Queue", QueueSettings),
        ("## Task", TaskOptions),
        ("## Retry", Retry),
        ("## One enqueue", CallOptions),
        ("## Worker", WorkerSettings),
    ],
)
def test_every_setting_is_named_with_its_default(heading: str, struct: type[msgspec.Struct]) -> None:
    documented = {row[0].strip("`"): row[1] for row in rows(section(REFERENCE, heading)) if len(row) == 3}
    assert list(documented) == list(struct.__struct_fields__)
    for field in msgspec.structs.fields(struct):
        assert documented[field.name] == shown_default(field), field.name


def shown_default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default: Any = field.default
    if default is msgspec.NODEFAULT:
        assert field.default_factory is not msgspec.NODEFAULT
        default = field.default_factory()
    if isinstance(default, Retry):
        return "`Retry()`"
    if default == (BaseException,):
        return "`BaseException`"
    return f"`{default!r}`"


def test_every_environment_variable_is_named() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "asyncq").rglob("*.py"))
    used = set(re.findall(r"\b(?:ASYNCQ|REDIS)_[A-Z_]+\b", source))
    documented = first_words(section(REFERENCE, "## Environment"))
    assert set(documented) == used
    assert set(ENVIRONMENT) <= used


def test_every_error_is_named_with_its_parents() -> None:
    documented = {row[0].strip("`"): words(row[1]) for row in rows(section(REFERENCE, "## Errors"))}
    assert documented == {
        name: [parent.__name__ for parent in getattr(errors, name).__bases__] for name in errors.__all__
    }
    assert set(errors.__all__) <= set(asyncq.__all__)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


def test_every_command_is_named_and_no_other() -> None:
    documented = [" ".join(usage(word)) for word in first_words(section(REFERENCE, "## Commands")) if "asyncq " in word]
    assert sorted(documented) == sorted(name for name, _ in commands())


def usage(line: str) -> list[str]:
    """`asyncq dead list [ID]...` is the command `dead list`."""
    return [word for word in line.removeprefix("asyncq ").split() if word.islower()]


def test_every_option_is_named_where_its_command_is() -> None:
    text = section(REFERENCE, "## Commands")
    everywhere = {"--help", "--app", "--queue", "-q", "--url", "--json"}
    documented: dict[str, set[str]] = {}
    named: list[str] = []
    for row in rows(text):
        if "asyncq " in row[0]:
            continue
        named = words(row[0]) or named
        for name in named:
            documented.setdefault(name, set()).update(words(row[1]))
    for name, command in commands():
        options = {
            option
            for parameter in command.params
            if parameter.param_type_name == "option" and not parameter.hidden
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert options - everywhere == documented.get(name, set()), name
    for option in everywhere - {"--help"}:
        assert f"`{option}" in text


def test_commands_in_running_text_exist() -> None:
    known = {name for name, _ in commands()} | {name.partition(" ")[0] for name, _ in commands()}
    for page, text in PAGES.items():
        for line in re.findall(r"`asyncq ([a-z]+(?: [a-z]+)?)", text):
            assert line in known or line.partition(" ")[0] in known, f"{page}: asyncq {line}"


@pytest.mark.parametrize("what", [JobInfo, RunningJob])
def test_every_field_of_a_job_is_named(what: type[Any]) -> None:
    names = getattr(what, "__struct_fields__", None) or [name for name in what.__slots__ if not name.startswith("_")]
    text = section(REFERENCE, "## Handles and results") + section(REFERENCE, "## Inside a job")
    assert set(names) <= set(words(text))


def test_every_public_name_is_in_the_reference() -> None:
    missing = [name for name in asyncq.__all__ if not re.search(rf"\b{name}\b", REFERENCE)]
    assert missing == []


ENGINE_ONLY = {"decode_value", "ending", "look", "monitor", "store"}
"""Methods of `Queue` that handles, workers and tools use."""


@pytest.mark.parametrize("what", [asyncq.Queue, asyncq.Task, asyncq.Job, asyncq.Worker])
def test_every_method_is_named(what: type[Any]) -> None:
    methods = {name for name, value in vars(what).items() if callable(value) and not name.startswith("_")}
    missing = sorted(name for name in methods - ENGINE_ONLY if not re.search(rf"\.{name}\b", REFERENCE))
    assert missing == []


# -- how it works -------------------------------------------------------------------------------------------


def test_the_picture_shows_every_state_and_no_other() -> None:
    picture = section(HOW, "## The states of a job").split("```")[1]
    assert all(re.search(rf"\b{state}\b", picture) for state in STATES)
    for verb in ("enqueue", "promote", "claim", "release", "reclaim", "finish", "cancel", "revive"):
        assert verb in picture
        assert verb in scripts.NAMES


def test_the_table_of_outcomes_is_what_decide_does() -> None:
    documented = {row[0].strip("`"): row[1:] for row in rows(section(HOW, "## The states of a job"))}
    actual = {kind.__name__: [shown_ending(kind, attempt) for attempt in (1, 2)] for kind in get_args(Outcome)}
    assert documented == actual


def shown_ending(kind: type[Any], attempt: int) -> str:
    ending = decide(sample(kind), attempt, 0, Retry(attempts=2), 0.5)
    name = f"`{type(ending).__name__}`"
    return f"{name}: {ending.reason}" if isinstance(ending, Dead) else name


def sample(kind: type[Any]) -> Any:
    values = {"value": b"", "error": ValueError(), "seconds": 1.0, "delay_ms": 1, "late_ms": 1}
    if kind is Puzzling:
        return Puzzling("unknown task", "")
    return kind(*(values.get(field.name, "") for field in msgspec.structs.fields(kind) if field.required))


def test_every_key_is_in_the_table() -> None:
    assert first_words(section(HOW, "## Data in Redis")) == [*PATTERNS.values(), CATALOGUE]


def test_every_script_is_in_the_table_with_the_purpose_its_header_gives() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows(section(HOW, "## The scripts"))}
    assert documented == {name: scripts.load(name).purpose for name in scripts.NAMES}
    assert {path.stem for path in (ROOT / "asyncq" / "lua").glob("*.lua")} == set(scripts.NAMES)


def test_every_part_of_the_worker_is_in_the_cast() -> None:
    files = {path.stem for path in (ROOT / "asyncq" / "worker").glob("*.py")} - {"__init__"}
    assert set(first_words(section(HOW, "## The worker"))) == files


def test_every_module_is_in_the_layers_in_the_order_that_is_enforced() -> None:
    picture = section(HOW, "## Layers").split("```")[1].splitlines()
    line_of = {
        name: number
        for number, line in enumerate(picture)
        for name in re.findall(r"[a-z]+", re.split(r" {3,}", line[2:])[0])
    }
    modules = {path.stem for path in (ROOT / "asyncq").iterdir() if path.suffix == ".py" or path.is_dir()}
    modules -= {"__init__", "__main__", "__pycache__"}
    assert sorted(modules - line_of.keys()) == []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    enforced = [line_of[name] for layer in layers for name in layer.replace("(", "").replace(")", "").split(" : ")]
    assert enforced == sorted(enforced)


# -- guarantees ---------------------------------------------------------------------------------------------


def test_every_reason_of_a_dead_letter_is_named_as_the_code_explains_it() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows(section(PAGES["guarantees.md"], "## Dead letters"))}
    assert documented == REASONS


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "\n".join(PAGES.values()))
    assert named
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or re.search(rf"^\s*(?:async )?def {function}\(", source, re.MULTILINE), (file, function)


# -- pages --------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md"], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_the_readme_gives_the_two_commands_word_for_word() -> None:
    blocks = re.findall(r"^```\n(.*?)^```", PAGES["README.md"], re.MULTILINE | re.DOTALL)
    assert "make demo\n" in blocks
    assert "make test\n" in blocks
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


# -- examples -----------------------------------------------------------------------------------------------


def examples() -> list[Any]:
    found = []
    for page, text in PAGES.items():
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL), 1):
            found.append(pytest.param(code, id=f"{page}-{number}"))
    return found


@pytest.mark.parametrize("code", examples())
def test_an_example_compiles_and_uses_public_names(code: str) -> None:
    tree = compile(code, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncq":
            assert {alias.name for alias in node.names} <= set(asyncq.__all__)


def test_the_example_of_the_readme_runs(server: TestServer, name: str, tmp_path: Path) -> None:
    (code,) = (found.values[0] for found in examples() if str(found.values[0]).startswith("# app.py\n"))
    assert isinstance(code, str)
    assert '"media"' in code
    (tmp_path / "app.py").write_text(code.replace('"media"', repr(name)))
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env={**os.environ, "ASYNCQ_URL": server.url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "frame-7-4k.png"
    assert "frame-19-1080p.png" in done.stdout.splitlines()[1]


def test_the_examples_of_docstrings_compile() -> None:
    doc = inspect.getdoc(asyncq) or ""
    code = doc.partition("\n\n")[2]
    compile(code, "asyncq", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
