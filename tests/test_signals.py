"""Links, monitors and exit signals: the table of otp.md 14 row by row, OTP's named cases, and random walks."""

from __future__ import annotations

import gc
import tracemalloc
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from athena.errors import InvalidOption, NoProcess, Reason
from supervisor.signals import Deliver, Down, Effect, End, Exit, Signals, Sizes
from tests.signals_model import Model

A, B, C, D, DEAD, UNKNOWN = 1, 2, 3, 4, 8, 9
R1, R2, R3, R4 = 11, 12, 13, 14

BOOM = {"error": {"type": "RuntimeError", "message": "boom", "traceback": "..."}}
HARMFUL: list[Reason] = [
    "shutdown",
    {"shutdown": "bye"},
    "killed",
    "noproc",
    "noconnection",
    {"exit": 3},
    BOOM,
    0,
    None,
]
"""All that are not ``normal``, nor the word ``kill``; the clean ones too."""


def processes(*plain: int, traps: tuple[int, ...] = (), clients: tuple[int, ...] = ()) -> Signals:
    """Running processes, and :data:`DEAD`, which has ended."""
    signals = Signals()
    for pid in plain:
        signals.started(pid)
    for pid in traps:
        signals.started(pid, traps=True)
    for pid in clients:
        signals.started(pid, client=True)
    signals.started(DEAD)
    assert signals.exited(DEAD, "normal") == []
    return signals


# --- the exit-signal table: over links -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*HARMFUL, "kill"])
def test_a_link_ends_a_process_that_does_not_trap_with_the_same_reason(reason: Reason) -> None:
    signals = processes(A, B)
    signals.link(A, B)
    assert signals.exited(A, reason) == [End(B, reason)]
    assert not signals.is_alive(B)


def test_a_peer_that_ends_normal_harms_nobody() -> None:
    """I08."""
    signals = processes(A, B)
    signals.link(A, B)
    assert signals.exited(A, "normal") == []
    assert signals.is_alive(B)
    assert signals.links_of(B) == ()


@pytest.mark.parametrize("reason", [*HARMFUL, "normal", "kill"])
def test_over_a_link_every_reason_can_be_trapped(reason: Reason) -> None:
    signals = processes(A, traps=(B,))
    signals.link(A, B)
    assert signals.exited(A, reason) == [Deliver(B, Exit(A, reason))]
    assert signals.is_alive(B)


def test_an_exit_ends_one_process_of_a_line_after_the_other() -> None:
    signals = processes(A, B, C, D)
    for one, other in ((A, B), (B, C), (C, D)):
        signals.link(one, other)
    assert signals.exited(A, BOOM) == [End(B, BOOM)]
    assert signals.is_alive(C), "B is not gone yet"
    assert signals.exited(B, BOOM) == [End(C, BOOM)]
    assert signals.exited(C, BOOM) == [End(D, BOOM)]
    assert signals.exited(D, BOOM) == []
    assert signals.sizes() == Sizes(0, 0, 0)


@pytest.mark.parametrize(("is_sent", "arrives"), [(True, "killed"), (False, "kill")])
def test_a_kill_that_is_sent_reads_killed_and_one_that_is_a_reason_reads_kill(is_sent: bool, arrives: str) -> None:
    """kill2killed of signal_SUITE: along a line, to the one at its end that traps."""
    signals = processes(A, B, C, traps=(D,))
    for one, other in ((A, B), (B, C), (C, D)):
        signals.link(one, other)
    if is_sent:
        assert signals.exit(D, A, "kill") == [End(A, "killed")]
    assert signals.exited(A, arrives) == [End(B, arrives)]
    assert signals.exited(B, arrives) == [End(C, arrives)]
    assert signals.exited(C, arrives) == [Deliver(D, Exit(C, arrives))]


# --- the exit-signal table: sent on purpose --------------------------------------------------------------------------


def test_normal_from_another_process_is_ignored() -> None:
    """I08: t_exit_2_other_normal; Elixir's ``exit(pid, :normal)``."""
    signals = processes(A, B)
    assert signals.exit(A, B, "normal") == []
    assert signals.is_alive(B)


