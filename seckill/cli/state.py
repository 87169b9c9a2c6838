"""What every command needs: the global options, the settings they choose, and a way to run asyncio code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from seckill.client import FrontClient
    from seckill.settings import Settings

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@dataclass(frozen=True, slots=True)
class Global:
    """The options before the command."""

    config: Path | None = None
    debug: bool = False


def chosen(context: typer.Context) -> Global:
    return context.obj if isinstance(context.obj, Global) else Global()


def file_named(context: typer.Context) -> bool:
    """Whether the user names a settings file."""
    from seckill.settings import CONFIG_VARIABLE

    return chosen(context).config is not None or bool(os.environ.get(CONFIG_VARIABLE))


def role_settings(context: typer.Context, overrides: dict[str, Any] | None = None) -> Settings:
    """For a role of the pipeline: the file that is named, else the embedded profile. Raises SettingsError."""
    from seckill.settings import load_settings

    return load_settings(chosen(context).config, overrides=overrides)


def client_settings(context: typer.Context) -> Settings:
    """For a command that talks to a pipeline: without a named file, the one that `seckill up` runs here.

    Such a command says in its own words what went wrong: the libraries' logs are for --debug.
    """
    from seckill.cli.run_file import running_overrides
    from seckill.log import configure_logging
    from seckill.settings import load_settings

    configure_logging("debug" if chosen(context).debug else "error")
    if not chosen(context).debug:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    overrides = None if file_named(context) else running_overrides()
    return load_settings(chosen(context).config, overrides=overrides)


def front_of(settings: Settings, *, connections_max: int = 16) -> AbstractAsyncContextManager[FrontClient]:
    """A client of the front with the operator's token."""
    from seckill.client import open_front
    from seckill.security import front_context

    token = settings.front.operator_token.get_secret_value() if settings.front.operator_token else None
    tls = front_context(settings.front)
    return open_front(settings.front.http, operator_token=token, connections_max=connections_max, tls=tls)


class Terminated(Exception):
    """SIGTERM came; what ran has been taken down."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's asyncio part. Ctrl-C and SIGTERM cancel it and wait for it: KeyboardInterrupt, Terminated."""
    return _run_on(asyncio.new_event_loop, work)


def run_pipeline(work: Coroutine[Any, Any, T]) -> T:
    """As `run`, on the faster event loop where there is one: for what carries orders."""
    if sys.platform == "win32":
        return run(work)
    import uvloop

    return _run_on(uvloop.new_event_loop, work)


def _run_on(new_loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM goes the way of SIGINT, which the runner turns into a cancellation."""
    terminated = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(work)
    except KeyboardInterrupt:
        if terminated:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
