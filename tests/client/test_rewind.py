"""Servers that are set back and clients that are copied: what was written is there again, and nobody does anything."""

from __future__ import annotations

from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from blowing_off import BadAnswer, BlowingOffClient, SyncReport, Unreachable, reconcile
from blowing_off.show import sync_parts
from inbetweenies.limits import Limits
from inbetweenies.model import Reads, Row, digest_change, parse_cursor
from inbetweenies.replica import copy_of
from inbetweenies.stores.memory import MemoryStore
from tests.client.test_client import Clock, Home, client_of, content, names, same
from tests.support import NOW, SECOND, entity, run


def log(home: Home) -> list[Row]:
    """Every row that a server holds."""
    graphs = home.store._graphs  # type: ignore[attr-defined]
    return list(graphs["default"].log) if "default" in graphs else []


def lacking(home: Home, client: BlowingOffClient) -> list[tuple[str, str, str]]:
    """The rows that a client holds and its server does not, but for those that were refused or given up."""
    held = {row.hash for row in log(home)}
    # What met other content under its version is kept beside that.
    beside = {(row.id, row.version.rpartition("#")[0]) for row in log(home) if "#" in row.version}
    found = client.store._db.execute(
        "SELECT kind, id, version, hash FROM copies AS c WHERE coalesce(told, 0) >= 0 AND NOT EXISTS"
        " (SELECT 1 FROM pending AS m WHERE (m.kind, m.id, m.version, m.hash) = (c.kind, c.id, c.version, c.hash))"
    ).fetchall()
    return [
        (kind, id_, version)
        for kind, id_, version, hash_ in found
        if hash_ not in held and (id_, version) not in beside
    ]


# --- stories ------------------------------------------------------------------------------------------------------


async def lamps(home: Home, count_: int = 3, user: str = "ann", **fields: Any) -> BlowingOffClient:
    """A client that has pushed this many devices."""
    client = client_of(home, user, **fields)
    for number in range(count_):
        await client.add("device", f"Lamp {number}", {"n": number})
    await client.sync()
    return client


def backup_of(home: Home) -> MemoryStore:
    assert isinstance(home.store, MemoryStore)
    return home.store.copy()


async def all_sync(*clients: BlowingOffClient, times: int = 2) -> list[SyncReport]:
    """What each reported of its last sync."""
    for _ in range(times - 1):
        for client in clients:
            await client.sync()
    return [await client.sync() for client in clients]


def nothing_lacks(home: Home, *clients: BlowingOffClient) -> None:
    for client in clients:
        assert [] == lacking(home, client)


async def everything_that_anybody_was_told_comes_back() -> None:
    home = Home()
    ann = await lamps(home)
    bob, eve = client_of(home, "bob"), client_of(home, "eve")
    [lamp, other, _] = await ann.find()
    backup = backup_of(home)
    for n in range(4):
        await ann.change(lamp.id, patch={"n": n, "was": lamp.version})
        await ann.sync()
        await bob.sync()
    new = await ann.add("room", "New")
    edge = await ann.link(other.id, new.id, "located_in")
    await ann.sync()
    await eve.sync()
    await bob.sync()
    loser = await eve.change(other.id, patch={"n": -1})
    await ann.change(other.id, patch={"n": -2})
    await ann.sync()
    await eve.sync()
    await bob.sync()
    before = log(home)
    await ann.close()  # this device is gone for good
    home.use(backup)

    report = await bob.sync()
    assert (True, True, 0) == (report.rewound, report.equal, report.pending)
    reports = await all_sync(eve, bob)
    assert [(False, True, 0)] * 2 == [(report.rewound, report.equal, report.pending) for report in reports]
    nothing_lacks(home, eve, bob)
    assert same(eve, bob)
    assert {row.hash for row in before} == {row.hash for row in log(home)}
    assert loser.version in home.versions(other.id)
    assert [edge] == await bob.links(new.id)
    assert {row.user_id for row in log(home)} == {"ann", "eve", ""}.union(row.user_id for row in before) - {""}


