"""`FeatureFlags`: which features are on in every process that serves one store (PROTOCOL 12.4)."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import StoreError
from ..model import Document
from ..rollout.flags import (
    DOCUMENT,
    FEATURES,
    Catalogue,
    Feature,
    Flags,
    InForce,
    document_of,
    flags_in,
    in_force,
    last_known,
    last_known_body,
)
from ..rollout.kept import Cause
from ..store import Store
from ..stores.clock import wall_clock
from .polled import Polled

_log: Final = logging.getLogger(__name__)


class FeatureFlags:
    """The features of one store. What is switched is durable on return and counts in every process within a second.

    Args:
        store: where the flags are kept.
        features: those that there are.
        known: a file in which this process writes down what it last knew, to go by if it starts while the store is
            away. Without one it refuses then.
        clock: microseconds since 1970, for what is kept of a switch.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        store: Store,
        *,
        features: Catalogue = FEATURES,
        known: Path | None = None,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._features = features
        self._file = known
        self._clock = clock
        self._written: InForce | None = None
        self._polled = Polled(store, DOCUMENT, self._decoded, otherwise=self._without_store, monotonic=monotonic)

    def pinned(self) -> InForce:
        """The features as they are now, for one sync to be held to from its beginning to its end.

        Raises:
            StoreError: the store is away, and nothing is known of before.
        """
        return self._polled.value()

    def is_enabled(self, feature: Feature | str) -> bool:
        """Whether a feature is on.

        Raises:
            LocalProtocolError: there is no such feature.
            StoreError: the store is away, and nothing is known of before.
        """
        return self.pinned().is_enabled(_name(feature))

    def enable(self, feature: Feature | str, *, actor: str = "operator", reason: str = "not given") -> None:
        """Switch a feature on.

        Raises:
            LocalProtocolError: there is no such feature, or one that it needs is off.
            StoreError: the store could not; nothing was changed.
        """
        self._switch(lambda flags, cause: flags.enabled(_name(feature), cause, self._features), actor, reason)

    def disable(self, feature: Feature | str, *, actor: str = "operator", reason: str = "not given") -> None:
        """Switch a feature off, and all that need it.

        Raises:
            LocalProtocolError: there is no such feature.
            StoreError: the store could not; nothing was changed.
        """
        self._switch(lambda flags, cause: flags.disabled(_name(feature), cause, self._features), actor, reason)

    def disable_all(self, *, actor: str = "operator", reason: str = "not given") -> None:
        """Switch every feature off.

        Raises:
            StoreError: the store could not; nothing was changed.
        """
        self._switch(lambda flags, cause: flags.all_disabled(cause, self._features), actor, reason)

    def _switch(self, change: Callable[[Flags, Cause], Flags], actor: str, reason: str) -> None:
        cause = Cause(actor=actor, reason=reason, at=self._clock())
        self._polled.amend(lambda document: document_of(change(flags_in(document), cause)))

    def _decoded(self, document: Document) -> InForce:
        flags = in_force(document, None, self._features)
        if self._file is not None and flags != self._written:
            _write_down(self._file, last_known_body(flags))
            self._written = flags
        return flags

    def _without_store(self, error: StoreError) -> InForce:
        try:
            body = b"" if self._file is None else self._file.read_bytes()
        except OSError:
            body = b""
        known = last_known(body)
        if known is None:
            raise error
        return in_force(None, known, self._features)


def _name(feature: Feature | str) -> str:
    return feature if isinstance(feature, str) else feature.name


def _write_down(path: Path, body: bytes) -> None:
    """Put `body` in the place of the file, whole or not at all."""
    try:
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
            Path(made).replace(path)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    except OSError as error:
        # The store has it. Not to serve for want of a file that is only read without the store would be worse.
        _log.warning("expected to write %s; the system says: %s", path, error.strerror)
