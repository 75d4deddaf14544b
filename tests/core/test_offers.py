"""A client's half of negotiation (PROTOCOL 5.9, 5.13, 5.14): what it offers, and what moves it to another version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.errors import (
    BodyNotValidForVersion,
    LocalProtocolError,
    NoCommonVersion,
    ServedVersionMismatch,
    UnsupportedVersion,
    VersionDisabled,
    VersionRefused,
)
from inbetweenies.negotiation import DEPLOYED_DETAIL
from inbetweenies.offers import (
    HINT_US,
    Absent,
    Course,
    Failed,
    Hint,
    Served,
    Signal,
    Turned,
    Unversioned,
    VersionPolicy,
    begin,
    error_of,
    hint_of,
    signal_of,
    step,
)

V1, V2, V3, V10 = (f"inbetweenies-v{n}" for n in (1, 2, 3, 10))
SPOKEN = (V10, V3, V2, V1)
OFFER = (V3, V2, V1)


# --- what to offer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "offer"),
    [
        (VersionPolicy(), SPOKEN),
        (VersionPolicy.exact(V2), (V2,)),
        (VersionPolicy.choice(V1, V3, V1), (V1, V3)),
        (VersionPolicy.choice("inbetweenies-v99", V2), (V2,)),
        (VersionPolicy.latest_from(), SPOKEN),
        (VersionPolicy.latest_from(V2, V3), (V3, V2)),
        (VersionPolicy.latest_from(V3, V3), (V3,)),
        (VersionPolicy.floor(V2), (V10, V3, V2)),
        (VersionPolicy.ceiling(V3), (V3, V2, V1)),
    ],
)
def test_a_policy_says_what_is_offered_and_in_which_order(policy: VersionPolicy, offer: tuple[str, ...]) -> None:
    assert offer == policy.offer(SPOKEN)


@pytest.mark.parametrize(
    "policy",
    [
        VersionPolicy.exact("inbetweenies-v99"),
        VersionPolicy.choice(),
        VersionPolicy.choice("inbetweenies-v98", "inbetweenies-v99"),
        VersionPolicy.floor("inbetweenies-v99"),
        VersionPolicy.ceiling("inbetweenies-v99"),
        VersionPolicy.latest_from(V3, V2),
    ],
)
def test_a_policy_that_leaves_nothing_is_a_mistake_of_the_caller(policy: VersionPolicy) -> None:
    with pytest.raises(LocalProtocolError, match="inbetweenies-v10, inbetweenies-v3"):
        policy.offer(SPOKEN)


# --- what a server says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "signal"),
    [
        ({"status": 400, "detail": DEPLOYED_DETAIL}, Turned(code="unsupported_version")),
        (
            {"status": 400, "code": "version_disabled", "supported": [V1]},
            Turned(code="version_disabled", supported=(V1,)),
        ),
        ({"status": 400, "code": "no_common_version"}, Turned(code="no_common_version")),
        ({"status": 410, "code": "version_retired"}, Turned(code="version_retired")),
        ({"status": 406, "supported": [V1]}, Turned(code="", supported=(V1,))),
        ({"status": 410, "supported": [V1]}, Turned(code="", supported=(V1,))),
        ({"status": 426, "supported": [V1]}, Turned(code="", supported=(V1,))),
        ({"status": 400, "supported": [V1, 7, None, "", "é", "inbetweenies-v2570"]}, Turned(code="", supported=(V1,))),
        ({"status": 404}, Absent()),
        ({"status": 405}, Absent()),
        ({"status": 404, "supported": [V1], "code": "unsupported_version"}, Absent()),
        ({"status": 400}, Failed()),
        ({"status": 400, "detail": "Unsupported protocol version."}, Failed()),
        ({"status": 422, "detail": DEPLOYED_DETAIL}, Failed()),
        ({"status": 426, "detail": DEPLOYED_DETAIL}, Failed()),
        ({"status": 406, "code": "no_common_version"}, Failed()),
        ({"status": 400, "supported": ["inbetweenies-v2570"]}, Failed()),
        ({"status": 400, "code": "bad_cursor"}, Failed()),
        ({"status": 410}, Failed()),
        *(
            ({"status": status, "supported": [V1], "code": "unsupported_version", "detail": DEPLOYED_DETAIL}, Failed())
            for status in (200, 301, 401, 403, 408, 409, 413, 422, 429, 500, 501, 502, 503, 504, 505, 511)
        ),
    ],
)
def test_only_a_closed_set_of_answers_is_about_the_version(answer: Any, signal: Signal) -> None:
    assert signal == signal_of(**answer)


# --- what to do then ----------------------------------------------------------------------------------------------

AT_V3 = Course(offer=OFFER, named=V3)
AT_V1 = Course(offer=OFFER, named=V1)
RETRIED = Course(offer=OFFER, named=V2, refused=frozenset({V3}), retried=True)


@pytest.mark.parametrize(
    ("course", "signal", "named", "verdict"),
    [
        (AT_V3, Served(version=V3), V3, "use"),
        (AT_V3, Served(version=V3, supported=(V2, V3)), V2, "use"),
        (AT_V3, Served(version=V3, supported=(V10, V3)), V3, "use"),
        (AT_V3, Served(version=V3, supported=(V10,)), V3, "use"),
        (AT_V1, Served(version=V1, supported=(V2, V1)), V2, "use"),
        (Course(offer=OFFER, named=V1, moved=True), Served(version=V1, supported=(V2, V1)), V1, "use"),
        (AT_V3, Served(version=V1), V1, "again"),
        (AT_V3, Served(version=V10), V3, "stop"),
        (RETRIED, Served(version=V1), V2, "stop"),
        (AT_V3, Turned(code="", supported=(V1, V2)), V1, "again"),
        (AT_V3, Turned(code="unsupported_version"), V2, "again"),
        (AT_V3, Turned(code="", supported=(V10,)), V3, "stop"),
        (AT_V3, Turned(code="", supported=(V3, V2)), V3, "stop"),
        (RETRIED, Turned(code="", supported=(V1,)), V2, "stop"),
        (AT_V1, Turned(code="", supported=(V3,)), V3, "again"),
        (AT_V3, Unversioned(likely=V1), V1, "again"),
        (AT_V1, Unversioned(likely=V1), V1, "stop"),
        (Course(offer=(V3, V2), named=V3), Unversioned(likely=V1), V3, "stop"),
        (AT_V1, Absent(), V3, "again"),
        (AT_V3, Absent(), V3, "stop"),
        (RETRIED, Absent(), V2, "stop"),
        (AT_V3, Failed(), V3, "stop"),
        (AT_V1, Failed(), V1, "stop"),
    ],
)
def test_each_signal_moves_the_course_as_the_table_says(
    course: Course, signal: Signal, named: str, verdict: str
) -> None:
    after, told = step(course, signal)

    assert (named, verdict) == (after.named, told)
    assert (verdict == "again") == (after.retried and after.named != course.named)


def test_a_version_that_was_refused_is_not_gone_back_to() -> None:
    course, _ = step(AT_V3, Turned(code="version_disabled", supported=(V1,)))
    course, _ = step(course, Served(version=V1, supported=(V3, V2, V1)))

    assert (V2, frozenset({V3})) == (course.named, course.refused)


HINT = Hint(key="here", served=V2, revision="1-a", expires=100)


@pytest.mark.parametrize(
    ("hint", "fields", "named"),
    [
        (None, {}, V3),
        (HINT, {}, V2),
        (HINT, {"revision": "1-a"}, V2),
        (HINT, {"revision": "2-a"}, V3),
        (HINT, {"key": "there"}, V3),
        (HINT, {"now": 100}, V3),
        (Hint(key="here", served=V10, expires=100), {}, V3),
    ],
)
def test_a_hint_orders_the_first_attempt_and_only_while_it_holds(hint: Any, fields: Any, named: str) -> None:
    assert Course(offer=OFFER, named=named) == begin(OFFER, hint, **{"key": "here", "now": 99, **fields})


def test_only_what_would_not_come_first_anyway_is_remembered() -> None:
    assert None is hint_of(AT_V3, key="here", now=5, revision="1-a")
    assert Hint(key="here", served=V1, revision=None, expires=5 + HINT_US) == hint_of(
        AT_V1, key="here", now=5, revision=None
    )


@pytest.mark.parametrize(
    ("signal", "kind", "code", "side"),
    [
        (Turned(code="version_disabled", supported=(V1,)), VersionDisabled, "version_disabled", "server"),
        (Turned(code="version_disabled"), VersionDisabled, "version_disabled", "unknown"),
        (Turned(code="body_not_valid_for_version"), BodyNotValidForVersion, "body_not_valid_for_version", "unknown"),
        (Turned(code="unsupported_version", supported=(V1,)), NoCommonVersion, "no_common_version", "server"),
        (Turned(code="", supported=(V10,)), NoCommonVersion, "no_common_version", "client"),
        (Turned(code="unsupported_version"), UnsupportedVersion, "unsupported_version", "unknown"),
        (Turned(code="unsupported_version", supported=(V3, V1)), UnsupportedVersion, "unsupported_version", "unknown"),
        (Turned(code="version_retired"), VersionRefused, "version_retired", "unknown"),
        (Unversioned(likely=V1), UnsupportedVersion, "unsupported_version", "unknown"),
        (Served(version=V1), ServedVersionMismatch, "served_version_mismatch", "unknown"),
    ],
)  # fmt: skip
def test_a_course_that_ends_says_who_is_behind(signal: Signal, kind: type[Exception], code: str, side: str) -> None:
    error = error_of(Course(offer=(V3, V2), named=V3), signal, V3)

    assert type(error) is kind
    assert (code, side, V3, "renegotiate") == (error.code, error.side, error.requested, error.retry)


def test_a_list_that_holds_what_it_refuses_is_reported() -> None:
    error = error_of(AT_V3, Turned(code="", supported=(V3, V1)), V3)

    assert "the list was ignored" in str(error)


@given(
    st.lists(
        st.one_of(
            st.builds(Served, version=st.sampled_from(SPOKEN), supported=st.lists(st.sampled_from(SPOKEN)).map(tuple)),
            st.builds(Turned, code=st.just(""), supported=st.lists(st.sampled_from(SPOKEN)).map(tuple)),
            st.just(Unversioned(likely=V1)),
            st.just(Absent()),
            st.just(Failed()),
        ),
        max_size=30,
    ),
    st.sampled_from(OFFER),
)
def test_whatever_a_server_says_each_message_is_sent_twice_at_most(signals: list[Signal], named: str) -> None:
    course = Course(offer=OFFER, named=named)
    sent = 0
    for signal in signals:
        sent += 1
        course, verdict = step(course, signal)
        assert course.named in OFFER
        assert sent <= 2
        if verdict == "use":
            sent = 0
        elif verdict == "stop":
            return
