"""`asyncq worker`, as a process and with signals, as a process manager uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import App, Cli, Start, running, state, workers
from tests.eventually import eventually

QUICK = ("--heartbeat=0.05",)


# -- which queue ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("{module}", "names no queue: write module:queue, for example app:queue; there is {module}:queue"),
        (":queue", "names no queue"),
        ("nowhere_at_all:queue", "there is no module 'nowhere_at_all'"),
        ("{module}.deeper:queue", "there is no module '{module}.deeper'|cannot be imported"),
        ("{module}:wrong", "has no 'wrong'; there is {module}:queue"),
        ("{module}:Nested.wrong", "has no 'Nested.wrong'; there is {module}:queue"),
        ("{module}:number", "is not a Queue but of type int; there is {module}:queue"),
        ("{module}.py:queue", "write the module, not its file: {module}:queue"),
    ],
)
async def test_says_what_is_wrong_with_app(app: App, cli: Cli, path: str, says: str) -> None:
    said = await cli("worker", path.format(module=app.module), queue=False)
    assert said.code == 2
    assert any(one in said.err for one in says.format(module=app.module).split("|")), said.err
    assert said.err.startswith("asyncq: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


async def test_shows_the_traceback_of_a_module_that_raises(app: App, cli: Cli) -> None:
    broken = app.place / f"broken_{app.module}.py"
    broken.write_text("def half():\n    return 1 / 0\n\nhalf()\n")
    said = await cli("worker", f"{broken.stem}:queue", queue=False)
    assert said.code == 2
    assert "ZeroDivisionError" in said.err
    assert "return 1 / 0" in said.err
    assert "importlib" not in said.err
    assert "asyncq/cli" not in said.err


async def test_a_missing_import_inside_the_module_is_not_a_missing_module(app: App, cli: Cli) -> None:
    (app.place / f"needs_{app.module}.py").write_text("import not_installed_anywhere\n")
    said = await cli("worker", f"needs_{app.module}:queue", queue=False)
    assert said.code == 2
    assert f"module needs_{app.module} cannot be imported" in said.err
    assert "No module named 'not_installed_anywhere'" in said.err


async def test_lanes_and_settings_are_checked(app: App, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    said = await cli("worker", app.path, "lowest", queue=False)
    assert (said.code, "has no lane 'lowest'; it has high, default" in said.err) == (2, True)
    said = await cli("worker", app.path, "--concurrency=0", queue=False)
    assert (said.code, "concurrency=0" in said.err) == (2, True)
    said = await cli("worker", app.path, "--log-level=loud", queue=False)
    assert (said.code, "debug, info, warning" in said.err) == (2, True)
    monkeypatch.setenv("ASYNCQ_GRACE", "soon")
    said = await cli("worker", app.path, queue=False)
    assert (said.code, "ASYNCQ_GRACE='soon'" in said.err) == (2, True)


async def test_says_when_no_server_answers(app: App, start: Start) -> None:
    worker = start("worker", app.path, "--url=redis://127.0.0.1:1/0")
    assert await worker.ended() == 1
    assert "does not answer" in worker.log
    assert "Traceback" not in worker.log


# -- working -------------------------------------------------------------------------------------------------


async def test_burst_runs_what_is_there_and_ends(app: App, start: Start) -> None:
    jobs = [await app.tasks.add.enqueue(n) for n in range(20)]
    loop = await app.tasks.loop.enqueue()
    worker = start("worker", f"{app.module}:Nested.queue", "--burst", "--name=short")
    assert await worker.ended() == 0
    assert [await job.result(5) for job in jobs] == [n + 2 for n in range(20)]
    assert await loop.result(5) == "uvloop"
    assert (await loop.info()).worker == "short"


async def test_max_jobs(app: App, start: Start) -> None:
    jobs = [await app.tasks.add.enqueue(n) for n in range(3)]
    worker = start("worker", app.path, "--max-jobs=2")
    assert await worker.ended() == 0
    assert [(await job.info()).state for job in jobs] == ["succeeded", "succeeded", "queued"]


async def test_serves_only_its_lanes(app: App, start: Start) -> None:
    low, high = await app.tasks.add.enqueue(1), await app.tasks.add.options(lane="high").enqueue(2)
    worker = start("worker", app.path, "high", ASYNCQ_BURST="1")
    assert await worker.ended() == 0
    assert (await low.info()).state == "queued"
    assert (await high.info()).state == "succeeded"


async def test_settings_come_from_the_environment_and_options_win(app: App, start: Start) -> None:
    worker = start(
        *("worker", app.path, "--grace=1", "--name=mine"),
        ASYNCQ_CONCURRENCY="5",
        ASYNCQ_NAME="theirs",
        ASYNCQ_HEARTBEAT="0.05",
        ASYNCQ_LANES="high",
    )
    (info,) = await workers(app.queue)
    assert (info.name, info.concurrency, info.heartbeat_ms, info.lanes) == ("mine", 5, 50, ("high",))
    worker.send("SIGINT")
    assert await worker.ended() == 0


# -- signals -------------------------------------------------------------------------------------------------


async def test_sigterm_costs_neither_a_retry_nor_the_visibility_timeout(app: App, start: Start) -> None:
    job = await app.tasks.gate.enqueue(str(app.place / "open"))
    worker = start("worker", app.path, "--grace=0")
    await state(app.queue, job.id, "running")
    worker.send("SIGTERM")
    assert await worker.ended() == 0
    info = await job.info()
    assert (info.state, info.attempt, info.crashes) == ("queued", 1, 0)
    assert await app.queue.monitors[0].workers() == []

    (app.place / "open").touch()
    assert await start("worker", app.path, "--burst").ended() == 0
    assert await job.result(5) == 1


async def test_sigterm_lets_jobs_end_within_the_grace(app: App, start: Start) -> None:
    job = await app.tasks.gate.enqueue(str(app.place / "open"))
    worker = start("worker", app.path, "--grace=20")
    await state(app.queue, job.id, "running")
    worker.send("SIGTERM")
    await worker.logs("stops; 1 job(s) are running")
    (app.place / "open").touch()
    assert await worker.ended() == 0
    assert await job.result(5) == 1


async def test_second_signal_means_at_once(app: App, start: Start) -> None:
    job = await app.tasks.gate.enqueue(str(app.place / "never"))
    worker = start("worker", app.path, "--grace=600")
    await state(app.queue, job.id, "running")
    worker.send("SIGTERM")
    await worker.logs("stops; 1 job(s) are running")
    worker.send("SIGTERM")
    assert await worker.ended() == 0
    assert (await job.info()).state == "queued"


async def test_first_signal_while_draining_leaves_the_grace(app: App, start: Start) -> None:
    """A worker on its last job has stopped by itself; the process manager's SIGTERM is still only the first."""
    job = await app.tasks.gate.enqueue(str(app.place / "open"))
    worker = start("worker", app.path, "--max-jobs=1", "--grace=20")
    await worker.logs("has started its last job")
    worker.send("SIGTERM")
    await worker.logs("stops; 1 job(s) are running")
    (app.place / "open").touch()
    assert await worker.ended() == 0
    assert await job.result(5) == 1


