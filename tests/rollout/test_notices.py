"""What people are told of a rollout (PROTOCOL 14): whom, once, and that data is safe only where that was proven."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.exchange import carry_out
from inbetweenies.model import Change, Cursor, Document, Event, Head, Proof, Reads, Row, SyncRequest
from inbetweenies.rollout import notices
from inbetweenies.rollout.canary import bucket
from inbetweenies.rollout.integrity import Audit
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.notices import (
    CHECKING,
    DEVICES_MAX,
    KEPT_US,
    NOTICES_MAX,
    Notice,
    Outbox,
    Proofs,
    Reach,
    Told,
    Verified,
    ack_of,
    acked_in,
    confirm,
    document_of,
    lasting,
    message,
    of_maintenance,
    of_rollback,
    outbox_in,
    places_of,
    proofs_in,
    proofs_of,
    prove,
    reach_of,
    safe,
    telling,
    told,
    verify,
)
from inbetweenies.rollout.states import LOG_MAX, WHOLE, Rollout, Rollouts
from inbetweenies.stores import MemoryStore
from tests.rollout.test_integrity import log_of, puts
from tests.support import NOW, Server, at, entity, run

SUBJECT = "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=NOW)
SAFE = "data is safe"


def rolled(*events: Any, steps: tuple[int, ...] = (10_000, 500_000)) -> Rollout:
    """A rollout to which all this happened, and that was taken back then."""
    rollouts = Rollouts().started(SUBJECT, steps=steps, cause=WHY)
    for event in (*events, "roll_back"):
        rollouts = rollouts.moved(SUBJECT, event, fence=rollouts.of(SUBJECT).fence, cause=WHY)
    return rollouts.of(SUBJECT)


RAMP = ("advance",) * 4


# --- whom ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "share"),
    [
        (("advance", "advance"), None),
        (("advance",) * 3, None),
        (RAMP, 10_000),
        ((*RAMP, "hold"), 10_000),
        ((*RAMP, "hold", "resume", "hold"), 10_000),
        ((*RAMP, "advance"), 500_000),
        ((*RAMP, "advance", "advance"), WHOLE),
        ((*RAMP, "advance", "advance", "advance", "hold"), WHOLE),
    ],
)
def test_a_rollback_concerns_whom_the_rollout_had_reached(events: tuple[str, ...], share: int | None) -> None:
    rollout = rolled(*events)
    reach = reach_of(rollout)

    assert share == (None if reach is None else reach.share)
    assert (reach is None) == (of_rollback(rollout) is None)


def test_what_was_not_taken_back_has_no_notice() -> None:
    assert of_rollback(Rollouts().started(SUBJECT, cause=WHY).of(SUBJECT)) is None


def test_who_forgot_how_far_a_ramp_had_come_tells_one_too_many() -> None:
    rollout = rolled(*RAMP)
    assert replace(rollout, log=()).state == "rolled_back"

    moves = (*[rollout.log[-2]] * (LOG_MAX - 1), rollout.log[-1])
    assert 500_000 == getattr(reach_of(replace(rollout, log=moves)), "share", None)
    assert 500_000 == getattr(reach_of(replace(rollout, log=())), "share", None)


@given(st.text(max_size=20), st.integers(1, WHOLE))
def test_a_graph_is_concerned_as_the_rollout_reached_it(graph: str, share: int) -> None:
    reach = Reach(subject=SUBJECT, serial=1, share=share)
    notice = Notice(key="k", kind="rollback", at=NOW, expires=NOW + 1, reach=reach)

    assert (bucket(SUBJECT, graph, salt="1") < share) == notice.concerns(graph)
    assert replace(notice, reach=replace(reach, allow=frozenset({graph}))).concerns(graph)
    assert not replace(notice, reach=replace(reach, allow=frozenset({graph}), deny=frozenset({graph}))).concerns(graph)


def test_a_maintenance_concerns_all_or_those_who_are_named() -> None:
    everybody = of_maintenance(60, key="k", now=NOW)
    some = of_maintenance(60, key="k", now=NOW, graphs=frozenset({"home"}))

    assert (True, True, False) == (everybody.concerns("other"), some.concerns("home"), some.concerns("other"))
    assert NOW + 60_000_000 == some.expires


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "maintenance"},
        {"kind": "maintenance", "duration_s": 0},
        {"kind": "maintenance", "duration_s": notices.DURATION_S_MAX + 1},
        {"kind": "maintenance", "duration_s": 1, "reach": Reach(subject="s", serial=1, share=1)},
        {"kind": "rollback"},
        {"kind": "rollback", "duration_s": 1, "reach": Reach(subject="s", serial=1, share=1)},
        {"kind": "maintenance", "duration_s": 1, "graphs": frozenset()},
        {"kind": "maintenance", "duration_s": 1, "key": ""},
        {"kind": "maintenance", "duration_s": 1, "key": "a\nb"},
        {"kind": "maintenance", "duration_s": 1, "key": "k" * 201},
    ],
)
def test_a_notice_that_says_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="expected"):
        Notice(**{"key": "k", "at": 0, "expires": 1, **fields})


@pytest.mark.parametrize("fields", [{"serial": 0}, {"share": 0}, {"share": WHOLE + 1}, {"subject": ""}])
def test_a_reach_of_nobody_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="expected"):
        Reach(**{"subject": "s", "serial": 1, "share": 1, **fields})


# --- the outbox ---------------------------------------------------------------------------------------------------


def test_one_key_has_one_notice_until_that_expires() -> None:
    first, again = of_maintenance(60, key="k", now=NOW), of_maintenance(90, key="k", now=NOW + 1)
    outbox = Outbox().put(first, NOW)

    assert outbox is outbox.put(again, NOW + 1)
    assert (first, None) == (outbox.of("k", NOW), outbox.of("other", NOW))
    assert first.id != again.id
    later = first.expires
    anew = of_maintenance(60, key="k", now=later)
    assert Outbox(notices=(anew,)) == outbox.put(anew, later)
    assert outbox is outbox.put(first, later)


def test_an_outbox_is_bounded() -> None:
    outbox = Outbox()
    for number in range(NOTICES_MAX + 3):
        outbox = outbox.put(of_maintenance(60, key=str(number), now=NOW), NOW)

    assert NOTICES_MAX == len(outbox.notices)
    assert ("3", str(NOTICES_MAX + 2)) == (outbox.notices[0].key, outbox.notices[-1].key)


def test_what_is_kept_is_read_again() -> None:
    notice = of_rollback(rolled(*RAMP))
    assert notice is not None
    outbox = Outbox(notices=(notice, of_maintenance(1, key="k", now=NOW, graphs=frozenset({"home"}))))
    proofs = Proofs(before={notice.id: "e:1:"}, proven={"gone": Proof(graph="g", before="b", at="a", digest="d")})

    assert outbox == outbox_in(Document(revision=1, body=document_of(outbox)))
    assert proofs == proofs_in(Document(revision=1, body=document_of(proofs)))
    assert (Outbox(), Proofs()) == (outbox_in(Document()), proofs_in(Document()))
    assert Proofs(before=proofs.before) == proofs.only([notice.id])
    with pytest.raises(StoreCorrupt, match="the notices"):
        outbox_in(Document(revision=1, body=b"{"))
    with pytest.raises(StoreCorrupt, match="proven"):
        proofs_in(Document(revision=1, body=b'{"proven":{"x":{"safe":true}}}'))


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1, "1 second"),
        (45, "45 seconds"),
        (60, "1 minute"),
        (61, "61 seconds"),
        (121, "3 minutes"),
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (7201, "3 hours"),
        (86400, "1 day"),
        (200_000, "3 days"),
    ],
)
def test_a_time_is_told_in_words_and_never_too_short(seconds: int, expected: str) -> None:
    assert expected == lasting(seconds)


def test_a_kind_of_another_release_is_told_without_its_words() -> None:
    assert ("Notice", "info") == message("invented")[::2]
    assert "for a while" in message("maintenance")[1]


@given(st.sampled_from(["maintenance", "rollback", "other", "safe"]), st.none() | st.integers(1, 10**6))
def test_without_a_proof_no_kind_says_that_data_is_safe(kind: str, seconds: int | None) -> None:
    title, text, _ = message(kind, duration_s=seconds)

    assert "safe" not in f"{title} {text}".lower()
    assert ("rollback" == kind) == (CHECKING in text)


# --- a false "safe" -----------------------------------------------------------------------------------------------


def genuine(written: Any, graph: str = "home") -> tuple[Proof, Head, list[Row]]:
    head, rows = log_of(written)
    audit = Audit()
    audit.read(rows)
    proof = prove(graph, Head(epoch=head.epoch).cursor, audit, head)
    assert proof is not None
    return proof, head, rows


def chains_of(rows: list[Row]) -> dict[int, bytes]:
    return {0: bytes(16)} | {row.seq: row.chain for row in rows}


@given(puts, puts)
def test_a_whole_log_is_proven_and_stays_so_as_it_grows(written: Any, more: Any) -> None:
    proof, head, rows = genuine(written)
    later, all_rows = log_of([*written, *more])
    now = verify(proof, graph="home", head=head, chains=chains_of(rows))
    then = verify(proof, graph="home", head=later, chains=chains_of(all_rows))

    assert now is not None
    assert then is not None
    assert proof == now.proof
    assert SAFE in safe(now)
    assert {0, head.seq} == set(places_of(proof))


@given(puts, st.data())
def test_no_damaged_log_is_proven(written: Any, data: st.DataObject) -> None:
    head, rows = log_of(written)
    place = data.draw(st.integers(0, len(rows) - 1)) if rows else 0
    damage = data.draw(st.sampled_from(["lost", "body", "chain", "digest", "more"]))
    if rows and damage == "lost":
        del rows[place]
    elif rows and damage == "body":
        rows[place] = replace(rows[place], body=rows[place].body + b" ")
    elif rows and damage == "chain":
        rows[place] = replace(rows[place], chain=b"x" * 16)
    elif damage == "digest":
        head = replace(head, digest=head.digest ^ 1)
    else:
        head = replace(head, seq=head.seq + 1)
    audit = Audit()
    audit.read(rows)

    assert prove("home", Head(epoch=head.epoch).cursor, audit, head) is None


def test_an_audit_that_did_not_read_all_or_of_another_log_proves_nothing() -> None:
    head, rows = log_of([("a", "", True, False), ("b", "", True, False)])
    whole, half = Audit(), Audit()
    whole.read(rows)
    half.read(rows[:1])

    assert prove("home", head.cursor, half, head) is None
    assert prove("home", Cursor("other", 0, bytes(16)), whole, head) is None
    assert prove("home", Cursor(head.epoch, head.seq + 1, bytes(16)), whole, head) is None
    assert prove("home", head.cursor, whole, head) is not None


places = st.builds(
    lambda epoch, seq, chain: f"{epoch}:{seq}:{chain.hex()}",
    st.sampled_from(["e", "ff"]),
    st.integers(0, 4),
    st.sampled_from([bytes(16), b"x" * 16]),
)
forged = st.fixed_dictionaries(
    {},
    optional={
        "graph": st.sampled_from(["other", ""]),
        "before": places | st.sampled_from(["", "safe"]),
        "at": places | st.sampled_from(["", "safe"]),
        "digest": st.sampled_from(["", "0" * 64, "f" * 64, "F" * 64, "safe"]),
    },
)


@given(puts, forged)
def test_a_proof_that_was_changed_is_verified_by_nobody(written: Any, fields: dict[str, str]) -> None:
    """Unless what it was changed to is true as well."""
    proof, head, rows = genuine(written)
    other = replace(proof, **fields)
    chains = chains_of(rows)
    found = verify(other, graph="home", head=head, chains=chains)
    here = confirm(other, cursor=str(head.cursor), own=head.digest_hex, told=head.digest_hex)
    true_places = {f"{head.epoch}:{seq}:{chain.hex()}" for seq, chain in chains.items()}
    true = (
        other.graph == "home"
        and {other.before, other.at} <= true_places
        and other.digest in (head.digest_hex if other.at == str(head.cursor) else other.digest)
    )

    if not true:
        assert found is None
    if other.digest != head.digest_hex and other.at == str(head.cursor):
        assert here is None


@given(puts, st.sampled_from(["epoch", "shorter", "chain", "digest", "unknown"]))
def test_a_proof_of_a_log_that_was_set_back_or_rewritten_is_verified_by_nobody(written: Any, change: str) -> None:
    proof, head, rows = genuine([("a", "", True, False), *written])
    chains = chains_of(rows)
    if change == "epoch":
        head = replace(head, epoch="ff")
    elif change == "shorter":
        head = replace(head, seq=head.seq - 1)
    elif change == "chain":
        chains[head.seq] = b"x" * 16
    elif change == "digest":
        head = replace(head, digest=head.digest ^ 1)
    else:
        chains = {}

    assert verify(proof, graph="home", head=head, chains=chains) is None


@given(puts, puts)
def test_a_replica_confirms_only_what_it_holds_itself(written: Any, more: Any) -> None:
    proof, head, _ = genuine([("a", "", True, False), *written])
    later, _ = log_of([("a", "", True, False), *written, *more, ("b", "", True, False)])
    own, here = head.digest_hex, str(head.cursor)

    assert confirm(proof, cursor=here, own=own, told=own) is not None
    assert confirm(proof, cursor=str(later.cursor), own=later.digest_hex, told=later.digest_hex) is not None
    for cursor, mine, theirs in (
        (None, own, own),
        ("", own, own),
        (here, own, None),
        (here, own, "0" * 64),
        (here, "0" * 64, "0" * 64),
        (here.replace("e:", "ff:"), own, own),
        (str(Head(epoch="e").cursor), own, own),
        (f"e:{head.seq}:{'7' * 32}", own, own),
    ):
        assert confirm(proof, cursor=cursor, own=mine, told=theirs) is None
    assert confirm(replace(proof, digest="safe"), cursor=here, own=own, told=own) is None
    assert confirm(replace(proof, at="safe"), cursor=here, own=own, told=own) is None


def test_nobody_else_makes_what_counts_as_verified() -> None:
    proof, head, rows = genuine([("a", "", True, False)])
    real = verify(proof, graph="home", head=head, chains=chains_of(rows))
    assert real is not None
    forger: Any = Verified

    tries: list[Any] = [
        lambda: forger(proof),
        lambda: forger(proof, made=object()),
        lambda: forger(proof, made=True),
        lambda: type("Mine", (forger,), {}),
        lambda: setattr(real, "_proof", replace(proof, digest="0" * 64)),
        lambda: setattr(real, "proof", proof),
        lambda: copy.copy(real),
        lambda: copy.deepcopy(real),
        lambda: pickle.loads(pickle.dumps(real)),
        lambda: safe(proof),  # type: ignore[arg-type]
        lambda: safe(None),  # type: ignore[arg-type]
        lambda: safe("safe"),  # type: ignore[arg-type]
        lambda: message("rollback", verified=proof),  # type: ignore[arg-type]
        lambda: message("rollback", verified=True),  # type: ignore[arg-type]
    ]
    for attempt in tries:
        with pytest.raises(TypeError, match="expected"):
            attempt()
    assert proof == real.proof


# --- told and acknowledged ----------------------------------------------------------------------------------------


class Town:
    """A store with rows in ``home``, and a rollback that is to be told."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.server = Server(self.store)
        self.server.ask(SyncRequest(device="d", user="ann", changes=(Change(entity=entity("lamp", at(0))),)), "home")
        self.notice = of_rollback(rolled(*RAMP, "advance", "advance"))
        assert self.notice is not None
        self.put(notices.DOCUMENT, document_of(Outbox().put(self.notice, NOW)))
        self.note(Proofs(before={self.notice.id: str(self.head.cursor)}))

    @property
    def head(self) -> Head:
        return self.server.held(Reads(), "home").head

    def put(self, name: str, body: bytes) -> None:
        known = run(self.store.document(name))
        assert run(self.store.put_document(name, body, revision=known.revision))

    def note(self, proofs: Proofs) -> None:
        self.put(proofs_of("home"), document_of(proofs))

    def prove(self, **fields: str) -> None:
        assert self.notice is not None
        here = str(self.head.cursor)
        proof = Proof(graph="home", before=here, at=here, digest=self.head.digest_hex)
        self.note(Proofs(before={self.notice.id: here}, proven={self.notice.id: replace(proof, **fields)}))

    def told(self, device: str = "tablet", now: int = NOW) -> tuple[Told, ...]:
        return run(carry_out(lambda: telling("home", device, now), self.store, "home", write=False))

    def ack(self, *acks: str, device: str = "tablet", now: int = NOW) -> None:
        run(carry_out(lambda: notices.noting(device, acks, now), self.store, "home", write=True))

    @property
    def acked(self) -> dict[str, frozenset[str]]:
        return acked_in(self.server.held(Reads(events=True), "home").events)


