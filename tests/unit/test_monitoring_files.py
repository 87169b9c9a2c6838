"""What stands in config/ for Prometheus and Grafana speaks of metrics, labels, ports and commands that there are."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import typer
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from seckill.cli.app import app
from seckill.domain.reasons import DeadLetterReason
from seckill.settings import AlertSettings, load_settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
SHIPPED = sorted({*ROOT.glob("seckill/**/*.py"), *ROOT.glob("consumers/**/*.py")})

OWN_SERIES = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity"}}
"""Those that Prometheus itself makes."""

SUFFIXES: dict[str, dict[str, set[str]]] = {
    "counter": {"_total": set()},
    "gauge": {"": set()},
    "histogram": {"_bucket": {"le"}, "_sum": set(), "_count": set()},
}
"""By the kind of a metric: the series that it makes, and what labels they have besides its own."""

SAMPLES = {"reason": DeadLetterReason.RETRIES_EXHAUSTED.value, "product_id": "7"}
"""Values that a rule's command is tried with."""

THRESHOLDS = {
    "SeckillDeadLettersFast": "letters_per_minute_max",
    "SeckillRetryBacklog": "retry_backlog_max",
    "SeckillBranchRepeated": "branch_attempts_max",
    "SeckillConsumerLag": "lag_max",
}


class Shown(NamedTuple):
    """An expression, where it stands, and the text that is filled in with its labels."""

    where: str
    expr: str
    words: str


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONFIG / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def read_jobs() -> dict[str, dict[str, Any]]:
    """What is looked up for each job: `names` and `port`."""
    config = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text())
    return {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}


def read_dashboard() -> dict[str, Any]:
    return dict(json.loads((CONFIG / "grafana" / "seckill.json").read_text()))


RULES = read_rules()
DASHBOARD = read_dashboard()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def _of_rules() -> Iterator[Shown]:
    for rule in RULES:
        yield Shown(rule["alert"], rule["expr"], " ".join(rule["annotations"].values()))


def _of_panels() -> Iterator[Shown]:
    constants = {each["name"]: each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "constant"}
    for panel in PANELS:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m")
            for name, value in constants.items():
                expr = expr.replace(f"${name}", value)
            yield Shown(f"{panel['title']}-{target['refId']}", expr, target.get("legendFormat", ""))


SHOWN = [*_of_rules(), *_of_panels()]


@cache
def series() -> dict[str, set[str]]:
    """Every series that our code can make, and its labels."""
    for file in SHIPPED:
        if "prometheus_client" in file.read_text():
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    found = {name: {*labels, "instance"} for name, labels in OWN_SERIES.items()}
    for metric in set(REGISTRY._names_to_collectors.values()):  # the registry has no public list of them
        if isinstance(metric, MetricWrapperBase):
            for suffix, more in SUFFIXES[metric._type or ""].items():
                found[metric._name + suffix] = {*metric._labelnames, *more, "job", "instance"}
    return found