def test_normal_from_another_process_is_a_message_to_one_that_traps() -> None:
    signals = processes(A, traps=(B,))
    assert signals.exit(A, B, "normal") == [Deliver(B, Exit(A, "normal"))]
    assert signals.is_alive(B)


@pytest.mark.parametrize("reason", [*HARMFUL, "normal"])
def test_an_exit_sent_to_oneself_ends_with_its_reason(reason: Reason) -> None:
    """normal_suicide_exit, abnormal_suicide_exit."""
    signals = processes(A, traps=(B,))
    signals.link(A, B)
    assert signals.exit(A, A, reason) == [End(A, reason)]
    assert signals.exited(A, reason) == [Deliver(B, Exit(A, reason))]


@pytest.mark.parametrize("reason", [*HARMFUL, "normal"])
def test_an_exit_sent_to_oneself_can_be_trapped(reason: Reason) -> None:
    """self_exit."""
    signals = processes(traps=(A,))
    assert signals.exit(A, A, reason) == [Deliver(A, Exit(A, reason))]
    assert signals.is_alive(A)


@pytest.mark.parametrize("sender", [A, B])
@pytest.mark.parametrize("traps", [False, True])
def test_kill_is_never_trapped_and_ends_with_killed(sender: int, traps: bool) -> None:
    signals = processes(A)
    signals.started(B, traps=traps)
    assert signals.exit(sender, B, "kill") == [End(B, "killed")]
    assert not signals.is_alive(B)


@pytest.mark.parametrize("reason", HARMFUL)
def test_another_reason_ends_a_process_that_does_not_trap(reason: Reason) -> None:
    """t_exit_2_other."""
    signals = processes(A, B)
    assert signals.exit(A, B, reason) == [End(B, reason)]


@pytest.mark.parametrize("reason", HARMFUL)
def test_another_reason_is_a_message_to_one_that_traps(reason: Reason) -> None:
    signals = processes(A, traps=(B,))
    assert signals.exit(A, B, reason) == [Deliver(B, Exit(A, reason))]


@pytest.mark.parametrize("target", [DEAD, UNKNOWN])
def test_an_exit_sent_to_nobody_is_nothing(target: int) -> None:
    signals = processes(A)
    assert signals.exit(A, target, "kill") == []
    assert signals.exit(A, target, BOOM) == []


def test_an_exit_whose_sender_has_ended_still_arrives() -> None:
    signals = processes(B)
    assert signals.exit(DEAD, B, BOOM) == [End(B, BOOM)]


# --- one that is being killed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["second", "kill", "normal"])
def test_the_first_of_two_fatal_signals_decides(second: Reason) -> None:
    """exit_twice; the second may come over a link too."""
    signals = processes(A, B)
    signals.link(A, B)
    assert signals.exit(A, B, "first") == [End(B, "first")]
    assert signals.exit(A, B, second) == []
    assert signals.exited(A, second) == []
    assert signals.exited(B, "first") == []


def test_it_is_known_and_not_alive_until_its_exit_is_told() -> None:
    """pending_exit_is_process_alive: its links and monitors stay, and fire only then."""
    signals = processes(A, traps=(B,))
    signals.link(A, B)
    signals.monitor(B, A, R1)
    assert signals.exit(B, A, "kill") == [End(A, "killed")]
    assert (signals.is_alive(A), signals.is_known(A)) == (False, True)
    assert signals.links_of(A) == (B,)
    assert signals.exited(A, "killed") == [Deliver(B, Exit(A, "killed")), Deliver(B, Down(R1, None, A, "killed"))]
    assert (signals.is_alive(A), signals.is_known(A)) == (False, False)


def test_trapping_does_not_save_it() -> None:
    """pending_exit_trap_exit."""
    signals = processes(A, B)
    signals.exit(A, B, BOOM)
    signals.set_trap_exit(B, True)
    assert not signals.is_alive(B)
    assert signals.exit(A, B, "normal") == [], "and it is told nothing more"


def test_it_is_told_nothing_more() -> None:
    signals = processes(A, C, traps=(B,))
    signals.link(B, C)
    signals.monitor(B, C, R1)
    signals.exit(A, B, "kill")
    assert signals.exited(C, BOOM) == []
    assert signals.monitor(B, DEAD, R2) == []
    assert signals.link(B, DEAD) == []


