"""`asyncq info`, `pause`, `resume`, `empty`, `health`, `doctor`, `server`; and which queue is meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.models import CommandInfo

from asyncq import Queue
from asyncq.cli.app import app as commands
from asyncq.doctor import _kinds
from asyncq.keys import PATTERNS
from asyncq.overview import Catalogued
from asyncq.worker import Worker
from tests.cli.conftest import ROOT, App, Cli, state
from tests.conftest import Launch
from tests.servers import TestServer

# -- which queue ---------------------------------------------------------------------------------------------


async def test_the_only_queue_is_meant(app: App, cli: Cli, launch: Launch) -> None:
    url = launch().url
    said = await cli("jobs", f"--url={url}", queue=False)
    assert (said.code, f"there is no queue yet on {url}: none" in said.err) == (2, True)
    async with Queue("one", url=url, lanes=("a", "b"), partitions=2) as one:
        assert (await cli("pause", "b", f"--url={url}", queue=False)).out == "paused lane b of queue one\n"
        assert [(await monitor.counts())["lanes"]["b"]["paused"] for monitor in one.monitors] == [True, True]
    async with Queue("two", url=url):
        said = await cli("jobs", f"--url={url}", queue=False)
    assert said.code == 2
    assert f"there are several queues on {url}: one, two. Say which one with --queue NAME" in said.err
    assert (await cli("jobs", f"--url={url}", "--queue=two", queue=False)).out == "no such jobs\n"
    said = await cli("jobs", f"--url={url}", "--queue=six", queue=False)
    assert (said.code, "no queue six" in said.err) == (2, True)
    assert [each["queue"] for each in (await cli("info", f"--url={url}", "--json", queue=False)).json["queues"]] == [
        "one",
        "two",
    ]


async def test_app_option(app: App, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await app.tasks.add.enqueue(1)
    assert (await cli("jobs", f"--app={app.path}", "--json", queue=False)).json[0]["id"] == job.id
    said = await cli("jobs", f"--app={app.path}", "--queue=other", queue=False)
    assert (said.code, "give --app or --queue, not both" in said.err) == (2, True)
    monkeypatch.setenv("ASYNCQ_APP", app.path)
    assert (await cli("job", job.id, "--json", queue=False)).json["id"] == job.id


async def test_looking_starts_no_server(app: App, cli: Cli) -> None:
    for words in (["info"], ["jobs"], ["doctor"]):
        said = await cli(*words, queue=False)
        assert said.code == 1
        assert "no server is configured, and there is no embedded one in .asyncq" in said.err
    assert ".asyncq" not in os.listdir(app.place)


@pytest.mark.parametrize("command", ["info", "jobs", "doctor"])
async def test_server_that_does_not_answer(app: App, cli: Cli, command: str) -> None:
    said = await cli(command, "--url=redis://:secret@127.0.0.1:1/0", queue=False)
    assert (said.code, said.out) == (1, "")
    assert "redis://:***@127.0.0.1:1/0 does not answer" in said.err
    assert "Traceback" not in said.err


# -- info ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3], indirect=True)
async def test_info(app: App, cli: Cli, server: TestServer) -> None:
    done = [await app.tasks.add.enqueue(n) for n in range(4)]
    dead = await app.tasks.boom.enqueue("x")
    held = await app.tasks.gate.enqueue(str(app.place / "never"))
    async with Worker(app.queue, name="w", heartbeat=0.05, grace=0):
        for job in done:
            await job.result(5)
        await state(app.queue, dead.id, "failed")
        await state(app.queue, held.id, "running")
        await app.queue.pause()
        await app.tasks.add.options(lane="high").enqueue(1)
        await app.tasks.add.options(delay=100).enqueue(1)
        seen = (await cli("info", "--json")).json
        text = (await cli("info")).out
    assert seen["server"]["name"] == server.name
    (queue,) = seen["queues"]
    assert queue["lanes"] == [
        {"lane": "high", "queued": 1, "running": 0, "paused": True},
        {"lane": "default", "queued": 0, "running": 1, "paused": True},
    ]
    assert (queue["paused"], queue["scheduled"], queue["dead"]) == (True, 1, 1)
    assert [worker["name"] for worker in queue["workers"]] == ["w"]
    assert sum(minute["enqueued"] for minute in queue["minutes"]) == 8
    assert sum(minute["succeeded"] for minute in queue["minutes"]) == 4
    assert f"queue {app.queue.name}" in text
    assert "PAUSED: 1 queued, 1 running, 1 scheduled, 1 dead" in text
    assert "1 worker(s) alive" in text


async def test_watch_needs_a_terminal(app: App, cli: Cli) -> None:
    said = await cli("info", "--watch")
    assert (said.code, "asyncq info --json" in said.err) == (2, True)


# -- pause, resume, empty ------------------------------------------------------------------------------------


async def test_pause_and_resume(app: App, cli: Cli) -> None:
    assert (await cli("pause", "--json")).json == {"queue": app.queue.name, "lane": None, "paused": True}
    await cli("pause", "high")
    assert "as a whole is paused" in (await cli("resume", "high")).out
    assert (await cli("resume")).out == f"resumed queue {app.queue.name}\n"
    assert not (await app.queue.monitors[0].counts())["paused"]
    said = await cli("pause", "lowest")
    assert (said.code, "has no lane 'lowest'" in said.err) == (2, True)


async def test_empty_asks(app: App, cli: Cli) -> None:
    for lane in ("high", "default"):
        await app.tasks.add.options(lane=lane).enqueue(1)
        await app.tasks.add.options(lane=lane, delay=100).enqueue(1)
    said = await cli("empty", "high", answer="n\n")
    assert said.code == 1
    assert (
        f"Remove 1 waiting job(s) and what of 2 scheduled is for it from lane high of queue {app.queue.name}?"
        in said.err
    )
    said = await cli("empty", "high", answer="y\n")
    assert said.out.endswith(f"removed 2 job(s) from lane high of queue {app.queue.name}\n")
    assert (await cli("empty", "--yes", "--json")).json["removed"] == 2
    assert (await cli("empty", "lowest", "--yes")).code == 2


# -- health --------------------------------------------------------------------------------------------------


async def test_health(app: App, cli: Cli) -> None:
    said = await cli("health")
    assert (said.code, said.out, said.err) == (1, "unhealthy\n", "0 worker(s) alive, 1 wanted\n")
    await app.tasks.add.enqueue(1)
    assert (await cli("health", "--min-workers=0", "--json")).json["queued"] == 1
    said = await cli("health", "--min-workers=0", "--max-queued=0", "--max-dead=0", "--max-wait=0", "--json")
    assert said.code == 1
    about = json.loads(said.out)
    assert about["status"] == "unhealthy"
    assert about["problems"][0] == "1 jobs wait, at most 0 wanted"
    assert about["problems"][1].startswith("a job has waited for")
    async with Worker(app.queue, heartbeat=0.05):
        await state(app.queue, (await app.tasks.add.enqueue(1)).id, "succeeded")
        assert (await cli("health")).out == "healthy\n"
        assert (await cli("health", "--min-workers=2")).code == 1


async def test_health_of_a_server_that_takes_nothing(app: App, cli: Cli, launch: Launch) -> None:
    server = launch(maxmemory=3_000_000)
    async with Queue("full", url=server.url) as queue:
        await queue.link.command("CONFIG", "SET", "maxmemory", "1")
        said = await cli("health", f"--url={server.url}", "--min-workers=0", "--json", queue=False)
        assert said.code == 1
        (problem,) = json.loads(said.out)["problems"]
        assert "the server takes no jobs" in problem
        assert "out of memory" in problem
    server.stop()
    said = await cli("health", f"--url={server.url}", "--json", queue=False)
    assert (said.code, json.loads(said.out)["status"]) == (1, "unhealthy")


# -- doctor --------------------------------------------------------------------------------------------------


async def test_doctor_of_a_good_server(app: App, cli: Cli, launch: Launch) -> None:
    server = launch(aof=True)
    async with Queue("q", url=server.url):
        said = await cli("doctor", f"--url={server.url}", queue=False)
        checks = (await cli("doctor", f"--url={server.url}", "--json", queue=False)).json
    assert said.code == 0
    assert {check["level"] for check in checks} == {"ok"}
    assert [line.split()[1] for line in said.out.splitlines()] == [check["name"].split()[0] for check in checks]
    assert f"{server.name} " in said.out


async def test_doctor_says_what_to_do(app: App, cli: Cli, launch: Launch) -> None:
    server = launch(maxmemory_policy="allkeys-lru", maxmemory=1_000_000_000)
    async with Queue("q", url=server.url, lanes=("a", "b"), partitions=2) as queue:
        await queue.link.command("SET", queue.stores[1].lane_keys[1], "mine")
        said = await cli("doctor", f"--url={server.url}", "--json", queue=False)
        text = await cli("doctor", f"--url={server.url}", queue=False)
    assert said.code == text.code == 1
    found = {check["name"]: (check["level"], check["advice"]) for check in json.loads(said.out)}
    assert found["eviction"][0] == "fail"
    assert "noeviction" in found["eviction"][1]
    assert found["persistence"][0] == "warn"
    assert found["keys of q"][0] == "fail"
    assert "→" in text.out


def test_doctor_looks_at_every_lasting_key() -> None:
    looked_at = {key for key, _ in _kinds("q", Catalogued(lanes=("a",)))}
    passing = {"lane", "bell", "result", "producer", "unique", "stats"}  # a name in them, and mostly a TTL
    lasting = {pattern.replace("{queue}", "{q}") for kind, pattern in PATTERNS.items() if kind not in passing}
    assert looked_at == lasting | {"aq:{q}:lane:a", "aq:{q}:bell:a"}


async def test_doctor_where_config_is_forbidden(app: App, cli: Cli, launch: Launch) -> None:
    server = launch(aof=True)
    async with Queue("q", url=server.url) as queue:
        await queue.link.command("ACL", "SETUSER", "default", "-config")
        checks = (await cli("doctor", f"--url={server.url}", "--json", queue=False)).json
    found = {check["name"]: check for check in checks}
    assert found["eviction"]["text"] == "noeviction"
    assert found["persistence"]["text"] == "append-only file, fsync unknown"


async def test_doctor_of_a_replica(app: App, cli: Cli, launch: Launch) -> None:
    server = launch()
    async with Queue("q", url=server.url) as queue:
        await queue.link.command("REPLICAOF", "127.0.0.1", "1")
    said = await cli("doctor", f"--url={server.url}", "--json", queue=False)
    found = {check["name"]: check["level"] for check in json.loads(said.out)}
    assert said.code == 1
    assert (found["role"], found["writing"]) == ("fail", "fail")


# -- the embedded server -------------------------------------------------------------------------------------


async def test_server_start_status_stop(cli: Cli, tmp_path: Path, server_kind: str) -> None:
    place = f"--dir={tmp_path / 'data'}"
    said = await cli("server", "status", place, queue=False)
    assert (said.code, "no server runs" in said.out) == (1, True)
    assert not (tmp_path / "data").exists()
    try:
        started = (await cli("server", "start", place, "--idle=60", "--json", queue=False)).json
        assert started["started"]
        assert "started now" not in (await cli("server", "start", place, queue=False)).out
        seen = (await cli("server", "status", place, "--json", queue=False)).json
        assert (seen["pid"], seen["running"], seen["url"]) == (started["pid"], True, started["url"])
    finally:
        said = await cli("server", "stop", place, "--json", queue=False)
    assert json.loads(said.out) == {"stopped": True}
    assert (await cli("server", "stop", place, queue=False)).out.startswith("no server runs in")


# -- the program ---------------------------------------------------------------------------------------------


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "asyncq", *words], capture_output=True, text=True, cwd=ROOT)


def test_version_and_help() -> None:
    assert program("--version").stdout.startswith("asyncq ")
    said = program("wrong")
    assert said.returncode == 2
    assert "No such command 'wrong'" in said.stderr
    assert said.stdout == ""


def name_of(command: CommandInfo) -> str:
    return command.name or command.callback.__name__  # type: ignore[union-attr]


async def test_every_command_says_what_it_does_and_speaks_json(cli: Cli) -> None:
    names = [[name_of(command)] for command in commands.registered_commands]
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        names += [[str(group.name), name_of(command)] for command in group.typer_instance.registered_commands]
    assert len(names) > 15
    for words in names:
        said = await cli(*words, "--help", queue=False)
        assert said.code == 0
        assert said.out.splitlines()[2].strip(), words
        assert "--json" in said.out or words[0] in ("worker", "dev"), words
