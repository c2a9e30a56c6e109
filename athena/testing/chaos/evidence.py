"""What a trial has left, and what that says: log, ledger, streams and processes compared. Pure.

A trial that lost, doubled or bent something says so in words; one without a word has kept the contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from athena.events import Event
from athena.failpoints import Fired
from athena.testing.chaos.scenario import CONVERSATION, KEYED, KINDS, Kind, message_id

COLUMNS = ("before the effect", "after the effect, before its record", "after the record")
"""Where a process can die around one effect."""

FAULTS = ("lost", "duplicated", "diverged", "bricked", "orphans")

_BEGUN = frozenset({"effect"})
_HAD = frozenset({"inside", "effected"})


@dataclass(slots=True)
class Evidence:
    """All that is known of a trial when it is over."""

    trial: str
    log: list[Event] = field(default_factory=list)
    damage: str = ""
    """What the store finds wrong with the log."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    asked: int = 0
    stream: list[tuple[int, str]] = field(default_factory=list)
    """Seq and uuid of each event that clients saw, one client after the other."""
    stream_end: str = ""
    """Why the last client's stream was over."""
    acknowledged: list[str] = field(default_factory=list)
    """Message ids that a client was told of as accepted."""
    answers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What kept the conversation from its end."""
    orphans: list[str] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    """Who lived when the harness killed it, in the middle of the conversation."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect around which the process died, and what became of it."""

    kind: Kind
    column: str
    requested: int
    performed: int
    status: str


@dataclass(slots=True)
class Verdict:
    """What is wrong, in words, by fault; ``effect`` for the table of crash consistency."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    bricked: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    effect: Effect | None = None

    @property
    def faults(self) -> dict[str, list[str]]:
        """What is wrong, by fault."""
        return {name: found for name in FAULTS if (found := getattr(self, name))}

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


@dataclass(slots=True)
class _Call:
    """A tool call as the log has it."""

    id: str
    name: str
    arguments: dict[str, Any]
    keys: list[str | None] = field(default_factory=list)
    """One for each intent."""
    statuses: list[str] = field(default_factory=list)
    """One for each result."""


def judge(evidence: Evidence) -> Verdict:
    """Compare everything with everything."""
    verdict = Verdict(orphans=list(evidence.orphans), bricked=list(evidence.errors))
    calls = _calls(evidence.log)
    _judge_log(evidence, verdict)
    _judge_messages(evidence, verdict)
    _judge_stream(evidence, verdict)
    for call in calls.values():
        _judge_call(call, [r for r in evidence.requests if r["call"] == call.id], verdict)
    unknown = [r for r in evidence.requests if r["call"] not in calls]
    verdict.duplicated += [f"an effect of {r['tool']} whose call {r['call']} is in no log" for r in unknown]
    verdict.diverged += [f"a model refused a request: {text}" for text in evidence.refused]
    verdict.effect = _effect(evidence, calls)
    return verdict


def _calls(log: Sequence[Event]) -> dict[str, _Call]:
    found: dict[str, _Call] = {}
    for event in log:
        match event.event:
            case "assistant_message":
                for call in event.data["message"].get("tool_calls") or ():
                    found[call["id"]] = _Call(call["id"], call["name"], call["arguments"])
            case "tool_call" if event.data["id"] in found:
                found[event.data["id"]].keys.append(event.data.get("key"))
            case "tool_result":
                for result in event.data["message"]["tool_results"]:
                    if result["tool_call_id"] in found:
                        found[result["tool_call_id"]].statuses.append(str(event.data.get("status")))
    return found


def _judge_log(evidence: Evidence, verdict: Verdict) -> None:
    if evidence.damage:
        verdict.diverged.append(f"the log is damaged: {evidence.damage}")
    seqs = [event.seq for event in evidence.log]
    if seqs != list(range(1, len(seqs) + 1)):
        verdict.diverged.append(f"the numbers of the events are not 1 to {len(seqs)}: {seqs}")


def _judge_messages(evidence: Evidence, verdict: Verdict) -> None:
    ids = [message_id(evidence.trial, number) for number in range(len(CONVERSATION))]
    found = {
        kind: Counter(str(e.data.get("message_id")) for e in evidence.log if e.event == kind)
        for kind in ("message_accepted", "turn_start", "turn_end")
    }
    for one in evidence.acknowledged:
        if not found["message_accepted"][one]:
            verdict.lost.append(f"message {one} was acknowledged and is not in the log")
    for one in ids:
        for kind, counts in found.items():
            if counts[one] > 1:
                verdict.duplicated.append(f"{kind} of message {one} is in the log {counts[one]} times")
        if found["message_accepted"][one] and not found["turn_end"][one]:
            verdict.lost.append(f"message {one} was accepted and its turn has no end")
    for event in evidence.log:
        if event.event == "turn_end" and event.data.get("finish_reason") != "stop":
            verdict.diverged.append(
                f"turn {event.turn} ended as {event.data.get('finish_reason')}: {event.data.get('halted_reason')}"
            )
    expected = [said.answer for said in CONVERSATION]
    if not evidence.errors and evidence.answers != expected:
        verdict.diverged.append(f"the answers were {evidence.answers}, not {expected}")


def _judge_stream(evidence: Evidence, verdict: Verdict) -> None:
    """Events after the last turn's end may be missing: a client that has its answer may have left."""
    log = [(event.seq, event.uuid) for event in evidence.log]
    ends = [event.seq for event in evidence.log if event.event == "turn_end"]
    if evidence.stream != log[: len(evidence.stream)]:
        at = next(i for i, seen in enumerate(evidence.stream) if i >= len(log) or seen != log[i])
        there = log[at] if at < len(log) else None
        verdict.diverged.append(f"the stream's event {at + 1} is {evidence.stream[at]}, and {there} in the log")
    elif ends and len(evidence.stream) < ends[-1] and not evidence.errors:
        verdict.lost.append(
            f"the stream ended after {len(evidence.stream)} events, before the last turn's end, which is {ends[-1]}:"
            f" {evidence.stream_end}"
        )


