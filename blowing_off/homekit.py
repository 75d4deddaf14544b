"""HomeKit accessory databases into the graph: bytes in, entities and edges to be stored out.

A database is what an accessory answers to ``GET /accessories``, saved as JSON: a list of accessories, each with
services, each with characteristics. Every accessory becomes one `device`; its services and characteristics go into
that device's `content`, under the names the v1 mapping uses.

`read` is the whole of it. It does no I/O and it never raises for what is in the bytes: a record is read whole or
reported in `Import.unread`, and one bad record does not cost its neighbours. Ids come from what is read, so reading
the same database again gives the same result.
"""

from __future__ import annotations

import re
import shlex
from itertools import accumulate
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Raw

from blowing_off import hap
from inbetweenies.model import uuid5

FILE_BYTES_MAX: Final = 16 * 2**20  # ten times the database of a full bridge (150 accessories of about 10 KB)
NODES_MAX: Final = 200_000  # values in a file: twice a full bridge; bounds memory, which `[[[[]]]]` multiplies by forty
DEPTH_MAX: Final = 64  # a good database nests 8 deep; the decoder recurses on the C stack, and 64 is safe on any thread
NAME_MAX: Final = 255  # characters of an entity's name that every store of the graph takes
REASON_MAX: Final = 300  # characters: one line on a screen
ID_MAX: Final = 2**64 - 1  # HAP: aid and iid are unsigned 64-bit numbers, and never 0
EXACT_MAX: Final = 2**53 - 1  # RFC 7493: the largest whole number that every JSON reader holds exactly
SERIAL_MIN: Final = 2  # HAP: a serial number has more than one character; "1" is what a Hue bridge sends for "none"

# What makers and bridge programs send as a serial number when they have none. As part of an identity these would make
# one device out of two.
PLACEHOLDER_SERIALS: Final = frozenset(
    {
        "**redacted**",  # Home Assistant, in the diagnostics it writes for bug reports
        "default",
        "default-serialnumber",  # HAP-NodeJS
        "homekit.bridge",  # Home Assistant: every one of its bridges
        "n/a",
        "none",
        "not available",
        "null",
        "serial number",
        "serialnumber",
        "unknown",
    }
)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """One entity to be stored, without version and user, which the caller mints.

    `id` is the same whenever the same thing is read. `content` holds JSON values only.
    """

    id: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str = "homekit"


