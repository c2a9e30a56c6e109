"""The chaos harness: sessions under load, processes killed at every point, and everything compared afterwards.

A trial is a scripted conversation whose tools have effects in a ledger outside, in a process that no trial kills. Its
plan says which process dies, and where; when all is settled, log, ledger, the clients' streams and what still runs are
compared. :func:`run` carries out any number of them; ``scripts/chaos.py`` is its command line. Importable parts:

- :func:`plan`: what a trial does, from a seed and its number;
- :func:`run`: trials to :class:`Outcomes`;
- :func:`table`, :func:`effects_table`, :func:`failures`: what they show;
- :func:`marked`: the processes that belong to a directory, for tests that look for orphans.
"""

from athena.testing.chaos.evidence import Effect, Evidence, Verdict, judge
from athena.testing.chaos.plans import ROUND, Plan, plan
from athena.testing.chaos.processes import marked, wait_unmarked
from athena.testing.chaos.report import effects_table, failures, table
from athena.testing.chaos.run import Outcome, Outcomes, run
from athena.testing.chaos.trial import Trial
from athena.testing.chaos.world import World

__all__ = [
    "ROUND",
    "Effect",
    "Evidence",
    "Outcome",
    "Outcomes",
    "Plan",
    "Trial",
    "Verdict",
    "World",
    "effects_table",
    "failures",
    "judge",
    "marked",
    "plan",
    "run",
    "table",
    "wait_unmarked",
]
