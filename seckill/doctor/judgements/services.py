"""What the roles say of themselves, and what the settings leave open."""

from __future__ import annotations

from seckill.doctor.facts import RoleFacts
from seckill.doctor.findings import Finding, ok, problem, warning
from seckill.settings import variable


def judge_role(facts: RoleFacts, wanted: str, setting: str) -> list[Finding]:
    """`setting` is where the address that answered comes from."""
    if facts.role != wanted:
        remedy = f"set {variable(setting)} ({setting}) to the {wanted}'s address"
        return [problem("role", f"the {facts.role} answers here", remedy)]
    if facts.ready:
        return [ok("ready", "yes")]
    wrong = "; ".join(f"{name}: {answer}" for name, answer in facts.checks.items() if answer != "ok")
    return [problem("ready", f"no: {wrong or 'it does not say why'}", "mend what it names, and look again")]


def judge_operator_token(token_set: bool) -> Finding:
    if not token_set:
        found = "unset: nobody can create, change or close a sale"
        return warning("operator token", found, "set SECKILL__FRONT__OPERATOR_TOKEN (front.operator_token)")
    return ok("operator token", "set")
