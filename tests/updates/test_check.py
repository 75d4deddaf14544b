"""What a server says of itself, and what follows for the release that runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from blowing_off.updates.check import (
    RELEASE_BYTES_MAX,
    TOLD_BYTES_MAX,
    Compatible,
    ServerTooOld,
    Told,
    Unknown,
    UpdateRecommended,
    UpdateRequired,
    Verdict,
    judge,
    read_told,
    release_of,
    too_old,
)
from inbetweenies.errors import RemoteProtocolError
from tests.server.calls import request

V1, V2, V3 = "inbetweenies-v1", "inbetweenies-v2", "inbetweenies-v3"
RUNNING = Version("1.2.0")


def judged(**body: Any) -> Verdict:
    return judge(read_told(json.dumps(body).encode()), running=RUNNING, spoken=(V2, V1))


# --- reading ------------------------------------------------------------------------------------------------------


async def test_the_answer_of_the_server_in_this_tree_is_read() -> None:
    from inbetweenies import __version__
    from inbetweenies.asgi import app

    answer = await request(app(auth=False), "GET", "/api/version")
    assert answer is not None
    told = read_told(answer.body)

    assert Version(__version__) == told.server
    assert told.wires is not None
    assert {V1, V2} <= set(told.wires)


def test_everything_that_a_server_can_say_is_read() -> None:
    body = {
        "service": "inbetweenies",
        "server": {"name": "inbetweenies", "version": "9.9"},
        "server_version": "3.1",
        "min_client_version": "1.1",
        "latest_client_version": "2.0.1",
        "registry_revision": "r7",
        "supported_versions": [V2, V1, 7, "naïve"],
        "versions": [{"id": V2, "status": "current"}],
        "features": [],
        "limits": {},
    }

    told = read_told(json.dumps(body).encode())

    assert (
        Told(server=Version("3.1"), minimum=Version("1.1"), latest=Version("2.0.1"), wires=(V2, V1), revision="r7")
        == told
    )


@pytest.mark.parametrize(
    ("body", "server"),
    [
        ({"server": {"version": "2.0"}}, "2.0"),
        ({"version": "2.0"}, "2.0"),
        ({"server": "2.0", "server_version": "not one", "version": "2.0"}, "2.0"),
        ({"server_version": "2.0", "supported_versions": "all", "registry_revision": {"a": 1}}, "2.0"),
    ],
)
def test_what_is_missing_or_odd_is_taken_as_not_said(body: dict[str, Any], server: str) -> None:
    assert Told(server=Version(server)) == read_told(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"<html><body>Sign in to this network</body></html>",
        b'{"detail": "Not Found"}',
        b'{"service": "another", "server_version": "1.0"}',
        b'{"server_version": "1.0", "min_client_version": "as new as can be"}',
        b'{"server_version": "1.0", "min_client_version": 7}',
        b'{"server_version": "1.0"' + b" " * TOLD_BYTES_MAX + b"}",
        b'{"limits": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"server_version": "\xff"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_such_answer_is_refused_and_never_taken_for_fine(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="expected"):
        read_told(body)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_is_answered_is_read_or_refused(body: bytes) -> None:
    try:
        told = read_told(body)
    except RemoteProtocolError:
        return
    assert told.server is not None or told.minimum is not None or told.wires is not None


@pytest.mark.parametrize(
    "text", [None, 1, 1.5, "", "one", "1" * (RELEASE_BYTES_MAX + 1), "١.٢", ["1.0"], "1.0; rm -rf /", "-1"]
)
def test_what_is_no_release_number_is_none(text: object) -> None:
    assert release_of(text) is None


# --- judging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({"server_version": "1.0.0"}, Compatible()),
        ({"server_version": "1.9", "supported_versions": [V3, V2]}, Compatible()),
        ({"server_version": "1.2", "min_client_version": "1.2"}, Compatible()),
        ({"server_version": "9", "min_client_version": "1.0"}, Compatible()),  # it says whom it takes: that counts
        ({"server_version": "9", "supported_versions": [V1]}, Compatible()),
        ({"server_version": "1.2", "min_client_version": "1.10"}, UpdateRequired(minimum="1.10")),
        ({"server_version": "1.2", "min_client_version": "1.3rc1"}, UpdateRequired(minimum="1.3rc1")),
        ({"server_version": "2.0"}, UpdateRequired(minimum=None)),
        ({"server_version": "2.0", "supported_versions": [V3]}, UpdateRequired(minimum=None)),
        ({"server_version": "0.1", "supported_versions": ["inbetweenies-v0"]}, ServerTooOld()),
        ({"latest_client_version": "1.4", "supported_versions": [V2]}, UpdateRecommended(minimum="1.4")),
        ({"latest_client_version": "1.1", "supported_versions": [V2]}, Compatible()),
        (
            {"latest_client_version": "1.4", "min_client_version": "1.3", "supported_versions": [V3]},
            UpdateRequired(minimum="1.3"),
        ),
    ],
)
def test_a_verdict_follows_from_what_is_said(body: dict[str, Any], verdict: Verdict) -> None:
    assert verdict == judged(**body)


def test_wire_versions_that_cannot_be_compared_leave_it_unknown() -> None:
    found = judged(supported_versions=["somebody-elses-v1"])

    assert isinstance(found, Unknown)
    assert "shares no wire version" in found.reason


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_release_at_or_above_the_minimum_is_never_told_that_it_must_update(low: int, mid: int, high: int) -> None:
    low, mid, high = sorted((low, mid, high))
    told = Told(minimum=Version(f"1.{low}"), latest=Version(f"1.{high}"), wires=(V2,))
    verdict = judge(told, running=Version(f"1.{mid}"), spoken=(V2,))

    assert (Compatible() if mid == high else UpdateRecommended(minimum=f"1.{high}")) == verdict


@pytest.mark.parametrize(
    ("running", "server", "expected"),
    [("1.9", "2.0", True), ("2.0", "1.9", False), ("1.0", "1.99", False), ("1.0", "1!0.1", True)],
)
def test_a_generation_ahead_is_told_by_the_first_number(running: str, server: str, expected: bool) -> None:
    assert expected == too_old(Version(running), Version(server))
