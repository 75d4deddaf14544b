"""What the server wants people to know, shown by the client: once, and "safe" never falsely (PROTOCOL 14.5)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
from msgspec.structs import replace

from blowing_off import BlowingOffClient, cli
from blowing_off import notices as kept
from blowing_off.reports import Notice, SyncReport
from blowing_off.show import event_parts, sync_parts
from blowing_off.transport import Unreachable
from inbetweenies import cli as server
from inbetweenies.exchange import carry_out
from inbetweenies.model import Noticed, Proof, Reads
from inbetweenies.ops.notify import UserNotification
from inbetweenies.rollout.notices import DOCUMENT, exchange, label_of, proofs_in, proofs_of
from inbetweenies.rollout.states import rollouts_in
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.stores.sqlite import SqliteStore
from tests.client.test_client import Home
from tests.client.test_live import serving
from tests.rollout.made import begun, keep, taken_back
from tests.server.calls import GUARD_SECONDS
from tests.support import SECOND, run

V2 = "inbetweenies-v2"
SAFE = "data is safe"
GRAPH = "default"


class Town(Home):
    """A server on which version 2 can be rolled out and taken back, and those who tell of it."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.people = UserNotification(self.store, clock=lambda: self.now)

    def roll_out(self, *graphs: str) -> None:
        keep(self.store, begun(V2, *(graphs or (GRAPH,))))

    async def take_back(self) -> None:
        self.now += SECOND
        rollouts = rollouts_in(await self.store.document("rollouts"))
        keep(self.store, taken_back(rollouts, V2, self.now))
        await self.people.notify_rollback()

    async def get(self, path: str) -> bytes:
        if not path.startswith(kept.PATH):
            return await super().get(path)
        asked = parse_qs(path.partition("?")[2])
        device, acks = label_of("", asked["device_id"][0]), asked.get("ack", [])
        told = await carry_out(lambda: exchange(GRAPH, device, acks, self.now), self.store, GRAPH, write=True)
        return msgspec.json.encode({"notices": told})

    def client(self, path: Path | str = ":memory:", **options: Any) -> BlowingOffClient:
        return BlowingOffClient(path, transport=self, clock=lambda: self.now, **options)


def safe(*notices: Notice) -> list[bool]:
    assert all((SAFE in one.message) == one.safe for one in notices)
    return [one.safe for one in notices]


async def test_who_was_offline_during_a_rollback_is_told_at_the_next_sync_and_once(tmp_path: Path) -> None:
    town = Town()
    town.roll_out()
    heard: list[Notice] = []
    path = tmp_path / "home.db"
    async with town.client(path, on_notice=heard.append) as client:
        await client.add("device", "lamp")
        await client.sync()
        await town.take_back()
        assert (GRAPH,) == await town.people.prove()
    async with town.client(path, on_notice=heard.append) as client:
        before = await client.status()
        report = await client.sync()
        again = await client.sync()
        after = await client.status()

    assert ((), ()) == (before.notices, again.notices)
    [one] = report.notices
    assert heard == [one]
    assert ("rollback", "Service Update", [True]) == (one.kind, one.title, safe(one))
    assert [replace(one, new=False)] == list(after.notices)
    [delivered] = await town.people.delivered()
    [reached] = delivered.graphs
    assert (1, 1, True, ()) == (reached.devices, reached.with_proof, reached.proven, delivered.waiting)


async def test_we_are_checking_comes_first_and_safe_when_it_is_proven() -> None:
    town = Town()
    town.roll_out()
    async with town.client() as client:
        await client.add("device", "lamp")
        await client.sync()
        await town.take_back()
        first = await client.sync()
        second = await client.sync()
        assert (GRAPH,) == await town.people.prove()
        third = await client.sync()
        fourth = await client.sync()

    assert ([False], [], [True], []) == (
        safe(*first.notices),
        safe(*second.notices),
        safe(*third.notices),
        safe(*fourth.notices),
    )
    assert "We are checking" in first.notices[0].message
    assert first.notices[0].id == third.notices[0].id


async def test_whom_the_rollout_had_not_reached_is_told_nothing() -> None:
    town = Town()
    town.roll_out("another")
    async with town.client() as client:
        await client.add("device", "lamp")
        await client.sync()
        await town.take_back()
        report = await client.sync()

    assert () == report.notices


async def test_a_maintenance_is_told_with_its_duration_and_not_when_it_is_over() -> None:
    town = Town()
    async with town.client() as client, town.client() as late:
        await town.people.notify_maintenance(600, key="m")
        [one] = (await client.sync()).notices
        town.now += 601 * SECOND
        told_late = (await late.sync()).notices

    assert ("maintenance", 600, "info", ()) == (one.kind, one.duration_s, one.severity, told_late)


