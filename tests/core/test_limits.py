"""The gate before decoding, the border after it, and the one spelling in which JSON is stored."""

from __future__ import annotations

import enum
import json
import math
import os
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from unittest import mock

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

import inbetweenies
from inbetweenies import limits as limits_module
from inbetweenies.errors import PROBLEM_BYTES_MAX, LocalProtocolError, RemoteProtocolError
from inbetweenies.limits import (
    DEPTH_CEILING,
    LIMITS,
    Limits,
    canonical,
    checked_decode,
    decode_error,
    gate,
)

ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
TIGHT = Limits(depth_max=3, nodes_max=12)


def refusal(body: bytes, limits: Limits = LIMITS) -> RemoteProtocolError | None:
    try:
        gate(body, limits)
    except RemoteProtocolError as error:
        return error
    return None


class Seen(NamedTuple):
    """What a decoder would come across, found the slow way: one byte after the other."""

    depth: int
    nodes: int
    closes: bool
    stray_backslash: bool

    @classmethod
    def in_body(cls, body: bytes) -> Seen:
        depth = deepest = opened = commas = lowest = 0
        in_string = escaped = False
        for byte in body:
            if escaped:
                escaped = False
            elif in_string:
                escaped = byte == ord("\\")
                in_string = byte != ord('"')
            elif byte == ord("\\"):
                return cls(deepest, 1 + opened + commas, False, True)  # no JSON from here on: nothing reads further
            elif byte == ord('"'):
                in_string = True
            elif byte in b"[{":
                depth, opened = depth + 1, opened + 1
                deepest = max(deepest, depth)
            elif byte in b"]}":
                depth -= 1
                lowest = min(lowest, depth)
            elif byte == ord(","):
                commas += 1
        return cls(deepest, 1 + opened + commas, depth == lowest == 0, False)

    def within(self, limits: Limits) -> bool:
        return self.depth <= limits.depth_max and self.nodes <= limits.nodes_max


FRAGMENTS = [
    "[",
    "]",
    "{",
    "}",
    "[]",
    "{}",
    "[[",
    "]]",
    "}{",
    '"',
    '""',
    '"["',
    '"]"',
    '"{',
    '}"',
    '"{[',
    ",",
    ":",
    "1",
    " ",
]
FRAGMENTS += ["\\", "\\\\", '\\"', '\\\\"', "\\u005b", "\\n", "\n", "\x00", "é", "\U0001f4a1"]
SCRIBBLE = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(lambda parts: "".join(parts).encode())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


class TestLimits:
    def test_every_bound_is_a_positive_whole_number(self) -> None:
        for name in Limits.__struct_fields__:
            assert isinstance(getattr(LIMITS, name), int)

            with pytest.raises(LocalProtocolError, match=name):
                Limits(**{name: 0})

    def test_the_depth_cannot_be_set_to_what_kills_a_small_stack(self) -> None:
        assert DEPTH_CEILING == Limits(depth_max=DEPTH_CEILING).depth_max

        with pytest.raises(LocalProtocolError, match="depth_max"):
            Limits(depth_max=DEPTH_CEILING + 1)