def test_a_link_that_ends_a_watcher_comes_before_its_down() -> None:
    """A monitors B and is linked to it: the exit ends A, which then gets no Down."""
    signals = processes(A, B)
    signals.monitor(A, B, R1)
    signals.link(A, B)
    assert signals.exited(B, BOOM) == [End(A, BOOM)]
    assert signals.exited(A, BOOM) == []
    assert signals.sizes() == Sizes(0, 0, 0)


def test_what_it_asked_for_before_counts() -> None:
    """Its frames are read after the signal was sent: the link is made, and fires."""
    signals = processes(A, B, C)
    signals.exit(C, A, BOOM)
    assert signals.link(A, B) == []
    assert signals.exit(A, C, "shutdown") == [End(C, "shutdown")]
    assert signals.exited(A, BOOM) == [End(B, BOOM)]


def test_it_can_still_unlink_and_demonitor() -> None:
    """pending_exit_unlink: which does not change its reason."""
    signals = processes(A, B, C)
    signals.link(A, B)
    signals.monitor(A, B, R1)
    signals.exit(B, A, BOOM)
    signals.unlink(A, B)
    assert signals.demonitor(A, R1) is True
    assert signals.exited(A, BOOM) == []
    assert signals.is_alive(B)


def test_for_others_it_is_dead() -> None:
    signals = processes(A, B, traps=(C,))
    signals.exit(A, B, BOOM)
    assert signals.monitor(A, B, R1) == [Deliver(A, Down(R1, None, B, "noproc"))]
    assert signals.link(C, B) == [Deliver(C, Exit(B, "noproc"))]
    with pytest.raises(NoProcess):
        signals.link(A, B)
    assert signals.exited(B, BOOM) == [], "nobody hears of it twice"


# --- links -----------------------------------------------------------------------------------------------------------


def test_a_link_is_symmetric_and_there_is_one_for_each_pair() -> None:
    signals = processes(A, B)
    assert signals.link(A, B) == signals.link(A, B) == signals.link(B, A) == []
    assert (signals.links_of(A), signals.links_of(B)) == ((B,), (A,))
    assert signals.sizes().links == 1
    signals.unlink(B, A)
    assert (signals.links_of(A), signals.links_of(B)) == ((), ())


@pytest.mark.parametrize("ends", [A, B])
def test_either_end_of_a_link_tells_the_other(ends: int) -> None:
    signals = processes(traps=(A, B))
    signals.link(A, B)
    other = A if ends == B else B
    assert signals.exited(ends, BOOM) == [Deliver(other, Exit(ends, BOOM))]


def test_a_link_to_oneself_is_nothing() -> None:
    signals = processes(A)
    assert signals.link(A, A) == []
    assert signals.links_of(A) == ()
    signals.unlink(A, A)


@pytest.mark.parametrize("target", [DEAD, UNKNOWN])
def test_to_link_what_is_dead_is_an_exit_noproc_for_one_that_traps(target: int) -> None:
    """otp_6237."""
    signals = processes(traps=(A,))
    assert signals.link(A, target) == [Deliver(A, Exit(target, "noproc"))]
    assert signals.links_of(A) == ()


@pytest.mark.parametrize("target", [DEAD, UNKNOWN])
def test_to_link_what_is_dead_is_an_error_for_one_that_does_not_trap(target: int) -> None:
    signals = processes(A)
    with pytest.raises(NoProcess, match=f"cannot link to process {target}") as caught:
        signals.link(A, target)
    assert caught.value.target == target
    assert signals.is_alive(A)
    assert signals.links_of(A) == ()


def test_a_link_that_exists_is_not_made_again_to_one_that_is_being_killed() -> None:
    signals = processes(B, C, traps=(A,))
    signals.link(A, B)
    signals.exit(C, B, BOOM)
    assert signals.link(A, B) == [], "its exit is still to come, with the true reason"
    assert signals.exited(B, BOOM) == [Deliver(A, Exit(B, BOOM))]


