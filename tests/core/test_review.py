"""The queue of what waits for a person (PROTOCOL 6.9, 6.10): nothing that was left to one is ever forgotten."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from inbetweenies import engine, merge, review
from inbetweenies.errors import RemoteProtocolError
from inbetweenies.exchange import carry_out
from inbetweenies.limits import Limits
from inbetweenies.merge import FOR_REVIEW, Policy, Verdict, manual
from inbetweenies.model import Change, Context, Cursor, Entity, Plan, Reads, Row, SyncRequest
from inbetweenies.review import Open, Page, Place, Resolved, entry_id, place_in
from inbetweenies.store import Store
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.stores.sqlite import SqliteStore
from tests.support import NOW, SECOND, Server, at, entity, run

T = TypeVar("T")
MANUAL = Policy(rules={"note": manual})
BASE = entity("n", at(0), {"a": 1, "b": 1}, entity_type="note")
MINE = replace(BASE, version=at(1), name="Mine", parent_versions=(BASE.version,))
THEIRS = replace(BASE, version=at(2, "bob"), name="Theirs", parent_versions=(BASE.version,), user_id="bob")


def do(server: Server, plan: Callable[[], Plan[T]], *, write: bool = False) -> T:
    return run(carry_out(plan, server.store, "default", write=write))


def page(server: Server, after: Place | None = None) -> Page:
    return do(server, lambda: review.listing(server.policy, server.limits, after or Place()))


def listed(server: Server) -> list[Open]:
    """The whole queue, by as many pages as it takes."""
    found: list[Open] = []
    after: Place | None = Place()
    while after is not None:
        told = page(server, after)
        found += told.entries
        assert told.next is None or told.next > after
        after = None if told.next is None else place_in(str(told.next))
    return found


def resolve(server: Server, id_: str, **decision: Any) -> Resolved:
    context = Context(user="eve", now=server.now)
    body = json.dumps(decision).encode()
    return do(server, lambda: review.resolve(id_, body, server.policy, context, server.limits), write=True)


def contested(**fields: Any) -> Server:
    """A server on which `MINE` stands and `THEIRS` waits."""
    server = Server(policy=MANUAL, **fields)
    for row in (BASE, MINE, THEIRS):
        server.push(row)
    return server


def versions(entries: list[Open]) -> list[str]:
    return [entry.theirs.version for entry in entries]


# --- the queue is complete ----------------------------------------------------------------------------------------

Edits = st.integers(0, 10**6)
#: Histories; `DEEP_EXAMPLES=2000 python -m pytest tests/core/test_review.py -rP` asks for more.
RUNS = int(os.environ.get("DEEP_EXAMPLES", "100"))


class Queue(RuleBasedStateMachine):
    """Devices that know each other's rows or not, people who resolve here or offline, and a log that is set back."""

    fresh: Callable[[], Store] = MemoryStore
    met: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.met["histories"] += 1
        self.server = Server(type(self).fresh(), policy=MANUAL)
        self.known: dict[str, list[Entity]] = {}
        self.left: set[tuple[str, str]] = set()  # what the server said that it leaves to a person
        self.backup: MemoryStore | None = None
        self.clock = 0

    def version(self) -> str:
        self.clock += 1
        return at(self.clock)

    def push(self, row: Entity) -> None:
        self.server.now += SECOND
        response = self.server.push(row)
        assert [row.version] == [ack.version for ack in response.acks]
        lost = [lost for lost in response.conflicts if lost.resolution_strategy == FOR_REVIEW]
        self.met["conflicts"] += len(lost)
        self.left |= {(lost.entity_id, lost.remote_version) for lost in lost}
        self.known.setdefault(row.id, []).append(row)

    @rule(id_=st.sampled_from(("n", "m")), pick=Edits)
    def edit(self, id_: str, pick: int) -> None:
        """An edit on any row that was ever known, whatever came after that."""
        rows = self.known.get(id_, [])
        parents = (rows[pick % len(rows)].version,) if rows else ()
        self.push(entity(id_, self.version(), {"n": self.clock}, entity_type="note", parent_versions=parents))

    @rule(id_=st.sampled_from(("n", "m")), pick=Edits)
    def say_it_again(self, id_: str, pick: int) -> None:
        """A row that came before, or one that says the same as another."""
        rows = self.known.get(id_, [])
        if rows:
            row = rows[pick % len(rows)]
            self.push(row if pick % 2 else replace(row, version=self.version(), parent_versions=(row.version,)))

    @rule(take=st.sampled_from(("mine", "theirs")), pick=Edits)
    def resolve_here(self, take: str, pick: int) -> None:
        open_ = listed(self.server)
        if open_:
            entry = open_[pick % len(open_)]
            resolved = resolve(self.server, entry.id, take=take)
            assert resolved.fresh
            self.met["decisions"] += 1
            assert entry.id not in [entry.id for entry in listed(self.server)]
            self.known[entry.theirs.id].append(resolved.row.entity())

    @rule(pick=Edits)
    def resolve_offline(self, pick: int) -> None:
        """Somebody who saw the queue some time ago writes a row that follows both sides."""
        open_ = listed(self.server)
        if open_:
            entry = open_[pick % len(open_)]
            parents = (entry.mine.version, entry.theirs.version)
            id_ = entry.theirs.id
            self.push(entity(id_, self.version(), {"n": self.clock}, entity_type="note", parent_versions=parents))
            assert entry.id not in [entry.id for entry in listed(self.server)]

    @rule()
    def back_up(self) -> None:
        if isinstance(self.server.store, MemoryStore):
            self.backup = self.server.store.copy()

    @rule()
    def set_back(self) -> None:
        """The log goes back to a backup; who holds the rows offers them again (PROTOCOL 10.10)."""
        if self.backup is None:
            return
        self.met["set back"] += 1
        history = [row for rows in self.rows().values() for row in rows]
        self.server.store = self.backup.copy()
        head = self.server.pull().head
        lost = sorted((row for row in history if row.seq > head.seq), key=lambda row: row.seq)
        above = {row.version: row.entity().parent_versions for row in history}
        line = merge.ancestors((row.version for row in history if row.current), above)
        changes = [
            Change(
                entity=row.entity(),
                offered=True,
                aside=frozenset() if row.version in line else frozenset({("entity", row.id)}),
            )
            for row in sorted(lost, key=lambda row: row.version not in line)
        ]
        common = Cursor(head.epoch, head.seq, head.chain)
        self.server.ask(SyncRequest(device="d", user="ann", changes=tuple(changes), common=common))

    def rows(self) -> dict[str, tuple[Row, ...]]:
        return self.server.held(Reads(history=("n", "m"))).history

    @invariant()
    def what_was_left_to_a_person_is_listed_or_resolved(self) -> None:
        if not hasattr(self, "server"):
            return
        queue = listed(self.server)
        for id_, rows in self.rows().items():
            above = {row.version: row.entity().parent_versions for row in rows}
            line = merge.ancestors((row.version for row in rows if row.current), above)
            # Whoever goes on from a row that waits takes it along, and so does whoever agrees with what stands.
            taken = merge.ancestors((entry.theirs.version for entry in queue if entry.theirs.id == id_), above)
            said = {bytes(row.entity().content) for row in rows if row.version in line}
            agreed = merge.ancestors((row.version for row in rows if bytes(row.entity().content) in said), above)
            for entity_id, version in self.left:
                assert entity_id != id_ or version in line | taken | agreed

    @invariant()
    def nothing_else_is_listed(self) -> None:
        if hasattr(self, "server"):
            queue = listed(self.server)
            assert len({entry.id for entry in queue}) == len(queue)
            for entry in queue:
                assert entry.mine.current
                assert not entry.theirs.current
                assert not merge.alike(entry.mine.entity(), entry.theirs.entity())


