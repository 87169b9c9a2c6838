"""`seckill doctor`: every dependency asked at once; one line a finding, and one remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import print_json, print_table, say, stdout_is_terminal
from seckill.cli.errors import FAILED, OK, UNREACHABLE, WrongUsage
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.doctor.findings import Examined

_COLUMNS = ("level", "dependency", "check", "found", "remedy", "setting", "address")
_SPARE = ("address", "setting")


def doctor(
    context: typer.Context,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Only these, separated by commas: kafka,redis,sql,coordinator …"),
    ] = None,
    problems: Annotated[bool, typer.Option("--problems", help="Leave out what is fine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at everything that the pipeline stands on, and say what to do.

    Kafka, Redis, the databases, the coordinator, every role and the settings.
    Exit code 0: fine (warnings allowed); 1: a problem; 3: something that is
    needed does not answer, or something else answers in its place.

    Examples:

      seckill doctor
      seckill doctor --only kafka,redis,sql --problems
      seckill doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    settings = client_settings(context)
    from seckill.doctor.examine import examine

    examined = run(examine(settings, only=_chosen(only)))
    code = _exit_code(examined)
    rows = _rows(examined, hide_fine=problems)
    if as_json:
        print_json({"findings": rows, "exit_code": code})
    elif stdout_is_terminal():
        print_table(_COLUMNS, [[row[column] for column in _COLUMNS] for row in rows], spare=_SPARE)
    else:
        for row in rows:
            say(_line(row))
    raise typer.Exit(code)


def _chosen(only: str | None) -> set[str]:
    from seckill.doctor.examine import DEPENDENCIES, SQL

    if only is None:
        return set(DEPENDENCIES)
    names = {name.strip() for name in only.split(",") if name.strip()}
    unknown = names - {*DEPENDENCIES, "sql"}
    if unknown or not names:
        wrong = ", ".join(sorted(unknown)) or "nothing given"
        raise WrongUsage(f"--only: {wrong}: choose from {', '.join((*DEPENDENCIES, 'sql'))}")
    return (names - {"sql"}) | (set(SQL) if "sql" in names else set())


def _exit_code(examined: list[Examined]) -> int:
    from seckill.doctor.findings import Level, levels

    found = levels(examined)
    if Level.UNREACHABLE in found:
        return UNREACHABLE
    return FAILED if Level.PROBLEM in found else OK


def _rows(examined: list[Examined], *, hide_fine: bool) -> list[dict[str, Any]]:
    return [
        {
            "level": str(finding.level),
            "dependency": each.dependency,
            "check": finding.check,
            "found": finding.found,
            "remedy": finding.remedy,
            "setting": each.setting,
            "address": each.address,
        }
        for each in examined
        for finding in each.findings
        if not (hide_fine and finding.level == "ok")
    ]


def _line(row: dict[str, Any]) -> str:
    where = f"{row['dependency']} ({row['setting']} = {row['address']})"
    remedy = f"; {row['remedy']}" if row["remedy"] else ""
    return f"{row['level']:<11}  {where}  {row['check']}: {row['found']}{remedy}"
