"""`RolloutControl`: what people do to a rollout, whoever else does so and wherever a process dies (PROTOCOL 12)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inbetweenies import Feature, MemoryStore, SqliteStore
from inbetweenies.errors import InbetweeniesError, LocalProtocolError, StoreBusy, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.ops import rollouts as module
from inbetweenies.ops.preflight import preflight
from inbetweenies.ops.rollouts import Done, NotReady, RolloutControl
from inbetweenies.registry import DOCUMENT as REGISTRY
from inbetweenies.registry import Decision, Decisions, State
from inbetweenies.registry import document_of as registry_body
from inbetweenies.rollout import canary, triggers
from inbetweenies.rollout.canary import EVIDENCE, Bar, Evidence, NotYet, Seen
from inbetweenies.rollout.states import DOCUMENT, Event, Rollout, RolloutMoved, Rollouts, document_of, rollouts_in
from inbetweenies.rollout.triggers import DOCUMENT as WATCHES
from inbetweenies.rollout.triggers import Watch, Watches
from inbetweenies.store import Store
from inbetweenies.stores.keeper import run_now
from inbetweenies.wire import load

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
LOW = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)
RAMP = (10_000, 500_000)
BROKEN = ("the disk is full",)
#: The only way there is, and where it leads.
WAY = ("planned", "preflighted", "expanded", "shadow", "ramp 0", "ramp 1", "full", "burn_in", "finalized")
SHADOW, BURN_IN = WAY.index("shadow"), WAY.index("burn_in")


class Dying(MemoryStore):
    """Its process dies before the `left`th write from now; `between` runs once, after the next read of rollouts."""

    left: int | None = None
    between: Callable[[], object] | None = None

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        if self.left is not None:
            if self.left == 0:
                raise StoreBusy("expected a process; got a dead one")
            self.left -= 1
        return await super().put_document(name, body, revision=revision)

    async def document(self, name: str) -> Document:
        found = await super().document(name)
        if name == DOCUMENT and self.between is not None:
            between, self.between = self.between, None
            between()
        return found


def control(store: Store, bar: Bar = LOW, at: int = 0) -> RolloutControl:
    return RolloutControl(store, bar=bar, clock=lambda: at)


def put(store: Store, name: str, body: bytes) -> None:
    found = run_now(store.document(name))
    assert run_now(store.put_document(name, body, revision=found.revision))


def where(one: Rollout) -> str:
    at = one.held_in or one.state
    return f"{'held ' if one.held_in else ''}{at}{f' {one.step}' if at == 'ramp' else ''}"


def taken_to(store: Store, place: str) -> RolloutControl:
    """A rollout of version 2 with the steps `RAMP`, taken to this place of `WAY`, or `held` there."""
    one = control(store)
    *held, at = place.rsplit("held ", 1)
    if WAY.index(at) >= SHADOW:
        one.start(V2, steps=RAMP)
    else:
        store.left = 1 + WAY.index(at)  # type: ignore[attr-defined]
        with pytest.raises(StoreBusy):
            one.start(V2, steps=RAMP)
        store.left = None  # type: ignore[attr-defined]
    for _ in range(SHADOW, min(WAY.index(at), BURN_IN)):
        one.advance(V2)
    if at == "finalized":
        one.finalize(V2)
    if held:
        one.pause(V2)
    assert place == where(one.rollouts().of(V2))
    return one


# --- every way there is -------------------------------------------------------------------------------------------


class Operators(RuleBasedStateMachine):
    """Whatever is done in whatever order, and wherever it dies, is where a simple model says."""

    @initialize()
    def begin(self) -> None:
        self.store = Dying()
        self.at: int | None = None  # on `WAY`; None if nothing was ever started
        self.held = False
        self.end: str | None = None
        self.serial = 0

    def do(self, legal: bool, work: Callable[[RolloutControl], Done], refused: type[Exception]) -> bool:
        before = run_now(self.store.document(DOCUMENT))
        try:
            done = work(control(self.store))
        except refused:
            assert not legal
            assert before == run_now(self.store.document(DOCUMENT))
            return False
        assert legal
        assert done.after == control(self.store).rollouts().of(V2)
        return True

    @property
    def under_way(self) -> bool:
        return self.at is not None and self.end is None

    @rule(dies=st.integers(0, 5), healthy=st.booleans())
    def start(self, dies: int, healthy: bool) -> None:
        new = not self.under_way
        first = 0 if new else self.at or 0
        self.store.left = dies
        try:
            control(self.store).start(V2, steps=RAMP, preflight=lambda: () if healthy else BROKEN)
            outcome = "done"
        except StoreBusy:
            outcome = "died"
        except NotReady:
            outcome = "not ready"
        except LocalProtocolError:
            outcome = "refused"
        self.store.left = None
        if not new and (self.held or first > SHADOW):
            assert "refused" == outcome
            return
        expected = self.expected(new, first, dies, healthy)
        assert expected[0] == outcome
        if expected[1] is not None:
            self.at, self.held, self.end = expected[1], False, None
            self.serial += new

    def expected(self, new: bool, first: int, dies: int, healthy: bool) -> tuple[str, int | None]:
        """How `start` ends, and how far it comes; None if it changes nothing."""
        if new and not dies:
            return "died", None
        left = dies - new
        if first == 0 and not healthy:
            return "not ready", 0
        moves = SHADOW - first
        return ("done", SHADOW) if left >= moves else ("died", first + left)

    @rule()
    def advance(self) -> None:
        legal = self.under_way and not self.held and SHADOW <= (self.at or 0) < BURN_IN
        if self.do(legal, lambda one: one.advance(V2), LocalProtocolError):
            self.at = (self.at or 0) + 1

    @rule(ago=st.integers(1, 5))
    def advance_from_what_was_seen_earlier(self, ago: int) -> None:
        if self.under_way and not self.held and SHADOW <= (self.at or 0) < BURN_IN:
            fence = control(self.store).rollouts().of(V2).fence - ago
            self.do(False, lambda one: one.advance(V2, fence=fence if fence >= 0 else 999), RolloutMoved)

    @rule()
    def pause(self) -> None:
        legal = self.under_way and not self.held and SHADOW <= (self.at or 0) <= BURN_IN
        self.held = self.do(legal, lambda one: one.pause(V2), LocalProtocolError) or self.held

    @rule()
    def resume(self) -> None:
        legal = self.under_way and self.held
        self.held = self.held and not self.do(legal, lambda one: one.resume(V2), LocalProtocolError)

    @rule()
    def rollback(self) -> None:
        legal = self.at is not None and self.end != "finalized"
        if self.do(legal, lambda one: one.rollback(V2), LocalProtocolError) and self.end is None:
            self.end, self.held = "rolled_back" if (self.at or 0) > 1 else "aborted", False

    @rule()
    def abort(self) -> None:
        if self.do(self.under_way and (self.at or 0) < 2, lambda one: one.abort(V2), LocalProtocolError):
            self.end = "aborted"

    @rule()
    def finalize(self) -> None:
        legal = self.under_way and not self.held and self.at == BURN_IN
        if self.do(legal, lambda one: one.finalize(V2), LocalProtocolError):
            self.end = "finalized"

    @rule(graph=st.sampled_from("abc"), allowed=st.booleans())
    def relist(self, graph: str, allowed: bool) -> None:
        def listed(one: RolloutControl) -> Done:
            return one.relist(V2, allow=[graph] if allowed else [], deny=[] if allowed else [graph])

        known = control(self.store).rollouts().rollouts.get(V2)
        # What is on the list already changes nothing, and so is no error of one that is over either.
        there = known is not None and (graph in (known.allow if allowed else known.deny))
        if self.do(self.under_way or there, listed, LocalProtocolError):
            after = control(self.store).rollouts().of(V2)
            assert (allowed, not allowed) == (graph in after.allow, graph in after.deny)

    @invariant()
    def it_is_where_the_model_says(self) -> None:
        if self.at is None:
            assert Rollouts() == control(self.store).rollouts()
            return
        one = control(self.store).rollouts().of(V2)
        assert f"{'held ' if self.held else ''}{self.end or WAY[self.at]}" == where(one)
        assert (self.serial, len(RAMP)) == (one.serial, len(one.steps))


Operators.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOperators = Operators.TestCase


# --- starting -----------------------------------------------------------------------------------------------------


def test_a_rollout_starts_in_shadow_with_its_lists_and_who_did_it() -> None:
    store = MemoryStore()
    done = control(store, at=7).start(V2, steps=RAMP, allow=["a"], deny=["b"], actor="ada", reason="1.1")
    after = done.after

    assert (None, True) == (done.before, done.changed)
    assert ("shadow", RAMP, 7) == (after.state, after.steps, after.since)
    assert (["a"], ["b"]) == (list(after.allow), list(after.deny))
    told = [(move.event, move.state, move.cause.actor, move.cause.reason) for move in after.log]
    assert [
        ("start", "planned", "ada", "1.1"),
        ("list", "planned", "ada", "1.1"),
        *[("advance", state, "ada", "1.1") for state in ("preflighted", "expanded", "shadow")],
    ] == told


@pytest.mark.parametrize("writes", range(5))
def test_killed_anywhere_it_goes_on_and_can_be_undone(writes: int) -> None:
    """`writes` of them were made when the process died."""
    for then in ("start", "rollback"):
        store = Dying()
        store.left = writes
        with suppress(StoreBusy):
            control(store).start(V2)
        store.left = None
        if then == "start":
            assert "shadow" == control(store).start(V2).after.state
            assert ["start", "advance", "advance", "advance"] == [
                move.event for move in control(store).rollouts().of(V2).log
            ]
        elif writes:
            undone = control(store).rollback(V2).after
            assert (True, 0) == (undone.over, undone.share)


def test_the_preflight_is_asked_once_before_anything_changes() -> None:
    store, asked = MemoryStore(), list[str]()

    def looked(*against: str) -> Callable[[], tuple[str, ...]]:
        def look() -> tuple[str, ...]:
            asked.append(control(store).rollouts().of(V2).state)
            return against

        return look

    with pytest.raises(NotReady, match=r"stays planned; got: the disk is full; so is the other. Put") as refused:
        control(store).start(V2, preflight=looked("the disk is full", "so is the other"))
    assert ("the disk is full", "so is the other") == refused.value.against
    assert "planned" == control(store).rollouts().of(V2).state
    done = control(store).start(V2, preflight=looked())
    assert ["planned", "planned"] == asked
    assert ("planned", "shadow") == (done.before and done.before.state, done.after.state)
    assert not control(store).start(V2, preflight=looked("never asked again")).changed


def test_whoever_goes_on_with_one_may_add_to_its_lists_but_not_change_its_steps() -> None:
    store = MemoryStore()
    control(store).start(V2, steps=RAMP, allow=["a"])
    done = control(store).start(V2, steps=RAMP, allow=["b"], deny=["a"])

    assert (["b"], ["a"]) == (list(done.after.allow), list(done.after.deny))
    with pytest.raises(LocalProtocolError, match=r"expected the steps .* got others: rollback it to start one"):
        control(store).start(V2, steps=(1,))


def test_what_is_under_way_is_not_started_again() -> None:
    one = taken_to(Dying(), "ramp 0")
    with pytest.raises(LocalProtocolError, match="which is ramp: advance or pause or rollback that one"):
        one.start(V2)


def test_the_next_one_begins_anew() -> None:
    one = taken_to(Dying(), "ramp 1")
    first = one.rollback(V2).after
    second = one.start(V2).after

    assert (2, "shadow", first.fence + 4) == (second.serial, second.state, second.fence)


# --- what can be rolled out ---------------------------------------------------------------------------------------


def decided(**states: State) -> MemoryStore:
    store = MemoryStore()
    versions = {f"inbetweenies-{name}": Decision(state=state) for name, state in states.items()}
    put(store, REGISTRY, registry_body(Decisions(versions=versions)))
    return store


@pytest.mark.parametrize(
    ("subject", "store", "says"),
    [
        ("inbetweenies-v9", MemoryStore(), "installed, of inbetweenies-v2, .* graph_operations, .*; got another"),
        ("", MemoryStore(), "got another"),
        (V1, MemoryStore(), f"got {V1}, which whoever names none is served"),
        (V2, decided(v2="accepted"), f"not: `inbetweenies versions enable {V2}` first"),
        (V2, decided(v2="disabled"), "expected a wire version that is offered"),
        (V2, decided(v1="accepted"), "the only one that is offered to everybody"),
        (V2, decided(v1="retired"), "the only one that is offered to everybody"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused_and_nothing_is_kept(subject: str, store: MemoryStore, says: str) -> None:
    with pytest.raises(LocalProtocolError, match=says):
        control(store).start(subject)
    assert Rollouts() == control(store).rollouts()


def test_what_was_started_while_it_could_be_is_looked_at_again() -> None:
    store = MemoryStore()
    with pytest.raises(NotReady):
        control(store).start(V2, preflight=lambda: BROKEN)
    put(store, REGISTRY, registry_body(Decisions(versions={V2: Decision(state="accepted")})))
    with pytest.raises(LocalProtocolError, match="expected a wire version that is offered"):
        control(store).start(V2)
    assert "planned" == control(store).rollouts().of(V2).state


def test_of_several_versions_one_at_least_is_offered_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = decided(v1="accepted"), load()
    monkeypatch.setattr(module, "load", lambda: {**real, "inbetweenies-v3": real[V2]})
    control(store).start("inbetweenies-v3")
    with pytest.raises(LocalProtocolError, match="the only one that is offered to everybody"):
        control(store).start(V2)
    control(store).rollback("inbetweenies-v3")  # what was taken back is offered to nobody either
    with pytest.raises(LocalProtocolError, match="the only one that is offered to everybody"):
        control(store).start(V2)


def test_a_feature_is_rolled_out_by_itself_or_by_its_name() -> None:
    store = MemoryStore()
    control(store).start(Feature.MCP_SERVER)

    assert "shadow" == control(store).standing("mcp_server").rollout.state
    assert "rolled_back" == control(store).rollback("mcp_server").after.state


def test_a_graph_is_on_one_list() -> None:
    with pytest.raises(LocalProtocolError, match="expected each graph once"):
        control(MemoryStore()).start(V2, allow=["a"], deny=["a"])
    one = taken_to(Dying(), "shadow")
    for allow, deny, drop in (("a", "a", ""), ("a", "", "a"), ("", "a", "a")):  # each letter a graph
        with pytest.raises(LocalProtocolError, match="expected each graph once"):
            one.relist(V2, allow=allow, deny=deny, drop=drop)
    one.relist(V2, allow=["a", "b"])
    after = one.relist(V2, deny=["b"], drop=["a"]).after
    assert ([], ["b"]) == (list(after.allow), list(after.deny))


# --- going on -----------------------------------------------------------------------------------------------------


def test_going_on_and_finishing_take_what_the_store_holds_as_evidence() -> None:
    store = Dying()
    one = taken_to(store, "full")
    for verb, at in (("advance", "burn_in"), ("finalize", "finalized")):
        rollout = one.rollouts().of(V2)
        act: Callable[..., Done] = getattr(control(store, Bar(), at=rollout.since + Bar().wait_us), verb)
        with pytest.raises(NotYet, match="it still needs 50 more sessions, 1 more pushes"):
            act(V2)
        assert rollout == one.rollouts().of(V2)
        whole = Evidence(fence=rollout.fence, sessions=50, pushes=1, pulls=1, conflicts=1)
        put(store, EVIDENCE, canary.document_of(Seen(evidence={rollout.id: whole})))
        with pytest.raises(NotYet, match="it still needs 1800 more seconds"):
            getattr(control(store, Bar(), at=rollout.since), verb)(V2)
        assert at == act(V2).after.state


def test_what_did_not_come_to_shadow_does_not_go_on_past_its_preflight() -> None:
    for place in ("planned", "preflighted", "expanded"):
        one = taken_to(Dying(), place)
        with pytest.raises(LocalProtocolError, match=f"which is {place}: start it again"):
            one.advance(V2)
        assert place == one.rollouts().of(V2).state


def test_where_it_stands_is_told_with_what_it_lacks() -> None:
    store = Dying()
    rollout = taken_to(store, "ramp 1").rollouts().of(V2)
    evidence = Evidence(fence=rollout.fence, sessions=12, pushes=1, pulls=1, conflicts=1)
    watch = Watch(rollout=rollout.id, rung="freeze")
    put(store, EVIDENCE, canary.document_of(Seen(evidence={rollout.id: evidence})))
    put(store, WATCHES, triggers.document_of(Watches().put(watch)))
    standing = control(store, Bar(), at=Bar().wait_us).standing(V2)

    assert (rollout, evidence, Bar(), watch) == (standing.rollout, standing.evidence, standing.bar, standing.watch)
    assert ("38 more sessions",) == standing.missing


def test_where_it_stands_is_told_also_if_the_evidence_cannot_be_read() -> None:
    store = Dying()
    one = taken_to(store, "ramp 1")
    for name in (EVIDENCE, WATCHES):
        put(store, name, b"[]")

    assert ("evidence that can be read", "a watch that can be read") == one.standing(V2).missing
    with pytest.raises(StoreCorrupt):
        one.advance(V2)
    assert "rolled_back" == one.rollback(V2).after.state


# --- two at once --------------------------------------------------------------------------------------------------

VERBS: dict[str, tuple[str, Callable[[RolloutControl], Done]]] = {
    "start": ("preflighted", lambda one: one.start(V2)),
    "advance": ("ramp 0", lambda one: one.advance(V2)),
    "pause": ("ramp 0", lambda one: one.pause(V2)),
    "resume": ("held ramp 1", lambda one: one.resume(V2)),
    "abort": ("planned", lambda one: one.abort(V2)),
    "finalize": ("burn_in", lambda one: one.finalize(V2)),
    "relist": ("shadow", lambda one: one.relist(V2, allow=["mine"])),
}


@pytest.mark.parametrize("verb", VERBS)
def test_who_was_overtaken_is_told_and_changes_nothing(verb: str) -> None:
    check_overtaken(verb)


def check_overtaken(verb: str) -> None:
    place, work = VERBS[verb]
    store = Dying()
    one = taken_to(store, place)
    store.between = lambda: one.relist(V2, allow=["theirs"])
    with pytest.raises(RolloutMoved, match="it was moved meanwhile"):
        work(control(store))
    assert (place, ["theirs"]) == (where(one.rollouts().of(V2)), list(one.rollouts().of(V2).allow))


def test_of_two_who_start_one_is_told_that_the_other_did() -> None:
    store = Dying()
    store.between = lambda: control(store).start(V2, actor="ada")
    with pytest.raises(RolloutMoved, match="expected that nobody else starts inbetweenies-v2; got inbetweenies-v2/1"):
        control(store).start(V2, actor="bob")
    assert {"ada"} == {move.cause.actor for move in control(store).rollouts().of(V2).log}


def test_taking_back_waits_for_nobody() -> None:
    store = Dying()
    one = taken_to(store, "ramp 0")
    store.between = lambda: one.advance(V2)
    done = control(store).rollback(V2)

    assert ("ramp 1", "rolled_back") == (where(done.before) if done.before else None, done.after.state)
    kept = run_now(store.document(DOCUMENT))
    again = control(store).rollback(V2)
    assert (done.after, False) == (again.after, again.changed)
    assert kept == run_now(store.document(DOCUMENT))  # not even written anew


def test_of_two_who_take_it_back_one_finds_it_done() -> None:
    store = Dying()
    one = taken_to(store, "ramp 0")
    store.between = lambda: one.rollback(V2, actor="ada")
    done = control(store).rollback(V2, actor="bob")

    assert ("ada", False) == (done.after.log[-1].cause.actor, done.changed)


def test_taking_back_never_reaches_the_next_rollout() -> None:
    store = Dying()
    one = taken_to(store, "ramp 0")

    def replaced() -> None:
        one.rollback(V2)
        one.start(V2)

    store.between = replaced
    with pytest.raises(
        RolloutMoved, match="expected rollout inbetweenies-v2/1 to be the newest; got inbetweenies-v2/2"
    ):
        control(store).rollback(V2)
    assert "shadow" == one.rollouts().of(V2).state


def test_what_is_final_is_not_taken_back() -> None:
    store = Dying()
    one = taken_to(store, "burn_in")
    store.between = lambda: one.finalize(V2)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match="which is finalized and cannot be undone"):
            control(store).rollback(V2)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("advance", "finalize", "relist")])
def test_whoever_takes_the_fence_that_there_is_is_caught(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def any_fence(rollouts: Rollouts, rollout: Rollout, event: Event, cause: Any, seen: Any = ()) -> Rollouts:
        found = rollouts.of(rollout.subject)
        return rollouts.moved(found.subject, event, fence=found.fence, cause=cause)

    monkeypatch.setattr(module, "_move", any_fence)
    with pytest.raises(pytest.fail.Exception):
        check_overtaken(verb)


# --- what is kept is not ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{", b'{"rollouts": {}, "newer": 1}'])
@pytest.mark.parametrize("verb", [*VERBS, "rollback"])
def test_a_document_that_cannot_be_read_is_left_alone(body: bytes, verb: str) -> None:
    store = MemoryStore()
    put(store, DOCUMENT, body)
    work = VERBS[verb][1] if verb in VERBS else lambda one: one.rollback(V2)
    with pytest.raises(StoreCorrupt, match="perhaps of a newer release"):
        work(control(store))
    assert Document(revision=1, body=body) == run_now(store.document(DOCUMENT))


def test_rollouts_of_others_are_left_as_they_are() -> None:
    store = Dying()
    one = taken_to(store, "ramp 1")
    before = one.rollouts().of(V2)
    one.start("mcp_server")
    one.rollback("mcp_server")

    assert before == rollouts_in(Document(revision=1, body=document_of(one.rollouts()))).of(V2)


# --- the preflight of a database ----------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    for number in range(40):
        put(store, f"filler {number}", b"x" * 4096)
    run_now(store.close())
    return path


def test_nothing_speaks_against_a_sound_database_with_room(db: Path) -> None:
    assert () == preflight(db)


def test_a_damaged_database_speaks_against_it(db: Path) -> None:
    data = bytearray(db.read_bytes())
    for page in range(8, 30):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    db.write_bytes(data)

    [told] = preflight(db)
    assert "restore" in told


def test_a_file_that_is_none_or_not_there_speaks_against_it(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    for name in ("text.db", "none.db"):
        [told] = preflight(tmp_path / name)
        assert "SQLite could not check the database" in told
    assert not (tmp_path / "none.db").exists()


def test_a_full_disk_speaks_against_it(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.stat().st_size for file in db.parent.iterdir() if not file.name.endswith("-shm"))
    usage = shutil.disk_usage(db.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    assert () == preflight(db)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size - 1))
    [told] = preflight(db)
    assert f"{3 * size - 1:,} bytes are free" in told


def test_what_is_in_the_write_ahead_log_takes_room_too(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(db, journal=False, heads=False)
    put(store, "more", b"x" * 65536)
    usage = shutil.disk_usage(db.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * db.stat().st_size))
    [told] = preflight(db)
    run_now(store.close())
    assert "are needed: make room" in told


def test_errors_are_ours() -> None:
    assert issubclass(NotReady, InbetweeniesError)
