"""Whom of those who look after a server to call next, and when: a decision over what was tried so far (PROTOCOL 14.6).

Channels are tried in the order in which they were given. The next one is used once the one before could not be, or once
nobody has acknowledged what it carried for two minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..model import Document
from .kept import TEXT_CHARS_MAX, Cause, read, written

#: The name under which a store keeps `Alerts`.
DOCUMENT: Final = "alerts"
#: Microseconds in which somebody has to acknowledge before the next channel is used.
ACK_WAIT_US: Final = 120 * 1_000_000
#: Microseconds until a channel that could not be used is tried again; twice as many after each time.
BACKOFF_US: Final = 10 * 1_000_000
TRIES_MAX: Final = 6  # of one channel, over five minutes: whoever is away longer is told of by the others
ALERTS_MAX: Final = 64
ATTEMPTS_MAX: Final = 64


class Attempt(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One use of a channel at `at` microseconds; `error` says why it could not be used."""

    channel: str
    at: int
    error: str | None = None


class Alert(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Something that somebody who looks after the server has to know.

    Attributes:
        key: what it is about; there is one alert of a key.
        title, body: what is sent.
        at: when it was raised, in microseconds since 1970.
        attempts: what was tried, oldest first.
        acknowledged: who has seen it; then nobody else is called.
    """

    key: str
    title: str
    body: str
    at: int
    attempts: tuple[Attempt, ...] = ()
    acknowledged: Cause | None = None

    def of(self, channel: str) -> tuple[Attempt, ...]:
        """What was tried of one channel."""
        return tuple(attempt for attempt in self.attempts if attempt.channel == channel)

    def tried(self, attempt: Attempt) -> Alert:
        """With one attempt more."""
        return replace(self, attempts=(*self.attempts, attempt)[-ATTEMPTS_MAX:])


def due(alert: Alert, channels: Sequence[str], *, now: int) -> tuple[str, ...]:
    """The channels to use now, in order."""
    if alert.acknowledged is not None:
        return ()
    found = []
    for channel in channels:
        tries = alert.of(channel)
        sent = [attempt for attempt in tries if attempt.error is None]
        if not sent and len(tries) < TRIES_MAX and (not tries or now - tries[-1].at >= _pause(len(tries))):
            found.append(channel)
        # One that could not be used is tried again beside the next one, which does not wait for it.
        if not tries or (sent and now - sent[0].at < ACK_WAIT_US):
            break
    return tuple(found)


def _pause(tries: int) -> int:
    return BACKOFF_US << (tries - 1)


def shown(text: str) -> str:
    """What went wrong, as text that can be kept and shown."""
    line = "".join(one if one.isprintable() else " " for one in text)[:TEXT_CHARS_MAX].strip()
    return line or "no reason given"


class Alerts(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All alerts that are remembered, oldest first."""

    alerts: tuple[Alert, ...] = ()

    def of(self, key: str) -> Alert:
        """The alert of `key`. Raises `LocalProtocolError`: there is none."""
        for alert in self.alerts:
            if alert.key == key:
                return alert
        known = ", ".join(alert.key for alert in self.alerts) or "none"
        raise LocalProtocolError(f"expected the key of an alert, of {known}; got another")

    def raised(self, alert: Alert) -> Alerts:
        """With `alert`, unless there is one of its key. Of more than `ALERTS_MAX` the oldest are forgotten."""
        if any(one.key == alert.key for one in self.alerts):
            return self
        return Alerts(alerts=(*self.alerts, alert)[-ALERTS_MAX:])

    def put(self, alert: Alert) -> Alerts:
        """With `alert` in the place of the one of its key; as before if that was forgotten."""
        return Alerts(alerts=tuple(alert if one.key == alert.key else one for one in self.alerts))


_alerts: Final = msgspec.json.Decoder(Alerts)


def alerts_in(document: Document) -> Alerts:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_alerts, document, "the alerts") or Alerts()


def document_of(alerts: Alerts) -> bytes:
    """`alerts` as the body of a document."""
    return written(alerts)