async def test_what_anybody_was_told_comes_back_though_its_writer_is_gone() -> None:
    await everything_that_anybody_was_told_comes_back()


async def what_was_acknowledged_before_it_was_pulled_comes_back() -> None:
    home = Home(limits=Limits(page_rows_max=2))
    await lamps(home, 9, "bob")
    backup = backup_of(home)
    ann = client_of(home, "ann", page_rows=2)
    mine = await ann.add("device", "Mine")
    home.faults.extend(["", "", "lost"])  # it has pulled the first pages, and pushed all it has
    with suppress(Unreachable):
        await ann.sync()
    assert [] == await ann.pending()
    at = parse_cursor(ann.state.cursor or "")
    assert at is not None
    assert at.seq < 9
    home.use(backup)

    report = await ann.sync()
    assert (True, [mine.version]) == (report.rewound, home.versions(mine.id))


async def test_what_was_acknowledged_before_the_cursor_got_there_comes_back() -> None:
    await what_was_acknowledged_before_it_was_pulled_comes_back()


async def a_server_that_has_gone_past_its_client_is_noticed() -> None:
    home = Home()
    ann, bob = await lamps(home), client_of(home, "bob", clock=Clock(NOW + 3600 * SECOND))
    await bob.sync()
    backup = backup_of(home)
    mine = await ann.add("device", "Mine")
    await ann.sync()
    home.use(backup)
    for n in range(3):  # the log is longer now than it was, and says that it is the same
        await bob.add("device", f"Bob's {n}")
        await bob.sync()
    report = await ann.sync()

    assert (True, 1, 1) == (report.rewound, report.lost, report.offered)
    assert [mine.version] == home.versions(mine.id)
    assert 7 == len(await ann.find())


async def test_a_server_that_was_set_back_and_has_gone_past_its_client_is_noticed() -> None:
    await a_server_that_has_gone_past_its_client_is_noticed()


