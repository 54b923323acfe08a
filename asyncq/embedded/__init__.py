"""The server asyncq starts by itself where none is configured: one per directory, shared by its processes.

`ensure` gives a server to anyone who asks, `status` and `stop` are for people; `keeper` says how it works.
"""

from asyncq.embedded.binary import Binary, find_server
from asyncq.embedded.launch import Server, ensure, status, stop

__all__ = ["Binary", "Server", "ensure", "find_server", "status", "stop"]