class TestGate:
    def test_a_body_of_the_greatest_size_passes_and_one_byte_more_does_not(self) -> None:
        limits = Limits(body_bytes_max=10)
        gate(b'"12345678"', limits)
        error = refusal(b'"123456789"', limits)

        assert error is not None
        assert ("body_too_large", 413) == (error.code, error.status)
        assert ("at most 10 bytes", "11 bytes") == (error.expected, error.got)

    def test_the_size_is_judged_before_anything_looks_at_the_bytes(self) -> None:
        error = refusal(b"\xff" * 11, Limits(body_bytes_max=10))

        assert error is not None
        assert "body_too_large" == error.code

    @pytest.mark.parametrize(
        "body",
        [
            b'{"a":"\xff"}',
            b'"\xed\xa0\x80"',  # a surrogate
            b'"\xc0\xaf"',  # overlong
            b'"\xf4\xbf\xbf\xbf"',  # beyond U+10FFFF
            b'"\xe6\x97"',  # cut short
            b"\xef\xbb\xbf{}",
            "{}".encode("utf-16"),
        ],
    )
    def test_only_utf_8_without_a_byte_order_mark_passes(self, body: bytes) -> None:
        error = refusal(body)

        assert error is not None
        assert "malformed_body" == error.code
        assert error.expected.startswith("UTF-8")

    def test_what_no_type_looks_at_is_judged_too(self) -> None:
        class Narrow(msgspec.Struct):
            known: int = 0

        body = b'{"unknown":"\xff"}'

        assert Narrow() == msgspec.json.decode(body, type=Narrow), "the decoder alone lets it through"
        assert refusal(body) is not None

    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"]":', b"}]")])
    def test_nesting_ends_at_the_limit(self, opening: bytes, closing: bytes) -> None:
        step = opening.count(b"[") + opening.count(b"{")
        times = LIMITS.depth_max // step
        gate(opening * times + b"0" + closing * times)
        error = refusal(b"[" + opening * times + b"0" + closing * times + b"]")

        assert error is not None
        assert "malformed_body" == error.code
        assert ("nesting of at most 64", "nesting of 65 or more") == (error.expected, error.got)

    @pytest.mark.parametrize("body", [b'["' + b"[{" * 500 + b'"]', b'["\\"' + b"[" * 500 + b'"]', b'["\\\\"]'])
    def test_brackets_in_strings_do_not_count(self, body: bytes) -> None:
        json.loads(body)
        gate(body)

    def test_brackets_in_strings_do_not_hide_the_real_ones(self) -> None:
        error = refusal(b'["]",' * 65 + b"0" + b"]" * 65)

        assert error is not None
        assert "nesting of 65 or more" == error.got

    def test_an_escaped_backslash_does_not_escape_the_quote_after_it(self) -> None:
        error = refusal(b'["\\\\",' * 65 + b"0" + b"]" * 65)

        assert error is not None
        assert "nesting of 65 or more" == error.got

    @pytest.mark.parametrize("body", [b"[", b"]", b'{"a":[}', b"}{", b"[" * 100_000, b'[{"":' * 50_000, b'"a"]'])
    def test_brackets_that_do_not_close_are_refused(self, body: bytes) -> None:
        error = refusal(body)

        assert error is not None
        assert ("malformed_body", "brackets that close") == (error.code, error.expected)

    def test_nodes_end_at_the_limit(self) -> None:
        limits = Limits(nodes_max=5)
        gate(b'[1,2,"3,3,3,3",4]', limits)  # the list and four values
        error = refusal(b"[1,2,3,4,5]", limits)

        assert error is not None
        assert ("malformed_body", "at most 5 nodes", "6 nodes") == (error.code, error.expected, error.got)

    @pytest.mark.parametrize("chunk", [1, 2, 3, 2**16])
    @given(body=SCRIBBLE)
    @example(body=b'"[""]"[]')
    @example(body=b'["\\\\"[[[[]]]]')
    @example(body=b'["\\\\\\"[[[[]]]]')
    def test_the_verdict_is_that_of_a_scanner_that_reads_byte_by_byte(self, chunk: int, body: bytes) -> None:
        with mock.patch.object(limits_module, "_CHUNK_BYTES", chunk):
            passes = refusal(body, TIGHT) is None
            # With so much room around it, the escapes are few, and are taken out in the other way.
            passes_in_space = refusal(body + b" " * 33 * len(body), TIGHT) is None

        assert passes == passes_in_space
        seen = Seen.in_body(body)
        if seen.stray_backslash:
            assert not passes or seen.depth <= TIGHT.depth_max
        else:
            assert passes == (seen.closes and seen.within(TIGHT))

    @given(body=st.binary())
    def test_any_bytes_get_a_verdict(self, body: bytes) -> None:
        if refusal(body, TIGHT) is None:
            assert Seen.in_body(body).depth <= TIGHT.depth_max

    @given(value=JSON_VALUES, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2))
    def test_json_passes_exactly_when_it_is_within_the_limits(
        self, value: Any, ascii_only: bool, indent: int | None
    ) -> None:
        body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
        gate(body)

        assert (refusal(body, TIGHT) is None) == Seen.in_body(body).within(TIGHT)

    @pytest.mark.parametrize(
        ("unit", "verdict"),
        [
            (b"[", "nodes"),
            (b"]", "brackets"),
            (b"[]", "nodes"),
            (b"[[]]", "nodes"),
            (b"{}", "nodes"),
            (b"[" * 64 + b" " * 2048 + b"]" * 64, None),
            (b"[" * 65 + b" " * 2048 + b"]" * 65, "nesting"),
            (b"]" * 64 + b" " * 2048 + b"[" * 64, "brackets"),
            (b'"[" ', None),
            (b'"][" ', None),
            (b'"[[[[', "nodes"),
            (b'"', None),
            (b"\\", None),
            (b'"\\', None),
            (b'\\"', None),
            (b'\\\\" ', None),
            (b"1,", "nodes"),
            (b'",', "nodes"),
            (b"0", None),
            ("é".encode(), None),
        ],
    )
    def test_the_greatest_body_of_the_worst_kind_gets_a_verdict(self, unit: bytes, verdict: str | None) -> None:
        found = refusal(unit * (LIMITS.body_bytes_max // len(unit)))

        assert (found is None) if verdict is None else (found is not None and verdict in found.expected)

    def test_what_passes_is_decoded_on_the_smallest_stack(self) -> None:
        done = in_small_thread("gated")

        assert (0, "") == (done.returncode, done.stderr)
        assert "passed 20 refused 28" == done.stdout.strip()

    def test_the_smallest_stack_is_too_small_without_the_gate(self) -> None:
        done = in_small_thread("ungated")

        assert done.returncode < 0 or "RecursionError" in done.stderr


SMALL_THREAD = r"""
import sys, threading
import msgspec
from inbetweenies.errors import RemoteProtocolError
from inbetweenies.limits import canonical, gate

class Narrow(msgspec.Struct):
    known: int = 0

def nested(depth):
    yield b"[" * depth + b"]" * depth
    yield b'{"a":' * depth + b"1" + b"}" * depth
    yield b'["]]]]",' * depth + b"1" + b"]" * depth  # as many brackets close as open, if strings are not seen
    yield b'["\\\\]]",' * depth + b"1" + b"]" * depth
    yield b'{"\\"}":' * depth + b"1" + b"}" * depth
    yield b'[{"":' * (depth // 2) + b"1" + b"}]" * (depth // 2)
    yield b"[" * depth
    yield b'[[],' * depth + b"1" + b"]" * depth

def decode():
    counts = {"passed": 0, "refused": 0}
    for depth in (10, 63, 64, 66, 500, 5_000):
        for body in nested(depth):
            if mode == "gated":
                try:
                    gate(body)
                except RemoteProtocolError:
                    counts["refused"] += 1
                    continue
            counts["passed"] += 1
            try:
                canonical(msgspec.json.decode(body), trusted=True)
                msgspec.json.decode(b'{"unknown":%b}' % body, type=Narrow)
            except msgspec.DecodeError:
                pass
    print(*(word for pair in counts.items() for word in pair))

mode = sys.argv[1]
threading.stack_size(128 * 1024)
thread = threading.Thread(target=decode)
thread.start()
thread.join()
"""


def in_small_thread(mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SMALL_THREAD, mode],
        env={**os.environ, "PYTHONPATH": str(Path(inbetweenies.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- decoding -----------------------------------------------------------------------------------------------------


class Mood(enum.Enum):
    CALM = "calm"


class Note(msgspec.Struct, tag="note"):
    text: str


class Deed(msgspec.Struct, tag="deed", forbid_unknown_fields=True):
    count: Annotated[int, msgspec.Meta(ge=1, multiple_of=2)] = 2
    name: Annotated[str, msgspec.Meta(max_length=6, pattern="^[A-Z]")] = "A"
    mood: Mood = Mood.CALM
    way: Literal["in", "out"] = "in"
    pair: tuple[int, str] | None = None
    by_key: dict[str, int] = {}
    keyed: dict[Literal["k"], int] = {}
    raw: bytes = b""
    either: str | int | None = None
    checked: Checked | None = None


class Checked(msgspec.Struct):
    text: str

    def __post_init__(self) -> None:
        raise ValueError(f"Expected better, got {self.text} - at `$.{self.text}`")


class Box(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Deed | Note] = []
    odd_name: str = msgspec.field(default="", name="a/b~c")
    inner: Box | None = None


BOX = msgspec.json.Decoder(Box)


def decode_refusal(body: bytes, decoder: msgspec.json.Decoder[Any] = BOX) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        checked_decode(decoder, body)
    return caught.value


class TestDecode:
    def test_what_the_decoder_accepts_is_handed_on(self) -> None:
        assert Box(items=[Note(text="x")]) == checked_decode(BOX, b'{"items":[{"type":"note","text":"x"}]}')

    @pytest.mark.parametrize(
        ("deed", "pointer", "expected", "got"),
        [
            (b'"count":"SECRET"', "/items/0/count", "`int`", "`str`"),
            (b'"count":0', "/items/0/count", "`int` >= 1", "another value"),
            (b'"count":3', "/items/0/count", "`int` that's a multiple of 2", "another value"),
            (b'"count":1e999', "/items/0/count", "a number within the range of a double", "one beyond it"),
            (b'"name":"SECRETSECRET"', "/items/0/name", "`str` of length <= 6", "another value"),
            (b'"name":"secret"', "/items/0/name", "`str` matching regex '^[A-Z]'", "another value"),
            (b'"mood":"SECRET"', "/items/0/mood", "one of the values", "another value"),
            (b'"mood":"SE\'CRET - at `$.SECRET`"', "/items/0/mood", "one of the values", "another value"),
            (b'"way":"SECRET"', "/items/0/way", "one of the values", "another value"),
            (b'"pair":[1]', "/items/0/pair", "`array` of length 2", "another value"),
            (b'"pair":[1,{"SECRET":1}]', "/items/0/pair/1", "`str`", "`object`"),
            (b'"by_key":{"SECRET":"SECRET"}', "/items/0/by_key/...", "`int`", "`str`"),
            (b'"keyed":{"SECRET":1}', "/items/0/keyed", "one of the values", "another value"),
            (b'"raw":"SECRET!"', "/items/0/raw", "base64", "a str that is not"),
            (b'"either":1.5', "/items/0/either", "`int | str | null`", "`float`"),
            (b'"checked":{}', "/items/0/checked", "the field `text`", "none"),
            (b'"checked":{"text":"SECRET"}', "", "a message of this wire version", "something else"),
            (b'"SECRET":1', "", "only fields that this wire version knows", "another field"),
            (b'"x` - at `$.SECRET":1', "", "only fields that this wire version knows", "another field"),
        ],
    )
    def test_it_is_told_what_was_expected_and_where(self, deed: bytes, pointer: str, expected: str, got: str) -> None:
        error = decode_refusal(b'{"items":[{"type":"deed",' + deed + b"}]}")

        assert "malformed_body" == error.code
        assert pointer == error.pointer
        assert error.expected.startswith(expected)
        assert got == error.got
        assert "SECRET" not in repr(error) + str(error)

    @pytest.mark.parametrize(
        ("body", "pointer", "expected", "got"),
        [
            (b"", "", "a whole JSON document", "the beginning of one"),
            (b'{"items":', "", "a whole JSON document", "the beginning of one"),
            (b'{"items":SECRET}', "", "JSON", "something else at byte 9"),
            (b"{} SECRET", "", "JSON", "something else at byte "),
            (b"[]", "", "`object`", "`array`"),
            (b'{"items":[{}]}', "/items/0", "the field `type`", "none"),
            (b'{"items":[{"type":"SECRET"}]}', "/items/0/type", "one of the values", "another value"),
            (b'{"items":[{"type":7}]}', "/items/0/type", "`str`", "another value"),
            (b'{"a/b~c":0}', "/a~1b~0c", "`str`", "`int`"),
            (b'{"a/b~c":"\xff"}', "", "UTF-8", "another encoding"),
            (b'{"SECRET` - at `$.SECRET":0}', "", "only fields", "another field"),
        ],
    )
    def test_a_body_that_is_wrong_as_a_whole_is_told_too(
        self, body: bytes, pointer: str, expected: str, got: str
    ) -> None:
        error = decode_refusal(body)

        assert pointer == error.pointer
        assert error.expected.startswith(expected)
        assert error.got.startswith(got)
        assert "SECRET" not in repr(error) + str(error)

    def test_the_decoders_own_message_is_not_chained(self) -> None:
        error = decode_refusal(b'{"items":[{"type":"SECRET"}]}')

        assert error.__suppress_context__
        assert error.__cause__ is None

    def test_a_long_way_down_makes_no_long_message(self) -> None:
        error = decode_refusal(b'{"inner":' * 60 + b"7" + b"}" * 60)

        assert {"", "inner"} == set(error.pointer.split("/"))
        assert len(str(error).encode()) <= PROBLEM_BYTES_MAX

    @pytest.mark.parametrize("digits", [4301, 100_000])
    def test_an_integer_too_long_to_convert_is_refused(self, digits: int) -> None:
        error = decode_refusal(b"[" + b"1" * digits + b"]", ANYTHING)

        assert "/0" == error.pointer

    @pytest.mark.parametrize(
        "error",
        [
            msgspec.MsgspecError("SECRET"),
            msgspec.DecodeError("SECRET" * 1000),
            msgspec.ValidationError("Expected SECRET - at `$.SECRET`"),
            UnicodeDecodeError("utf-8", b"SECRET", 0, 1, "SECRET"),
            RecursionError("SECRET"),
            OverflowError("SECRET"),
            ValueError("SECRET"),
        ],
    )
    def test_every_family_of_exceptions_becomes_the_same_error(self, error: Exception) -> None:
        told = decode_error(error)

        assert "malformed_body" == told.code
        assert len(str(told).encode()) <= PROBLEM_BYTES_MAX
        assert "SECRET" not in str(told)

        class Raising:
            def decode(self, body: bytes) -> None:
                raise error

        assert str(told) == str(decode_refusal(b"", Raising()))  # type: ignore[arg-type]

    @given(body=SCRIBBLE | st.binary() | JSON_VALUES.map(msgspec.json.encode))
    def test_nothing_else_escapes(self, body: bytes) -> None:
        for decoder in (ANYTHING, BOX):
            try:
                checked_decode(decoder, body)
            except RemoteProtocolError as error:
                assert len(str(error).encode()) <= PROBLEM_BYTES_MAX

    def test_the_json_test_suite(self, shared_data: Path) -> None:
        counts: Counter[str] = Counter()
        for path in sorted((shared_data / "json" / "test_parsing").glob("*.json")):
            body = path.read_bytes()
            try:
                gate(body)
                value = checked_decode(ANYTHING, body)
                verdict = "accepted"
            except RemoteProtocolError as error:
                assert len(str(error).encode()) <= PROBLEM_BYTES_MAX
                verdict = "refused"
            else:
                assert canonical(value) == canonical(checked_decode(ANYTHING, canonical(value)))
            counts[f"{path.name[0]}_ {verdict}"] += 1
            assert {"y": "accepted", "n": "refused"}.get(path.name[0], verdict) == verdict, path.name
        print(dict(counts))

        assert 318 == counts.total()

    def test_hostile_bodies_pass_or_are_refused(self, shared_data: Path) -> None:
        counts: Counter[str] = Counter()
        for case in json.loads((shared_data / "hostile" / "bodies.json").read_text()):
            body = "".join(
                part if isinstance(part, str) else part["repeat"][0] * part["repeat"][1] for part in case["parts"]
            ).encode("utf-8", "surrogatepass")
            try:
                gate(body)
                checked_decode(ANYTHING, body)
            except RemoteProtocolError as error:
                counts[error.code] += 1
                assert case["expect"] != "ok", (case["name"], str(error))
            else:
                counts["passed"] += 1
        print(dict(counts))

    def test_hostile_numbers_are_kept_exactly_or_refused(self, shared_data: Path) -> None:
        counts: Counter[str] = Counter()
        for token in json.loads((shared_data / "hostile" / "numbers.json").read_text()):
            try:
                value = checked_decode(ANYTHING, b"[" + token.encode() + b"]")
            except RemoteProtocolError:
                counts["refused"] += 1
                continue
            again = checked_decode(ANYTHING, canonical(value, trusted=True))
            counts["kept"] += 1
            assert repr(value) == repr(again)
        print(dict(counts))


# --- storing ------------------------------------------------------------------------------------------------------


def type_name(value: Any) -> str:
    """A name for a parameter that is the same in every process, and short."""
    return type(value).__name__


def unstorable(value: Any, **options: Any) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        canonical(value, **options)
    assert "not_storable" == caught.value.code
    return caught.value


class TestCanonical:
    def test_keys_stand_in_order_of_code_points_and_nothing_else_is_written(self) -> None:
        keys = ["\U0001f4a1", "\uffff", "\ue000", "z", "a", "A", "é", "", "aa", "\x00"]

        written = canonical({key: [1, 1.0, None, True] for key in keys})

        assert sorted(keys) == list(json.loads(written))
        assert written.startswith(b'{"":[1,1.0,null,true],"\\u0000":')

    @given(value=JSON_VALUES)
    def test_it_is_a_fixpoint_and_loses_nothing(self, value: Any) -> None:
        written = canonical(value)
        read = checked_decode(ANYTHING, written)

        assert value == read
        assert repr_sorted(value) == repr_sorted(read)
        assert written == canonical(read) == canonical(read, trusted=True)
        assert written == canonical(json.loads(json.dumps(value)))

    @given(number=st.floats(allow_nan=False, allow_infinity=False))
    def test_a_float_is_written_as_short_as_it_can_be(self, number: float) -> None:
        written = canonical(number)

        assert Decimal(repr(number)) == Decimal(written.decode())
        assert math.copysign(1, number) == math.copysign(1, json.loads(written))

    @given(number=st.integers() | st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**4299]))
    def test_an_integer_of_any_size_is_exact(self, number: int) -> None:
        assert number == checked_decode(ANYTHING, canonical(number))

    def test_kinds_of_numbers_stay_apart(self) -> None:
        assert 5 == len({canonical(number) for number in (0, 0.0, -0.0, 1, 1.0)})

    @pytest.mark.parametrize(
        ("value", "got"),
        [
            (math.nan, "one that is not finite"),
            (math.inf, "one that is not finite"),
            ({"a": [{"b": [0.0, (1, -math.inf)]}]}, "one that is not finite"),
            (b"x", "`bytes`"),
            ({1, 2}, "`set`"),
            (Decimal(1), "`Decimal`"),
            (Mood.CALM, "`Mood`"),
            (msgspec.Raw(b"not json"), "`Raw`"),
            (Note(text="x"), "`Note`"),
            ({"a": {1: 2}}, "a key of another type"),
            ("\ud800", "a lone surrogate"),
            ({"\udfff": 1}, "a lone surrogate"),
            (10**5000, "one that it does not"),
        ],
        ids=type_name,
    )
    def test_what_json_cannot_hold_exactly_is_refused_where_the_caller_says(self, value: Any, got: str) -> None:
        error = unstorable({"in": [value]}, pointer="/changes/0/entity/content")

        assert got == error.got
        assert "/changes/0/entity/content" == error.pointer

    @pytest.mark.parametrize("value", [{1: 2}, object(), "\ud800", 10**5000], ids=type_name)
    def test_nothing_else_escapes_from_what_was_trusted(self, value: Any) -> None:
        unstorable(value, trusted=True)

    def test_the_depth_is_that_of_the_gate(self) -> None:
        value: Any = 0
        for _ in range(LIMITS.depth_max):
            value = [value]
        gate(canonical(value))

        assert "nesting of 65 or more" == unstorable([value]).got

    @pytest.mark.parametrize("kind", ["itself", "wide", "doubling"])
    def test_a_value_that_never_ends_is_refused(self, kind: str) -> None:
        value: list[Any] = [0] * 1000
        if kind == "itself":
            value = []
            value.append(value)
        elif kind == "wide":
            value = [[value] * 1000] * 1000
        else:
            for _ in range(40):
                value = [value, value]

        assert unstorable(value).expected.startswith(("nesting", "at most"))


def repr_sorted(value: Any) -> str:
    """`value` told with its types: ``1``, ``1.0`` and ``True`` are equal, but are not the same."""
    if isinstance(value, dict):
        return repr(sorted((key, repr_sorted(item)) for key, item in value.items()))
    return repr([repr_sorted(item) for item in value]) if isinstance(value, list) else repr(value)