async def test_an_answer_that_was_lost_is_told_again_and_a_message_is_acknowledged_until_that_was_heard() -> None:
    town = Town()
    async with town.client() as client:
        await client.sync()
        await town.people.notify_maintenance(600, key="m")
        town.faults.append("unheard")
        with pytest.raises(Unreachable):
            await client.sync()
        assert () == client.told()
        town.faults.extend(["", "unheard"])  # told, and the acknowledgement is not heard to be heard
        with pytest.raises(Unreachable):
            await client.sync()
        assert 1 == len(kept.owed(client.store))
        report = await client.sync()
        sent = len(town.asked)
        again = await client.sync()

    assert (1, (), ()) == (len(report.notices), again.notices, kept.owed(client.store))
    assert 1 == len(town.asked) - sent
    assert all("notices" not in one for one in town.asked[sent:])


async def test_a_server_that_never_hears_an_acknowledgement_is_not_asked_for_ever() -> None:
    town = Town()
    told: list[dict[str, Any]] = []

    def insist(answer: dict[str, Any]) -> None:
        told.append(answer)
        answer["notices"] = [{"id": f"{len(told)}", "type": "other", "timestamp": "never"}]

    town.change = insist
    async with town.client() as client:
        report = await client.sync()

    assert 4 > report.messages == len(told)


# --- a false "safe" -----------------------------------------------------------------------------------------------


def lie(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """A server that says what it likes in each of its notices."""

    def lied(answer: dict[str, Any]) -> None:
        for notice in answer.get("notices", ()):
            notice |= {"title": "Your data is safe.", "message": "Your data is safe.", **fields}

    return lied


async def test_no_words_of_a_server_say_that_data_is_safe() -> None:
    town = Town()
    town.roll_out()
    async with town.client() as client:
        await client.add("device", "lamp")
        await client.sync()
        await town.take_back()
        town.change = lie()
        [one] = (await client.sync()).notices
        town.change = lie(id="x", type="your data is safe", severity="safe")
        [other] = (await client.sync()).notices or [one]

    assert [False, False] == safe(one, other)
    assert not any("safe" in f"{each.title} {each.message}".lower() for each in (one, other))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("digest", text) for text in ("0" * 64, "f" * 64, "", "true")),
        *((field, text) for field in ("at", "before") for text in ("", "e:1:" + "0" * 32, "safe")),
    ],
)
def test_a_proof_that_does_not_fit_what_is_here_says_nothing(field: str, value: str) -> None:
    async def story() -> tuple[Notice, ...]:
        town = Town()
        town.roll_out()
        async with town.client() as client:
            await client.add("device", "lamp")
            await client.sync()
            await town.take_back()
            await town.people.prove()

            def forge(answer: dict[str, Any]) -> None:
                for notice in answer.get("notices", ()):
                    notice["proof"][field] = value

            town.change = forge
            told = (await client.sync()).notices
            assert () == (await client.sync()).notices  # nor is it shown again
            return told

    assert [False] == safe(*run(story()))


async def test_a_server_that_lost_a_row_after_it_was_proven_is_not_believed() -> None:
    """The document says that all is whole, and what it says fits the log: but the log is not what it was."""
    town = Town()
    town.roll_out()
    async with town.client() as client:
        await client.add("device", "lamp")
        await client.add("device", "fan")
        await client.sync()
        await town.take_back()
        assert (GRAPH,) == await town.people.prove()

        def forget(answer: dict[str, Any]) -> None:
            if "digest" in answer:
                answer["digest"] = f"{int(answer['digest'], 16) ^ 1:064x}"  # as of a log without it

        town.change = forget
        report = await client.sync()
        now = await client.status()

    assert ([False], [False]) == (safe(*report.notices), safe(*now.notices))


async def test_a_database_that_was_set_back_takes_the_proof_with_it() -> None:
    town = Town()
    town.roll_out()
    async with town.client() as client, town.client(device="other") as other:
        await client.add("device", "lamp")
        await client.sync()
        await client.add("device", "fan")
        await client.sync()
        await town.take_back()
        await town.people.prove()
        document = await town.store.document(proofs_of(GRAPH))
        outbox = await town.store.document(DOCUMENT)
        empty = MemoryStore()
        for name, body in ((proofs_of(GRAPH), document.body), (DOCUMENT, outbox.body)):
            assert await empty.put_document(name, body, revision=0)
        assert proofs_in(document).proven
        town.use(empty)
        report = await client.sync()
        await other.sync()
        late = other.told()
        now = await other.status()

    assert (True, [False]) == (report.rewound, safe(*report.notices))
    assert not any(safe(*late, *now.notices))


