"""How those who look after a server are reached, when it is the server that cannot be (PROTOCOL 14.6).

A channel sends, or raises. Apprise knows a hundred services; it is loaded only by whoever names one of them, and comes
with the extra ``notify``. What a channel is named by never holds its secrets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from ..errors import InbetweeniesError, LocalProtocolError
from ..rollout.escalation import shown
from ..stores.clock import wall_clock

FILE: Final = "file"


class ChannelDown(InbetweeniesError):
    """A channel could not be used."""


class Channel(Protocol):
    """One way to reach somebody."""

    @property
    def name(self) -> str:
        """What it is called where results are told; the same in every process, and without secrets."""

    def send(self, title: str, body: str) -> None:
        """Send, and return when that is out of our hands. Raises whatever it likes if it could not."""


class FileChannel:
    """Appends a line of JSON to a file: for a drill, and for whoever follows one."""

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        self._path = path

    def send(self, title: str, body: str) -> None:
        """See `Channel.send`. Raises `OSError`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": wall_clock(), "title": title, "body": body}) + "\n")


class AppriseChannel:
    """One service that Apprise knows, by its URL.

    Raises:
        LocalProtocolError: Apprise is not installed, or it knows no such service.
    """

    def __init__(self, url: str) -> None:
        try:
            import apprise  # type: ignore[import-not-found,unused-ignore] # an extra
        except ImportError:
            raise LocalProtocolError(
                "expected Apprise, which sends to services; not installed: pip install 'inbetweenies[notify]', or name "
                "a file as file:///path"
            ) from None
        self._sender: Any = apprise.Apprise()
        if not self._sender.add(url):
            raise LocalProtocolError(
                f"expected the URL of a service that Apprise knows; got another, of {_scheme(url)}: see `apprise "
                "--details`"
            )
        # Its own short form of a URL, in which secrets are masked; never the URL itself.
        self.name = shown(str(self._sender[0].url(privacy=True)))

    def send(self, title: str, body: str) -> None:
        """See `Channel.send`. Raises `ChannelDown`."""
        if not self._sender.notify(title=title, body=body):
            raise ChannelDown(f"expected {self.name} to take it; it did not: is its address right, and the network up?")


def channel_of(url: str) -> Channel:
    """The channel that `url` names: ``file:///path``, or what Apprise knows.

    Raises:
        LocalProtocolError: it names none.
    """
    if _scheme(url) != FILE:
        return AppriseChannel(url)
    path = unquote(urlsplit(url).path)
    if not path.startswith("/"):
        raise LocalProtocolError("expected a file as file:///path, with its whole path; got another")
    return FileChannel(Path(path))


def _scheme(url: str) -> str:
    return url.split(":", 1)[0].lower()[:32] if ":" in url else "no service"


class Result(Struct, frozen=True, kw_only=True):
    """What became of one channel; `error` is None if it was sent."""

    channel: str
    error: str | None = None


def use(channel: Channel, title: str, body: str) -> Result:
    """Send over one channel. Never raises: one that is down must not keep the others from being used."""
    try:
        channel.send(title, body)
    except Exception as error:  # noqa: BLE001 - a channel may be anybody's code
        return Result(channel=channel.name, error=shown(f"{type(error).__name__}: {error}"))
    return Result(channel=channel.name)
