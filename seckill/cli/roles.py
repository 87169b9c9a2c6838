"""`seckill up` and the roles. Thin: the settings, the signals and the words; `seckill.wiring` builds what runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from seckill.cli.console import note, print_json, say, stderr_is_terminal
from seckill.cli.errors import Unreachable
from seckill.cli.state import JsonOption, role_settings, run_pipeline

if TYPE_CHECKING:
    from seckill.settings import Settings

LISTENING = {
    "front": ("front.http", "front.grpc"),
    "product": ("product.grpc", "product.ops"),
    "order": ("order.grpc", "order.ops"),
    "worker": ("worker.ops",),
    "reconcile": ("reconcile.ops",),
    "dead_letters": ("dead_letters.http",),
    "coordinator": ("coordinator.grpc", "coordinator.http"),
    "alerts": ("alerts.ops",),
}
"""The settings that each role listens on."""

Pattern = Literal["tcc", "saga", "xa", "message"]
PatternOption = Annotated[
    Pattern | None,
    typer.Option("--pattern", help="How order and stock are kept consistent.", show_default="transaction.pattern"),
]

EVERY_ADDRESS = tuple(name for names in LISTENING.values() for name in names)


def up(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of the front's HTTP; 0 takes a free one.", show_default="front.http"),
    ] = None,
    base_port: Annotated[
        int | None,
        typer.Option(min=0, max=65000, help="All ports from here on, front first; 0 takes free ones everywhere."),
    ] = None,
    pattern: PatternOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline in one process, on stand-ins for the servers, until Ctrl-C.

    Commands in other terminals find it by themselves. Its state ends with it.

    Examples:

      seckill up
      seckill up --port 8888
      seckill up --base-port 0
      seckill up --pattern saga
      SECKILL__LOG__LEVEL=info seckill up   # tells what happens to each order
    """
    settings = with_pattern(role_settings(context, embedded_overrides(port=port, base_port=base_port)), pattern)
    configure_logs(settings, quiet=True)
    run_pipeline(_up(settings, as_json))


def with_pattern(settings: Settings, pattern: Pattern | None) -> Settings:
    """What was typed wins over file and environment."""
    from seckill.settings import with_values

    return with_values(settings, {"transaction": {"pattern": pattern}}) if pattern else settings


def embedded_overrides(*, port: int | None, base_port: int | None) -> dict[str, Any]:
    """What an embedded pipeline adds to the settings file: the ports that were asked for."""
    overrides: dict[str, dict[str, Any]] = {}
    if base_port is not None:
        for index, name in enumerate(EVERY_ADDRESS):
            section, key = name.split(".")
            overrides.setdefault(section, {})[key] = f"127.0.0.1:{base_port + index if base_port else 0}"
    if port is not None:
        overrides.setdefault("front", {})["http"] = f"127.0.0.1:{port}"
    return overrides


async def _up(settings: Settings, as_json: bool) -> None:
    check_ports(settings, EVERY_ADDRESS)
    starting()
    from seckill.cli.run_file import run_file
    from seckill.wiring import open_embedded

    async with open_embedded(settings) as embedded:
        with run_file(embedded.settings):
            announce(embedded.addresses, embedded.settings, as_json)
            await embedded.until_stopped()
            note("seckill: draining …")
    embedded.drain.end_process()
    note("seckill: drained and ended")


def starting(*, embedded: bool = True) -> None:
    """A word to who watches: the stand-in for Kafka takes three seconds to form a group."""
    if stderr_is_terminal():
        servers = "Kafka, Redis, SQL, coordinator and services in this process"
        note(f"seckill: starting {servers if embedded else 'the services here, on the servers of the settings'} …")