@cache
def words_of_the_code() -> set[str]:
    """Every text that stands in the code by itself, in small letters: what a label can be set to is among them."""
    nodes = (node for file in SHIPPED for node in ast.walk(ast.parse(file.read_text())))
    return {node.value.lower() for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def parts(expr: Any) -> list[Any]:
    """The expressions right below this one."""
    match expr:
        case promql.BinaryExpr():
            return [expr.lhs, expr.rhs]
        case promql.Call():
            return list(expr.args)
        case promql.MatrixSelector():
            return [expr.vector_selector]
        case promql.AggregateExpr() | promql.ParenExpr() | promql.SubqueryExpr() | promql.UnaryExpr():
            return [expr.expr]
        case promql.VectorSelector() | promql.NumberLiteral() | promql.StringLiteral():
            return []
        case _:
            raise AssertionError(f"what is {expr!r}?")


def everything_in(expr: Any) -> Iterator[Any]:
    yield expr
    for part in parts(expr):
        yield from everything_in(part)


def labels_of(expr: Any) -> set[str]:
    """The labels that its result can have."""
    match expr:
        case promql.VectorSelector():
            return series()[expr.name or ""]
        case promql.Call() if expr.func.name == "absent":
            return {each.name for each in expr.args[0].matchers.matchers}
        case promql.Call() if expr.func.name == "histogram_quantile":
            return labels_of(expr.args[1]) - {"le"}
        case promql.AggregateExpr():
            return set(expr.modifier.labels) if expr.modifier else set()
        case _:
            return set().union(*map(labels_of, parts(expr)))


@pytest.mark.parametrize("shown", SHOWN, ids=[shown.where for shown in SHOWN])
def test_an_expression_speaks_of_series_that_there_are(shown: Shown) -> None:
    """Each series is made somewhere, with each label that is asked for, summed by, or shown."""
    expr = promql.parse(shown.expr)
    for part in everything_in(expr):
        match part:
            case promql.VectorSelector():
                assert part.name in series()
                assert {each.name for each in part.matchers.matchers} <= series()[part.name]
            case promql.AggregateExpr() if part.modifier:
                assert part.modifier.type == promql.AggModifierType.By
                assert set(part.modifier.labels) <= labels_of(part.expr)
    told = set(re.findall(r"\$labels\.(\w+)|\{\{(\w+)\}\}", shown.words))
    assert {first or second for first, second in told} <= labels_of(expr)


@pytest.mark.parametrize("shown", SHOWN, ids=[shown.where for shown in SHOWN])
def test_an_expression_asks_for_values_that_there_are(shown: Shown) -> None:
    """What a label is compared with is a job of prometheus.yml, or a text of the code: a misspelt one finds nothing."""
    for part in everything_in(promql.parse(shown.expr)):
        for each in part.matchers.matchers if isinstance(part, promql.VectorSelector) else ():
            values = set(each.value.split("|"))
            if each.name == "job":
                assert values <= read_jobs().keys()
            elif part.name != "ALERTS":
                assert {value.lower() for value in values} <= words_of_the_code()


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    """It has a severity, words for a person, and a command that `seckill` takes as it stands."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    line = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: SAMPLES[found[1]], rule["annotations"]["command"])
    program, *words = shlex.split(line)
    assert program == "seckill"
    command = typer.main.get_command(app)
    while commands := getattr(command, "commands", None):
        command = commands[words.pop(0)]
    command.make_context("seckill", words)  # raises what it cannot take


@pytest.mark.parametrize(("name", "setting"), THRESHOLDS.items())
def test_a_threshold_is_the_default_of_the_settings(name: str, setting: str) -> None:
    """Prometheus and `seckill alerts` call the same thing too much."""
    expr = promql.parse(next(rule["expr"] for rule in RULES if rule["alert"] == name))
    assert isinstance(expr, promql.BinaryExpr)
    assert isinstance(expr.rhs, promql.NumberLiteral)
    assert expr.rhs.val == AlertSettings.model_fields[setting].default


def test_rules_and_panels_are_told_apart() -> None:
    """Each rule has a name of its own, each panel a number of its own."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_each_role_is_collected_from_where_compose_has_it() -> None:
    """One job for each role: the host that Compose calls it by, and the port that its settings name."""
    settings = load_settings(CONFIG / "compose.toml")
    addresses = {
        "front": settings.front.http, "worker": settings.worker.ops, "product": settings.product.ops,
        "order": settings.order.ops, "reconcile": settings.reconcile.ops, "coordinator": settings.coordinator.http,
        "dead-letters": settings.dead_letters.http, "alerts": settings.alerts.ops,
    }  # fmt: skip
    assert {name: f"{job['names'][0]}:{job['port']}" for name, job in read_jobs().items()} == addresses


def test_panels_ask_the_chosen_prometheus_and_do_not_overlap() -> None:
    """The dashboard can be imported anywhere: its source is a variable. No two panels claim the same place."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    asked = [each["datasource"] for panel in PANELS for each in (panel, *panel["targets"])]
    assert all(each == source for each in asked)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