async def nothing_is_passed_over_when_the_power_fails(folder: Path) -> None:
    home = Home()
    async with await lamps(home), client_of(home, "bob", path=folder / "bob.db") as bob:

        def fails(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(bob.store, "_insert", fails)
            await bob.sync()
        await bob.sync()

        assert ["Lamp 0", "Lamp 1", "Lamp 2"] == sorted(await names(bob))


async def test_the_cursor_is_never_ahead_of_the_rows(tmp_path: Path) -> None:
    await nothing_is_passed_over_when_the_power_fails(tmp_path)


async def an_old_row_does_not_take_the_place_of_a_newer_one() -> None:
    home = Home()
    ann, bob = await lamps(home), client_of(home, "bob", clock=Clock(NOW + 3600 * SECOND))
    await bob.sync()
    [lamp, *_] = await ann.find()
    backup = backup_of(home)
    lost = await ann.change(lamp.id, patch={"n": -1})
    await ann.sync()
    home.use(backup)
    since = await bob.change(lamp.id, patch={"n": -2})
    await bob.sync()
    reports = await all_sync(ann, bob)

    assert [True, True] == [report.equal for report in reports]
    assert content(since) == content(await ann.get(lamp.id)) == content(await bob.get(lamp.id))
    assert {lost.version, since.version} <= set(home.versions(lamp.id))


async def test_a_row_that_comes_back_does_not_take_the_place_of_a_newer_one() -> None:
    await an_old_row_does_not_take_the_place_of_a_newer_one()


async def a_late_answer_is_not_believed() -> None:
    home = Home()
    ann = await lamps(home)
    [lamp, *_] = await ann.find()
    backup = backup_of(home)
    inner, late = home.post, []

    async def keeps(path: str, body: bytes) -> bytes:
        late.append(await inner(path, body))
        raise Unreachable("the answer takes its time")

    async def comes_late(path: str, body: bytes) -> bytes:
        await inner(path, body)
        home.post = inner  # type: ignore[method-assign]
        return late.pop()

    row = await ann.change(lamp.id, patch={"n": 7})
    home.post = keeps  # type: ignore[method-assign]
    with suppress(Unreachable):
        await ann.sync()  # it is taken, and its ack is under way
    home.use(backup)
    home.post = comes_late  # type: ignore[method-assign]
    with suppress(BadAnswer):
        await ann.sync()
    await ann.sync()

    assert row.version in home.versions(lamp.id)


async def test_an_answer_from_before_the_server_was_set_back_is_not_believed() -> None:
    await a_late_answer_is_not_believed()


async def an_old_answer_does_not_hide_a_loss() -> None:
    home = Home()
    ann = await lamps(home)
    [lamp, *_] = await ann.find()
    backup = backup_of(home)
    inner, late = home.post, []

    async def keeps(path: str, body: bytes) -> bytes:
        late.append(await inner(path, body))
        raise Unreachable("the answer takes its time")

    async def comes_late(path: str, body: bytes) -> bytes:
        home.post = inner  # type: ignore[method-assign]
        return late.pop()

    home.post = keeps  # type: ignore[method-assign]
    with suppress(Unreachable):
        await ann.sync()
    home.post = inner  # type: ignore[method-assign]
    rows = []
    for n in range(3):
        rows.append(await ann.change(lamp.id, patch={"n": -n}))
        await ann.sync()
    home.use(backup)
    home.post = comes_late  # type: ignore[method-assign]
    with suppress(BadAnswer):
        await ann.sync()  # by what it is told, the log is where it was before it wrote
    await all_sync(ann)

    assert {row.version for row in rows} <= set(home.versions(lamp.id))


async def test_an_old_answer_does_not_hide_that_a_server_was_set_back() -> None:
    await an_old_answer_does_not_hide_a_loss()


async def test_an_answer_to_another_message_changes_nothing() -> None:
    home = Home()
    ann = await lamps(home)
    await ann.add("device", "Late")
    before = ann.store._db.execute("SELECT * FROM pending").fetchall(), ann.state
    home.change = lambda answer: answer.update(request_id="another")
    with pytest.raises(BadAnswer, match="an answer to what was just asked"):
        await ann.sync()

    assert before[0] == ann.store._db.execute("SELECT * FROM pending").fetchall()
    assert before[1].cursor == ann.state.cursor
    home.change = None
    assert (0, True) == ((report := await ann.sync()).pending, report.equal)


async def test_a_log_that_gets_shorter_without_a_word_is_not_believed() -> None:
    home = Home()
    ann = await lamps(home)
    home.change = lambda answer: answer.update(cursor=answer["cursor"].replace(":3:", ":2:"))

    with pytest.raises(BadAnswer, match="a log that grows"):
        await ann.sync()


async def edges_keep_what_was_written_since() -> None:
    home = Home()
    ann = await lamps(home, clock=Clock(NOW))
    bob = client_of(home, "bob", clock=Clock(NOW + 3600 * SECOND))
    [one, two, three] = await ann.find()
    edge = await ann.link(one.id, two.id, "located_in", {"n": 0})
    await ann.sync()
    await bob.sync()
    backup = backup_of(home)
    lost = await ann.link(one.id, three.id, "located_in", {"n": 1}, id=edge.id)
    await ann.sync()
    home.use(backup)
    since = await bob.link(one.id, two.id, "located_in", {"n": 2}, id=edge.id)
    await bob.sync()
    await all_sync(ann, bob)

    held = home.held(Reads(edges=(edge.id,), edge_history=(edge.id,)))
    assert since == held.edges[edge.id].relationship()
    assert {edge.version, lost.version, since.version} == {row.version for row in held.edge_history[edge.id]}
    assert [since] == await ann.links(one.id) == await bob.links(one.id)


async def test_an_edge_that_comes_back_does_not_take_the_place_of_a_newer_one() -> None:
    await edges_keep_what_was_written_since()


async def test_two_lines_of_edits_are_merged_where_the_logs_parted() -> None:
    home = Home()
    ann, bob = await lamps(home), client_of(home, "bob", clock=Clock(NOW + 3600 * SECOND))
    await bob.sync()
    [lamp, *_] = await ann.find()
    backup = backup_of(home)
    for n in range(3):
        await ann.change(lamp.id, patch={f"a{n}": n})
        await ann.sync()
    home.use(backup)
    await bob.change(lamp.id, patch={"b": 1})
    await bob.sync()
    reports = await all_sync(ann, bob)

    assert [True] * 2 == [report.equal for report in reports]
    assert {"n": 0, "a0": 0, "a1": 1, "a2": 2, "b": 1} == content(await bob.get(lamp.id))
    nothing_lacks(home, ann, bob)


async def test_the_server_may_be_set_back_again_while_it_is_given_back_what_it_lost() -> None:
    home = Home()
    ann = await lamps(home, batch_changes=2)
    backup = backup_of(home)
    for n in range(9):
        await ann.add("device", f"New {n}")
    await ann.sync()
    home.use(backup.copy())
    inner = home.post
    left = iter(range(3, 99))

    async def post(path: str, body: bytes) -> bytes:
        answer = await inner(path, body)
        if next(left) == 6:
            home.use(backup.copy())
        return answer

    home.post = post  # type: ignore[method-assign]
    reports = await all_sync(ann)

    assert (True, 0) == (reports[0].equal, reports[0].pending)
    assert 12 == len(log(home))


async def test_whatever_is_cut_off_goes_on_with_the_next_sync() -> None:
    for cut in range(8):
        home = Home()
        ann = await lamps(home, batch_changes=2)
        backup = backup_of(home)
        rows = [await ann.add("device", f"New {n}") for n in range(5)]
        await ann.sync()
        await ann.change(rows[0].id, patch={"waits": 1})
        home.use(backup)
        await lamps(home, 2, "bob")
        home.faults.extend([""] * cut + ["unheard", "lost"])
        for _ in range(3):
            with suppress(Unreachable):
                await ann.sync()
            home.faults.clear()
        report = await ann.sync()

        assert (True, 0) == (report.equal, report.pending)
        nothing_lacks(home, ann)
        assert 11 == len(log(home))


async def test_a_server_that_changes_with_every_message_is_left() -> None:
    home = Home()
    ann = await lamps(home)
    stores = cycle((MemoryStore(), home.store))
    inner = home.post

    async def post(path: str, body: bytes) -> bytes:
        home.use(next(stores))
        return await inner(path, body)

    home.post = post  # type: ignore[method-assign]
    report = await ann.sync()
    assert not report.complete
    assert report.messages < 12
    home.post = inner  # type: ignore[method-assign]
    report = await ann.sync()

    assert (True, 0, 3) == (report.equal, report.pending, len(await ann.find()))


async def test_finding_out_and_giving_back_takes_four_messages() -> None:
    home = Home()
    ann = await lamps(home, 40)
    bob = client_of(home, "bob")
    await bob.sync()
    backup = backup_of(home)
    for n in range(30):
        await ann.add("device", f"New {n}")
        await ann.sync()
        await bob.sync()
    home.use(backup)
    home.asked.clear()
    report = await bob.sync()

    assert (True, 30, 30, 0, 0, True) == (
        report.rewound,
        report.lost,
        report.offered,
        report.pushed,
        report.pulled,
        report.equal,
    )
    assert report.messages <= 4
    # Nothing is sent but what was lost, by whomever it was written.
    assert 30 == sum(len(message["changes"]) for message in home.asked)
    assert {"peer-bob"} == {"peer-bob" if "bob" in row.via else row.via for row in log(home)[40:]}
    second = await ann.sync()
    # It came back in the order in which it had been written, so this is the same log again.
    assert (False, 0, True) == (second.rewound, second.lost, second.equal)


async def test_a_server_of_the_release_before_is_compared_with_as_a_whole() -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    await ann.add("device", "New")
    await ann.sync()
    home.use(backup)
    home.older = True  # it was taken back to that release, too
    report = await ann.sync()

    assert (True, 0, 4) == (report.equal, report.pending, len(log(home)))
    home.older = False
    report = await ann.sync()
    assert (True, 0, False) == (report.equal, report.pending, report.rewound)


async def test_a_release_that_forgot_how_to_tell_what_is_left_is_compared_with_as_a_whole() -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    await ann.add("device", "New")
    await ann.sync()
    home.use(backup)
    home.faults.extend(["", "lost"])
    with pytest.raises(Unreachable):
        await ann.sync()
    assert ann.state.lost
    home.older = True
    report = await ann.sync()

    assert (True, 0, 4, False) == (report.equal, report.pending, len(log(home)), ann.state.lost)


async def test_people_and_programs_are_told_what_was_found_out_and_done() -> None:
    home = Home()
    ann = await lamps(home)
    backup, emptier = backup_of(home), MemoryStore()
    await ann.add("device", "New")
    await ann.sync()
    home.use(backup)
    document, said = sync_parts(await ann.sync())
    assert (True, 1, 1, 0, False) == tuple(
        document[name] for name in ("rewound", "lost", "offered", "discarded", "forked")
    )
    assert "The server was set back and had lost 1 change that this store knows of; 1 given back." in said.sentence
    home.use(emptier)
    run(emptier.discard_after("default"))
    plain = await ann.sync()
    cases = [
        (replace(plain, rewound=True, lost=0, offered=0), "had lost nothing known here; 0 given back."),
        (replace(plain, discarded=2), "Its operator took back 2 changes; they stay in the history."),
        (replace(plain, forked=True), "Another copy of this store has synced as well"),
        (replace(plain, healed=True), "A difference was found, and what differs was exchanged."),
    ]
    for report, expected in cases:
        assert expected in sync_parts(report)[1].sentence
    quiet = sync_parts(replace(plain, rewound=False, discarded=0, healed=False))[1].sentence
    assert not any(word in quiet for word in ("set back", "took back", "copy", "difference"))


# --- answers that lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"listing": ""},
        {"listing": "AAAAAAAAAAA="},
        {"cursor": None},
        {"cursor": "x"},
        {"common": "ab:1:" + "0" * 32},
        {"more": True},
        {"features": ["acks"]},
        {"parts": [{"prefix": "zz"}]},
        {"device_forked": True},
    ],
)
async def test_a_server_that_lies_about_what_is_left_makes_nobody_lose_anything(lie: dict[str, Any]) -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    await ann.add("device", "New")
    await ann.sync()
    home.use(backup)

    def change(answer: dict[str, Any]) -> None:
        if "listing" in answer:
            answer.update(lie)

    home.change = change
    for _ in range(3):
        with suppress(BadAnswer):
            report = await ann.sync()
            assert report.messages < 12
    home.change = None
    report = (await all_sync(ann))[0]

    assert (True, 0) == (report.equal, report.pending)
    nothing_lacks(home, ann)