async def test_sigtstp_makes_it_quiet(app: App, start: Start) -> None:
    first = await app.tasks.gate.enqueue(str(app.place / "open"))
    worker = start("worker", app.path, *QUICK)
    await state(app.queue, first.id, "running")
    worker.send("SIGTSTP")
    await worker.logs("is quiet; 1 job(s) are running")
    second = await app.tasks.add.enqueue(1)
    (app.place / "open").touch()
    assert await first.result(5) == 1

    async def quiet() -> bool:
        (info,) = await app.queue.monitors[0].workers()
        return info.state == "quiet" and info.succeeded == 1

    await eventually(quiet)
    assert (await second.info()).state == "queued"
    worker.send("SIGTERM")
    assert await worker.ended() == 0


async def test_sigusr2_logs_where_jobs_stand(app: App, start: Start) -> None:
    jobs = [
        await app.tasks.gate.enqueue(str(app.place / "open")),
        await app.tasks.think.enqueue(str(app.place / "open")),
    ]
    worker = start("worker", app.path, "--grace=0")
    for job in jobs:
        await state(app.queue, job.id, "running")
    await eventually((app.place / "open.thinking").exists)
    worker.send("SIGUSR2")
    await worker.logs("in think")
    assert "await asyncio.sleep(0.01)" in worker.log
    assert jobs[0].id in worker.log
    (app.place / "open").touch()
    for job in jobs:
        await job.result(5)
    worker.send("SIGTERM")
    assert await worker.ended() == 0


