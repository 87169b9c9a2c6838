"""How long things take: time-outs of calls, pauses before repeats, leases."""

from __future__ import annotations

from dataclasses import dataclass

from seckill.dtm.protocol import TransOptions

SLOW_CALL_MS = 1_500  # DTM resets the pause between repeats after a call that took longer
LEASE_MARGIN_MS = 2_000  # for the log's writes around a branch call


@dataclass(frozen=True, slots=True)
class Timing:
    """Defaults for transactions that name none, and the pace of the cron runs."""

    branch_timeout_s: int = 3
    retry_interval_s: int = 10
    timeout_to_fail_s: int = 35
    cron_interval_ms: int = 1_000
    running_max: int = 256  # transactions whose branches are being called; more wait for a cron run

    def timeout_ms(self, options: TransOptions) -> int:
        return 1_000 * (options.request_timeout_s or self.branch_timeout_s)

    def lease_ms(self, options: TransOptions) -> int:
        return self.timeout_ms(options) + LEASE_MARGIN_MS

    def to_fail_ms(self, options: TransOptions) -> int:
        """How long a transaction may stay undecided."""
        return 1_000 * (options.timeout_to_fail_s or self.timeout_to_fail_s)

    def first_interval_s(self, options: TransOptions) -> int:
        """The pause before the first repeat is twice this (getNextCronInterval of dtmsvr/trans_status.go)."""
        if options.retry_interval_s:
            return options.retry_interval_s
        if 0 < options.timeout_to_fail_s < self.retry_interval_s:
            return options.timeout_to_fail_s
        return self.retry_interval_s

    def interval_after_answer_s(self, interval_s: int, options: TransOptions, took_ms: int) -> int:
        """DTM keeps a short interval that has grown, and resets one above the defaults (execBranch, same file)."""
        grown = interval_s > max(self.retry_interval_s, options.retry_interval_s)
        return self.first_interval_s(options) if grown or took_ms >= SLOW_CALL_MS else interval_s