def test_after_unlink_nothing_comes() -> None:
    signals = processes(A, B, traps=(C,))
    signals.link(A, B)
    signals.link(A, C)
    signals.unlink(A, B)
    signals.unlink(C, A)
    assert signals.exited(A, BOOM) == []
    assert signals.is_alive(B)


def test_unlink_of_what_is_not_linked_is_nothing() -> None:
    signals = processes(A, B)
    signals.link(A, B)
    for one, other in ((A, DEAD), (A, UNKNOWN), (UNKNOWN, A), (C, B)):
        signals.unlink(one, other)
    assert signals.links_of(A) == (B,)


def test_who_is_gone_links_and_watches_nobody() -> None:
    signals = processes(A)
    assert signals.link(DEAD, A) == signals.monitor(DEAD, A, R1) == []
    assert signals.sizes() == Sizes(1, 0, 0)


# --- monitors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*HARMFUL, "normal", "kill"])
def test_a_monitor_tells_the_reason_once(reason: Reason) -> None:
    """I01."""
    signals = processes(A, B)
    assert signals.monitor(A, B, R1) == []
    assert signals.exited(B, reason) == [Deliver(A, Down(R1, None, B, reason))]
    assert signals.exited(B, reason) == [], "a death is told once"
    assert signals.is_alive(A), "a monitor harms nobody"


@pytest.mark.parametrize("target", [DEAD, UNKNOWN])
def test_to_monitor_what_is_dead_is_noproc_at_once(target: int) -> None:
    """I01."""
    signals = processes(A)
    assert signals.monitor(A, target, R1) == [Deliver(A, Down(R1, None, target, "noproc"))]
    assert signals.monitors_of(A) == {}
    assert signals.demonitor(A, R1) is False


def test_a_monitor_by_name_tells_the_name() -> None:
    """mon_1 with jeeves: also when nobody has it."""
    signals = processes(A, B)
    assert signals.monitor(A, B, R1, "jeeves") == []
    assert signals.exited(B, BOOM) == [Deliver(A, Down(R1, "jeeves", B, BOOM))]
    assert signals.monitor(A, None, R2, "jeeves") == [Deliver(A, Down(R2, "jeeves", None, "noproc"))]
    assert signals.monitor(A, B, R3, "jeeves") == [Deliver(A, Down(R3, "jeeves", B, "noproc"))]


def test_each_monitor_is_independent() -> None:
    """demonitor_flush_test without the flush, which is the client's."""
    signals = processes(A, B, C)
    for ref in (R1, R2, R3):
        signals.monitor(A, B, ref)
    signals.monitor(C, B, R4)
    assert signals.demonitor(A, R2) is True
    assert signals.exited(B, "bang") == [
        Deliver(A, Down(R1, None, B, "bang")),
        Deliver(A, Down(R3, None, B, "bang")),
        Deliver(C, Down(R4, None, B, "bang")),
    ]
    assert [signals.demonitor(A, ref) for ref in (R1, R2, R3)] == [False, False, False]


def test_a_monitor_goes_one_way() -> None:
    signals = processes(A, B)
    signals.monitor(A, B, R1)
    assert signals.exited(A, BOOM) == []
    assert signals.is_alive(B)


def test_to_monitor_oneself_is_legal_and_silent() -> None:
    """I02."""
    signals = processes(A)
    assert signals.monitor(A, A, R1) == []
    assert signals.demonitor(A, R1) is False
    assert signals.monitor(A, A, R1) == []
    assert signals.exited(A, BOOM) == []


def test_demonitor_is_idempotent_and_takes_any_reference() -> None:
    """I02: demon_1, demon_2."""
    signals = processes(A, B)
    signals.monitor(A, B, R1)
    assert [signals.demonitor(A, ref) for ref in (R1, R1, UNKNOWN)] == [True, False, False]
    assert signals.exited(B, BOOM) == []


def test_another_process_cannot_remove_a_monitor() -> None:
    """demon_e_1; and case_2: the one that is watched neither."""
    signals = processes(A, B, C)
    signals.monitor(A, B, R1)
    for other in (B, C):
        with pytest.raises(InvalidOption, match=f"monitor {R1} belongs to process {A}"):
            signals.demonitor(other, R1)
    assert signals.exited(B, "normal") == [Deliver(A, Down(R1, None, B, "normal"))]
    assert signals.demonitor(C, R1) is False, "afterwards it is nobody's"


