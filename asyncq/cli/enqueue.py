"""`asyncq enqueue`: make a job by hand."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from asyncq.cli.find import find_queue
from asyncq.cli.output import plain, print_json
from asyncq.cli.target import JsonOption, UrlOption, run
from asyncq.errors import ConfigError, JobEnded, JobNotEnded, JobNotFound

__all__ = ["enqueue"]


def enqueue(
    app: Annotated[str, typer.Argument(help="The queue: module:queue.")],
    task: Annotated[str, typer.Argument(help="The name of the task.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    kwargs: Annotated[
        str, typer.Option("--kwargs", metavar="JSON", help="Its keyword arguments, a JSON object.")
    ] = "{}",
    delay: Annotated[float, typer.Option("--delay", help="Not before so many seconds from now.")] = 0.0,
    lane: Annotated[str | None, typer.Option("--lane", help="Another lane than the task's.")] = None,
    job_id: Annotated[str | None, typer.Option("--job-id", help="An id of your own.")] = None,
    expires: Annotated[float | None, typer.Option("--expires", help="Not later than so many seconds from now.")] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", metavar="SECONDS", help="Wait so long for the result, and print it.")
    ] = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Enqueue a job and print its id.

    Each argument is JSON where it can be read as JSON, else text: 7 is a number, '"7"' and seven are text.
    Put -- before arguments that begin with a dash.
    """
    queue = find_queue(app, url)
    given = [_value(arg) for arg in args or []]
    called = queue.find_task(task).options(delay=delay, lane=lane, job_id=job_id, expires=expires)
    call = called.call(*given, **_keywords(kwargs))

    async def main() -> None:
        async with queue:
            job = await queue.enqueue(call)
            about: dict[str, Any] = {"id": job.id, "created": job.created}
            if not json:
                print(job.id if job.created else f"{job.id} (it was there already)", flush=True)
            if wait is not None:
                try:
                    value = await job.result(wait)
                except (JobEnded, JobNotEnded, JobNotFound) as error:
                    if json:
                        print_json(about | {"error": str(error)})
                    raise
                about["value"] = value
                if not json:
                    print(value if isinstance(value, str) else repr(plain(value)))
            if json:
                print_json(about)

    run(main())


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _keywords(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"--kwargs {text!r} is not a JSON object: {error}") from None
