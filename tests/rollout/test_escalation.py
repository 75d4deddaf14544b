"""Whom of those who look after a server to call next (PROTOCOL 14.6)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.rollout.escalation import (
    ACK_WAIT_US,
    ALERTS_MAX,
    ATTEMPTS_MAX,
    BACKOFF_US,
    TRIES_MAX,
    Alert,
    Alerts,
    Attempt,
    alerts_in,
    document_of,
    due,
    shown,
)
from inbetweenies.rollout.kept import Cause

CHANNELS = ("phone", "mail", "siren")
ALERT = Alert(key="k", title="t", body="b", at=0)


def after(*attempts: tuple[str, int, bool]) -> Alert:
    alert = ALERT
    for channel, at, sent in attempts:
        alert = alert.tried(Attempt(channel=channel, at=at, error=None if sent else "down"))
    return alert


@pytest.mark.parametrize(
    ("attempts", "now", "expected"),
    [
        ([], 0, ("phone",)),
        ([("phone", 0, True)], ACK_WAIT_US - 1, ()),
        ([("phone", 0, True)], ACK_WAIT_US, ("mail",)),
        ([("phone", 0, True), ("mail", ACK_WAIT_US, True)], 2 * ACK_WAIT_US - 1, ()),
        ([("phone", 0, True), ("mail", ACK_WAIT_US, True)], 2 * ACK_WAIT_US, ("siren",)),
        ([("phone", 0, False)], 0, ("mail",)),
        ([("phone", 0, False), ("mail", 0, True)], BACKOFF_US - 1, ()),
        ([("phone", 0, False), ("mail", 0, True)], BACKOFF_US, ("phone",)),
        ([("phone", 0, False), ("phone", 10, False), ("mail", 0, True)], 10 + 2 * BACKOFF_US - 1, ()),
        ([("phone", 0, False), ("phone", 10, False), ("mail", 0, True)], 10 + 2 * BACKOFF_US, ("phone",)),
        ([("phone", 0, False), ("mail", 0, False), ("siren", 0, False)], 0, ()),
        ([("phone", 0, False), ("mail", 0, False), ("siren", 0, False)], BACKOFF_US, CHANNELS),
        ([("phone", 0, False)] * TRIES_MAX + [("mail", 0, True)], BACKOFF_US * 1000, ("siren",)),
        ([(name, 0, True) for name in CHANNELS], 10 * ACK_WAIT_US, ()),
    ],
)
def test_who_is_called_next(attempts: list[tuple[str, int, bool]], now: int, expected: tuple[str, ...]) -> None:
    assert expected == due(after(*attempts), CHANNELS, now=now)


def test_once_somebody_has_seen_it_nobody_else_is_called() -> None:
    seen = replace(ALERT, acknowledged=Cause(actor="ada", reason="seen", at=1))

    assert () == due(seen, CHANNELS, now=10 * ACK_WAIT_US)
    assert () == due(ALERT, (), now=0)


def test_what_is_remembered_is_bounded() -> None:
    alert, alerts = ALERT, Alerts()
    for number in range(ATTEMPTS_MAX + 1):
        alert = alert.tried(Attempt(channel="c", at=number))
    for number in range(ALERTS_MAX + 1):
        alerts = alerts.raised(replace(ALERT, key=str(number)))

    assert (ATTEMPTS_MAX, 1) == (len(alert.attempts), alert.attempts[0].at)
    assert (ALERTS_MAX, "1") == (len(alerts.alerts), alerts.alerts[0].key)


def test_an_alert_is_raised_once_and_found_by_its_key() -> None:
    alerts = Alerts().raised(ALERT).raised(replace(ALERT, key="other"))
    tried = after(("phone", 0, True))

    assert alerts is alerts.raised(replace(ALERT, title="again"))
    assert (tried, "other") == (alerts.put(tried).of("k"), alerts.of("other").key)
    assert alerts == alerts.put(replace(ALERT, key="forgotten"))
    with pytest.raises(LocalProtocolError, match=r"of k, other; got another"):
        alerts.of("x")
    with pytest.raises(LocalProtocolError, match=r"of none; got another"):
        Alerts().of("x")


def test_what_is_kept_is_read_again() -> None:
    alerts = Alerts().raised(after(("phone", 0, False)))

    assert alerts == alerts_in(Document(revision=1, body=document_of(alerts)))
    assert Alerts() == alerts_in(Document())
    with pytest.raises(StoreCorrupt, match="the alerts"):
        alerts_in(Document(revision=1, body=b"[]"))


@pytest.mark.parametrize(
    ("text", "expected"), [("a\nb\x1b[0m", "a b [0m"), ("", "no reason given"), ("x" * 600, "x" * 500)]
)
def test_what_went_wrong_is_shown_on_one_line(text: str, expected: str) -> None:
    assert expected == shown(text)