def announce(addresses: dict[str, str], settings: Settings, as_json: bool) -> None:
    """Where everything listens, and what to try."""
    from seckill.client import front_url

    if as_json:
        print_json({"addresses": addresses})
        return
    url = front_url(settings.front.http, https=settings.front.https)
    width = max(len(name) for name in addresses)
    for name, address in addresses.items():
        say(f"  {name:<{width}}  {address}")
    say(f"  {'API':<{width}}  {url}/docs")
    say("")
    say("Try, in a second terminal:")
    say(f"  {own_name()} sale create --product 1 --stock 100 --ends +1h")
    say(f"  curl -s {url}/v1/orders -H 'content-type: application/json' -d '{{\"user_id\": 7, \"product_id\": 1}}'")
    say(f"  {own_name()} status")
    say("")
    say("Ctrl-C drains and ends it.")


def own_name() -> str:
    """What to type in another terminal to run this command: its name if the shell finds it, else where it is."""
    import os
    import shutil
    import sys

    if shutil.which("seckill"):
        return "seckill"
    path = os.path.relpath(sys.argv[0])
    return path if os.access(path, os.X_OK) and not path.endswith(".py") else f"{sys.executable} -m seckill.cli"


def check_ports(settings: Settings, names: tuple[str, ...]) -> None:
    """Raises Unreachable naming the setting of the first address that cannot be listened on.

    gRPC's own servers share a port silently, so this is the only place where a clash of two of them shows.
    """
    import socket

    for name in names:
        section, key = name.split(".")
        address: str | None = getattr(getattr(settings, section), key, None)
        if address is None:
            continue
        host, _, port = address.rpartition(":")
        with suppress(ValueError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), int(port)))
            except OSError as error:
                raise _cannot_listen(name, address, error) from error


def _cannot_listen(name: str, address: str, error: OSError) -> Unreachable:
    from seckill.settings import variable

    remedy = f"end what listens there, or set another address with {variable(name)}"
    return Unreachable(f"cannot listen on {address} ({name}): {error.strerror or error}; {remedy}")


def configure_logs(settings: Settings, *, quiet: bool = False) -> None:
    """Logging as the settings say; `quiet` keeps to warnings where they name no level."""
    from seckill.log import configure_logging

    level = "warning" if quiet and "level" not in settings.log.model_fields_set else settings.log.level
    configure_logging(level, json_lines=settings.log.json_lines, colors=stderr_is_terminal())


def run_role_here(context: typer.Context, name: str) -> None:
    """Runs a role in this process until it is asked to stop. `name` is the command; its settings' section, with a _."""
    from seckill.settings import listening

    section = name.replace("-", "_")
    settings = listening(role_settings(context), section)
    configure_logs(settings)
    check_ports(settings, (*LISTENING[section], f"{section}.branch_grpc"))
    from seckill.wiring import run_role

    heard = kafka_unheard()
    run_pipeline(run_role(section, settings, started=lambda role: heard()))
    note(f"seckill {name}: drained and ended")


def kafka_unheard() -> Callable[[], None]:
    """Silences aiokafka until the result is called, once everything has started.

    What cannot be reached at start is told in one line, by us; later its errors are news.
    """
    kafka_log = logging.getLogger("aiokafka")
    level = kafka_log.level
    kafka_log.setLevel(logging.CRITICAL)
    return lambda: kafka_log.setLevel(level)


def _role(name: str, does: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        run_role_here(context, name)

    command.__name__ = name
    command.__doc__ = f"""Run {does}.

    Until SIGTERM or Ctrl-C. Configured by --config (or SECKILL_CONFIG) and
    SECKILL__SECTION__KEY variables.

    Examples:

      seckill --config seckill.toml {name}
      SECKILL__LOG__LEVEL=debug seckill {name}
    """
    return command


ROLES = {
    "front": _role("front", "the front: HTTP and gRPC in, admission in Redis, records to Kafka"),
    "worker": _role("worker", "the worker: orders off the topic, each group one global transaction"),
    "product": _role("product", "the product service: sales, and the reservations that decide every order"),
    "coordinator": _role("coordinator", "our own DTM-compatible coordinator"),
    "dead-letters": _role("dead-letters", "the dead-letter index and its HTTP API"),
}
"""The roles `order`, `reconcile` and `alerts` have more to say, in modules of their own."""