# --- taken back on purpose ----------------------------------------------------------------------------------------


async def test_what_was_taken_back_on_purpose_goes_from_view_and_stays_in_the_history() -> None:
    home = Home()
    ann, bob = await lamps(home), client_of(home, "bob")
    [lamp, other, _] = await ann.find()
    await bob.sync()
    backup = backup_of(home)
    for n in range(3):
        await ann.change(lamp.id, patch={"bad": n})
    new = await ann.add("device", "New")
    await ann.link(lamp.id, new.id, "located_in")
    await ann.sync()
    await bob.sync()
    waits = await bob.change(other.id, patch={"waits": 1})
    home.use(backup)
    run(backup.discard_after("default"))
    reports = await all_sync(ann, bob)
    first = await ann.sync()

    assert [(True, 0)] * 2 == [(report.equal, report.pending) for report in reports]
    assert first.equal
    for client in (ann, bob):
        assert lamp == await client.get(lamp.id)
        assert None is await client.get(new.id)
        assert [] == await client.links(lamp.id)
        assert waits == await client.get(other.id)
        assert {"bad": 2, "n": 0} in [content(version.entity) for version in await client.history(lamp.id)]
    assert 1 == len(home.versions(lamp.id))
    assert [] == home.versions(new.id)
    # They stay away, even when the server is set back once more, by accident.
    store = backup_of(home)
    kept = await bob.add("device", "Kept")
    await all_sync(bob, ann)
    home.use(store)
    await all_sync(ann, bob)
    assert (1, [kept.version]) == (len(home.versions(lamp.id)), home.versions(kept.id))


