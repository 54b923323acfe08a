"""`process=True`: tasks in child processes that can be killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq import JobCancelled, JobFailed, Queue, Retry, Task
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker import children
from tests.worker.recording import AT_ONCE, letters, queue_of, worker_process

PATIENTLY = 30.0
"""A child imports asyncq first, and several may do so at once."""


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


def own(queue: Queue, task: Task[..., Any], **options: Any) -> Task[..., Any]:
    """The task's function registered with the test's queue."""
    options = {"retry": task.defaults.retry, **options}
    function: Callable[..., Any] = task.function
    mine: Task[..., Any] = queue.task(process=True, **options)(function)
    return mine


def reaped(pid: int) -> bool:
    """Whether its parent knows that it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def alive(pid: int) -> bool:
    if reaped(pid):
        return False
    try:  # Killed, it stays as a zombie until whoever inherited it looks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()


async def test_values_cross_typed_and_a_child_is_used_again(queue: Queue) -> None:
    double, moment, pid = (own(queue, task) for task in (children.double, children.moment, children.pid))
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    async with queue, queue.worker(concurrency=1):
        assert await (await double.enqueue(21)).result(PATIENTLY) == 42
        assert await (await moment.enqueue(noon)).result(PATIENTLY) == noon.astimezone(UTC)
        pids = {await (await pid.enqueue()).result(PATIENTLY) for _ in range(3)}
        assert len(pids) == 1
        child = pids.pop()
        assert alive(child)
        assert child != os.getpid()
    assert not alive(child), "a child was left behind"


async def test_errors_come_back_with_the_childs_traceback(queue: Queue, redis: Redis) -> None:
    fail, unshowable = own(queue, children.fail, retry=1), own(queue, children.unshowable, retry=1)
    exits, pid = own(queue, children.exit_politely, retry=1), own(queue, children.pid)
    async with queue, queue.worker(concurrency=1):
        before = await (await pid.enqueue()).result(PATIENTLY)
        with pytest.raises(JobFailed, match="ValueError: boom") as caught:
            await (await fail.enqueue("boom")).result(PATIENTLY)
        assert "In the child process" in caught.value.traceback
        assert "raise ValueError(text)" in caught.value.traceback
        assert caught.value.error == "ChildError: ValueError: boom"
        with pytest.raises(JobFailed, match=r"half a character: \\ud800"):
            await (await unshowable.enqueue()).result(PATIENTLY)
        with pytest.raises(JobFailed, match="SystemExit: enough"):
            await (await exits.enqueue()).result(PATIENTLY)
        assert await (await pid.enqueue()).result(PATIENTLY) == before, "an exception is no reason for a new child"


async def test_retry_rules_see_the_exception_of_the_child(queue: Queue, tmp_path: Path) -> None:
    give_up = own(queue, children.give_up)
    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="KeyError"):
            await (await give_up.enqueue(str(tmp_path / "runs"))).result(PATIENTLY)
    assert (tmp_path / "runs").read_text() == "x"


async def test_a_result_that_cannot_be_stored_is_not_tried_again(queue: Queue, redis: Redis, tmp_path: Path) -> None:
    unencodable = own(queue, children.unencodable, retry=AT_ONCE)
    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="returned object"):
            await (await unencodable.enqueue(str(tmp_path / "runs"))).result(PATIENTLY)
    assert (tmp_path / "runs").read_text() == "x"
    assert (await letters(redis, queue.name))[0]["reason"] == "unencodable"


async def test_retry_later_and_reject_work_from_a_child(queue: Queue, redis: Redis) -> None:
    later, reject = own(queue, children.later), own(queue, children.reject)
    async with queue, queue.worker(concurrency=1):
        assert await (await later.enqueue()).result(PATIENTLY) == "attempt 2"
        with pytest.raises(JobFailed, match="Reject: not for me"):
            await (await reject.enqueue()).result(PATIENTLY)
    assert (await letters(redis, queue.name))[0]["reason"] == "rejected"


async def test_a_child_that_dies_is_a_failure_and_the_next_call_gets_a_new_one(queue: Queue) -> None:
    leave, double = own(queue, children.leave, retry=1), own(queue, children.double)
    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="the process that ran the task exited with 3"):
            await (await leave.enqueue(3)).result(PATIENTLY)
        assert await (await double.enqueue(4)).result(PATIENTLY) == 8


async def test_an_idle_child_that_was_killed_is_not_used_again(queue: Queue) -> None:
    pid = own(queue, children.pid, retry=1)
    async with queue, queue.worker(concurrency=1):
        first = await (await pid.enqueue()).result(PATIENTLY)
        os.kill(first, 9)
        await eventually(lambda: reaped(first))
        assert await (await pid.enqueue()).result(PATIENTLY) != first