def test_one_that_is_watched_may_end_its_watcher() -> None:
    """case_1."""
    signals = processes(A, B)
    signals.monitor(A, B, R1)
    assert signals.exit(B, A, "foo") == [End(A, "foo")]
    assert signals.exited(B, "normal") == [], "A hears nothing more"
    assert signals.exited(A, "foo") == []


def test_a_reference_is_used_once() -> None:
    signals = processes(A, B, C)
    signals.monitor(A, B, R1)
    with pytest.raises(ValueError, match=f"monitor {R1} exists"):
        signals.monitor(C, B, R1)
    assert signals.watched_by(B) == {R1: A}


# --- clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*HARMFUL, "normal", "kill"])
def test_a_client_is_told_and_never_killed(reason: Reason) -> None:
    signals = processes(A, B, clients=(C,))
    signals.link(A, C)
    assert signals.exit(B, C, reason) == [Deliver(C, Exit(B, reason))]
    assert signals.exited(A, reason) == [Deliver(C, Exit(A, reason))]
    assert signals.is_alive(C)


def test_a_client_always_traps() -> None:
    signals = processes(clients=(C,))
    signals.set_trap_exit(C, True)
    with pytest.raises(InvalidOption, match="a client always traps exits"):
        signals.set_trap_exit(C, False)
    assert signals.traps_exits(C)


def test_a_lost_client_is_noconnection_for_its_links_and_watchers_and_its_monitors_vanish() -> None:
    signals = processes(A, B, traps=(D,), clients=(C,))
    signals.link(C, A)
    signals.link(C, D)
    signals.monitor(C, B, R1)
    signals.monitor(B, C, R2)
    assert signals.lost(C) == [
        End(A, "noconnection"),
        Deliver(D, Exit(C, "noconnection")),
        Deliver(B, Down(R2, None, C, "noconnection")),
    ]
    assert signals.exited(B, BOOM) == []
    assert signals.lost(C) == []


# --- trap_exit, and who is there -------------------------------------------------------------------------------------


def test_trapping_can_change_at_any_time() -> None:
    signals = processes(A, B)
    signals.set_trap_exit(B, True)
    assert signals.traps_exits(B)
    assert signals.exit(A, B, BOOM) == [Deliver(B, Exit(A, BOOM))]
    signals.set_trap_exit(B, False)
    assert not signals.traps_exits(B)
    assert signals.exit(A, B, BOOM) == [End(B, BOOM)]


def test_of_what_is_not_there_nothing_is_known() -> None:
    signals = processes()
    for pid in (DEAD, UNKNOWN):
        signals.set_trap_exit(pid, True)
        assert signals.exited(pid, BOOM) == []
        assert [signals.is_alive(pid), signals.is_known(pid), signals.traps_exits(pid)] == [False] * 3
        assert (signals.links_of(pid), signals.monitors_of(pid), signals.watched_by(pid)) == ((), {}, {})
    assert repr(signals) == "<Signals {} {}>"


def test_a_pid_starts_once() -> None:
    signals = processes(A)
    signals.link(A, A)
    with pytest.raises(ValueError, match=f"process {A} has started already"):
        signals.started(A, traps=True)
    assert not signals.traps_exits(A)


# --- the tables ------------------------------------------------------------------------------------------------------


def test_the_tables_of_both_sides_are_empty_after_every_way_a_monitor_ends() -> None:
    """I07: list_cleanup."""
    signals = processes(A, B, clients=(C,))
    signals.monitor(A, B, R1)
    assert (signals.monitors_of(A), signals.watched_by(B)) == ({R1: B}, {R1: A})
    signals.demonitor(A, R1)
    assert (signals.monitors_of(A), signals.watched_by(B)) == ({}, {})
    signals.monitor(C, B, R2)
    signals.lost(C)
    assert signals.watched_by(B) == {}
    signals.monitor(A, B, R3)
    signals.exited(A, "normal")
    assert signals.watched_by(B) == {}
    signals.started(D)
    signals.monitor(D, B, R4)
    signals.exited(B, "normal")
    assert signals.monitors_of(D) == {}
    assert signals.sizes() == Sizes(1, 0, 0)