async def test_how_much_was_taken_back_is_told() -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    await ann.add("device", "New")
    await ann.sync()
    home.use(backup)
    run(backup.discard_after("default"))
    report = await ann.sync()

    assert (True, 0, 1, 0, True) == (report.rewound, report.lost, report.discarded, report.offered, report.equal)
    assert 3 == len(await ann.find())


# --- differences without a reason ---------------------------------------------------------------------------------


async def test_a_difference_costs_by_what_differs() -> None:
    home = Home()
    ann = await lamps(home, 300)
    bob = client_of(home, "bob")
    await bob.sync()
    with bob.store.transaction():
        gone = [row[0] for row in bob.store._db.execute("SELECT id FROM pointers ORDER BY id LIMIT 3, 2")]
        bob.store._db.execute("DELETE FROM pointers WHERE id IN (?, ?)", gone)
    sizes: list[int] = []
    inner = home.post

    async def post(path: str, body: bytes) -> bytes:
        answer = await inner(path, body)
        sizes.append(len(body) + len(answer))
        return answer

    home.post = post  # type: ignore[method-assign]
    bob.store.put_state(replace(bob.state, digest=bob.state.digest + 1))
    report = await bob.sync()

    assert (True, 2, 300) == (report.healed, report.differing, len(await bob.find()))
    assert sum(sizes) < 15_000
    assert report.messages <= 5
    assert same(ann, bob) or not report.equal


