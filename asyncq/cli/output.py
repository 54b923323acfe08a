"""How commands speak: JSON or text on stdout, everything else on stderr. Colours only for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from asyncq.clock import now_ms

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ago",
    "clean",
    "duration",
    "moment",
    "note",
    "plain",
    "print_fields",
    "print_json",
    "print_table",
    "rich_table",
    "short",
]

Cell = str | int | float | None


def print_json(value: Any) -> None:
    """One JSON document. What JSON does not know is shown as Python would."""
    try:
        text = msgspec.json.encode(plain(value), enc_hook=repr)
    except (TypeError, ValueError):  # for example a map whose keys are lists
        text = msgspec.json.encode(repr(value))
    print(msgspec.json.format(text, indent=2).decode())


def plain(value: Any) -> Any:
    """Structs as dicts with every field, also those at their default."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def note(text: str) -> None:
    """A word for people, on stderr."""
    print(text, file=sys.stderr)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Rows under headers. On a terminal the last column is shortened if need be, ids never."""
    cells = [[text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_aligned([[header.upper() for header in headers], *cells])
        return
    from rich.console import Console

    Console().print(rich_table(headers, cells), crop=False)


def rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, header in enumerate(headers):
        width = max([len(row[number]) for row in rows], default=0) if number < len(headers) - 1 else 0
        table.add_column(header, no_wrap=True, overflow="ellipsis", min_width=max(width, len(header)))
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def print_fields(fields: Iterable[tuple[str, Cell]]) -> None:
    """Names and values, one a line; those without a value are left out, long ones stand below their name."""
    shown = [(name, text(value, lines=True)) for name, value in fields if value not in (None, "", ())]
    width = max([len(name) for name, _ in shown], default=0)
    for name, value in shown:
        if "\n" in value:
            print(f"{name}:\n" + "\n".join(f"    {line}" for line in value.rstrip().split("\n")))
        else:
            print(f"{name:<{width}}  {value}")


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def text(value: Cell, lines: bool = False) -> str:
    if value is None:
        return ""
    return clean(f"{value:g}" if isinstance(value, float) else str(value), lines)


def clean(text: str, lines: bool = False) -> str:
    """Without what could steer a terminal: errors and arguments come from anywhere."""
    allowed = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in allowed else repr(c)[1:-1] for c in text)


def short(value: Any, length: int = 60) -> str:
    """A value on one line, cut where it gets long."""
    if value is None:
        return ""
    line = value if isinstance(value, str) else repr(value)
    line = line.partition("\n")[0]
    return line if len(line) <= length else line[: length - 1] + "…"


def moment(at_ms: int | None) -> str:
    """A time as people here read it."""
    if at_ms is None:
        return ""
    return f"{datetime.fromtimestamp(at_ms / 1000).astimezone():%Y-%m-%d %H:%M:%S%z} ({ago(at_ms)})"


def ago(at_ms: int | None) -> str:
    """How long ago, or how long until."""
    if at_ms is None:
        return ""
    passed_s = (now_ms() - at_ms) / 1000
    return f"{duration(passed_s)} ago" if passed_s >= 0 else f"in {duration(-passed_s)}"


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