# -- several processes ---------------------------------------------------------------------------------------


async def test_crashed_child_is_started_again(app: App, start: Start) -> None:
    worker = start("worker", app.path, "--processes=2", "--name=twin", *QUICK)
    before = {info.name: info.pid for info in await workers(app.queue, 2)}
    assert sorted(before) == ["twin-1", "twin-2"]
    await app.tasks.die.enqueue()
    await worker.logs("exited with code 9; again in")

    async def replaced() -> bool:
        found = await app.queue.monitors[0].workers()
        return len(found) == 3 and len({info.pid for info in found}) == 3

    await eventually(replaced, 20)
    worker.send("SIGTERM")
    assert await worker.ended() == 0
    assert running(app.module) == {}


async def test_children_do_not_outlive_a_killed_supervisor(app: App, start: Start) -> None:
    job = await app.tasks.gate.enqueue(str(app.place / "never"))
    worker = start("worker", app.path, "--processes=2", "--grace=0")
    await workers(app.queue, 2)
    await state(app.queue, job.id, "running")
    worker.send("SIGKILL")
    await worker.ended()
    await eventually(lambda: not running(app.module), 20)
    info = await job.info()
    assert (info.state, info.attempt, info.crashes) == ("queued", 1, 0)


async def test_gives_up_when_children_cannot_start(app: App, start: Start) -> None:
    (app.place / f"{app.module}_broken.py").write_text("raise RuntimeError('no such config')\n")
    worker = start("worker", f"{app.module}_broken:queue", "--processes=3")
    assert await worker.ended() == 2
    assert worker.log.count("RuntimeError: no such config") == 1
    assert "workers cannot start: the last one exited with code 2" in worker.log


async def test_gives_up_when_no_server_answers(app: App, start: Start) -> None:
    worker = start("worker", app.path, "--processes=2", "--url=redis://127.0.0.1:1/0")
    assert await worker.ended() == 1
    assert "workers cannot start" in worker.log


async def test_burst_of_several_processes_ends(app: App, start: Start) -> None:
    jobs = [await app.tasks.add.enqueue(n) for n in range(20)]
    assert await start("worker", app.path, "--processes=2", "--burst").ended() == 0
    assert [await job.result(5) for job in jobs] == [n + 2 for n in range(20)]


async def test_used_up_children_are_replaced(app: App, start: Start) -> None:
    jobs = [await app.tasks.add.enqueue(n) for n in range(4)]
    worker = start("worker", app.path, "--processes=2", "--max-jobs=1")
    assert [await job.result(20) for job in jobs] == [n + 2 for n in range(4)]
    await worker.logs("is used up: another one takes its place", 2)
    assert "again in" not in worker.log
    worker.send("SIGTERM")
    assert await worker.ended() == 0


async def test_signals_reach_every_child(app: App, start: Start) -> None:
    worker = start("worker", app.path, "--processes=2", *QUICK)
    await workers(app.queue, 2)
    worker.send("SIGUSR2")
    await worker.logs("no job is running", 2)
    worker.send("SIGTSTP")

    async def quiet() -> bool:
        return all(info.state == "quiet" for info in await app.queue.monitors[0].workers())

    await eventually(quiet)
    worker.send("SIGINT")
    assert await worker.ended() == 0


