"""Tokens: made once, kept as hashes, found in constant work, refused as soon as they are revoked (PROTOCOL 7)."""

from __future__ import annotations

import hmac
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import auth
from inbetweenies.auth import (
    EXPIRED_KEPT_US,
    RANDOM_BYTES,
    Failures,
    MemoryTokens,
    Principal,
    SqliteTokens,
    TokenInfo,
    bearer,
    is_loopback,
    judge,
    key_id_of,
    mint,
    same_password,
    source_of,
)
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from inbetweenies.model import Context
from inbetweenies.stores import SqliteStore

NOW = 1_781_516_462_000_000
SECOND = 1_000_000


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


Make = Callable[..., MemoryTokens | SqliteTokens]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Makes token stores: each call opens the same file, or an empty memory."""
    opened: list[SqliteTokens] = []

    def memory(**options: Any) -> MemoryTokens:
        return MemoryTokens(clock=clock, **options)

    def sqlite(**options: Any) -> SqliteTokens:
        opened.append(SqliteTokens(tmp_path / "home.db", clock=clock, **options))
        return opened[-1]

    yield memory if request.param == "memory" else sqlite
    for tokens in opened:
        tokens.close()


@pytest.fixture
def tokens(make: Make) -> MemoryTokens | SqliteTokens:
    return make()


Tokens = MemoryTokens | SqliteTokens


# --- texts --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_a_token_is_its_prefix_its_key_id_and_256_bits(random: bytes) -> None:
    text, key_id, digest = mint(random)

    prefix, middle, secret = text.split("_", 2)
    assert (prefix, middle, key_id) == ("ib1", random[:4].hex(), random[:4].hex())
    assert len(secret) == 43
    assert len(digest) == 32
    assert key_id_of(text.encode()) == key_id
    assert key_id_of(text.encode() + b"\n") is None


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES), st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_other_random_bytes_make_another_token(one: bytes, other: bytes) -> None:
    assert (mint(one)[0] == mint(other)[0]) == (one == other)


@pytest.mark.parametrize("size", [0, RANDOM_BYTES - 1, RANDOM_BYTES + 1])
def test_fewer_random_bytes_make_no_token(size: int) -> None:
    with pytest.raises(LocalProtocolError, match="expected 36 random bytes"):
        mint(bytes(size))


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer  abc ", b"abc"),
        (b"BEARER a b", b"a b"),
        (b"Bearer \xff\x00", b"\xff\x00"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearerabc", None),
        (b"Basic abc", None),
        (b"", None),
    ],
)
def test_the_credentials_of_a_header(header: bytes, secret: bytes | None) -> None:
    assert bearer(header) == secret


# --- made and found -----------------------------------------------------------------------------------------------


def test_a_token_speaks_for_its_graph_user_and_device(tokens: Tokens) -> None:
    secret, info = tokens.create("home", "ann", "phone", NOW + SECOND, role="admin")

    found = tokens.find(secret, NOW)

    assert found == info.principal
    assert found == Principal(
        graph="home", user="ann", device="phone", token_id=info.key_id, role="admin", expires=NOW + SECOND
    )
    assert found.context(NOW) == Context(graph="home", user="ann", device="phone", token=info.key_id, now=NOW)
    assert tokens.find(secret.encode(), NOW) == found


def test_a_token_without_device_and_end(tokens: Tokens) -> None:
    secret, info = tokens.create("home", "ann")

    assert (info.device, info.expires, info.role, info.created, info.revoked) == (None, None, "member", NOW, None)
    assert tokens.find(secret, NOW + 10**17) == info.principal


def test_tokens_are_listed_oldest_first_without_what_makes_them_work(tokens: Tokens, clock: Clock) -> None:
    made = []
    for number in range(3):
        clock.now += SECOND
        made.append(tokens.create(f"graph-{number}", "ann"))

    assert tokens.list() == tuple(info for _, info in made)
    for secret, info in made:
        assert secret.split("_", 2)[2] not in repr(info) + repr(info.principal) + repr(tokens.list())


def test_a_token_is_refused_from_the_moment_it_expires(tokens: Tokens) -> None:
    secret, _ = tokens.create("home", "ann", None, NOW + SECOND)

    assert tokens.find(secret, NOW + SECOND - 1) is not None
    assert tokens.find(secret, NOW + SECOND) is None


def test_a_token_is_refused_once_revoked_and_stays_listed(tokens: Tokens, clock: Clock) -> None:
    secret, info = tokens.create("home", "ann")
    kept, _ = tokens.create("home", "ann")
    clock.now += SECOND

    assert tokens.revoke(info.key_id) is True

    assert tokens.find(secret, clock.now) is None
    assert tokens.find(kept, clock.now) is not None
    assert [info.revoked for info in tokens.list()] == [clock.now, None]


def test_only_what_is_valid_can_be_revoked(tokens: Tokens, clock: Clock) -> None:
    secret, info = tokens.create("home", "ann")
    tokens.revoke(info.key_id)
    clock.now += SECOND

    assert not tokens.revoke(info.key_id)
    assert not tokens.revoke("00000000")
    assert not tokens.revoke(secret)
    assert tokens.list()[0].revoked == clock.now - SECOND


def test_a_key_id_that_is_taken_is_drawn_again(make: Make) -> None:
    drawn = [b"\x00" * 36, b"\x00" * 4 + b"\x01" * 32, b"\x02" * 36]
    tokens = make(random=lambda size: drawn.pop(0)[:size])

    first, _ = tokens.create("home", "ann")
    second, info = tokens.create("home", "bob")

    assert info.key_id == "02020202"
    assert tokens.find(first, NOW) is not None
    assert tokens.find(second, NOW) == info.principal
    assert tokens.find(mint(b"\x00" * 4 + b"\x01" * 32)[0], NOW) is None


@pytest.mark.parametrize("field", ["graph", "user", "device"])
@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128, "a\nb", "a\x00b", "\x7f", "\ud800"])
def test_names_must_be_short_and_printable(tokens: Tokens, field: str, name: str) -> None:
    names: dict[str, Any] = {"graph": "home", "user": "ann", "device": "phone", field: name}

    with pytest.raises(LocalProtocolError, match=f"{field}: expected"):
        tokens.create(**names)

    assert tokens.list() == ()


def test_a_token_cannot_be_made_expired(tokens: Tokens) -> None:
    with pytest.raises(LocalProtocolError, match="a time to come"):
        tokens.create("home", "ann", None, NOW)


@given(st.data())
def test_no_other_text_is_a_token(data: st.DataObject) -> None:
    tokens = MemoryTokens(clock=lambda: NOW)
    secret, info = tokens.create("home", "ann")
    near = st.builds(
        lambda at, letter: secret[:at] + letter + secret[at + 1 :],
        st.integers(0, len(secret)),
        st.sampled_from("0aA_-") | st.characters(),
    )
    same_id = st.binary(min_size=32, max_size=32).map(lambda random: mint(bytes.fromhex(info.key_id) + random)[0])
    text = data.draw(near | same_id | st.text() | st.binary() | st.just(secret + "\n") | st.just(" " + secret))

    found = tokens.find(text, NOW)

    assert (found is not None) == (text in (secret, secret.encode()))


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "ib1_", b"\xff" * 10**6, "ib1_00000000_" + "A" * 43, "é" * 200])
def test_strange_texts_are_unknown_and_no_failure(tokens: Tokens, text: str | bytes) -> None:
    assert tokens.find(text, NOW) is None


@pytest.mark.parametrize("case", ["right", "wrong secret", "unknown id", "no token", "huge", "revoked"])
def test_every_look_up_compares_one_hash(tokens: Tokens, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    secret, info = tokens.create("home", "ann")
    if case == "revoked":
        tokens.revoke(info.key_id)
    texts = {
        "wrong secret": f"ib1_{info.key_id}_" + "A" * 43,
        "unknown id": "ib1_00000000_" + "A" * 43,
        "no token": "x",
        "huge": "x" * 10**6,
    }
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(auth, "hmac", type("", (), {"compare_digest": staticmethod(compare)}))

    found = tokens.find(texts.get(case, secret), NOW)

    assert compared == [(32, 32)]
    assert (found is not None) == (case == "right")


def test_a_token_with_an_empty_hash_kept_opens_nothing() -> None:
    info = TokenInfo(key_id="00000000", graph="g", user="u", device=None, role="member", created=0, expires=None)

    assert judge(b"anything", (b"", info), NOW) is None
    assert judge(b"anything", None, NOW) is None


def test_many_threads_may_use_one_token_store(tokens: Tokens) -> None:
    secret, info = tokens.create("home", "ann")
    found: list[Principal | None] = []

    def use() -> None:
        for _ in range(20):
            found.append(tokens.find(secret, NOW))
            tokens.create("home", "ann")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [info.principal] * 80
    assert len(tokens.list()) == 81


# --- in a file ----------------------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "home.db"


def test_tokens_stand_in_the_file_of_the_store_and_only_as_hashes(db: Path, clock: Clock) -> None:
    tokens = SqliteTokens(db, clock=clock)
    secret, info = tokens.create("home", "ann", "phone")
    tokens.find(secret, NOW)
    tokens.close()

    written = b"".join(path.read_bytes() for path in db.parent.iterdir())
    assert info.key_id.encode() in written
    assert secret.split("_", 2)[2].encode() not in written
    assert secret.encode() not in written


@pytest.mark.parametrize("first", ["store", "tokens"])
async def test_store_and_tokens_share_a_file_whoever_came_first(db: Path, first: str) -> None:
    tokens = SqliteTokens(db) if first == "tokens" else None
    store = SqliteStore(db)
    tokens = tokens or SqliteTokens(db)
    secret, info = tokens.create("home", "ann")

    async with store.transaction("home", write=True):
        # The store writes, and still tokens are looked up without waiting.
        assert tokens.find(secret, NOW) == info.principal

    tokens.close()
    await store.close()


def test_nobody_else_on_the_machine_can_open_the_file(db: Path) -> None:
    tokens = SqliteTokens(db)
    tokens.create("home", "ann")

    assert [stat.S_IMODE(path.stat().st_mode) for path in db.parent.iterdir()] == [0o600] * 3
    tokens.close()


def test_what_another_process_changes_is_known_at_once(db: Path) -> None:
    here, there = SqliteTokens(db), SqliteTokens(db)

    secret, info = there.create("home", "ann")
    assert here.find(secret, NOW) == info.principal
    there.revoke(info.key_id)
    assert here.find(secret, NOW) is None

    here.close()
    there.close()


def test_tokens_outlive_the_process(db: Path) -> None:
    tokens = SqliteTokens(db)
    secret, info = tokens.create("home", "ann", "phone", role="admin")
    tokens.close()

    again = SqliteTokens(db)

    assert again.find(secret, NOW) == info.principal
    assert again.list() == (info,)
    again.close()


def test_tokens_long_expired_are_forgotten_when_another_is_made(db: Path, clock: Clock) -> None:
    tokens = SqliteTokens(db, clock=clock)
    tokens.create("home", "old", None, NOW + SECOND)
    tokens.create("home", "for ever")
    clock.now += SECOND + EXPIRED_KEPT_US
    tokens.create("home", "at the edge")
    assert [info.user for info in tokens.list()] == ["old", "for ever", "at the edge"]
    clock.now += 1

    tokens.create("home", "new")

    assert [info.user for info in tokens.list()] == ["for ever", "at the edge", "new"]
    tokens.close()


def test_a_file_that_is_not_ours_is_refused_and_left_alone(db: Path) -> None:
    with sqlite3.connect(db) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    before = db.read_bytes()

    with pytest.raises(StoreError, match="another application"):
        SqliteTokens(db)

    assert db.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(db: Path) -> None:
    db.write_bytes(b"not a database at all" * 100)

    with pytest.raises(StoreCorrupt):
        SqliteTokens(db)


def test_while_another_writes_for_too_long_no_token_is_made_and_reading_goes_on(db: Path) -> None:
    tokens = SqliteTokens(db, busy_timeout_ms=1)
    secret, info = tokens.create("home", "ann")
    writer = sqlite3.connect(db, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy, match="SQLITE_BUSY"):
        tokens.create("home", "bob")
    with pytest.raises(StoreBusy):
        tokens.revoke(info.key_id)

    assert tokens.find(secret, NOW) == info.principal
    writer.close()
    tokens.close()


def test_without_room_no_token_is_made_and_none_is_shown(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = SqliteTokens(db)
    connect = tokens._connect

    def cramped() -> sqlite3.Connection:
        connection = connect()
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(tokens, "_connect", cramped)

    made = 0

    def fill() -> None:
        nonlocal made
        while True:
            tokens.create("home", "ann")
            made += 1

    with pytest.raises(StoreFull, match="SQLITE_FULL"):
        fill()

    assert len(tokens.list()) == made > 0
    tokens.close()


def test_a_closed_token_store_lets_nobody_in(db: Path) -> None:
    tokens = SqliteTokens(db)
    secret, _ = tokens.create("home", "ann")
    tokens.close()

    with pytest.raises(StoreError):
        tokens.find(secret, NOW)


# --- guessing -----------------------------------------------------------------------------------------------------


def test_after_so_many_failures_a_source_waits_until_the_first_is_a_window_old() -> None:
    failures = Failures(most=3, window_us=60)
    for now in (0, 10, 20):
        assert failures.wait_us("a", now) == 0
        failures.add("a", now)

    assert failures.wait_us("a", 20) == 40
    assert failures.wait_us("a", 59) == 1
    assert failures.wait_us("a", 60) == 0
    assert failures.wait_us("b", 20) == 0


def test_a_clock_that_steps_back_locks_nobody_out_for_ever() -> None:
    failures = Failures(most=1, window_us=60)
    failures.add("a", 10**9)

    assert failures.wait_us("a", 0) == 60


def test_so_many_sources_are_remembered_and_no_more() -> None:
    failures = Failures(most=1, window_us=60, sources_max=3)
    for source in "abc":
        failures.add(source, 0)
    failures.add("a", 1)
    failures.add("d", 1)

    assert [failures.wait_us(source, 1) > 0 for source in "abcd"] == [True, False, True, True]
    assert len(failures._of) == 3


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::%eth0/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_a_household_is_one_source(host: str, source: str) -> None:
    assert source_of(host) in (source, "fe80::/64")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_hosts_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "localhost.example", "127.0.0.1.example"])
def test_other_hosts_are_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("given_", ["sésame", "Sésame", "", "\ud800", "x" * 10**5])
def test_passwords_are_compared_whole(given_: str) -> None:
    assert same_password(given_, "sésame") == (given_ == "sésame")