def test_the_dead_leave_nothing() -> None:
    """A process that lives on, and 500 that come, are tied to it in each way, and go."""
    signals = processes(traps=(A,))

    def round_of(pid: int) -> None:
        signals.started(pid)
        signals.link(A, pid)
        signals.monitor(A, pid, pid)
        signals.monitor(pid, A, pid + 1)
        signals.exit(A, pid, BOOM)
        assert len(signals.exited(pid, BOOM)) == 2

    for pid in range(10, 100, 2):
        round_of(pid)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for pid in range(1000, 2000, 2):
            round_of(pid)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 8192
    finally:
        tracemalloc.stop()
    assert signals.sizes() == Sizes(1, 0, 0)


# --- the walk --------------------------------------------------------------------------------------------------------

some = st.integers(min_value=0, max_value=30)
reasons = st.sampled_from(["normal", "normal", "kill", "kill", "killed", "shutdown", "noconnection", BOOM])
names = st.sampled_from([None, "jeeves", {"via": ["registry", "key", None]}])


class Walk(RuleBasedStateMachine):
    """A driver that carries effects out by the letter. Pids in reach: those that ever were, and the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.signals = Signals()
        self.model = Model()
        self.pids = 0
        self.refs = 0
        self.fatal: dict[int, Reason] = {}
        self.gone: set[int] = set()
        self.armed: dict[int, tuple[int, int]] = {}
        """Monitors that must tell, unless they are removed or their watcher ends first."""
        self.removed: set[int] = set()
        self.downs: dict[int, list[Down]] = defaultdict(list)
        self.published: dict[int, Reason] = {}
        """Why processes ended, as those were told who watched them."""

    def pid(self, number: int) -> int:
        """The youngest are the likely ones."""
        return max(self.pids + 1 - number % 6, 1)

    def carry_out(self, effects: list[Effect], expected: list[Effect]) -> None:
        assert effects == expected
        for effect in effects:
            match effect:
                case End(pid, reason):
                    assert pid not in self.fatal, "ended twice"
                    assert pid not in self.gone
                    self.fatal[pid] = reason
                case Deliver(to, message):
                    assert to not in self.fatal, "told while it was being killed"
                    assert to not in self.gone
                    if isinstance(message, Down):
                        self.downs[message.ref].append(message)
                        self.publish(message)

    def publish(self, down: Down) -> None:
        """19.1: everybody is told the same reason."""
        if down.pid is not None and down.reason != "noproc":
            assert self.published.setdefault(down.pid, down.reason) == down.reason

    # --- rules

    @initialize(
        kinds=st.lists(st.sampled_from([(False, False), (False, False), (True, False), (True, True)]), max_size=5)
    )
    def begin(self, kinds: list[tuple[bool, bool]]) -> None:
        for traps, client in kinds:
            self.start(traps, client)

    @rule(traps=st.booleans(), client=st.sampled_from([False, False, True]))
    def start(self, traps: bool, client: bool) -> None:
        self.pids += 1
        self.signals.started(self.pids, traps=traps, client=client)
        self.model.add("started", self.pids, client)
        self.model.add("traps", self.pids, traps)

    @rule(one=some, on=st.booleans())
    def trap(self, one: int, on: bool) -> None:
        pid = self.pid(one)
        if self.signals.is_known(pid) and self.model.is_client(pid) and not on:
            return
        self.signals.set_trap_exit(pid, on)
        self.model.add("traps", pid, on and self.signals.is_known(pid))

    @rule(one=some, other=some)
    def link(self, one: int, other: int) -> None:
        caller, peer = self.pid(one), self.pid(other)
        expected = self.model.link(caller, peer)
        if isinstance(expected, str):
            with pytest.raises(NoProcess):
                self.signals.link(caller, peer)
        else:
            self.carry_out(self.signals.link(caller, peer), expected)

    @rule(one=some, other=some)
    def unlink(self, one: int, other: int) -> None:
        self.signals.unlink(self.pid(one), self.pid(other))
        self.model.add("untied", self.pid(one), self.pid(other))

    @rule(one=some, other=some, name=names, is_named=st.sampled_from([True, True, True, False]))
    def monitor(self, one: int, other: int, name: Any, is_named: bool) -> None:
        watcher = self.pid(one)
        target = self.pid(other) if is_named else None
        self.refs += 1
        expected = self.model.monitor(watcher, target, self.refs, name)
        if (
            target is not None
            and target != watcher
            and self.signals.is_alive(target)
            and self.signals.is_known(watcher)
        ):
            self.armed[self.refs] = (watcher, target)
        self.carry_out(self.signals.monitor(watcher, target, self.refs, name), expected)

    @rule(one=some, number=some, is_own=st.booleans())
    def demonitor(self, one: int, number: int, is_own: bool) -> None:
        """The oldest that are armed, or one that is not."""
        armed = [monitor[0] for monitor in self.model.monitors()]
        ref = armed[number] if number < len(armed) else self.refs + 1 - number % 4
        owner = self.armed[ref][0] if is_own and ref in self.armed else self.pid(one)
        match self.model.demonitor(owner, ref):
            case bool() as was_armed:
                assert self.signals.demonitor(owner, ref) is was_armed
                if was_armed:
                    assert not self.downs[ref]
                    self.removed.add(ref)
            case _:
                with pytest.raises(InvalidOption):
                    self.signals.demonitor(owner, ref)

    @rule(one=some, other=some)
    def kill(self, one: int, other: int) -> None:
        self.send_exit(one, other, "kill")

    @rule(one=some, other=some, reason=reasons)
    def send_exit(self, one: int, other: int, reason: Reason) -> None:
        sender, target = self.pid(one), self.pid(other)
        self.carry_out(self.signals.exit(sender, target, reason), self.model.exit(sender, target, reason))

    @rule(one=some, reason=reasons)
    def ends(self, one: int, reason: Reason) -> None:
        """By itself, or as a signal has it end; again, or before it was there, it means nothing."""
        pid = self.pid(one)
        self.ended(pid, self.fatal.get(pid, reason))

    def ended(self, pid: int, reason: Reason) -> None:
        if pid <= self.pids:
            self.gone.add(pid)
        expected = self.model.exited(pid, reason)
        self.carry_out(
            self.signals.lost(pid) if reason == "noconnection" else self.signals.exited(pid, reason), expected
        )

    # --- what holds

    @invariant()
    def who_is_there(self) -> None:
        for pid in range(1, self.pids + 2):
            assert self.signals.is_alive(pid) is (pid in self.model.alive())
            assert self.signals.is_known(pid) is (pid in self.model.known())

    @invariant()
    def both_sides_agree(self) -> None:
        signals, known = self.signals, self.model.known()
        watching = {ref: pid for pid in known for ref in signals.monitors_of(pid)}
        for pid in known:
            assert signals.traps_exits(pid) is self.model.traps(pid)
            assert list(signals.links_of(pid)) == self.model.peers(pid)
            assert all(pid in signals.links_of(other) for other in signals.links_of(pid))
            assert all(watching[ref] == watcher for ref, watcher in signals.watched_by(pid).items())
        monitors = self.model.monitors()
        assert watching == {ref: watcher for ref, watcher, _, _ in monitors}
        assert signals.sizes() == Sizes(len(known), len(self.model.links()), len(monitors))

    @invariant()
    def each_monitor_ends_in_one_way(self) -> None:
        """19.2: one Down, none if it was removed, and one for sure if its watcher is there to hear it."""
        open_ones = {one[0] for one in self.model.monitors()}
        for ref, (watcher, target) in self.armed.items():
            downs = len(self.downs[ref])
            assert downs <= 1
            assert not (downs and ref in self.removed)
            if watcher not in self.gone and watcher not in self.fatal and ref not in self.removed:
                assert downs == (target in self.gone)
                assert (ref in open_ones) is (downs == 0)

    def teardown(self) -> None:
        for pid in range(1, self.pids + 1):
            if pid not in self.gone:
                self.ended(pid, self.fatal.get(pid, "shutdown"))
        self.each_monitor_ends_in_one_way()
        assert self.signals.sizes() == Sizes(0, 0, 0)


Walk.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestWalk = Walk.TestCase
