"""`asyncq dead`."""

from __future__ import annotations

import json

import pytest

from asyncq import Job, codec
from asyncq.worker import Worker
from tests.cli.conftest import App, Cli, state
from tests.eventually import eventually


@pytest.fixture
async def letters(app: App) -> list[Job[None]]:
    """Three dead letters, the first the oldest."""
    jobs = []
    async with Worker(app.queue):
        for text in ("disk full", "no such user", "disk slow"):
            job = await app.tasks.boom.enqueue(text)
            await state(app.queue, job.id, "failed")
            jobs.append(job)
    return jobs


async def test_list(app: App, cli: Cli, letters: list[Job[None]]) -> None:
    rows = (await cli("dead", "list", "--json")).json
    assert [row["id"] for row in rows] == [job.id for job in reversed(letters)]
    said = await cli("dead", "list")
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == [job.id for job in reversed(letters)]
    said = await cli("dead", "list", "--limit=1")
    assert said.out.splitlines()[1].startswith(letters[2].id)
    assert "3 in all" in said.out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--error=DISK"], [2, 0]),
        (["--task=boom", "--error=user"], [1]),
        (["--task=add"], []),
        (["--reason=failed"], [2, 1, 0]),
        (["--reason=poison"], []),
    ],
)
async def test_list_filters(app: App, cli: Cli, letters: list[Job[None]], words: list[str], found: list[int]) -> None:
    rows = (await cli("dead", "list", *words, "--json")).json
    assert [row["id"] for row in rows] == [letters[n].id for n in found]


async def test_list_when_there_are_none(app: App, cli: Cli) -> None:
    assert (await cli("dead", "list")).out == "no dead letters\n"
    assert (await cli("dead", "list", "--json")).json == []


async def test_show(app: App, cli: Cli, letters: list[Job[None]]) -> None:
    said = await cli("dead", "show", letters[1].id, "nobody")
    assert said.code == 1
    assert "raise ValueError(text)" in said.out
    assert "failed: it raised or timed out" in said.out
    assert said.err == "asyncq: no dead letter: nobody\n"


async def test_replay(app: App, cli: Cli, letters: list[Job[None]]) -> None:
    assert (await cli("dead", "replay", "--error=disk", "--dry-run")).out == "would have replayed 2 dead letter(s)\n"
    assert (await letters[0].info()).state == "failed"
    assert (await cli("dead", "replay", "--error=disk", "--limit=1")).out == "replayed 1 dead letter(s)\n"
    assert [(await job.info()).state for job in letters] == ["queued", "failed", "failed"]
    assert (await cli("dead", "replay", letters[1].id, "--json")).json == {"replayed": 1, "matching": 1}
    info = await letters[1].info()
    assert (info.state, info.attempt, info.crashes, info.lane) == ("queued", 1, 0, "default")
    assert (await cli("dead", "replay", "--all")).out == "replayed 1 dead letter(s)\n"
    said = await cli("dead", "replay", letters[1].id)
    assert (said.code, "no dead letters (any more)" in said.err) == (1, True)


async def test_replay_resets_the_attempts(app: App, cli: Cli) -> None:
    job = await app.tasks.boom.enqueue("x")
    async with Worker(app.queue):
        await state(app.queue, job.id, "failed")
        await cli("dead", "replay", "--all")
        await eventually(lambda: _letters(app, 1))
        assert (await job.info()).attempt == 1


async def _letters(app: App, count: int) -> bool:
    found = [letter async for letter in app.queue.monitors[0].dead_letters()]
    return len(found) == count


async def test_replay_gives_an_id_to_what_has_none(app: App, cli: Cli) -> None:
    """Something else wrote into the lane. It dies again, but nothing is lost on the way."""
    keys, link = app.queue.monitors[0].keys, app.queue.link
    await link.command("XADD", keys.lane("default"), "*", "hello", "world")
    async with Worker(app.queue):
        await eventually(lambda: _letters(app, 1))
    assert (await cli("dead", "replay", "--all")).out == "replayed 1 dead letter(s)\n"
    (job,) = await app.queue.monitors[0].jobs("queued")
    assert len(job.id) == 20
    async with Worker(app.queue):
        await eventually(lambda: _letters(app, 1))
    (letter,) = [letter async for letter in app.queue.monitors[0].dead_letters()]
    assert letter.job == b"hello world"
    assert await (await app.queue.job(job.id)).info()


async def test_replay_of_a_lane_that_is_gone_goes_to_the_default_lane(app: App, cli: Cli) -> None:
    job = await app.tasks.boom.enqueue("x")
    async with Worker(app.queue):
        await state(app.queue, job.id, "failed")
    monitor = app.queue.monitors[0]
    (letter,) = [letter async for letter in monitor.dead_letters()]
    fields = ["id", job.id, "lane", "gone", "job", codec.with_counts(letter.job, 3, 2), "reason", "failed", "error", ""]
    fields += ["traceback", "", "attempts", "3", "crashes", "1", "worker", ""]
    await app.queue.link.command("DEL", monitor.keys.dead)
    entry = await app.queue.link.command("XADD", monitor.keys.dead, "*", *fields)
    await app.queue.link.command("HSET", monitor.keys.index, job.id, b"dead " + entry)
    await cli("dead", "replay", "--all")
    info = await job.info()
    assert (info.state, info.lane, info.attempt, info.crashes) == ("queued", "default", 1, 0)


async def test_purge_asks(app: App, cli: Cli, letters: list[Job[None]]) -> None:
    said = await cli("dead", "purge", "--error=disk", answer="n\n")
    assert said.code == 1
    assert f"Forget 2 dead letter(s) of queue {app.queue.name} for good?" in said.err
    assert await _letters(app, 3)
    assert (await cli("dead", "purge", "--error=disk", "--dry-run")).out == "would have purged 2 dead letter(s)\n"
    assert json.loads((await cli("dead", "purge", "--error=disk", "--yes", "--json")).out)["purged"] == 2
    assert await _letters(app, 1)
    assert (await cli("dead", "purge", "--all", answer="y\n")).code == 0
    assert await _letters(app, 0)
    assert (await cli("job", letters[0].id)).code == 1


@pytest.mark.parametrize("command", ["replay", "purge"])
async def test_what_is_done_to_all_must_be_asked_for(app: App, cli: Cli, command: str) -> None:
    for words in ([], ["--all", "--task=boom"]):
        said = await cli("dead", command, *words)
        assert said.code == 2
        assert "or else --all" in said.err
    assert (await cli("dead", command, "--reason=bad luck")).code == 2


@pytest.mark.parametrize("partitions", [3], indirect=True)
async def test_dead_letters_of_all_partitions(app: App, cli: Cli) -> None:
    jobs = [await app.tasks.boom.enqueue(str(n)) for n in range(6)]
    async with Worker(app.queue):
        for job in jobs:
            await state(app.queue, job.id, "failed")
    assert {row["id"] for row in (await cli("dead", "list", "--json")).json} == {job.id for job in jobs}
    assert (await cli("dead", "replay", jobs[0].id, jobs[1].id)).out == "replayed 2 dead letter(s)\n"
    assert (await cli("dead", "replay", "--all")).out == "replayed 4 dead letter(s)\n"
    assert {(await job.info()).state for job in jobs} == {"queued"}
    assert len((await cli("jobs", "--state=queued", "--json")).json) == 6
