"""A recorded story, told again to a server that runs: what it answers, beside what was answered then.

What the recorded server handed out is replaced by what this one handed out at the same place: tokens, times, and of
each entity the version that was told to be current, where a client names it as the parent of its edit. (No recorded
server made up a `sync_id`, and none of the cursors in recorded requests is one for which ours hands out another.) What
clients made up themselves is as it was, but for the date: all their times are moved by one and the same span.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Any, Final

import httpx

from inbetweenies.model import parse_time
from tests.compat import needs
from tests.compat.recordings import Body, Recording

#: How far the recorded clients' clocks run ahead of the server: so far that it makes no difference how quick the
#: machine is on which the story is told, and not so far that the server takes their times for wrong.
AHEAD_US: Final = 60_000_000

_TIME: Final = re.compile(r"2026-11-23T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: What a server answers differently, in words, by the aspect of the answer.
Differences = dict[str, str]


class Story:
    """One server that is told recordings in their order."""

    def __init__(self, http: httpx.Client, recordings: Iterable[Recording], token: str = "") -> None:
        self.http = http
        self.token = token
        first = min(micros for recording in recordings for micros in _server_time(recording.answer))
        self._shift = time.time_ns() // 1000 + AHEAD_US - first
        #: The instants that the recorded server told, and what ours told in their places.
        self._told: dict[int, int] = {}
        #: Of each entity the version that the recorded server last told to be current, and the one that ours did.
        self._current: dict[str, tuple[str, str]] = {}

    def push(self, path: str, body: Body) -> Body:
        """Send a message that was not recorded, its times moved like those of the recordings."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer: Body = self.http.post(path, json=self._moved(body), headers=headers).json()
        return answer

    def tell(self, recording: Recording) -> Differences:
        """Send what was sent. How the answer differs from the recorded one.

        Raises:
            needs.Unreadable: a deployed client cannot read the answer, or could not go on with it.
        """
        sent = self._sent(recording.body)
        response = self.http.request(recording.method, recording.path, content=sent, headers=self._headers(recording))
        if response.status_code >= 500:
            raise needs.Unreadable(f"{response.status_code} {response.text}")
        answer = response.json()
        if response.status_code >= 400 and not isinstance(answer.get("detail"), str):
            raise needs.Unreadable(f"a refusal without a reason: {answer}")
        if recording.status // 100 != response.status_code // 100:
            if response.status_code == 200:
                needs.check(recording.path, recording.body, response.content)
            return {"status": f"{recording.status} then; {response.status_code}"}
        if recording.status != 200:
            return {}
        needs.check(recording.path, recording.body, response.content)
        then = self._moved(recording.answer)
        differences = dict(self._compare(recording, then, answer))
        self._learn(recording.answer, then, answer)
        return differences

    def _headers(self, recording: Recording) -> dict[str, str]:
        # The recorder masked the bad token like the others; what it was answered tells them apart.
        token = self.token if recording.status != 401 else "expired"
        return {name: value.replace("<token>", token) for name, value in recording.headers.items()}

    def _sent(self, body: Any) -> bytes | None:
        if isinstance(body, str):
            # Text that is no JSON. The letter in place of a byte that was no UTF-8 stands for such a byte.
            return self._text(body).encode().replace("\ufffd".encode(), b"\xff")
        if body is None:
            return None
        moved = self._moved(body)
        for change in moved.get("changes", ()) if isinstance(moved, dict) else ():
            entity = change.get("entity") if isinstance(change, dict) else None
            if entity and entity.get("id") in self._current:
                then, ours = self._current[entity["id"]]
                parents = entity.get("parent_versions", ())
                entity["parent_versions"] = [ours if parent == then else parent for parent in parents]
        return json.dumps(moved).encode()

    # times

    def _moved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._moved(each) for each in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        return _TIME.sub(lambda found: self._time(found[0]), text)

    def _time(self, text: str) -> str:
        then = _micros(text)
        cut = then % 1000 == 0
        for told, ours in self._told.items():
            if then == told or (cut and then == told // 1000 * 1000):
                return _like(text, ours // 1000 * 1000 if cut else ours)
        return _like(text, then + self._shift)

    def _learn(self, recorded: Any, then: Any, now: Any) -> None:
        if not isinstance(recorded, dict):
            return
        if "access_token" in recorded:
            self.token = now["access_token"]
        for micros in _server_time(recorded):
            self._told[micros] = _micros(now["server_time"])
        if "applied_relationships" in recorded and "applied_relationships" in now:
            versions = _versions(now)
            for id_, version in _versions(then).items():
                if id_ in versions:
                    self._current[id_] = (version, versions[id_])

    # --- what is compared

    def _compare(self, recording: Recording, then: Any, now: Any) -> Iterator[tuple[str, str]]:
        if isinstance(then, dict) and then.get("type") == "sync_delta":
            yield from _compare_delta(recording, then, now)
            return
        missing = sorted(_missing(then, now))
        if missing:
            yield "keys", f"not there: {missing}"
        elif "applied_relationships" in then:
            yield from self._compare_v2(recording, then, now)
        elif then.get("type") == "sync_result":
            yield from _compare_result(then, now)
        elif "versions" in then:
            yield from _compare_rows(then["versions"], now["versions"], _ROW)
        elif "relationships" in then:
            yield from _compare_rows(then["relationships"], now["relationships"], _EDGE)
        else:
            for key in then.keys() - {"server_time", "access_token", "expires_at"}:
                yield from _differ(key, then[key], now[key])

    def _compare_v2(self, recording: Recording, then: Body, now: Body) -> Iterator[tuple[str, str]]:
        for key in ("protocol_version", "sync_type", "vector_clock", "cursor", "applied_relationships"):
            yield from _differ(key, then[key], now[key])
        length = len(then["applied"]) if recording.clipped else None
        yield from _differ("applied", then["applied"], now["applied"][:length])
        yield from _differ("conflicts", *([one["entity_id"] for one in each["conflicts"]] for each in (then, now)))
        for one, other in zip(then["conflicts"], now["conflicts"], strict=False):
            at, ours = self._current.get(one["entity_id"], ("", ""))
            local = ours if one["local_version"] == at else one["local_version"]
            yield from _differ("local_version", local, other["local_version"])
            yield from _differ("remote_version", one["remote_version"], other["remote_version"])
            yield from _differ("resolved_version", one["resolved_version"], other["resolved_version"])
        if now.get("refused"):
            yield "refused", json.dumps(now["refused"])
        mine = {change["entity"]["id"]: change for change in now["changes"]}
        theirs = {change["entity"]["id"]: change for change in then["changes"]}
        filters = recording.body.get("filters") or {}
        if recording.body["changes"] and not filters:
            # What was named is told in any case; see `check_readable`.
            rest = theirs.keys() - mine.keys()
            if rest:
                yield "rest", f"not told: {sorted(rest)}"
                theirs = {id_: change for id_, change in theirs.items() if id_ not in rest}
        yield from _compare_ids(recording, theirs, mine)
        for id_ in theirs.keys() & mine.keys():
            yield from _compare_entities(theirs[id_], mine[id_])
        if any(change["relationships"] for change in now["changes"]):
            yield "edges", "told with their entities"
        if recording.body["sync_type"] == "full" and not filters and "cursor" not in recording.body:
            listing = "".join(f"{id_}\x1f{version}\x1e" for id_, version in sorted(_versions(now).items()))
            yield from _differ("state_digest", sha256(listing.encode()).hexdigest(), now["state_digest"])


def _micros(text: str) -> int:
    micros = parse_time(text)
    assert micros is not None, text
    return micros


def _server_time(answer: Any) -> list[int]:
    told = answer.get("server_time") if isinstance(answer, dict) else None
    return [_micros(told)] if told else []


def _like(text: str, micros: int) -> str:
    """An instant, written as `text` writes one: with as many digits and the same zone."""
    found = _TIME.fullmatch(text)
    assert found is not None, text
    offset = datetime.fromisoformat(text).utcoffset() or timedelta()
    at = (_EPOCH + timedelta(microseconds=micros)).astimezone(timezone(offset))
    return at.strftime("%Y-%m-%dT%H:%M:%S") + f".{at.microsecond:06d}"[: len(found[1] or "")] + (found[2] or "")


def _versions(answer: Body) -> dict[str, str]:
    return {change["entity"]["id"]: change["entity"]["version"] for change in answer["changes"]}


# --- parts of answers ---------------------------------------------------------------------------------------------

_ROW: Final = ("id", "version", "entity_type", "name", "content", "source_type", "user_id")
_EDGE: Final = ("id", "from_entity_id", "from_entity_version", "to_entity_id", "to_entity_version",
                "relationship_type", "properties", "user_id")  # fmt: skip


def _differ(aspect: str, then: Any, now: Any) -> Iterator[tuple[str, str]]:
    if then != now:
        yield aspect, f"{json.dumps(then)[:400]} then; {json.dumps(now)[:400]}"


def _missing(then: Any, now: Any, place: str = "") -> Iterator[str]:
    """Keys that were there and are not here, and values of another type; of lists the first item stands for all."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key, value in then.items():
            if key not in now:
                yield f"{place}/{key}"
            elif key not in ("content", "properties", "clocks"):
                yield from _missing(value, now[key], f"{place}/{key}")
    elif isinstance(then, list) and isinstance(now, list):
        if then and now:
            yield from _missing(then[0], now[0], f"{place}/0")
    elif then is not None and now is not None and _kind(then) is not _kind(now):
        yield f"{place} ({_kind(now).__name__}, not {_kind(then).__name__})"


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _compare_rows(then: list[Body], now: list[Body], fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Lists of rows in no order: which were there and are not here, and the other way round."""
    listed = [{json.dumps([row[name] for name in fields], sort_keys=True) for row in rows} for rows in (then, now)]
    if listed[0] - listed[1]:
        yield "fewer", f"not told: {sorted(listed[0] - listed[1])}"
    if listed[1] - listed[0]:
        yield "more", f"told beside: {sorted(listed[1] - listed[0])}"


def _compare_ids(recording: Recording, then: Mapping[Any, Any], now: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    fewer, more = sorted(then.keys() - now.keys()), sorted(now.keys() - then.keys())
    if fewer:
        yield "fewer", f"not told: {fewer}"
    if more and not recording.clipped:
        yield "more", f"told beside: {more[:20]}"


def _compare_entities(then: Body, now: Body) -> Iterator[tuple[str, str]]:
    """One entity as it was told. Another version of it says other things, too."""
    yield from _differ("version", then["entity"]["version"], now["entity"]["version"])
    if then["entity"]["version"] == now["entity"]["version"]:
        yield from _differ("change_type", then["change_type"], now["change_type"])
        for key in then["entity"]:
            yield from _differ(key, then["entity"][key], now["entity"][key])


def _compare_result(then: Body, now: Body) -> Iterator[tuple[str, str]]:
    yield from _differ("applied", *([one["client_sync_id"] for one in each["applied"]] for each in (then, now)))
    told = [[(one["entity_type"], one["entity_id"]) for one in each["conflicts"]] for each in (then, now)]
    yield from _differ("conflicts", *told)
    if "refused" in now:
        yield "refused", json.dumps(now["refused"])


def _compare_delta(recording: Recording, then: Body, now: Body) -> Iterator[tuple[str, str]]:
    yield from _differ("keys", sorted(then), sorted(now))
    theirs, mine = ({(change["entity_type"], change["entity_id"]): change for change in each["changes"]}
                    for each in (then, now))  # fmt: skip
    yield from _compare_ids(recording, theirs, mine)
    for key in theirs.keys() & mine.keys():
        one, other = theirs[key], mine[key]
        yield from _differ("operation", one["operation"], other["operation"])
        yield from _differ("keys", sorted(one["data"]), sorted(other["data"]))
        for field in one["data"].keys() & other["data"].keys() - {"sync_id"}:
            yield from _differ(field, _plain(field, one["data"][field]), _plain(field, other["data"][field]))


def _plain(field: str, value: Any) -> Any:
    # A deployed server leaves out the microseconds if there are none.
    return parse_time(value) if field in ("created_at", "updated_at") else value
