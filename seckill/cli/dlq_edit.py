"""A payload in an editor, from a file, and what was changed about it."""

from __future__ import annotations

import difflib
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from seckill.cli.console import err, note, out, say
from seckill.cli.errors import CliError, WrongUsage

PAYLOAD_BYTES_MAX = 10_485_760

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def readable(payload: bytes) -> str:
    """JSON indented, other text as it is, and bytes that are no text with their values."""
    import msgspec

    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(payload)  # formatting alone lets through what is no JSON
        return msgspec.json.format(payload, indent=2).decode()
    return payload.decode(errors="backslashreplace")


def compact(payload: bytes) -> bytes:
    """As a record holds it: JSON on one line; anything else as it was typed, without the last line's end."""
    import msgspec

    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(payload)
        return msgspec.json.format(payload, indent=-1)
    return payload.removesuffix(b"\n")


def read_payload(source: Path) -> bytes:
    """Of `--payload`: a file's bytes as they are, or stdin's. Raises WrongUsage."""
    if str(source) == "-":
        found = sys.stdin.buffer.read(PAYLOAD_BYTES_MAX + 1)
    else:
        try:
            found = source.read_bytes()
        except OSError as error:
            raise WrongUsage(f"--payload: cannot read {source}: {error.strerror}") from error
    if len(found) > PAYLOAD_BYTES_MAX:
        raise WrongUsage(f"--payload: {source} has more than {PAYLOAD_BYTES_MAX:,} bytes")
    if not found.strip():
        raise WrongUsage(f"--payload: {source} is empty")
    return found


def edited(payload: bytes) -> bytes:
    """What the user's editor made of it. Raises CliError when it was left as it was, or the editor failed."""
    shown = readable(payload).encode() if _is_text(payload) else payload
    descriptor, name = tempfile.mkstemp(prefix="seckill-letter-", suffix=".json")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(shown)
        _run_editor(path)
        found = path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
    if found.strip() == shown.strip():
        raise CliError("the payload was left as it was: nothing is replayed")
    return compact(found)


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _run_editor(path: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(command), str(path)], check=False).returncode  # noqa: S603 - the user's own
    except (OSError, ValueError) as error:
        raise WrongUsage(f"--edit: cannot start the editor {command!r}: {error}; set EDITOR to another") from error
    if code:
        raise CliError(f"the editor {command!r} ended with {code}: nothing is replayed")


def diff_lines(before: bytes, after: bytes) -> list[str]:
    """A unified diff of how both read."""
    old, new = readable(before).splitlines(), readable(after).splitlines()
    return list(difflib.unified_diff(old, new, "the record", "the edit", lineterm=""))


def print_diff(before: bytes, after: bytes, *, to_stderr: bool) -> None:
    """Coloured where a terminal shows it. `to_stderr` keeps stdout free for data."""
    from rich.text import Text

    lines = diff_lines(before, after) or ["the edit reads like the record"]
    console = err() if to_stderr else out()
    if not console.is_terminal:
        for line in lines:
            (note if to_stderr else say)(line)
        return
    for line in lines:
        console.print(Text(line, style=_COLOURS.get(line[:1], "")))
