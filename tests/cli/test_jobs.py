"""`asyncq enqueue`, `job`, `jobs` and `cancel`."""

from __future__ import annotations

import json

import pytest

from asyncq.worker import Worker
from tests.cli.conftest import App, Cli, state

# -- enqueue -------------------------------------------------------------------------------------------------


async def test_enqueue_prints_the_id(app: App, cli: Cli) -> None:
    said = await cli("enqueue", app.path, "add", "4", "--kwargs", '{"b": 5}', queue=False)
    assert said.code == 0
    info = await (await app.queue.job(said.out.strip())).info()
    assert (info.task, info.args, info.state) == ("add", [4, 5], "queued")


@pytest.mark.parametrize(("word", "value"), [("seven", "seven"), ('"7"', "7"), ("2024-01-01", "2024-01-01")])
async def test_arguments_are_json_where_they_can_be(app: App, cli: Cli, word: str, value: str) -> None:
    job_id = (await cli("enqueue", app.path, "greet", word, "--json", queue=False)).json["id"]
    assert (await (await app.queue.job(job_id)).info()).args == [value]


async def test_enqueue_options(app: App, cli: Cli) -> None:
    words = ("--delay=100", "--lane=high", "--job-id=mine", "--expires=200")
    first = await cli("enqueue", app.path, "add", *words, "--", "-1", queue=False)
    assert first.out == "mine\n"
    info = await (await app.queue.job("mine")).info()
    assert (info.state, info.lane, info.args) == ("scheduled", "high", [-1, 2])
    assert info.expires_ms
    again = await cli("enqueue", app.path, "add", "1", "--job-id=mine", queue=False)
    assert again.out == "mine (it was there already)\n"


async def test_enqueue_waits_for_the_result(app: App, cli: Cli) -> None:
    async with Worker(app.queue):
        said = await cli("enqueue", app.path, "add", "4", "--wait=10", queue=False)
        assert said.out.splitlines()[1:] == ["6"]
        assert (await cli("enqueue", app.path, "add", "4", "--wait=10", "--json", queue=False)).json["value"] == 6
        failed = await cli("enqueue", app.path, "boom", "bad luck", "--wait=10", queue=False)
        as_json = await cli("enqueue", app.path, "boom", "bad luck", "--wait=10", "--json", queue=False)
    assert failed.code == as_json.code == 1
    assert "ValueError: bad luck" in failed.err
    about = json.loads(as_json.out)
    assert about["id"]
    assert "ValueError: bad luck" in about["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sub", "1"), "has no task 'sub'; registered: add, boom"),
        (("add", "one"), "add: Expected `int`, got `str`"),
        (("add",), "add: "),
        (("add", "1", "--kwargs", "[1]"), "--kwargs '[1]' is not a JSON object"),
        (("add", "1", "--lane=lowest"), "has no lane 'lowest'"),
        (("add", "1", "--delay=-1"), "delay=-1"),
    ],
)
async def test_enqueue_says_what_is_wrong(app: App, cli: Cli, words: tuple[str, ...], says: str) -> None:
    said = await cli("enqueue", app.path, *words, queue=False)
    assert (said.code, said.out) == (2, "")
    assert says in said.err


async def test_enqueue_gives_up_waiting(app: App, cli: Cli) -> None:
    said = await cli("enqueue", app.path, "add", "1", "--wait=0.05", queue=False)
    assert said.code == 1
    await app.queue.cancel(said.out.strip())
    assert "has not ended within 0.05 s" in said.err


# -- job -----------------------------------------------------------------------------------------------------


async def test_job_shows_everything(app: App, cli: Cli) -> None:
    job = await app.tasks.boom.options(tags=("red", "blue")).enqueue("a\x1b[31mb")
    async with Worker(app.queue, name="w"):
        await state(app.queue, job.id, "failed")
    said = await cli("job", job.id)
    assert said.code == 0
    for text in (job.id, "failed", "boom", "default", "red, blue", "ValueError: a\\x1b[31mb", "raise ValueError(text)"):
        assert text in said.out
    assert "\x1b" not in said.out
    shown = (await cli("job", job.id, "--json")).json
    info = await job.info()
    assert set(shown) == set(info.__struct_fields__)
    assert (shown["attempt"], shown["reason"], shown["worker"]) == (1, "failed", "w")


async def test_unknown_job(app: App, cli: Cli) -> None:
    said = await cli("job", "nobody")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("asyncq: nothing is known of job nobody")


# -- jobs ----------------------------------------------------------------------------------------------------


async def test_jobs_of_every_state(app: App, cli: Cli) -> None:
    done, failed = await app.tasks.add.enqueue(1), await app.tasks.boom.enqueue("x")
    async with Worker(app.queue):
        await state(app.queue, done.id, "succeeded")
        await state(app.queue, failed.id, "failed")
    later, low = await app.tasks.add.options(delay=100).enqueue(1), await app.tasks.add.enqueue(2)
    high, gone = await app.tasks.add.options(lane="high").enqueue(3), await app.tasks.add.enqueue(4)
    await gone.cancel()

    rows = (await cli("jobs", "--json")).json
    assert {row["id"]: row["state"] for row in rows} == {
        done.id: "succeeded",
        failed.id: "failed",
        later.id: "scheduled",
        low.id: "queued",
        high.id: "queued",
        gone.id: "cancelled",
    }
    queued = (await cli("jobs", "--state=queued", "--json")).json
    assert [row["id"] for row in queued] == [high.id, low.id]
    assert [row["id"] for row in (await cli("jobs", "--state=queued", "--limit=1", "--json")).json] == [high.id]
    assert [row["id"] for row in (await cli("jobs", "--lane=high", "--json")).json] == [high.id]
    assert [row["id"] for row in (await cli("jobs", "--task=boom", "--json")).json] == [failed.id]
    text = await cli("jobs", "--state=failed")
    assert text.out.splitlines()[1].split()[:3] == [failed.id, "failed", "boom"]
    assert (await cli("jobs", "--state=running")).out == "no such jobs\n"


async def test_long_ids_are_never_cut(app: App, cli: Cli) -> None:
    long = "x" * 128
    await app.tasks.add.options(job_id=long).enqueue(1)
    assert long in (await cli("jobs")).out


@pytest.mark.parametrize("option", ["--state=lost", "--lane=lowest", "--limit=0"])
async def test_jobs_says_what_is_wrong(app: App, cli: Cli, option: str) -> None:
    said = await cli("jobs", option)
    assert (said.code, said.out) == (2, "")
    assert option.partition("=")[0].strip("-") in said.err


# -- cancel --------------------------------------------------------------------------------------------------


async def test_cancel(app: App, cli: Cli) -> None:
    jobs = [await app.tasks.add.enqueue(1), await app.tasks.add.options(delay=100).enqueue(1)]
    said = await cli("cancel", *[job.id for job in jobs])
    assert said.out == "".join(f"{job.id} cancelled\n" for job in jobs)
    assert {(await job.info()).state for job in jobs} == {"cancelled"}
    said = await cli("cancel", jobs[0].id, "nobody", "--json")
    assert said.code == 1
    assert json.loads(said.out) == {jobs[0].id: False, "nobody": False}
    assert "ended, dead or unknown" in said.err


async def test_cancel_of_a_running_job(app: App, cli: Cli) -> None:
    job = await app.tasks.gate.enqueue(str(app.place / "never"))
    async with Worker(app.queue):
        await state(app.queue, job.id, "running")
        assert (await cli("cancel", job.id)).code == 0
        await state(app.queue, job.id, "cancelled")