async def test_what_differs_too_much_is_pulled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "COMPARISONS_MAX", 1)
    home = Home()
    await lamps(home, 300)
    bob = client_of(home, "bob")
    await bob.sync()
    with bob.store.transaction():
        bob.store._db.execute("DELETE FROM pointers WHERE id > '8'")
    bob.store.put_state(replace(bob.state, digest=bob.state.digest + 1))
    await bob.add("device", "Mine")
    report = await bob.sync()

    assert (True, 0, 301) == (report.healed, report.pending, len(await bob.find()))


async def test_a_row_that_only_the_client_holds_is_offered() -> None:
    home = Home()
    ann = await lamps(home)
    extra = copy_of(entity("extra", "v1"))
    with ann.store.transaction():
        # As if the server had told it once; no log that this one comes from ever had it.
        ann.store.write([extra])
        ann.store._db.execute("DELETE FROM pending")
        ann.store._db.execute(
            "UPDATE pointers SET (theirs, theirs_hash, ours, ours_hash) = (ours, ours_hash, NULL, NULL)"
            " WHERE id = 'extra'"
        )
        ann.store.put_state(replace(ann.state, digest=digest_change(ann.state.digest, come=extra.hash)))
    report = await ann.sync()

    assert (True, 1, True, 1) == (report.healed, report.differing, report.equal, report.offered)
    assert ["v1"] == home.versions("extra")


async def test_a_server_that_is_set_back_while_parts_are_compared_is_noticed() -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    await ann.add("device", "New")
    await ann.sync()
    ann.store.put_state(replace(ann.state, digest=ann.state.digest + 1))
    inner = home.post

    async def post(path: str, body: bytes) -> bytes:
        if b'"compare"' in body:
            home.use(backup.copy())
        return await inner(path, body)

    home.post = post  # type: ignore[method-assign]
    await ann.sync()
    home.post = inner  # type: ignore[method-assign]
    await all_sync(ann)

    nothing_lacks(home, ann)
