"""`UserNotification`: durable, told once, proven, and those who look after a server called (PROTOCOL 14)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreError
from inbetweenies.model import Change, Reads, SyncRequest, Writes
from inbetweenies.ops import notify
from inbetweenies.ops.channels import AppriseChannel, ChannelDown, FileChannel, Result, channel_of, use
from inbetweenies.ops.notify import UserNotification
from inbetweenies.rollout import escalation, notices
from inbetweenies.rollout.escalation import ACK_WAIT_US, alerts_in
from inbetweenies.rollout.notices import DOCUMENT, KEPT_US, outbox_in, proofs_in, proofs_of
from inbetweenies.rollout.states import rollouts_in
from inbetweenies.stores import BaseTransaction, MemoryStore, SqliteStore
from tests.rollout.made import begun, keep, taken_back
from tests.support import NOW, SECOND, Server, at, entity, run

V2 = "inbetweenies-v2"


class Recorder:
    """A channel that remembers, or is down."""

    def __init__(self, name: str, *, down: bool = False) -> None:
        self.name = name
        self.down = down
        self.sent: list[tuple[str, str]] = []

    def send(self, title: str, body: str) -> None:
        if self.down:
            raise OSError("no network\n")
        self.sent.append((title, body))


class Failing(MemoryStore):
    """A store that cannot read some graphs, or write some documents."""

    broken: Mapping[str, StoreError] = {}
    full: frozenset[str] = frozenset()

    def transaction(self, graph: str, *, write: bool) -> BaseTransaction:
        if graph in self.broken:
            raise self.broken[graph]
        return super().transaction(graph, write=write)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        if name in self.full:
            raise StoreError("the disk is full")
        return await super().put_document(name, body, revision=revision)


class Town:
    """A store with two graphs, of which a rollout has reached ``home``."""

    def __init__(self, *listed: Recorder) -> None:
        self.now = NOW
        self.store = Failing()
        self.server = Server(self.store)
        for graph in ("home", "other"):
            self.push("lamp", graph)
        self.channels = listed
        self.people = self.anew()
        keep(self.store, begun(V2, "home"))

    def anew(self) -> UserNotification:
        """Another process."""
        return UserNotification(self.store, channels=self.channels, clock=lambda: self.now)

    def push(self, id_: str, graph: str) -> None:
        changes = (Change(entity=entity(id_, at(0))),)
        self.server.now = self.now
        self.server.ask(SyncRequest(device="d", user="ann", changes=changes), graph)

    def take_back(self) -> None:
        self.now += SECOND
        keep(self.store, taken_back(rollouts_in(run(self.store.document("rollouts"))), V2, self.now))

    def outbox(self) -> Any:
        return outbox_in(run(self.store.document(DOCUMENT)))

    def proofs(self, graph: str = "home") -> Any:
        return proofs_in(run(self.store.document(proofs_of(graph))))

    def write(self, writes: Writes, graph: str = "home") -> None:
        async def written() -> None:
            async with self.store.transaction(graph, write=True) as tx:
                await tx.write(writes)

        run(written())


# --- maintenance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("duration", "expected"), [(600, 600), (0.5, 1), (timedelta(minutes=2), 120)])
def test_a_maintenance_is_durable_on_return(duration: Any, expected: int) -> None:
    town = Town()
    notice = run(town.people.notify_maintenance(duration))

    assert (notice,) == town.outbox().notices
    assert (expected, NOW + expected * SECOND, None) == (notice.duration_s, notice.expires, notice.graphs)


def test_said_twice_under_one_key_it_is_told_once() -> None:
    town = Town()
    first = run(town.people.notify_maintenance(60, key="k", graphs=["home"]))
    town.now += SECOND
    again = run(town.anew().notify_maintenance(90, key="k"))
    other = run(town.people.notify_maintenance(90))

    assert first == again
    assert (first, other) == town.outbox().notices


@pytest.mark.parametrize("duration", [0, -1, float("nan"), float("inf"), notices.DURATION_S_MAX + 1])
def test_what_is_no_duration_is_refused(duration: float) -> None:
    with pytest.raises(LocalProtocolError, match="expected a duration above 0"):
        run(Town().people.notify_maintenance(duration))


def test_two_who_put_one_at_once_put_one() -> None:
    town = Town()
    put, raced = town.store.put_document, list[Any]()

    async def late(name: str, body: bytes, *, revision: int) -> bool:
        if not raced:
            raced.append(None)
            raced.append(await town.anew().notify_maintenance(60, key="k"))
        return await put(name, body, revision=revision)

    town.store.put_document = late  # type: ignore[method-assign]
    mine = run(town.people.notify_maintenance(90, key="k"))

    assert raced[1] == mine
    assert (mine,) == town.outbox().notices


# --- a rollback ---------------------------------------------------------------------------------------------------


def test_a_rollback_is_told_to_whom_it_concerns_whoever_has_taken_it_back() -> None:
    town = Town()
    assert () == run(town.people.notify_rollback())
    town.take_back()
    [notice] = run(town.people.notify_rollback())
    town.now += SECOND

    assert (notice,) == run(town.anew().notify_rollback(V2)) == town.outbox().notices
    assert (True, False) == (notice.concerns("home"), notice.concerns("other"))
    assert [notice.id] == list(town.proofs().before)
    assert {} == town.proofs("other").before
    with pytest.raises(LocalProtocolError, match="expected a rollout that was started"):
        run(town.people.notify_rollback("inbetweenies-v9"))


def test_one_who_died_over_it_is_made_good_for() -> None:
    town = Town()
    town.take_back()
    town.store.full = frozenset({proofs_of("home")})
    with pytest.raises(StoreError, match="full"):
        run(town.people.notify_rollback())
    assert 1 == len(town.outbox().notices)
    run(town.people.look())  # is logged
    town.store.full = frozenset()
    run(town.anew().look())

    assert 1 == len(town.proofs().proven)


def test_a_graph_that_came_later_was_given_nothing() -> None:
    town = Town()
    keep(town.store, begun(V2, "home", "new"))
    town.take_back()
    run(town.people.notify_rollback())
    town.now += SECOND
    town.push("lamp", "new")
    run(town.people.look())
    run(town.people.look())

    assert {} == town.proofs("new").before
    [delivered] = run(town.people.delivered())
    assert ["home"] == [one.graph for one in delivered.graphs]
    assert ("home",) == delivered.waiting


def test_a_whole_graph_is_proven_once() -> None:
    town = Town()
    town.take_back()
    [notice] = run(town.people.notify_rollback())
    before = town.proofs().before[notice.id]
    town.push("fan", "home")

    assert ("home",) == run(town.people.prove())
    proof = town.proofs().proven[notice.id]
    head = town.server.held(Reads(), "home").head
    assert (before, str(head.cursor), head.digest_hex) == (proof.before, proof.at, proof.digest)
    assert () == run(town.people.prove()) == run(town.anew().prove())


def test_a_damaged_graph_is_not_and_is_looked_at_again_later() -> None:
    town = Town()
    town.take_back()
    run(town.people.notify_rollback())
    head = town.server.held(Reads(), "home").head
    town.write(Writes(head=replace(head, digest=head.digest ^ 1)))
    assert () == run(town.people.prove())
    assert {} == town.proofs().proven
    town.write(Writes(head=head))
    assert () == run(town.people.prove())
    town.now += notify.AGAIN_US

    assert ("home",) == run(town.people.prove())


def test_a_graph_that_was_set_back_since_is_proven_by_nothing() -> None:
    town = Town()
    town.take_back()
    run(town.people.notify_rollback())
    head = town.server.held(Reads(), "home").head
    town.write(Writes(head=replace(head, epoch="ff")))

    assert () == run(town.people.prove())
    town.now += notify.AGAIN_US
    assert () == run(town.people.prove())
    assert {} == town.proofs().proven


def test_what_cannot_be_read_keeps_nothing_else_from_being_told() -> None:
    town = Town()
    keep(town.store, begun(V2, "home", "other"))
    town.take_back()
    run(town.people.notify_rollback())
    town.store.broken = {"home": StoreBusy("another one is at it")}
    assert ("other",) == run(town.people.prove())
    town.store.broken = {"home": StoreError("the disk failed")}
    assert () == run(town.people.prove())
    town.store.broken = {}
    assert () == run(town.people.prove())
    town.now += notify.AGAIN_US

    assert ("home",) == run(town.people.prove())


def test_what_somebody_has_broken_is_made_anew() -> None:
    town = Town()
    town.take_back()
    run(town.people.notify_rollback())
    known = run(town.store.document(proofs_of("home")))
    assert run(town.store.put_document(proofs_of("home"), b"{", revision=known.revision))
    run(town.people.look())

    assert 1 == len(town.proofs().proven)


def test_nobody_is_told_any_more_once_it_has_expired() -> None:
    town = Town()
    town.take_back()
    run(town.people.notify_rollback())
    town.now += KEPT_US

    assert ((), ()) == (run(town.people.notify_rollback()), run(town.people.delivered()))


def test_what_is_kept_survives_the_process(tmp_path: Path) -> None:
    async def told(path: Path) -> int:
        store = SqliteStore(path, journal=False, heads=False)
        people = UserNotification(store, clock=lambda: NOW)
        await people.notify_maintenance(600, key="k")
        count = len(await people.delivered())
        await store.close()
        return count

    assert [1, 1] == [run(told(tmp_path / "home.db")) for _ in range(2)]


async def test_it_may_be_awaited_on_an_event_loop() -> None:
    town = Town()
    async with asyncio.timeout(10):
        await town.people.notify_maintenance(60)
        await town.people.look()


# --- those who look after it --------------------------------------------------------------------------------------


def results(town: Town) -> list[tuple[str, str | None]]:
    return [(one.channel, one.error) for one in run(town.people.call())]


def test_who_is_not_reached_is_followed_by_the_next_and_each_result_is_kept() -> None:
    phone, mail, siren = Recorder("phone", down=True), Recorder("mail"), Recorder("siren")
    town = Town(phone, mail, siren)
    town.take_back()
    run(town.people.notify_rollback())

    assert [("phone", "OSError: no network")] == results(town)
    assert [("mail", None)] == results(town)
    assert [] == results(town)
    town.now += ACK_WAIT_US
    phone.down = False
    assert [("phone", None), ("siren", None)] == results(town)
    town.now += ACK_WAIT_US
    assert [] == results(town)
    [alert] = run(town.people.alerts())
    assert ["phone", "mail", "phone", "siren"] == [one.channel for one in alert.attempts]
    assert [(1, 1, 1)] == [(len(phone.sent), len(mail.sent), len(siren.sent))]
    assert "safe" not in f"{mail.sent}".lower()


def test_once_somebody_has_seen_it_nobody_else_is_called() -> None:
    town = Town(Recorder("phone"), Recorder("mail"))
    town.take_back()
    run(town.people.look())
    [alert] = run(town.people.alerts())
    seen = run(town.people.acknowledge(alert.key, actor="ada"))
    town.now += SECOND
    assert seen == run(town.people.acknowledge(alert.key, actor="bob"))
    town.now += ACK_WAIT_US
    run(town.people.look())

    assert "ada" == getattr(seen.acknowledged, "actor", None)
    assert [] == town.channels[1].sent
    with pytest.raises(LocalProtocolError, match="expected the key of an alert"):
        run(town.people.acknowledge("x"))


def test_what_is_forgotten_while_it_is_sent_stays_so() -> None:
    town = Town()

    class Forgetful(Recorder):
        def send(self, title: str, body: str) -> None:
            known = run(town.store.document(escalation.DOCUMENT))
            assert run(town.store.put_document(escalation.DOCUMENT, b"{}", revision=known.revision))

    town.channels = (Forgetful("phone"),)
    town.people = town.anew()
    town.take_back()
    run(town.people.look())

    assert () == alerts_in(run(town.store.document(escalation.DOCUMENT))).alerts


def test_without_channels_nobody_is_called() -> None:
    town = Town()
    town.take_back()
    run(town.people.look())

    assert () == run(town.people.alerts())


def test_a_test_uses_every_channel_whatever_becomes_of_the_others() -> None:
    phone, mail = Recorder("phone", down=True), Recorder("mail")

    assert (Result(channel="phone", error="OSError: no network"), Result(channel="mail")) == Town(
        phone, mail
    ).people.test()
    assert 1 == len(mail.sent)


def test_two_channels_of_one_name_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="got one twice"):
        Town(Recorder("a"), Recorder("a"))


# --- channels -----------------------------------------------------------------------------------------------------


def test_a_file_gets_a_line_for_each(tmp_path: Path) -> None:
    path = tmp_path / "a b.log"
    channel = channel_of(path.as_uri())
    assert isinstance(channel, FileChannel)
    assert [Result(channel=f"file:{path}")] * 2 == [use(channel, "t", word) for word in ("one", "two\n")]

    assert ["one", "two\n"] == [json.loads(line)["body"] for line in path.read_text().splitlines()]
    path.unlink()
    path.mkdir()
    assert "IsADirectoryError" in str(use(channel, "t", "b").error)


@pytest.mark.parametrize("url", ["file:x", "file:"])
def test_a_file_without_its_whole_path_is_none(url: str) -> None:
    with pytest.raises(LocalProtocolError, match="file:///path"):
        channel_of(url)


class Apprise:
    """What is used of Apprise, as it answers; it is not installed where this runs."""

    up = True

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.sent: list[dict[str, str]] = []

    def add(self, url: str) -> bool:
        self.urls.append(url)
        return url.startswith("mailto:")

    def __getitem__(self, place: int) -> Any:
        one = ModuleType("service")
        one.url = lambda privacy: "mailto://ada:****@example.org" if privacy else self.urls[place]  # type: ignore[attr-defined]
        return one

    def notify(self, *, title: str, body: str) -> bool:
        self.sent.append({"title": title, "body": body})
        return self.up


@pytest.fixture
def apprise(monkeypatch: pytest.MonkeyPatch) -> type[Apprise]:
    module = ModuleType("apprise")
    module.Apprise = Apprise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apprise", module)
    return Apprise


def test_a_service_is_reached_by_apprise_and_its_secret_shown_nowhere(
    apprise: type[Apprise], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = channel_of("mailto://ada:secret@example.org")
    sent = use(channel, "t", "b")
    monkeypatch.setattr(apprise, "up", False)
    failed = use(channel, "t", "b")

    assert isinstance(channel, AppriseChannel)
    assert ("mailto://ada:****@example.org", None) == (sent.channel, sent.error)
    assert "ChannelDown: expected mailto://ada:****@example.org to take it" in str(failed.error)
    assert [{"title": "t", "body": "b"}] * 2 == channel._sender.sent
    with pytest.raises(ChannelDown):
        channel.send("t", "b")


@pytest.mark.parametrize(("url", "told"), [("nope://secret", "of nope"), ("secret", "of no service")])
def test_a_service_that_apprise_does_not_know_is_refused(apprise: type[Apprise], url: str, told: str) -> None:
    with pytest.raises(LocalProtocolError, match=told) as refused:
        channel_of(url)

    assert "secret" not in str(refused.value)


def test_without_apprise_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(LocalProtocolError, match=r"pip install 'inbetweenies\[notify\]'"):
        channel_of("mailto://ada:secret@example.org")