def test_a_device_is_told_until_it_has_acknowledged_and_again_with_the_proof() -> None:
    town = Town()
    first = town.told()
    [one] = first
    assert first == town.told()
    town.ack(one.id)

    assert () == town.told()
    assert (one,) == town.told("phone")
    town.prove()
    [proven] = town.told()
    assert (one.id, True, "info") == (proven.id, SAFE in proven.message, proven.severity)
    assert proven.proof is not UNSET
    assert (False, "warning") == (SAFE in one.message, one.severity)
    town.ack(ack_of(one.id, proven=True))
    assert () == town.told()
    town.prove(digest="0" * 64)
    assert () == town.told()  # who has seen the proof needs not hear that somebody lost it
    [again] = town.told("phone")
    assert UNSET is again.proof


def test_what_is_kept_tells_nothing_false_whoever_has_written_it() -> None:
    town = Town()
    for fields in ({"digest": "f" * 64}, {"at": "safe"}, {"before": "ff:1:" + "0" * 32}, {"graph": "other"}):
        town.prove(**fields)
        [one] = town.told()
        assert (False, UNSET) == (SAFE in one.message, one.proof)
    for body in (b"", b"{", b'{"proven":"safe"}', b'{"safe":true}', b"\xff"):
        town.put(proofs_of("home"), body)
        assert not any(SAFE in one.message for one in town.told())
        assert 1 == len(town.told())
    for body in (b"", b"{", b'{"notices":[{"message":"Your data is safe."}]}', b"\xff"):
        town.put(notices.DOCUMENT, body)
        assert () == town.told()
        town.ack("x")
    assert {} == town.acked