def _judge_call(call: _Call, requests: list[dict[str, Any]], verdict: Verdict) -> None:
    kind, what = KINDS[call.name], f"the {KINDS[call.name]} effect of {call.name} ({call.id})"
    performed = sum(1 for r in requests if r["performed"])
    if len(call.statuses) != 1:
        where = verdict.duplicated if call.statuses else verdict.lost
        where.append(f"call {call.id} of {call.name} has {len(call.statuses)} results")
        return
    status = call.statuses[0]
    if status not in (("ok",) if kind in KEYED or kind == "safe" else ("ok", "in_doubt")):
        verdict.diverged.append(f"call {call.id} of {call.name} ended as {status}")
    if performed == 0 and status == "ok":
        verdict.lost.append(f"{what} was never had")
    if kind != "safe" and performed > 1:
        verdict.duplicated.append(f"{what} was had {performed} times")
    if kind not in KEYED and kind != "safe" and len(requests) > 1:
        verdict.duplicated.append(f"{what} was asked for {len(requests)} times")
    if kind in KEYED and len({*call.keys, *(r["key"] for r in requests)}) > 1:
        verdict.duplicated.append(f"{what} had more than one key")
    if any(r["amount"] != call.arguments["amount"] for r in requests):
        verdict.duplicated.append(f"{what} was had with other arguments than the log has")


def _effect(evidence: Evidence, calls: dict[str, _Call]) -> Effect | None:
    """The effect that the one kill of this trial was about, if it was about one."""
    if len(evidence.fired) != 1:
        return None
    fired = evidence.fired[0]
    way, _, name = fired.point.partition(":")
    if way in _BEGUN | _HAD and name in KINDS:
        same = [call for call in calls.values() if call.name == name]
        column = COLUMNS[0 if way in _BEGUN else 1]
        hit = same[fired.count - 1] if len(same) >= fired.count else None
    elif fired.point == "appended:tool_result":
        hit, column = _nth_result(evidence.log, calls, fired.count), COLUMNS[2]
    else:
        return None
    if hit is None:
        return None
    requests = [r for r in evidence.requests if r["call"] == hit.id]
    performed = sum(1 for r in requests if r["performed"])
    return Effect(KINDS[hit.name], column, len(requests), performed, ",".join(hit.statuses))


def _nth_result(log: Sequence[Event], calls: dict[str, _Call], count: int) -> _Call | None:
    def results() -> Iterator[str]:
        for event in log:
            if event.event == "tool_result":
                yield event.data["message"]["tool_results"][0]["tool_call_id"]

    ids = list(results())
    return calls.get(ids[count - 1]) if len(ids) >= count else None
