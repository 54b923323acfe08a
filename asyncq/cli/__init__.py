"""The command line: `asyncq COMMAND`. One command, or one group of them, a file.

find     from `module:queue` to the Queue it names
target   from --app, --queue and --url to an open queue
output   JSON or text
"""

from asyncq.cli.app import app, main

__all__ = ["app", "main"]