# -- orders from elsewhere -----------------------------------------------------------------------------------


async def test_orders(app: App, cli: Cli, start: Start) -> None:
    said = await cli("stop")
    assert (said.code, said.err) == (1, f"asyncq: queue {app.queue.name} does not have any worker; alive: none\n")

    worker = start("worker", app.path, "--name=far", *QUICK)
    await workers(app.queue)
    said = await cli("stacks", "nobody")
    assert (said.code, "a worker nobody; alive: far" in said.err) == (1, True)
    assert (await cli("stacks")).out == "far logs its stacks\n"
    await worker.logs("no job is running")
    assert (await cli("quiet", "far", "--json")).json == {"order": "quiet", "workers": ["far"]}
    await worker.logs("is quiet")
    assert (await cli("stop", "far")).out == "far is told to stop\n"
    assert await worker.ended() == 0


async def test_worker_stacks_is_the_same_as_stacks(
    app: App, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCQ_APP", app.path)
    worker = start("worker", app.path, "--name=far")
    await workers(app.queue)
    assert (await cli("worker", "stacks", queue=False)).out == "far logs its stacks\n"
    await worker.logs("no job is running")
    worker.send("SIGTERM")
    assert await worker.ended() == 0


@pytest.mark.parametrize("partitions", [3], indirect=True)
async def test_one_order_to_stop_is_not_two(app: App, cli: Cli, start: Start) -> None:
    """With partitions a worker listens to several channels."""
    job = await app.tasks.gate.enqueue(str(app.place / "open"))
    worker = start("worker", app.path, "--name=far", "--grace=20")
    await workers(app.queue)
    await state(app.queue, job.id, "running")
    await cli("stop")
    await worker.logs("stops; 1 job(s) are running")
    (app.place / "open").touch()
    assert await worker.ended() == 0
    assert await job.result(5) == 1


# -- reload --------------------------------------------------------------------------------------------------


async def test_reload(app: App, start: Start) -> None:
    file = app.place / f"{app.module}.py"
    worker = start("worker", app.path, "--reload", "--name=fresh", *QUICK)
    (before,) = await workers(app.queue)
    assert await (await app.tasks.greet.enqueue("you")).result(5) == "hello you"

    file.write_text(file.read_text().replace("hello", "HELLO"))
    await worker.logs(f"{file.name} changed: restarting")

    async def again() -> bool:
        return [info.pid for info in await app.queue.monitors[0].workers()] not in ([], [before.pid])

    await eventually(again, 20)
    assert await (await app.tasks.greet.enqueue("you")).result(5) == "HELLO you"

    good = file.read_text()
    file.write_text("this is not Python\n")
    await worker.logs("it is started again when a file changes")
    file.write_text(good)
    await workers(app.queue)
    worker.send("SIGINT")
    assert await worker.ended() == 0
    assert running(app.module) == {}


async def test_says_when_watchfiles_is_missing(app: App, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    said = await cli("worker", app.path, "--reload", queue=False)
    assert (said.code, said.err) == (
        2,
        "asyncq: to restart when the code changes takes watchfiles: pip install 'asyncq[reload]'\n",
    )


async def test_dev_says_where_everything_is(app: App, start: Start, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / f"{app.module}.py"
    file.write_text(file.read_text().replace(f"url={app.queue.url!r}", "url=None"))
    dev = start("dev", app.path)
    try:
        await dev.logs("serves queue")
        assert f"started in {tmp_path / '.asyncq'}" in dev.log
        assert "tasks   add, boom, die" in dev.log
        dev.send("SIGINT")
        assert await dev.ended() == 0
    finally:
        stopped = await cli("server", "stop", f"--dir={tmp_path / '.asyncq'}", queue=False)
    assert stopped.out.startswith("stopped")
