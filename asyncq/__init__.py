"""asyncq: an asyncio-native job queue on Redis Streams.

queue = Queue("media")

@queue.task()
async def render(frame: int) -> str: ...

async with queue:
    job = await render.enqueue(7)
    print(await job.result(timeout=30))
"""

from asyncq.backoff import Retry
from asyncq.config import QueueSettings, WorkerSettings
from asyncq.errors import (
    ArgumentError,
    AsyncqError,
    ConfigError,
    EmbeddedUnavailable,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    JobNotEnded,
    JobNotFound,
    PayloadTooLarge,
    Reject,
    RetryLater,
    ServerRefused,
    ServerUnavailable,
    SoftTimeout,
    TaskError,
    TaskSignal,
    UnknownTask,
)
from asyncq.handle import Job
from asyncq.job import JobInfo, RunningJob, current_job
from asyncq.queue import Queue
from asyncq.task import Call, Task
from asyncq.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncqError",
    "Call",
    "ConfigError",
    "EmbeddedUnavailable",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobExpired",
    "JobFailed",
    "JobInfo",
    "JobNotEnded",
    "JobNotFound",
    "PayloadTooLarge",
    "Queue",
    "QueueSettings",
    "Reject",
    "Retry",
    "RetryLater",
    "RunningJob",
    "ServerRefused",
    "ServerUnavailable",
    "SoftTimeout",
    "Task",
    "TaskError",
    "TaskSignal",
    "UnknownTask",
    "Worker",
    "WorkerSettings",
    "current_job",
]
