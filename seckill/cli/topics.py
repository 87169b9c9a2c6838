"""`seckill topics …`: the pipeline's topics on Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import print_json, print_table
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.messaging.topics import TopicDone

PARTITIONS = 12
RETENTION_HOURS = 168.0

commands = typer.Typer(
    no_args_is_help=True,
    help="""Make the pipeline's topics.

Example:

  seckill topics create
""",
)


@commands.command("create")
def create(
    context: typer.Context,
    partitions: Annotated[
        int, typer.Option(min=1, max=10_000, help="Of each topic; the most workers that can share one. Never lowered.")
    ] = PARTITIONS,
    replication: Annotated[
        int | None,
        typer.Option(min=1, max=10, help="Copies of each record. [default: one on each broker, 3 at most]"),
    ] = None,
    retention: Annotated[
        float, typer.Option(min=1, max=876_000, metavar="HOURS", help="Of the main topic; the others keep for ever.")
    ] = RETENTION_HOURS,
    as_json: JsonOption = False,
) -> None:
    """Make the topics that are missing, and set right what is set wrong.

    The main topic, a retry topic for each delay of retry.topic_delays_ms, and the
    dead letters. Running it again changes nothing. The replication of a topic that
    exists stays as it is.

    Examples:

      seckill topics create
      seckill topics create --partitions 24 --replication 3 --retention 72
    """
    settings = client_settings(context)
    from seckill.messaging.retry_topics import retry_tiers
    from seckill.messaging.topics import make_topics

    tiers = retry_tiers(settings.kafka, settings.retry)
    retention_ms = round(retention * 3_600_000)
    done = run(
        make_topics(settings.kafka, tiers, partitions=partitions, replicas=replication, retention_ms=retention_ms)
    )
    if as_json:
        print_json({"topics": [{"topic": each.name, "done": _word(each), "changes": each.changes} for each in done]})
        return
    print_table(("topic", "done", "changes"), [[each.name, _word(each), "; ".join(each.changes)] for each in done])


def _word(done: TopicDone) -> str:
    if done.made:
        return "created"
    return "changed" if done.changes else "unchanged"