async def test_what_a_task_prints_does_not_disturb_the_conversation(queue: Queue) -> None:
    talk = own(queue, children.talk)
    async with queue, queue.worker(concurrency=1):
        for words in ("hello", "\0\0\0\1x" * 1000):
            assert await (await talk.enqueue(words)).result(PATIENTLY) == words


async def test_progress_and_the_running_job_are_there_in_a_child(queue: Queue, tmp_path: Path) -> None:
    report = own(queue, children.report_and_wait)
    async with queue, queue.worker(concurrency=1):
        job = await report.options(tags=("a", "b")).enqueue(str(tmp_path / "go"))

        async def progress() -> Any:
            info = await job.info()
            return info if info.progress is not None else None

        info = await eventually(progress, PATIENTLY)
        assert (info.progress, info.meta) == (40.0, {"step": "half way"})
        (tmp_path / "go").touch()
        assert await job.result(PATIENTLY) == (job.id, 1, ("a", "b"))


async def test_a_child_that_passes_its_timeout_is_killed(queue: Queue, tmp_path: Path) -> None:
    sleeper = own(queue, children.sleep_for_ever, timeout=3, retry=1)
    double = own(queue, children.double)
    pid_file = tmp_path / "pid"
    async with queue, queue.worker(concurrency=1):
        job = await sleeper.enqueue(str(pid_file))
        await eventually(pid_file.exists, PATIENTLY)
        pid = int(pid_file.read_text())
        assert alive(pid)
        with pytest.raises(JobFailed, match="TimeoutError"):
            await job.result(PATIENTLY)
        await eventually(lambda: not alive(pid))
        assert await (await double.enqueue(1)).result(PATIENTLY) == 2


async def test_cancel_kills_the_child(queue: Queue, tmp_path: Path) -> None:
    sleeper, pid_file = own(queue, children.sleep_for_ever), tmp_path / "pid"
    async with queue, queue.worker(concurrency=1):
        job = await sleeper.enqueue(str(pid_file))
        await eventually(pid_file.exists, PATIENTLY)
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(PATIENTLY)
        pid = int(pid_file.read_text())
        await eventually(lambda: not alive(pid))


async def test_a_soft_timeout_is_raised_in_the_child(queue: Queue) -> None:
    cleans_up = own(queue, children.clean_up_in_time, soft_timeout=0.1)
    not_in_time = own(queue, children.not_in_time, soft_timeout=0.1, retry=1)
    pid = own(queue, children.pid)
    async with queue, queue.worker(concurrency=1):
        # A child is there and ready, so the timeout finds the code running.
        before = await (await pid.enqueue()).result(PATIENTLY)
        assert await (await cleans_up.enqueue()).result(PATIENTLY) == "cleaned up, True"
        with pytest.raises(JobFailed, match="SoftTimeout"):
            await (await not_in_time.enqueue()).result(PATIENTLY)
        assert await (await pid.enqueue()).result(PATIENTLY) == before


async def test_a_soft_timeout_while_the_child_starts_or_is_sent_to_hurts_no_other_job(queue: Queue) -> None:
    blob = b"x" * 900_000
    swallow = own(queue, children.swallow, soft_timeout=0.001, retry=1)
    double = own(queue, children.double)
    async with queue, queue.worker(concurrency=1):
        for _ in range(3):
            job = await swallow.enqueue(blob)
            try:
                assert await job.result(PATIENTLY) == len(blob)
            except JobFailed as failed:
                assert "SoftTimeout" in failed.error  # noqa: PT017
            assert await (await double.enqueue(3)).result(PATIENTLY) == 6


async def test_a_worker_that_stops_hands_back_and_leaves_no_child(queue: Queue, tmp_path: Path) -> None:
    sleeper, pid_file = own(queue, children.sleep_for_ever, retry=Retry(attempts=1)), tmp_path / "pid"
    async with queue:
        job = await sleeper.enqueue(str(pid_file))
        async with queue.worker(concurrency=1, grace=0):
            await eventually(pid_file.exists, PATIENTLY)
        assert not alive(int(pid_file.read_text()))
        info = await job.info()
        assert (info.state, info.attempt, info.crashes) == ("queued", 1, 0)


async def test_a_worker_that_is_killed_leaves_no_child(
    server: TestServer, queue: Queue, name: str, tmp_path: Path
) -> None:
    sleeper, pid_file = own(queue, children.sleep_for_ever), tmp_path / "pid"
    async with queue:
        await sleeper.enqueue(str(pid_file))
        with worker_process("children", server.url, name) as process:
            await eventually(pid_file.exists, PATIENTLY)
            process.kill()
        await eventually(lambda: not alive(int(pid_file.read_text())), PATIENTLY)