def test_every_contest_is_listed_until_it_is_resolved() -> None:
    Queue.met.clear()
    run_state_machine_as_test(Queue, settings=settings(max_examples=RUNS, stateful_step_count=50, deadline=None))
    print(dict(Queue.met))

    assert all(Queue.met[what] for what in ("conflicts", "decisions", "set back"))


def test_and_so_it_is_in_a_file(tmp_path: Path) -> None:
    opened: list[SqliteStore] = []

    def fresh() -> SqliteStore:
        opened.append(SqliteStore(tmp_path / f"{len(opened)}.db", journal=False, heads=False))
        return opened[-1]

    machine = type("InFile", (Queue,), {"fresh": staticmethod(fresh)})
    try:
        run_state_machine_as_test(machine, settings=settings(max_examples=10, stateful_step_count=20, deadline=None))
    finally:
        for store in opened:
            run(store.close())


@pytest.mark.parametrize(
    "bug",
    ["only what was never current before", "settled by any row of its id", "forgets what another row follows"],
)
def test_a_queue_that_forgets_is_found_out(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = review.waiting

    def wrong(history: Any, policy: Policy, limits: Limits) -> tuple[Open, ...]:
        rows = list(history)
        found = right(rows, policy, limits)
        if bug == "settled by any row of its id":
            return tuple(entry for entry in found if entry.mine.seq < entry.theirs.seq)
        if bug == "only what was never current before":
            return found[-1:]
        above = {version for row in rows for version in row.entity().parent_versions}
        named = {row.version for row in rows if row.until == row.seq and row.version in above}
        return tuple(one for one in found if not named.intersection(one.theirs.entity().parent_versions))

    monkeypatch.setattr(review, "waiting", wrong)
    with pytest.raises((AssertionError, RemoteProtocolError)):
        run_state_machine_as_test(
            Queue,
            settings=settings(
                max_examples=200,
                stateful_step_count=30,
                deadline=None,
                database=None,
                print_blob=False,
                phases=(Phase.generate,),
            ),
        )


# --- what a contest looks like ------------------------------------------------------------------------------------


def test_what_stands_stays_and_the_other_is_kept_acked_told_and_listed() -> None:
    server = Server(policy=MANUAL)
    server.push(BASE)
    server.push(MINE)
    response = server.push(THEIRS)

    assert [("n", THEIRS.version, "lost_kept", MINE.version)] == [
        (ack.id, ack.version, ack.outcome, ack.head) for ack in response.acks
    ]
    [lost] = response.conflicts
    assert (MINE.version, THEIRS.version, MINE.version) == (
        lost.local_version,
        lost.remote_version,
        lost.resolved_version,
    )
    assert MINE == server.current("n")
    [entry] = listed(server)
    assert entry.base is not None
    assert (BASE, MINE, THEIRS) == (entry.base.entity(), entry.mine.entity(), entry.theirs.entity())


def test_of_an_edit_of_what_was_deleted_a_person_is_asked_too() -> None:
    server = Server(policy=MANUAL)
    server.push(BASE)
    server.push(MINE)
    gone = replace(BASE, version=at(3), content=msgspec.Raw(b'{"deleted":true}'), parent_versions=(BASE.version,))
    server.push(gone, delete=True)
    [entry] = listed(server)

    assert gone == server.current("n")
    assert MINE == entry.theirs.entity()
    resolve(server, entry.id, take="theirs")
    assert "Mine" == server.current("n").name
    assert [] == listed(server)


def test_an_edit_that_follows_one_that_waits_takes_its_place() -> None:
    server = contested()
    onward = replace(THEIRS, version=at(3, "bob"), name="Onward", parent_versions=(THEIRS.version,))
    server.push(onward)
    [entry] = listed(server)

    assert entry.base is not None
    assert (BASE.version, onward.version) == (entry.base.version, entry.theirs.version)
    resolve(server, entry.id, take="theirs")
    assert [] == listed(server)


def test_only_what_the_rule_leaves_to_a_person_is_listed() -> None:
    def careful(base: Entity | None, mine: Entity, theirs: Entity) -> Verdict:
        return Verdict.REVIEW if mine.name != theirs.name else Verdict.PASS

    server = Server(policy=Policy(rules={"note": careful}))
    blind = entity("n", "v", {"c": 2}, entity_type="note")
    for row in (entity("n", "w", {"c": 1}, entity_type="note"), blind, replace(blind, version="u", name="Other")):
        server.push(row)

    assert ["u"] == versions(listed(server))


def test_a_rule_that_fails_on_what_is_listed_lists_nothing_and_hides_nothing() -> None:
    server = contested()
    server.policy = Policy(rules={"note": lambda *_: Verdict(1 // 0)})
    found = listed(server)
    server.policy = MANUAL

    assert [] == found
    assert [THEIRS.version] == versions(listed(server))


# --- what is no contest -------------------------------------------------------------------------------------------


def quiet(*pushed: Entity, policy: Policy = MANUAL) -> Server:
    """Push one after the other; nothing of it may be called a conflict."""
    server = Server(policy=policy)
    for row in pushed:
        response = server.push(row)
        assert () == response.conflicts
        assert [row.version] == [ack.version for ack in response.acks]
    assert [] == listed(server)
    return server


AGREED = replace(MINE, version=at(3, "bob"), user_id="bob")
AFTER = replace(MINE, version=at(4), name="After", parent_versions=(MINE.version,))
MIDDLE = replace(BASE, version=at(4.5), name="Middle", parent_versions=(BASE.version,))
TIP = replace(BASE, version=at(5), name="Tip", parent_versions=(BASE.version, MIDDLE.version))
ONLY_TIP = replace(TIP, parent_versions=(MIDDLE.version,))
NOTHING_NEW = replace(BASE, version=at(6, "bob"), user_id="bob", parent_versions=(BASE.version,))


@pytest.mark.parametrize("policy", [Policy(), Policy.strict(), MANUAL], ids=["default", "strict", "manual"])
@pytest.mark.parametrize(
    "pushed",
    [
        pytest.param((BASE, MINE, AFTER, MINE), id="a superseded version is sent again"),
        pytest.param((BASE, TIP, MIDDLE), id="a version comes after one that follows it"),
        pytest.param((BASE, TIP), id="of two offline edits the tip is sent, which names all it descends from"),
        pytest.param((BASE, MINE, AGREED), id="two devices make the same change"),
        pytest.param((BASE, MINE, AGREED, AFTER), id="and one of them goes on"),
        pytest.param((BASE, MINE, MINE), id="a push is sent twice"),
    ],
)
def test_this_is_no_conflict(pushed: tuple[Entity, ...], policy: Policy) -> None:
    quiet(*pushed, policy=policy)


@pytest.mark.parametrize("policy", [Policy(), Policy.strict(), MANUAL], ids=["default", "strict", "manual"])
def test_of_two_offline_edits_the_tip_follows_what_its_sender_had_been_told(policy: Policy) -> None:
    server = quiet(BASE, policy=policy)
    response = server.push(ONLY_TIP, since=server.pull().head.stamp)

    assert () == response.conflicts
    assert ["fast_forward"] == [ack.outcome for ack in response.acks]
    assert ["superseded"] == [ack.outcome for ack in server.push(MIDDLE).acks]
    assert [] == listed(server)


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, ONLY_TIP),
        ({"since": NOW - SECOND}, ONLY_TIP),
        ({"since": NOW, "features": frozenset({"acks"})}, ONLY_TIP),
        ({"since": NOW}, replace(ONLY_TIP, parent_versions=())),
        ({"since": NOW}, replace(ONLY_TIP, parent_versions=(BASE.version,))),
    ],
    ids=["says not where it stands", "stands before it", "sends all its edits", "names nothing", "names another row"],
)
def test_who_may_not_have_known_what_stands_is_asked_about(fields: Any, row: Entity) -> None:
    server = Server(policy=MANUAL)
    server.push(BASE)
    server.push(MINE)
    fields = fields | ({"since": server.pull().head.stamp} if fields.get("since") == NOW else {})

    assert [FOR_REVIEW] == [lost.resolution_strategy for lost in server.push(row, **fields).conflicts]
    assert MINE == server.current("n")


def test_the_tip_of_edits_that_nobody_saw_brings_nothing_back() -> None:
    server = Server()
    server.push(BASE)
    server.push(replace(MINE, content=msgspec.Raw(b'{"deleted":true}')))
    server.push(ONLY_TIP, since=server.pull().head.stamp)

    assert MINE.version == server.current("n").version


def test_an_edit_that_says_nothing_new_leaves_nothing_to_decide() -> None:
    assert MINE == quiet(BASE, MINE, NOTHING_NEW).current("n")


def test_who_takes_back_what_waits_says_something() -> None:
    server = contested()
    back = replace(BASE, version=at(7, "bob"), user_id="bob", parent_versions=(THEIRS.version,))
    again = replace(THEIRS, version=at(8, "bob"), parent_versions=(back.version,))
    for row in (back, again):
        assert [FOR_REVIEW] == [lost.resolution_strategy for lost in server.push(row).conflicts]
        assert [row.version] == versions(listed(server))


@pytest.mark.parametrize("bug", ["nothing_new", "_is_said", "follows_unseen"])
def test_a_conflict_that_is_none_is_found_out(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (merge, review, engine._Work):
        if hasattr(where, bug):
            monkeypatch.setattr(where, bug, lambda *_: False)
    shows: dict[str, Callable[[], None]] = {
        "nothing_new": test_an_edit_that_says_nothing_new_leaves_nothing_to_decide,
        "_is_said": lambda: test_this_is_no_conflict((BASE, MINE, AGREED), MANUAL),
        "follows_unseen": lambda: test_of_two_offline_edits_the_tip_follows_what_its_sender_had_been_told(MANUAL),
    }
    with pytest.raises(AssertionError):
        shows[bug]()


def test_two_deletes_are_no_conflict() -> None:
    gone = msgspec.Raw(b'{"deleted":true}')
    one = replace(BASE, version=at(1), content=gone, parent_versions=(BASE.version,))
    other = replace(BASE, version=at(2), name="Other", content=gone, parent_versions=(BASE.version,))
    back = replace(BASE, version=at(3), name="Back", parent_versions=(one.version,))

    assert back == quiet(BASE, one, other, back).current("n")


def test_what_an_older_row_said_long_ago_is_no_agreement() -> None:
    server = Server(policy=MANUAL)
    as_before = replace(BASE, version=at(3, "bob"), parent_versions=(MINE.version,))
    for row in (BASE, MINE, AFTER, as_before):
        server.push(row)

    assert [as_before.version] == versions(listed(server))


# --- resolving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "name", "content"),
    [
        ({"take": "mine"}, "Mine", {"a": 1, "b": 1}),
        ({"take": "theirs"}, "Theirs", {"a": 1, "b": 1}),
        ({"content": {"c": [1.0, 1]}}, "Mine", {"c": [1.0, 1]}),
        ({"name": "Both"}, "Both", {"a": 1, "b": 1}),
        ({"content": {}, "name": ""}, "", {}),
    ],
)
def test_what_is_decided_is_an_edit_that_follows_both(decision: Any, name: str, content: Any) -> None:
    server = contested()
    server.now = NOW + 60 * SECOND
    [entry] = listed(server)
    resolved = resolve(server, entry.id, **decision)
    now = server.current("n")

    assert resolved.fresh
    assert resolved.row.entity() == now
    assert (name, content, "eve") == (now.name, msgspec.json.decode(now.content), now.user_id)
    assert (tuple(sorted((MINE.version, THEIRS.version))), "bob" if name == "Theirs" else "ann") == (
        now.parent_versions,
        "bob" if name == "Theirs" else "ann",
    )
    assert resolved.row.edit == server.now
    assert [] == listed(server)


def test_it_counts_as_made_after_both_even_where_a_clock_is_behind() -> None:
    server = contested()
    server.now = NOW - 60 * SECOND
    [entry] = listed(server)

    assert resolve(server, entry.id, take="mine").row.rise > entry.theirs.edit


@pytest.mark.parametrize("decision", [{"take": "mine"}, {"take": "theirs"}, {"content": {"c": 1}, "name": "x"}])
def test_deciding_the_same_again_decides_it_once(decision: Any) -> None:
    server = contested()
    [entry] = listed(server)
    first = resolve(server, entry.id, **decision)
    head = server.pull().head
    again = resolve(server, entry.id, **decision)

    assert (first.row, False) == (again.row, again.fresh)
    assert head == server.pull().head


def test_deciding_otherwise_is_told_that_it_is_too_late() -> None:
    server = contested()
    [entry] = listed(server)
    resolve(server, entry.id, take="mine")

    with pytest.raises(RemoteProtocolError) as caught:
        resolve(server, entry.id, take="theirs")
    assert ("conflict_resolved", 409) == (caught.value.code, caught.value.status)
    assert "Mine" == server.current("n").name


@pytest.mark.parametrize(
    ("id_", "decision", "code"),
    [
        ("n.0000000000000000", {"take": "mine"}, "not_found"),
        ("", {"take": "mine"}, "not_found"),
        (entry_id("n", "v"), {}, "not_found"),
        (entry_id("n", THEIRS.version), {}, "malformed_body"),
        (entry_id("n", THEIRS.version), {"take": "mine", "name": "x"}, "malformed_body"),
        (entry_id("n", THEIRS.version), {"take": "ours"}, "malformed_body"),
        (entry_id("n", THEIRS.version), {"content": [1]}, "malformed_body"),
        (entry_id("n", THEIRS.version), {"content": json.loads('{"a":' * 61 + "1" + "}" * 61)}, "malformed_body"),
        (entry_id("n", THEIRS.version), {"content": {"long": "x" * 3000}}, "malformed_body"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(id_: str, decision: Any, code: str) -> None:
    server = contested(limits=Limits(entity_bytes_max=2000))
    head = server.pull().head
    with pytest.raises(RemoteProtocolError) as caught:
        resolve(server, id_, **decision)

    assert code == caught.value.code
    assert head == server.pull().head
    assert [THEIRS.version] == versions(listed(server))


# --- pages --------------------------------------------------------------------------------------------------------


def many(rules: tuple[str, ...] = ("note",), **fields: Any) -> Server:
    server = Server(policy=Policy(rules=dict.fromkeys(rules, manual)), **fields)
    for number in range(70):
        for side in range(1 + number % 3):
            row = entity(f"n{number}", at(side + 1), {"side": side}, entity_type=rules[number % len(rules)])
            server.push(row)
    return server


@pytest.mark.parametrize(
    "limits", [Limits(), Limits(page_bytes_max=1), Limits(handled_bytes_max=1)], ids=["whole", "small", "hurried"]
)
@pytest.mark.parametrize("rules", [("note",), ("note", "app", "room")])
def test_pages_tell_everything_once(limits: Limits, rules: tuple[str, ...]) -> None:
    server = many(rules, limits=Limits())
    server.limits = limits
    found = [entry.id for entry in listed(server)]

    assert 69 == len(set(found)) == len(found)
    if limits == Limits():
        assert None is page(server).next


def test_a_page_ends_with_as_many_entries_as_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "ENTRIES_MAX", 2)
    server = contested()
    for number in range(3, 8):
        server.push(replace(THEIRS, version=at(number, "bob"), name=str(number)))
    sizes = []
    after: Place | None = Place()
    while after is not None:
        told = page(server, after)
        sizes.append(len(told.entries))
        after = told.next

    assert [2, 2, 2, 0] == sizes


def test_without_rules_nothing_is_read() -> None:
    assert [] == list(review.listing(Policy(), Limits()))


@pytest.mark.parametrize("text", ["", "1", "1.2", "1.x.note", "-1.2.note", "1" * 17 + ".2.note", "².2.note"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        place_in(text) if text != "1.2" else place_in("")


def test_a_place_comes_back_as_it_was_told() -> None:
    place = Place("a.type with.dots", 3, 2**53 - 1)

    assert place == place_in(str(place))


def test_an_entity_of_another_type_or_without_rows_waits_for_nobody() -> None:
    assert () == review.waiting((), MANUAL, Limits())
    rows = contested().held(Reads(history=("n",))).history["n"]
    assert () == review.waiting(rows, Policy(rules={"room": manual}), Limits())


def test_what_is_told_of_an_entry_is_all_that_it_takes_to_decide() -> None:
    [entry] = listed(contested())
    told = msgspec.json.decode(msgspec.json.encode(review.told(entry)))

    assert {"id", "entity_id", "entity_type", "mine", "theirs", "base"} == set(told)
    assert ("n", "note", entry_id("n", THEIRS.version)) == (told["entity_id"], told["entity_type"], told["id"])
    assert ("Theirs", "bob", {"a": 1, "b": 1}) == tuple(told["theirs"][name] for name in ("name", "user_id", "content"))
    assert at(2, "bob").startswith(told["theirs"]["at"])
    assert THEIRS == msgspec.convert(told["theirs"], _Side).entity()


class _Side(msgspec.Struct):
    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str
    parent_versions: tuple[str, ...]

    def entity(self) -> Entity:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return entity(fields.pop("id"), fields.pop("version"), fields.pop("content"), **fields)
