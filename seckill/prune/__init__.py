"""Throwing away old rows that nothing can need any more: `prune` looks for what may still come back, then deletes.

What may go, and why, is in `rules.py`; the SQL in `product.py`, `branches.py` and `coordinator.py`; `run.py` is the
straight path. Everything goes in small pieces, each a short transaction of its own, and may stop between any two.
"""

from seckill.prune.rules import Kept
from seckill.prune.run import Plan, Pruned, prune

__all__ = ["Kept", "Plan", "Pruned", "prune"]