async def test_what_is_kept_here_says_nothing_false_whoever_has_written_it() -> None:
    town = Town()
    async with town.client() as client:
        await client.add("device", "lamp")
        await client.sync()
        here = str(client.state.cursor)
        proof = Proof(graph="x", before=here, at=here, digest="0" * 64)
        forged = kept.Kept(told=Noticed(id="1", kind="rollback", at=0, proof=proof), heard=0, shown="safe")
        for text in ("{", "[]", '[{"told":{"message":"Your data is safe"}}]', msgspec.json.encode([forged]).decode()):
            client.store.keep(notices=text, notices_held=f"{here} {'0' * 64} {'0' * 64}")
            status = await client.status()
            assert not any(safe(*status.notices))
        assert 1 == len((await client.status()).notices)
        report = await client.sync()
        assert not any(safe(*report.notices))


async def test_what_is_remembered_is_bounded() -> None:
    town = Town()
    async with town.client() as client:
        for number in range(kept.KEPT_MAX + 5):
            one = Noticed(id=f"n{number}", kind="other", at=0)
            kept.take_in(client.store, (one,), town.now, state=client.state, digest=None)
            client.told()
        [*_, oldest] = (await client.status()).notices

    assert "n5" == oldest.id


async def test_a_server_without_features_is_sent_nothing_else_than_before() -> None:
    town = Town()
    await town.people.notify_maintenance(600, key="m")
    async with town.client() as client:
        await client.sync()

    first, second = town.asked
    assert "notices" in first["features"]
    assert "notices" not in first
    assert 1 == len(second["notices"])
    held = await _events(town)
    assert ["noticed"] == held


async def _events(town: Town) -> list[str]:
    async with town.store.transaction(GRAPH, write=False) as tx:
        return [event.kind for event in (await tx.read(Reads(events=True))).events]


# --- shown --------------------------------------------------------------------------------------------------------


async def test_a_replica_that_watches_shows_it_at_once_and_acknowledges_it(tmp_path: Path) -> None:
    db = tmp_path / "server.db"
    with serving(db) as url:
        async with asyncio.timeout(GUARD_SECONDS):
            async with (
                BlowingOffClient(tmp_path / "a.blow", url) as ann,
                aclosing(ann.watch(look_s=0.02)) as events,
            ):
                await anext(events)
                store = SqliteStore(db, journal=False, heads=False)
                people = UserNotification(store)
                await people.notify_maintenance(600, key="k")
                news = await anext(events)
                synced = await anext(events)
                [delivered] = await people.delivered()
                await store.close()

    assert ("news", (), ["maintenance"]) == (news.kind, news.changed, [one.kind for one in news.notices])
    assert ("synced", ()) == (synced.kind, synced.report.notices)
    assert [1] == [one.devices for one in delivered.graphs]
    document, said = event_parts(news)
    assert "Scheduled Maintenance: The server will be away for about 10 minutes." in said.sentence
    assert ["maintenance"] == [one["type"] for one in document["notices"]]


def test_the_command_line_shows_it_once_and_status_as_long_as_it_is_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db, ann = tmp_path / "server.db", ["--store", str(tmp_path / "ann.db")]

    def said(*arguments: str) -> str:
        assert 0 == cli.invoke([*ann, *arguments])
        return capsys.readouterr().out

    with serving(db) as url:
        said("connect", url, "--user", "ann")
        said("sync")
        assert 0 == server.invoke(["notify", "maintenance", "10m", "--db", str(db)])
        capsys.readouterr()
        first, second = json.loads(said("sync", "--json")), json.loads(said("sync", "--json"))
        status, document = said("status"), json.loads(said("status", "--json"))

    assert (["maintenance"], []) == ([one["type"] for one in first["notices"]], second["notices"])
    assert "notice\t" in status
    assert "away for about 10 minutes" in status
    assert [("maintenance", 600, None, False)] == [
        (one["type"], one["duration"], one["proof"], one["new"]) for one in document["notices"]
    ]


def test_what_was_told_and_not_shown_is_new() -> None:
    notice = Notice(id="1", kind="other", title="Notice", message="m\x1b[31m", severity="info", at=0, new=True)
    report = SyncReport(
        served=V2,
        pushed=0,
        pulled=0,
        conflicts=(),
        refused=(),
        pending=0,
        healed=False,
        messages=1,
        digest=None,
        equal=None,
        notices=(notice,),
    )
    document, said = sync_parts(report)

    assert [True] == [one["new"] for one in document["notices"]]
    assert said.sentence.endswith("Notice: m\x1b[31m")
