"""`seckill config …`: the settings as the roles see them."""

from __future__ import annotations

import typer

from seckill.cli.console import print_json, say
from seckill.cli.state import JsonOption, role_settings

commands = typer.Typer(
    no_args_is_help=True,
    help="""Look at the settings.

Examples:

  seckill --config seckill.toml config check
  SECKILL__WORKER__BATCH_MAX=100 seckill config check
""",
)


@commands.command("check")
def check(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the effective settings as TOML, secrets masked; name every wrong one and exit with 2.

    Certificate files that the settings name are read and checked as well, and
    the URLs of alerts.targets, of which none is shown or sent anything.

    Precedence: SECKILL__SECTION__KEY variables, then the file of --config or
    SECKILL_CONFIG, then the defaults.

    Examples:

      seckill config check
      seckill --config seckill.toml config check --json
    """
    from seckill.cli.settings_text import document, to_toml
    from seckill.security import check_files

    settings = role_settings(context)
    check_files(settings)
    if settings.alerts.targets:
        from seckill.wiring.alerts import open_targets

        open_targets(settings.alerts)
    effective = document(settings)
    if as_json:
        print_json(effective)
    else:
        say(to_toml(effective).rstrip("\n"))


@commands.command("show-default")
def show_default() -> None:
    """Print the embedded profile: what is used when no file is named. A start for a file of your own.

    Example:

      seckill config show-default > seckill.toml
    """
    from seckill.settings import embedded_profile

    say(embedded_profile().rstrip("\n"))
