"""What users import, and what their type checker knows of it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asyncq

ROOT = Path(__file__).parent.parent

SNIPPET = """
from asyncq import Call, Job, Queue, Retry

queue = Queue("typed")


@queue.task(retry=Retry(attempts=5))
async def render(frame: int, *, size: str = "4k") -> str:
    return f"{frame} {size}"


@queue.task()
def count(words: list[str]) -> int:
    return len(words)


async def right() -> None:
    job = await render.enqueue(7, size="8k")
    reveal_type(job)
    reveal_type(await job.result())
    reveal_type(await (await count.enqueue(["a"])).result(timeout=1))
    many = await queue.enqueue_many(count.call([word]) for word in ("a", "b"))
    reveal_type(many)
    reveal_type(await render.options(delay=5).enqueue(7))
    found = await queue.job(job.id)
    reveal_type(await render(7))
    reveal_type(count(["a"]))
    reveal_type((await found.info()).state)


async def wrong() -> None:
    await render.enqueue("x")  # wrong type
    await render.enqueue()  # missing
    await render.enqueue(7, colour="red")  # unknown
    await count.options(delay=1).enqueue([1])  # wrong type of an item
    render.call(None)  # wrong type
"""

REVEALED = [
    "asyncq.handle.Job[str]",
    "str",
    "int",
    "list[asyncq.handle.Job[int]]",
    "asyncq.handle.Job[str]",
    "str",
    "int",
]


def mypy(code: str, place: Path) -> list[str]:
    """What `mypy --strict` says of some code, line by line."""
    (place / "snippet.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    done = subprocess.run(
        [*command, f"--cache-dir={place / 'cache'}", "--config-file=", "snippet.py"],
        cwd=place,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("snippet.py:")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("typed")


@pytest.fixture(scope="module")
def verdict(place: Path) -> list[str]:
    return mypy(SNIPPET, place)


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(SNIPPET.splitlines(), 1) if text in line)


def test_results_have_the_type_that_the_task_returns(verdict: list[str]) -> None:
    # Older versions of mypy write builtins.str.
    revealed = [line.split('"')[1].replace("builtins.", "") for line in verdict if "Revealed type" in line]
    assert revealed[: len(REVEALED)] == REVEALED
    assert "'succeeded'" in revealed[-1]


def test_wrong_arguments_are_type_errors_and_right_ones_are_not(verdict: list[str]) -> None:
    wrong = {int(line.split(":")[1]) for line in verdict if " error: " in line}
    first = line_of("async def wrong")
    assert wrong == set(range(first + 1, first + 6)), "\n".join(verdict)


def test_the_example_of_the_readme_is_well_typed(place: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert code.startswith("# app.py\n")
    assert mypy(code, place) == []


def test_everything_public_is_there_sorted_and_documented() -> None:
    assert asyncq.__all__ == sorted(asyncq.__all__)
    for name in asyncq.__all__:
        thing = getattr(asyncq, name)
        assert inspect.getdoc(thing), name


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "asyncq" / "py.typed").exists()


@pytest.mark.parametrize("edge", ["typer", "rich", "asyncpg", "starlette", "prometheus_client", "opentelemetry"])
def test_importing_asyncq_imports_no_edge(edge: str) -> None:
    """What only the command line or an extra needs is not paid for by a producer."""
    # redis-py imports opentelemetry where that is installed.
    code = (
        f"import sys, redis.asyncio; known = {edge!r} in sys.modules; "
        f"import asyncq; sys.exit({edge!r} in sys.modules and not known)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
