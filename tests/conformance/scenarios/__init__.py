"""The scenarios of `go/` for our own client: the same names, steps and order, one transaction each."""

from __future__ import annotations

from tests.conformance.scenarios import message, saga, tcc, xa
from tests.conformance.scenarios.registry import Scenario

SCENARIOS: dict[str, Scenario] = {**tcc.scenario, **saga.scenario, **message.scenario, **xa.scenario}
