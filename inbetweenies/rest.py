"""`versioned_endpoint`: one handler, written for the newest version of its API, serves all older ones as well.

For the REST side of an application, in Starlette or FastAPI, and its own header ``API-Version``; the sync wire chooses
its versions by itself and never looks at it. A request is raised to the newest version before the handler, its answer
lowered after it, step by step between neighbours. Nothing here compares versions as text, guesses a version that is not
named, or lets what an old client does not know of delete anything.

The frameworks are imported when a handler is decorated or called, so importing this needs neither.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, TypeAlias, get_type_hints

from msgspec import Struct

from .asgi.discovery import notice_headers
from .errors import LocalProtocolError, RemoteProtocolError
from .negotiation import problem
from .registry import Notice

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HEADER: Final = "API-Version"
WRITES: Final = frozenset({"POST", "PUT", "PATCH"})

_VERSION: Final = re.compile(r"v?([1-9][0-9]{0,8})")
_REQUEST: Final = "versioned_endpoint_request"
_RESPONSE: Final = "versioned_endpoint_response"
_ASKED: Final = "versioned_endpoint_asked"

Adapter: TypeAlias = Callable[[Any], Any]
Current: TypeAlias = Callable[["Request"], Any]


class Adapters:
    """How JSON values of neighbouring versions are made of one another. What is not registered is the same in both.

    ::

        rooms = Adapters()

        @rooms.up(1)                       # a body of version 1 becomes one of version 2
        def _(body):
            return {**body, "zones": [body.pop("zone")]} if "zone" in body else body

        @rooms.down(2)                     # an answer of version 2 becomes one of version 1
        def _(answer): ...

    An adapter may change what it is given. It leaves out what it has no value for: a key that is absent changes
    nothing, one that is null sets null.
    """

    def __init__(self) -> None:
        self._up: dict[int, Adapter] = {}
        self._down: dict[int, Adapter] = {}

    def up(self, version: int | str) -> Callable[[Adapter], Adapter]:
        """Register what makes a body of `version` one of the next version."""
        return _registers(self._up, _number(version))

    def down(self, version: int | str) -> Callable[[Adapter], Adapter]:
        """Register what makes an answer of `version` one of the version before."""
        return _registers(self._down, _number(version))

    def raised(self, body: Any, version: int, to: int) -> Any:
        """`body` of `version` as one of version `to`."""
        for step in range(version, to):
            body = self._up[step](body) if step in self._up else body
        return body

    def lowered(self, answer: Any, version: int, to: int) -> Any:
        """`answer` of `version` as one of version `to`."""
        for step in range(version, to, -1):
            answer = self._down[step](answer) if step in self._down else answer
        return answer

    def laid_over(self, current: Any, body: Any, version: int, to: int) -> Any:
        """`current` of version `to` with what an old client changed: `body` of `version`, laid over what that client
        could see of it. What it cannot see stays, and so does what it left out."""
        seen = self.lowered(deepcopy(current), to, version)
        edited = _merged(deepcopy(seen), body)
        before, after = self.raised(seen, version, to), self.raised(edited, version, to)
        return _changed(current, before, after)


def _registers(where: dict[int, Adapter], version: int) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        if version in where:
            raise LocalProtocolError(f"expected one adapter from version {version} on; got a second one")
        where[version] = adapter
        return adapter

    return register


def _merged(base: Any, body: Any) -> Any:
    """`body` laid over `base`; what is absent in it stays."""
    if not isinstance(base, dict) or not isinstance(body, dict):
        return body
    return {**base, **{key: _merged(base[key], value) if key in base else value for key, value in body.items()}}


def _changed(current: Any, before: Any, after: Any) -> Any:
    """`current` with what differs between `before` and `after`."""
    if before == after:
        return current
    if not (isinstance(current, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return after
    kept = {key: value for key, value in current.items() if key in after or key not in before}
    for key, value in after.items():
        kept[key] = _changed(current.get(key), before[key], value) if key in before and key in current else value
    return kept


class Traffic(Struct):
    """How often an endpoint was called: by the version that served, and of these without naming one; and how often it
    refused the version that was named."""

    served: dict[int, int] = {}
    missing: int = 0
    refused: int = 0


class Endpoint(Protocol):
    """A decorated handler: to be registered as a route, and to be asked who still needs which version."""

    traffic: Traffic
    adapters: Adapters
    __name__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...


class _Asked(Struct):
    """What one request asks for: the version it is served in, or why it is refused."""

    version: int
    named: bool
    error: RemoteProtocolError | None = None
    side: str = "unknown"
    current: Any = None


_asked: ContextVar[_Asked] = ContextVar("versioned_endpoint")


def versioned_endpoint(
    *,
    min_version: int | str = 1,
    max_version: int | str,
    adapters: Adapters | None = None,
    missing: int | str | None = "min",
    deprecated: Mapping[int, Notice] | None = None,
    current: Current | None = None,
) -> Callable[[Callable[..., Any]], Endpoint]:
    """Serve versions `min_version` to `max_version` of an endpoint with a handler that is written for the newest.

    ::

        @api.put("/rooms/{room_id}")
        @versioned_endpoint(min_version=1, max_version=2, adapters=rooms)
        async def put_room(room_id: str, room: Room) -> Room: ...

    Works on sync and async handlers of Starlette and FastAPI; FastAPI's parameters, dependencies and response models
    work as they do without it. Every answer says its version, and so do the headers of a deprecated one. A version out
    of range, or one that is none, is refused with a problem document (RFC 9457) that names the range.

    Args:
        min_version, max_version: the oldest and the newest version, as ``2`` or ``"v2"``.
        adapters: between neighbouring versions; may be shared by endpoints, and filled later.
        missing: the version of a request that names none, ``"min"`` or ``"max"``; None refuses those.
        deprecated: which versions are on their way out; `Notice.successor` is the address of what comes after.
        current: for writes that replace: what is stored now, in the newest version, of what `request` is about, or
            None. Then a body of an older version changes only what it says.

    Raises:
        LocalProtocolError: the versions are no range, or the handler has two bodies, or is a generator.
    """
    lowest, highest = _number(min_version), _number(max_version)
    if lowest > highest:
        raise LocalProtocolError(f"expected min_version to be at most max_version {highest}; got {lowest}")
    implied = None if missing is None else _number({"min": lowest, "max": highest}.get(str(missing), missing))
    if implied is not None and not lowest <= implied <= highest:
        raise LocalProtocolError(f"expected missing to be one of {lowest} to {highest}; got {implied}")
    versions = _Versions(
        lowest=lowest,
        highest=highest,
        implied=implied,
        adapters=adapters or Adapters(),
        deprecated=dict(deprecated or {}),
        current=current,
    )
    return versions.decorate


def _number(version: int | str) -> int:
    match = _VERSION.fullmatch(str(version))
    if match is None or isinstance(version, bool):
        raise LocalProtocolError("expected a version such as 2 or 'v2'; got something else")
    return int(match[1])


class _Versions:
    """What `versioned_endpoint` was told, and what becomes of one call."""

    def __init__(
        self,
        *,
        lowest: int,
        highest: int,
        implied: int | None,
        adapters: Adapters,
        deprecated: dict[int, Notice],
        current: Current | None,
    ) -> None:
        self.lowest = lowest
        self.highest = highest
        self.implied = implied
        self.adapters = adapters
        self.deprecated = deprecated
        self.current = current

    # --- the handler

    def decorate(self, handler: Callable[..., Any]) -> Endpoint:
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise LocalProtocolError("expected a handler that returns its answer; got one that yields it in parts")
        signature, names = inspect.signature(handler), (_REQUEST, _RESPONSE)
        if sys.modules.get("fastapi") is not None:  # whoever makes FastAPI routes has imported it
            signature, names = self._for_fastapi(handler, signature)
        waits, traffic = inspect.iscoroutinefunction(handler), Traffic()

        @wraps(handler)
        async def endpoint(*args: Any, **kwargs: Any) -> Any:
            from starlette.concurrency import run_in_threadpool
            from starlette.requests import Request

            asked, request, aside = (kwargs.pop(name, None) for name in (_ASKED, _REQUEST, _RESPONSE))
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Request)]
            request, aside = given[0] if given else request, kwargs.get(names[1], aside)
            if request is None:
                raise LocalProtocolError("expected a handler that takes a Request, or one in a FastAPI application")
            if asked is None:
                asked = await self.asked(request)
            _count(traffic, asked)
            if given and asked.error is None and asked.version < self.highest:
                raised = await self._raised(request, asked)
                args = tuple(raised if value is request else value for value in args)
                kwargs = {name: raised if value is request else value for name, value in kwargs.items()}
            if asked.error is not None:
                return self._refusal(asked)
            answer = await handler(*args, **kwargs) if waits else await run_in_threadpool(handler, *args, **kwargs)
            return self._answer(request, asked, answer, aside)

        endpoint.__signature__ = signature  # type: ignore[attr-defined]
        endpoint.traffic = traffic  # type: ignore[attr-defined]
        endpoint.adapters = self.adapters  # type: ignore[attr-defined]
        return endpoint  # type: ignore[return-value]

    def _for_fastapi(
        self, handler: Callable[..., Any], signature: inspect.Signature
    ) -> tuple[inspect.Signature, tuple[str, str]]:
        """The signature that FastAPI is shown: that of `handler`, and what is needed here besides.

        A dependency is solved before the body is validated, so it finds out the version; the body's own validation
        then raises it. Both are what FastAPI documents.
        """
        from fastapi import Depends
        from fastapi.dependencies.utils import get_dependant
        from pydantic import WrapValidator
        from starlette.requests import Request
        from starlette.responses import Response

        try:
            hints = get_type_hints(handler, include_extras=True)
            bodies = [
                field.name
                for field in get_dependant(path="", call=handler).body_params
                if type(field.field_info).__name__ == "Body"
            ]
        except Exception:  # noqa: BLE001 - FastAPI says better than we why it can make no route of it
            return signature, (_REQUEST, _RESPONSE)
        if len(bodies) > 1:
            raise LocalProtocolError(f"expected one body; got {', '.join(bodies)}: put them into one model")
        parameters = [
            parameter.replace(annotation=hints.get(name, parameter.annotation))
            for name, parameter in signature.parameters.items()
        ]
        parameters = [
            parameter.replace(annotation=Annotated[parameter.annotation, WrapValidator(self._validated)])
            if parameter.name in bodies
            else parameter
            for parameter in parameters
        ]
        # FastAPI gives each of these to one parameter only, so one that is there already has to be shared.
        request = next((one.name for one in parameters if _is(one.annotation, Request)), _REQUEST)
        response = next((one.name for one in parameters if _is(one.annotation, Response)), _RESPONSE)
        given = {_REQUEST: Request, _RESPONSE: Response, _ASKED: Annotated[Any, Depends(self._depends())]}
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
            for name, annotation in given.items()
            if name in (request, response, _ASKED)
        ]
        rest = [one for one in parameters if one.kind is inspect.Parameter.VAR_KEYWORD]
        before = [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
        returns = hints.get("return", signature.return_annotation)
        shown = signature.replace(
            parameters=[*before, *added, *rest], return_annotation=None if returns is type(None) else returns
        )
        return shown, (request, response)

    def _depends(self) -> Callable[..., Awaitable[_Asked]]:
        from starlette.requests import Request

        async def asked(request: Any) -> _Asked:
            found = await self.asked(request)
            _asked.set(found)
            return found

        asked.__annotations__ = {"request": Request}
        return asked

    def _validated(self, body: Any, validate: Callable[[Any], Any]) -> Any:
        """A body raised to the newest version, and then validated as one. One that is refused is not looked at."""
        asked = _asked.get()
        if asked.error is None and asked.version < self.highest:
            body = self._raised_value(body, asked)
        return body if asked.error is not None else validate(body)

    # --- which version

    async def asked(self, request: Request) -> _Asked:
        """Which version a request is served in."""
        named = request.headers.getlist(HEADER)
        match = _VERSION.fullmatch(named[0].strip()) if len(named) == 1 else None
        told = f"{HEADER} {self.lowest} to {self.highest}"
        if not named:
            if self.implied is None:
                return self._refused(RemoteProtocolError(code="version_required", expected=told, got="none"))
            asked = _Asked(version=self.implied, named=False)
        elif match is None:
            got = f"a text of {len(named[0])} characters" if len(named) == 1 else "several of them"
            return self._refused(RemoteProtocolError(code="malformed_version", expected=told, got=got))
        else:
            asked = _Asked(version=int(match[1]), named=True)
            if not self.lowest <= asked.version <= self.highest:
                older = asked.version < self.lowest
                got, asked.side = ("an older one", "client") if older else ("a newer one", "server")
                asked.error = RemoteProtocolError(code="unsupported_version", expected=told, got=got)
                return asked
        if self.current is not None and asked.version < self.highest and request.method in WRITES:
            found = self.current(request)
            asked.current = await found if inspect.isawaitable(found) else found
        return asked

    def _refused(self, error: RemoteProtocolError) -> _Asked:
        return _Asked(version=self.highest, named=True, error=error)

    # --- up

    async def _raised(self, request: Request, asked: _Asked) -> Request:
        """`request` with its JSON body raised; with a body that is no JSON, as it is."""
        from starlette.requests import Request

        body = await request.body() if _is_json(request.headers.get("content-type", "")) else b""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return request  # the handler says better what it expects
        raised = json.dumps(self._raised_value(value, asked)).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": raised, "more_body": False}

        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", b"%d" % len(raised)))
        return Request({**request.scope, "headers": headers}, receive)

    def _raised_value(self, body: Any, asked: _Asked) -> Any:
        versions = (asked.version, self.highest)
        try:
            if asked.current is None:
                return self.adapters.raised(deepcopy(body), *versions)
            return self.adapters.laid_over(asked.current, deepcopy(body), *versions)
        except Exception as error:  # noqa: BLE001 - a peer can send anything, and an adapter expects something
            asked.error = RemoteProtocolError(
                code="body_not_valid_for_version",
                expected=f"a body of version {asked.version}",
                got=f"one that could not be read as such ({type(error).__name__})",
            )
            return body

    # --- down

    def _answer(self, request: Request, asked: _Asked, answer: Any, aside: Response | None) -> Any:
        """The handler's `answer` in the version that was asked for. `aside` is where FastAPI collects headers."""
        from starlette.responses import JSONResponse, Response

        lower = asked.version < self.highest
        if not isinstance(answer, Response):
            if not lower and aside is not None:
                self._mark(aside, asked.version)
                return answer  # FastAPI makes a response of it
            route = request.scope.get("route")
            status = getattr(aside, "status_code", None) or getattr(route, "status_code", None) or 200
            made: Response = Response(status_code=status)
            if status not in (204, 304):
                value = self.adapters.lowered(_plain(answer, route), self.highest, asked.version)
                made = JSONResponse(value, status)
            if aside is not None:
                made.headers.raw.extend(aside.headers.raw)
            answer = made
        elif lower and answer.status_code < 400:
            answer = self._lowered(answer, asked.version)
        self._mark(answer, asked.version)
        return answer

    def _lowered(self, answer: Response, version: int) -> Response:
        from starlette.responses import Response

        if not _is_json(answer.headers.get("content-type", "")):
            return answer
        if not hasattr(answer, "body"):
            raise LocalProtocolError("expected an answer that is whole, to be lowered; got one that is streamed")
        lowered = self.adapters.lowered(json.loads(bytes(answer.body)), self.highest, version)
        body = json.dumps(lowered, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        made = Response(body, answer.status_code, background=answer.background)
        kept = [(name, value) for name, value in answer.headers.raw if name != b"content-length"]
        made.raw_headers = [*kept, (b"content-length", b"%d" % len(body))]
        return made

    def _mark(self, answer: Response, version: int | None) -> None:
        """Say which version the answer is in, and that caches must keep it apart from others."""
        answer.headers.add_vary_header(HEADER)
        if version is None:
            return
        answer.headers[HEADER] = str(version)
        notice = self.deprecated.get(version)
        if notice is not None:
            for name, value in notice_headers(notice, successor="{}"):
                answer.headers.append(name.decode(), value.decode())

    def _refusal(self, asked: _Asked) -> Response:
        from starlette.responses import JSONResponse

        assert asked.error is not None
        told = problem(asked.error)
        told |= {"min_version": self.lowest, "max_version": self.highest, "side": asked.side}
        made = JSONResponse(told, asked.error.status, media_type="application/problem+json")
        self._mark(made, None)
        return made


def _count(traffic: Traffic, asked: _Asked) -> None:
    if asked.error is not None:
        traffic.refused += 1
        return
    traffic.served[asked.version] = traffic.served.get(asked.version, 0) + 1
    traffic.missing += not asked.named


def _is(annotation: Any, kind: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, kind)


def _is_json(media: str) -> bool:
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _plain(answer: Any, route: Any) -> Any:
    """The JSON that FastAPI would make of `answer`: what its response model leaves out stays out."""
    from fastapi.encoders import jsonable_encoder

    model = getattr(route, "response_model", None)
    if model is None:
        return jsonable_encoder(answer)
    from pydantic import TypeAdapter

    shape: TypeAdapter[Any] = TypeAdapter(model)
    return shape.dump_python(
        shape.validate_python(answer, from_attributes=True),
        mode="json",
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
    )
