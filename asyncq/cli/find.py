"""From `module:queue`, as users write it, to the `Queue` it names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from asyncq.errors import ConfigError
from asyncq.queue import Queue

__all__ = ["find_queue", "queues_in"]


def find_queue(app: str, url: str | None = None) -> Queue:
    """The queue that `app` names, at `url` if one is given; imports its module with the working directory on the path.

    Raises:
        ConfigError: there is none; the message says what is there instead, with the traceback of a module that raised.
    """
    module_name, colon, attribute = app.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{app!r} names no queue: write module:queue, for example app:queue{_meant(module_name)}")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{app!r}: write the module, not its file: {dotted}:{attribute}")
    module = _import(module_name)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"module {module_name} has no {attribute!r}{_instead(module)}") from None
    if not isinstance(found, Queue):
        raise ConfigError(f"{app} is not a Queue but of type {type(found).__name__}{_instead(module)}")
    if url:
        found.url = url
    return found


def queues_in(module: ModuleType) -> list[str]:
    """The names under which a module holds queues."""
    return sorted(name for name, value in vars(module).items() if isinstance(value, Queue))


def _instead(module: ModuleType) -> str:
    found = [f"{module.__name__}:{name}" for name in queues_in(module)]
    return f"; there is {', '.join(found)}" if found else "; there is no Queue in this module"


def _meant(module_name: str) -> str:
    """What may have been meant by a module alone, if that is already imported or easily found."""
    try:
        return _instead(_import(module_name)) if module_name.isidentifier() else ""
    except ConfigError:
        return ""


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {error.name!r}, looked for in {here} and in the packages of {sys.executable}. "
                "Run the command in your project's directory, or set PYTHONPATH"
            ) from None
        raise _broken(name, error) from None
    except Exception as error:
        raise _broken(name, error) from None


def _broken(name: str, error: Exception) -> ConfigError:
    """What the module raised, with the traceback from its own code on."""
    step = error.__traceback__
    while step is not None and _is_ours(step.tb_frame.f_code.co_filename):
        step = step.tb_next
    lines = traceback.format_exception(type(error), error, step)
    return ConfigError(f"module {name} cannot be imported:\n{''.join(lines).rstrip()}")


def _is_ours(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")
