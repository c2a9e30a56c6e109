"""The decision of the loop: what a session does next, from its state alone.

There is no second path for recovery: a new child folds the log and asks the same function, and the row of the design's
table that applies falls out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from athena.loop.state import Call, SessionState

CRASH_LIMIT = 3
"""Deaths in one turn, not caused by us, after which the turn ends as ``error_crashed`` instead of a fourth try."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one turn; ``None`` is no cap."""

    max_iterations: int | None = 55
    max_consecutive_mistakes: int | None = 3
    max_budget_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until a message comes."""


@dataclass(frozen=True, slots=True)
class Take:
    """Begin a turn with the next queued message, or go on where a life ended between the two records of a beginning."""


@dataclass(frozen=True, slots=True)
class RestoreFiles:
    """Bring the files back that a rewind has not done yet."""


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the model."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these calls, or settle them if they had started in an earlier life of the child."""

    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Ask:
    """Wait for an approver's answer to the requests of these calls."""

    calls: list[Call]


@dataclass(frozen=True, slots=True)
class CloseCalls:
    """Give these calls a result without running them: the turn was interrupted."""

    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Finish:
    """End the turn."""

    reason: str
    detail: str | None = field(default=None)


Step = Wait | Take | RestoreFiles | CallModel | RunTools | Ask | CloseCalls | Finish


def next_step(state: SessionState, limits: Limits) -> Step:
    """What to do now. Pure."""
    if state.restoring is not None:
        return RestoreFiles()
    turn = state.turn
    if turn is None:
        return Take() if state.queue else Wait()
    if turn.unsaid is not None:
        return Take()
    if turn.interrupted is not None:
        return CloseCalls(turn.open_calls) if turn.open_calls else Finish("interrupted")
    if turn.answered:
        return Finish("stop")
    if turn.deaths >= CRASH_LIMIT:
        if turn.open_calls:
            return CloseCalls(turn.open_calls)
        return Finish("error_crashed", f"the session's process died {turn.deaths} times in this turn")
    if turn.open_calls:
        asked = [call for call in turn.open_calls if call.is_asked]
        return Ask(asked) if asked else RunTools(turn.open_calls)
    return _cap(state, limits) or CallModel()


def _cap(state: SessionState, limits: Limits) -> Finish | None:
    turn = state.turn
    assert turn is not None
    if limits.max_iterations is not None and turn.steps >= limits.max_iterations:
        return Finish("error_max_turns", f"max_iterations={limits.max_iterations} reached")
    if limits.max_consecutive_mistakes is not None and turn.mistakes >= limits.max_consecutive_mistakes:
        return Finish(
            "error_consecutive_mistakes",
            f"every call failed in {turn.mistakes} steps in a row (max_consecutive_mistakes)",
        )
    cost = turn.usage.cost_usd
    if limits.max_budget_usd is not None and cost is not None and cost >= limits.max_budget_usd:
        return Finish("error_max_budget_usd", f"the turn cost {cost:.6f} USD; max_budget_usd={limits.max_budget_usd}")
    return None
