"""Every kind of client there is, and what each must hold once everybody has come to rest (PROTOCOL 1, law 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from ..model import Head, Kind, parse_time
from .fleet_base import Body, Client
from .fleet_clients import DeployedV2, KittenKong, ModernV2
from .fleet_laws import same, words
from .fleet_v1 import V1, Unknown

Rows = Mapping[tuple[Kind, str], Body]

_decode = msgspec.json.decode

#: Every kind of client there is, by name.
KINDS: Final[dict[str, type[Client]]] = {
    client.kind: client for client in (ModernV2, DeployedV2, KittenKong, V1, Unknown)
}

#: The message of a client that nobody knows, and that wants every record.
EVERY_RECORD: Final = msgspec.json.encode(
    {
        "type": "sync_request",
        "client_id": "stranger",
        "last_sync": None,
        "entity_types": ["homes", "rooms", "accessories", "users"],
        "include_deleted": True,
    }
)


def check_end(client: Client, rows: Rows, records: Iterable[Body], *, but: frozenset[str] = frozenset()) -> None:
    """`client` holds what the server has: `rows` are its current ones, `records` what a new client of v1 gets.

    `but` names ids at which a program that was deployed cannot know better.
    """
    if isinstance(client, ModernV2):
        _check_modern(client, rows)
    elif isinstance(client, DeployedV2):
        _check_deployed(client, rows, but)
    elif isinstance(client, V1):
        _check_v1(client, records, but)


def check_digest(client: ModernV2, head: Head) -> None:
    """The sum of what a replica takes for current is that of the log."""
    if client.store.image.state.digest != head.digest:
        client.world.broken("8 (cursor)", f"{client.name} has another digest than the server")


def _check_modern(client: ModernV2, rows: Rows) -> None:
    client.check()
    image = client.store.image
    theirs = {key: pointer.theirs for key, pointer in image.pointers.items() if pointer.theirs is not None}
    expected = {key: row["version"] for key, row in rows.items()}
    if theirs != expected:
        client.world.broken("8 (cursor)", f"{client.name} holds {theirs}; the server has {expected}")
    for key, row in rows.items():
        pointer = image.pointers[key]
        held = image.copies[*key, row["version"], pointer.theirs_hash or b""]
        if not same(_decode(held.body), row):
            client.world.broken("8 (cursor)", f"{client.name} holds {held.body!r}; the server has {row}")


def _check_deployed(client: DeployedV2, rows: Rows, but: frozenset[str]) -> None:
    for (kind, id_), row in rows.items():
        if kind == "edge" or id_ in client.stray or id_ in but:
            continue
        here = client.rows.get(id_)
        if here is None or here.version != row["version"] or not same(_decode(here.content), row["content"]):
            held = "nothing" if here is None else words(here)
            client.world.broken("8 (cursor)", f"{client.name} holds {held}; the server has {row}")
    strangers = set(client.rows) - {id_ for _, id_ in rows} - client.stray - but
    if strangers:
        client.world.broken("8 (cursor)", f"{client.name} holds {sorted(strangers)}, which the server has not")


def _check_v1(client: V1, records: Iterable[Body], but: frozenset[str]) -> None:
    """A v1 client holds what a new one would get, as far as its own clock lets it."""
    there = {(change["entity_type"], change["entity_id"]) for change in records if change["operation"] != "delete"}
    living = {id_ for _, id_ in there}
    # Where there is no home, nothing is shown, and nothing said of what was.
    strangers = (
        set(client.records) - there - client.own - client.stray if "home" in {type_ for type_, _ in there} else ()
    )
    for key in sorted(strangers):
        if key[1] not in but:
            client.world.broken("8 (cursor)", f"{client.name} holds {key}, which the server does not show")
    for change in records:
        key = (change["entity_type"], change["entity_id"])
        here = client.records.get(key)
        if key in client.stray or key[1] in but or (change["operation"] == "delete" and here is None):
            continue
        if here is None:
            client.world.broken("8 (cursor)", f"{client.name} lacks {key}: {change}")
        ahead = parse_time(here["updated_at"]) or 0
        if ahead >= (parse_time(change["updated_at"]) or 0) and key in client.own:
            # Its own edit, which lost or said nothing new: it takes nothing for news that is not newer than that.
            continue
        if change["operation"] == "delete":
            client.world.broken("8 (cursor)", f"{client.name} holds {here}, which is deleted")
        # Where it is may follow from what it is in or hangs on, and then changes without the record's time.
        told = ("updated_at", "created_at", "sync_id", "home_id")
        mine, theirs = (
            {field: value for field, value in record.items() if field not in told} for record in (here, change["data"])
        )
        if "bridge_id" in mine and mine["bridge_id"] not in living:
            mine["bridge_id"] = theirs["bridge_id"]
        if not same(mine, theirs):
            client.world.broken("8 (cursor)", f"{client.name} holds {here}; a new client gets {change}")