class DraftLink(msgspec.Struct, frozen=True, kw_only=True):
    """One edge to be stored, from the entity `from_id` to the entity `to_id`.

    Its `id` is that of `link_id`, so storing it again re-points the edge that is there.
    """

    id: str
    from_id: str
    to_id: str
    relationship_type: str
    properties: dict[str, Any]


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be read, and is therefore in no draft.

    `place` says where it stands, for people and as a JSON pointer. `reason` says what was expected and what was got,
    in at most 300 characters, and never repeats the value itself. `by_hand` is the command line that adds the record
    by hand; words in capitals are to be filled in.
    """

    place: str
    reason: str
    by_hand: str


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """What a database holds: devices and edges in the order of the file, and what could not be read."""

    drafts: tuple[Draft, ...]
    links: tuple[DraftLink, ...]
    unread: tuple[Unread, ...]


def read(data: bytes, *, source: str, home_id: str | None = None, graph: str = "") -> Import:
    """Read the HomeKit accessory database `data`.

    `source` is the name of the file it is from; only its last part is used: in reports, and in the identity of
    accessories without a usable serial number. With `home_id`, every device gets an edge to that home. `graph` is the
    graph the edges are for; their ids depend on it.

    Raises nothing for what `data` holds: bytes that are no database at all give no drafts and one `Unread`.
    """
    file = _line(source.replace("\\", "/").rstrip("/").rpartition("/")[2]) or "the file"
    try:
        records, pointer = _accessories(data)
    except _UnreadableError as error:
        whole = Unread(place=file, reason=error.reason, by_hand=_add_device("NAME"))
        return Import(drafts=(), links=(), unread=(whole,))

    # HAP: where there are many, the one with aid 1 bridges the others, wherever it stands. Records are counted, not
    # readable ones: a broken neighbour does not turn a bridge into something else.
    bridge_aid = 1 if len(records) > 1 else None
    drafts: dict[int, Draft] = {}
    numbers: dict[int, int] = {}
    unread: list[Unread] = []
    for index, raw in enumerate(records):
        number = index + 1
        aid = _own_id(raw, "aid")
        reader = _Reader(file=file, pointer=pointer, bridge_aid=bridge_aid)
        reader.enter("accessory", index, "aid", aid)
        name = f"Accessory {aid or number}"
        try:
            aid, draft = reader.device(raw)
        except _UnreadableError as error:
            unread.append(Unread(place=reader.where(), reason=error.reason, by_hand=_add_device(name)))
            continue
        if aid in drafts:
            reason = f"expected an aid of its own, got that of accessory {numbers[aid]}"
            unread.append(Unread(place=reader.where(), reason=reason, by_hand=_add_device(draft.name)))
            continue
        drafts[aid], numbers[aid] = draft, number
        unread.extend(reader.unread(draft.id))

    bridge = drafts.get(1) if bridge_aid else None
    links: list[DraftLink] = []
    for draft in drafts.values():
        if bridge is not None and draft is not bridge:
            links.append(_part_of(graph, draft.id, bridge.id, "bridge_id", {"role": "bridge"}))
        if home_id:
            links.append(_part_of(graph, draft.id, home_id, "home_id", {}))
    return Import(drafts=tuple(drafts.values()), links=tuple(links), unread=tuple(unread))


def link_id(graph: str, from_id: str, field: str) -> str:
    """The id of the edge that stands for the v1 field `field` of the entity `from_id` in `graph`.

    `field` is ``"home_id"`` or ``"bridge_id"``. An entity has one such edge, so a move re-points it.
    """
    return uuid5(graph, from_id + field)


def _part_of(graph: str, from_id: str, to_id: str, field: str, properties: dict[str, Any]) -> DraftLink:
    id_ = link_id(graph, from_id, field)
    return DraftLink(id=id_, from_id=from_id, to_id=to_id, relationship_type="part_of", properties=properties)


# --- the shape of a database --------------------------------------------------------------------------------------
# Lists of records stay raw: each record is decoded by itself, so that what is wrong in one is found in that one.


class _Characteristic(msgspec.Struct, rename="camel"):
    iid: int
    type: str
    perms: list[str]
    value: str | int | float | bool | None = None
    format: str | None = None
    unit: str | None = None
    min_value: float | None = None
    max_value: float | None = None
    min_step: float | None = None
    valid_values: list[int | float] | None = msgspec.field(default=None, name="valid-values")
    valid_values_range: list[int | float] | None = msgspec.field(default=None, name="valid-values-range")
    max_len: int | None = None
    max_data_len: int | None = None
    description: str | None = None


class _Service(msgspec.Struct):
    iid: int
    type: str
    characteristics: list[Raw]
    primary: bool | None = None
    hidden: bool | None = None
    linked: list[int] | None = None


class _Accessory(msgspec.Struct):
    aid: int
    services: list[Raw]


class _Ids(msgspec.Struct):
    aid: int | None = None
    iid: int | None = None


_T = TypeVar("_T")
_LIST: Final = msgspec.json.Decoder(list[Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_IDS: Final = msgspec.json.Decoder(_Ids)
_ACCESSORY: Final = msgspec.json.Decoder(_Accessory)
_SERVICE: Final = msgspec.json.Decoder(_Service)
_CHARACTERISTIC: Final = msgspec.json.Decoder(_Characteristic)


class _UnreadableError(Exception):
    """A record that cannot be read; `reason` is for `Unread.reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason if len(reason) <= REASON_MAX else reason[: REASON_MAX - 1] + "…"


# --- bytes to records ---------------------------------------------------------------------------------------------

# The closing quote may be missing, so that hostile bytes are scanned once and not once for each quote in them.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STRING_OR_NAN: Final = re.compile(_STRING.pattern + rb"|-?Infinity|NaN", re.DOTALL)
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x02\x02\x00\x00")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _accessories(data: bytes) -> tuple[list[Raw], str]:
    """The records of accessories, not decoded yet, and the JSON pointer to their list."""
    if len(data) > FILE_BYTES_MAX:
        raise _UnreadableError(f"expected a file of at most {FILE_BYTES_MAX} bytes, got {len(data)}")
    data = data.removeprefix(b"\xef\xbb\xbf")  # some editors start a file with a byte order mark
    outside = _STRING.sub(b"", data)
    if (nodes := sum(map(outside.count, (b",", b"[", b"{")))) > NODES_MAX:
        raise _UnreadableError(f"expected a file of at most {NODES_MAX} values, got {nodes}")
    steps = outside.translate(_STEPS, _NO_BRACKETS)
    if (depth := max(accumulate(step - 1 for step in steps), default=0)) > DEPTH_MAX:
        raise _UnreadableError(f"expected nesting of at most {DEPTH_MAX} levels, got {depth}")
    try:
        return _top(data)
    except _UnreadableError:
        # One value that is not JSON spoils the whole file for a decoder. Those that programs are known to write are
        # marked, so that they spoil only the record they stand in.
        marked = _STRING_OR_NAN.sub(_mark, data)
        if marked == data:
            raise
        return _top(marked)


def _top(data: bytes) -> tuple[list[Raw], str]:
    if not data.lstrip().startswith(b"{"):
        return _decode(_LIST, data), ""
    top = _decode(_OBJECT, data)
    if "accessories" not in top:
        raise _UnreadableError("expected a list of accessories, got an object without one")
    return _decode(_LIST, top["accessories"]), "/accessories"


def _mark(match: re.Match[bytes]) -> bytes:
    """Replace what JSON does not have by what a raw decode lets pass and a full decode refuses."""
    token = match[0]
    if not token.startswith(b'"'):
        return b"1e999"
    return _ESCAPE.sub(lambda escape: b"\xff" if escape["lone"] else escape[0], token)


def _decode(decoder: msgspec.json.Decoder[_T], raw: bytes | Raw) -> _T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _UnreadableError(_plain(str(error))) from None
    except msgspec.DecodeError as error:
        detail = str(error).removeprefix("JSON is malformed: ")
        raise _UnreadableError(f"expected JSON, got bytes that are not: {detail[:1].lower()}{detail[1:]}") from None
    except UnicodeDecodeError:
        raise _UnreadableError("expected text in Unicode, got bytes or escapes that are none") from None


_WORDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "an object",
    "str": "text",
}
_EXTREME: Final = "expected an ordinary number, got a huge one, an infinite one or none at all"
_QUOTED: Final = re.compile(r"`([^`]*)`")


def _plain(message: str) -> str:
    """The decoder's message in plain words, as "expected ..., got ..."."""
    message = message.replace("Object missing required field", "Expected")
    message = message.replace("Integer value out of range", "Number out of range")
    message = message.replace("Number out of range", _EXTREME)
    if ", got" not in message:
        message = _QUOTED.sub(r"`\1`, got nothing", message, count=1)
    message = _QUOTED.sub(lambda quoted: _words(quoted[1]), message).replace(" - at ", " at ")
    return message[:1].lower() + message[1:]


def _words(quoted: str) -> str:
    if quoted.startswith("$"):
        return quoted.removeprefix("$").removeprefix(".")
    # Null is only another way of leaving a thing out; nobody has to be told to write it.
    *others, last = [_WORDS.get(word, word) for word in quoted.split(" | ") if word != "null"] or ["null"]
    return f"{', '.join(others)} or {last}" if others else last


# --- records to a device ------------------------------------------------------------------------------------------


class _Reader:
    """Reads one accessory and remembers where it is, and what in it could not be read."""

    def __init__(self, *, file: str, pointer: str, bridge_aid: int | None) -> None:
        self._file = file
        self._bridge_aid = bridge_aid
        self._place: list[str] = []
        self._pointer = [pointer]
        self._characteristics: set[int] = set()
        self._unread: list[tuple[str, str, tuple[str, ...]]] = []

    def enter(self, word: str, index: int, key: str, id_: int | None) -> None:
        """Go to the record that is number `index` of its list; `id_` is what it has under `key`, as far as known."""
        self._place.append(f"{word} {index + 1}" + (f" ({key} {id_})" if id_ else ""))
        self._pointer.append(f"{index}" if word == "accessory" else f"{word}s/{index}")

    def where(self) -> str:
        """The place of the record that is being read."""
        return f"{self._file}: {': '.join(self._place)}, at {'/'.join(self._pointer)}"

    def unread(self, device: str) -> list[Unread]:
        """What could not be read of the accessory whose id is `device`."""
        return [
            Unread(
                place=place, reason=reason, by_hand=shlex.join(["blowing-off", "set", device, _setting(device, *iids)])
            )
            for place, reason, iids in self._unread
        ]

    def device(self, raw: Raw) -> tuple[int, Draft]:
        """The aid and the device of one accessory."""
        accessory = _decode(_ACCESSORY, raw)
        aid = _id(accessory.aid, "aid")

        services: dict[str, dict[str, Any]] = {}
        for index, record in enumerate(accessory.services):
            iid = _own_id(record, "iid")
            self.enter("service", index, "iid", iid)
            try:
                self._service(record, services)
            except _UnreadableError as error:
                free = "ID" if iid is None or str(iid) in services else str(iid)
                self._report(error, free)
            self._leave()

        facts = _facts(services)
        is_bridge = aid == self._bridge_aid or any(
            service["service_type"] == "bridge-configuration" for service in services.values()
        )
        content: dict[str, Any] = {
            "manufacturer": facts.get("manufacturer"),
            "model": facts.get("model"),
            "serial_number": facts.get("serial-number"),
            "firmware_version": facts.get("firmware-revision"),
            "is_reachable": True,
            "is_blocked": False,
            "is_bridge": is_bridge,
            "aid": _told(aid),
        }
        if "hardware-revision" in facts:
            content["hardware_version"] = facts["hardware-revision"]
        if category := _category(services) or ("bridge" if is_bridge else None):
            content["category"] = category
        name = _line(facts.get("name", "")) or _line(facts.get("model", "")) or f"Accessory {aid}"
        id_ = uuid5("homekit", _identity(facts, aid, self._file))
        content["services"] = _under_own_ids(id_, services)
        return aid, Draft(id=id_, entity_type="device", name=name, content=content)

    def _service(self, raw: Raw, services: dict[str, dict[str, Any]]) -> None:
        service = _decode(_SERVICE, raw)
        iid = str(_id(service.iid, "iid"))
        kind = _type_name(service.type, hap.SERVICES)
        if iid in services:
            raise _UnreadableError("expected an iid of its own, got that of another service of this accessory")
        linked = [str(_id(other, "linked iid")) for other in service.linked or ()]

        characteristics: dict[str, dict[str, Any]] = {}
        for index, record in enumerate(service.characteristics):
            own = _own_id(record, "iid")
            self.enter("characteristic", index, "iid", own)
            try:
                self._characteristic(record, characteristics)
            except _UnreadableError as error:
                free = "ID" if own is None or own in self._characteristics else str(own)
                self._report(error, iid, free)
            self._leave()

        services[iid] = {
            "service_type": kind,
            "name": _texts(characteristics).get("name", kind),
            "is_primary": bool(service.primary),
            "is_user_interactive": not service.hidden,
            **({"linked": linked} if service.linked is not None else {}),
            "characteristics": characteristics,
        }

    def _characteristic(self, raw: Raw, characteristics: dict[str, dict[str, Any]]) -> None:
        record = _decode(_CHARACTERISTIC, raw)
        iid = _id(record.iid, "iid")
        kind = _type_name(record.type, hap.CHARACTERISTICS)
        # A controller names a characteristic by aid and iid alone, so two of one accessory cannot share an iid. A
        # service and a characteristic can, and in real databases do.
        if iid in self._characteristics:
            raise _UnreadableError("expected an iid of its own, got that of another characteristic of this accessory")
        perms = set(record.perms)
        extra: dict[str, Any] = {
            "perms": record.perms if perms - {"pr", "pw", "ev"} else None,
            "valid_values": _exact(record.valid_values, "valid-values"),
            "valid_values_range": _exact(record.valid_values_range, "valid-values-range"),
            "max_len": _length(record.max_len, "maxLen"),
            "max_data_len": _length(record.max_data_len, "maxDataLen"),
            "description": record.description,
        }
        self._characteristics.add(iid)
        characteristics[str(iid)] = {
            "characteristic_type": kind,
            "value": None if record.value is None else msgspec.json.encode(record.value).decode(),
            "format": record.format,
            "unit": record.unit,
            "min_value": record.min_value,
            "max_value": record.max_value,
            "step_value": record.min_step,
            "is_readable": "pr" in perms,
            "is_writable": "pw" in perms,
            "supports_event_notification": "ev" in perms,
            **{key: value for key, value in extra.items() if value is not None},
        }

    def _leave(self) -> None:
        self._place.pop()
        self._pointer.pop()

    def _report(self, error: _UnreadableError, *iids: str) -> None:
        self._unread.append((self.where(), error.reason, iids))


_SERVICE_BY_HAND: Final = '{"service_type": "TYPE", "name": "NAME", "characteristics": {}}'
_CHARACTERISTIC_BY_HAND: Final = '{"characteristic_type": "TYPE", "value": "VALUE"}'


def _told(id_: int) -> int | str:
    """An aid or iid as every JSON reader holds it: the largest ones only as text."""
    return id_ if id_ <= EXACT_MAX else str(id_)


def _part_id(device: str, iid: str) -> str:
    """The id of a part of `device`: v1 clients know services and characteristics by ids that no other device has."""
    return iid if iid == "ID" else uuid5(device, iid)


def _under_own_ids(device: str, services: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`services`, keyed by iid, with ids of their own instead and the iids inside."""
    found = {}
    for iid, service in services.items():
        inside = {
            _part_id(device, f"{iid}.{own}"): {"iid": _told(int(own)), **characteristic}
            for own, characteristic in service["characteristics"].items()
        }
        linked = {"linked": [_part_id(device, other) for other in service["linked"]]} if "linked" in service else {}
        found[_part_id(device, iid)] = {"iid": _told(int(iid)), **service, **linked, "characteristics": inside}
    return found


def _setting(device: str, service: str, characteristic: str | None = None) -> str:
    """What sets a part of `device` by hand."""
    if characteristic is None:
        return f"services.{_part_id(device, service)}={_SERVICE_BY_HAND}"
    own = characteristic if characteristic == "ID" else f"{service}.{characteristic}"
    return f"services.{_part_id(device, service)}.characteristics.{_part_id(device, own)}={_CHARACTERISTIC_BY_HAND}"


def _add_device(name: str) -> str:
    return shlex.join(["blowing-off", "add", "device", name])


def _id(value: int, what: str) -> int:
    if not 1 <= value <= ID_MAX:
        raise _UnreadableError(f"expected {what} from 1 to {ID_MAX}, got a number outside of that")
    return value


_SHORT: Final = re.compile(r"[0-9A-Fa-f]{1,8}")
# Most write the hyphens, some do not.
_LONG: Final = re.compile("-?".join(f"([0-9A-Fa-f]{{{digits}}})" for digits in (8, 4, 4, 4, 12)))


def _type_name(text: str, names: dict[str, str]) -> str:
    """The name of a type, or its UUID in upper case when nobody published one."""
    if _SHORT.fullmatch(text):
        uuid = f"{text.upper():0>8}-{hap.BASE}"
    elif match := _LONG.fullmatch(text):
        uuid = "-".join(match.groups()).upper()
    else:
        raise _UnreadableError("expected type to be a UUID or the first 1 to 8 hex digits of one, got other text")
    short, _, rest = uuid.partition("-")
    return names.get(short.lstrip("0"), uuid) if rest == hap.BASE else uuid


def _own_id(raw: Raw, key: Literal["aid", "iid"]) -> int | None:
    """The id of a record as far as it can be told, also where the rest of the record cannot be read."""
    try:
        ids = _decode(_IDS, raw)
        return _id((ids.aid if key == "aid" else ids.iid) or 0, key)
    except _UnreadableError:
        return None


def _length(value: int | None, what: str) -> int | None:
    if value is not None and not 0 <= value <= EXACT_MAX:
        raise _UnreadableError(f"expected {what} from 0 to {EXACT_MAX}, got a number outside of that")
    return value


def _exact(values: list[int | float] | None, what: str) -> list[int | float] | None:
    if values is None:
        return None
    try:
        return [value if abs(value) <= EXACT_MAX else float(value) for value in values]
    except OverflowError:
        raise _UnreadableError(f"{_EXTREME} at {what}") from None


def _texts(characteristics: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Type to value of the characteristics that say something in words; the first of a type counts."""
    texts: dict[str, str] = {}
    for characteristic in characteristics.values():
        encoded = characteristic["value"]
        value = None if encoded is None else msgspec.json.decode(encoded)
        # A version or serial number that somebody wrote as a number is taken at its digits.
        text = value if isinstance(value, str) else "" if value is None or isinstance(value, bool) else encoded
        if text := text.strip():
            texts.setdefault(characteristic["characteristic_type"], text)
    return texts


def _facts(services: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the accessory says about itself in its Accessory Information service."""
    for service in services.values():
        if service["service_type"] == "accessory-information":
            return _texts(service["characteristics"])
    return {}


def _category(services: dict[str, dict[str, Any]]) -> str | None:
    shown = [service for service in services.values() if service["is_user_interactive"]]
    shown.sort(key=lambda service: not service["is_primary"])  # stable: the primary one first, then as in the file
    for categories in (hap.CATEGORIES, hap.SECONDARY):
        for service in shown:
            if category := categories.get(service["service_type"]):
                return category
    return None


def _identity(facts: dict[str, str], aid: int, file: str) -> str:
    """What stays the same about an accessory from one export to the next, as unambiguous text."""
    serial = facts.get("serial-number", "")
    usable = len(set(serial)) >= SERIAL_MIN and serial.casefold() not in PLACEHOLDER_SERIALS
    parts = [serial, facts.get("manufacturer"), facts.get("model")] if usable else [file]
    return msgspec.json.encode([*parts, aid]).decode()


# Whatever would break a line, a terminal or a store: control characters, line separators, halves of surrogate pairs.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _line(text: str) -> str:
    """`text` as a name: one line, without control characters, not too long."""
    return _CONTROL.sub(" ", text).strip()[:NAME_MAX].rstrip()