def test_who_had_no_rows_by_then_and_who_comes_after_it_has_expired_is_told_nothing() -> None:
    town = Town()
    assert () == town.told(now=NOW + KEPT_US)
    town.note(Proofs())
    assert () == town.told()


def test_acknowledging_twice_or_what_is_no_notice_writes_nothing() -> None:
    town = Town()
    [one] = town.told()
    town.ack("nonsense", "a b")
    assert {} == town.acked
    town.ack(one.id, "nonsense")
    town.ack(one.id, now=NOW + 1)

    assert [frozenset({one.id})] == list(town.acked.values())


def test_what_is_remembered_of_devices_is_bounded_and_forgets_what_expired() -> None:
    town = Town()
    [one] = town.told()
    for number in range(DEVICES_MAX + 2):
        town.ack(one.id, device=f"d{number}")
    assert DEVICES_MAX == len(town.acked)
    assert () == town.told(f"d{DEVICES_MAX + 1}")
    assert (one,) == town.told("d0")

    other = of_maintenance(60, key="k", now=NOW)
    town.put(notices.DOCUMENT, document_of(Outbox(notices=(other,))))
    town.ack(other.id)
    assert [frozenset({other.id})] == list(town.acked.values())


def test_a_maintenance_is_told_with_its_duration() -> None:
    one = told(of_maintenance(600, key="k", now=NOW), None)

    assert ("maintenance", "Scheduled Maintenance", 600, "info") == (one.type, one.title, one.duration, one.severity)
    assert "about 10 minutes" in one.message
    assert UNSET is one.proof


def test_other_things_that_happened_to_a_log_acknowledge_nothing() -> None:
    other = Event(kind="discard", key="k", at=NOW, told={"device": "x"})
    noticed = Event(kind="noticed", key="", at=NOW, told={"d": "one two"})

    assert {} == acked_in([other])
    assert {"d": frozenset({"one", "two"})} == acked_in([other, noticed])
