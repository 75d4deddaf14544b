"""`versioned_endpoint`: one handler for the newest version serves the older ones, in FastAPI and in Starlette."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from inbetweenies import Adapters, LocalProtocolError, Notice, versioned_endpoint
from inbetweenies.rest import Traffic

ROOT = Path(__file__).resolve().parents[1]


class Room(BaseModel):
    name: str
    zones: list[str] = []
    floor: int | None = None


class Shown(BaseModel):
    name: str
    zones: list[str]


def rooms() -> Adapters:
    """Version 2 made `zone` a list `zones`; version 3 made `title` a `name`."""
    made = Adapters()

    @made.up(1)
    def _(body: Any) -> Any:
        if "zone" in body:
            body["zones"] = [body.pop("zone")]
        return body

    @made.up("v2")
    def _(body: Any) -> Any:
        if "title" in body:
            body["name"] = body.pop("title")
        return body

    @made.down("3")
    def _(answer: Any) -> Any:
        answer["title"] = answer.pop("name")
        return answer

    @made.down(2)
    def _(answer: Any) -> Any:
        zones = answer.pop("zones")
        answer.pop("floor", None)
        return {**answer, "zone": zones[0] if zones else ""}

    return made


def ask(app: Any, method: str, path: str, version: str | None = None, **more: Any) -> httpx.Response:
    given = more.pop("headers", {})
    headers = [*(given.items() if isinstance(given, dict) else given)]
    headers += [] if version is None else [("API-Version", version)]

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            return await client.request(method, path, headers=headers, **more)

    return asyncio.run(asked())


def problem(response: httpx.Response) -> tuple[int, str, int, int, str]:
    assert "application/problem+json" == response.headers["content-type"]
    told = response.json()
    assert told["status"] == response.status_code
    return response.status_code, told["code"], told["min_version"], told["max_version"], told["side"]


# --- which version ------------------------------------------------------------------------------------------------


def plain(**more: Any) -> tuple[Any, Any]:
    @versioned_endpoint(**{"min_version": 2, "max_version": "v10", **more})
    async def which(request: Request) -> Response:
        return JSONResponse({})

    return Starlette(routes=[Route("/", which)]), which


@pytest.mark.parametrize(("named", "served"), [("2", "2"), ("v2", "2"), ("v10", "10"), ("10", "10"), (" 9 ", "9")])
def test_versions_are_numbers_and_are_named_with_or_without_a_v(named: str, served: str) -> None:
    response = ask(plain()[0], "GET", "/", named)

    told = (response.status_code, response.headers["api-version"], response.headers["vary"])
    assert (200, served, "API-Version") == told


@pytest.mark.parametrize(
    "named", ["", "v", "V2", "02", "2.0", "-2", "v2v", "vv2", "2 3", "two", "9999999999", "²", "1e1"]
)
def test_what_is_no_version_is_refused_and_not_repeated(named: str) -> None:
    response = ask(plain()[0], "GET", "/", headers={"API-Version": named.encode()})

    assert (400, "malformed_version", 2, 10, "unknown") == problem(response)
    assert "expected API-Version 2 to 10" in response.json()["detail"]
    assert "api-version" not in response.headers


def test_two_versions_at_once_are_none() -> None:
    response = ask(plain()[0], "GET", "/", headers=[("API-Version", "2"), ("API-Version", "2")])

    assert (400, "malformed_version", 2, 10, "unknown") == problem(response)


@pytest.mark.parametrize(("named", "side"), [("1", "client"), ("11", "server"), ("100", "server")])
def test_a_version_out_of_range_is_refused_with_the_range_and_who_is_behind(named: str, side: str) -> None:
    assert (400, "unsupported_version", 2, 10, side) == problem(ask(plain()[0], "GET", "/", named))


@pytest.mark.parametrize(("missing", "served"), [("min", "2"), ("max", "10"), (7, "7"), ("v7", "7")])
def test_who_names_no_version_is_served_in_the_one_that_was_decided(missing: Any, served: str) -> None:
    app, which = plain(missing=missing)
    response = ask(app, "GET", "/")

    assert (200, served) == (response.status_code, response.headers["api-version"])
    assert Traffic(served={int(served): 1}, missing=1) == which.traffic


def test_who_names_no_version_can_be_refused() -> None:
    assert (400, "version_required", 2, 10, "unknown") == problem(ask(plain(missing=None)[0], "GET", "/"))


def test_traffic_is_counted_by_version() -> None:
    app, which = plain()
    for named in ("2", "10", "v10", None, "11", "x"):
        ask(app, "GET", "/", named)

    assert Traffic(served={2: 2, 10: 2}, missing=1, refused=2) == which.traffic


@pytest.mark.parametrize(
    "fields",
    [
        {"min_version": 11},
        {"min_version": 0},
        {"min_version": "two"},
        {"max_version": True},
        {"missing": 1},
        {"missing": 11},
        {"missing": "newest"},
    ],
)
def test_versions_that_are_no_range_are_a_mistake_of_the_caller(fields: Any) -> None:
    with pytest.raises(LocalProtocolError):
        plain(**fields)


def test_a_deprecated_version_says_so() -> None:
    notice = Notice(
        since=1_790_000_000_000_000,
        sunset=1_800_000_000_000_000,
        successor="https://example.org/v3",
        link="https://example.org/why",
    )
    app, _ = plain(deprecated={2: notice})
    old, new = ask(app, "GET", "/", "2"), ask(app, "GET", "/", "3")

    assert ("@1790000000", "Fri, 15 Jan 2027 08:00:00 GMT") == (old.headers["deprecation"], old.headers["sunset"])
    assert '<https://example.org/v3>; rel="successor-version"' in old.headers["link"]
    assert not {"deprecation", "sunset", "link"} & set(new.headers)


# --- FastAPI ------------------------------------------------------------------------------------------------------


async def user(token: Annotated[str, Header(alias="X-User")] = "nobody") -> str:
    return token


def fast(*, sync: bool = False, **more: Any) -> tuple[FastAPI, Any, list[Any]]:
    """An application with one endpoint that uses what FastAPI injects, and what its handler was called with."""
    app = FastAPI()
    calls: list[Any] = []

    def work(room: int, who: str, value: Room, response: Response, limit: int) -> Any:
        calls.append((room, who, value, value.model_fields_set, limit))
        response.headers["X-Limit"] = str(limit)
        if value.name == "teapot":
            raise HTTPException(418, "no")
        return value

    if sync:

        def put_room(
            room: int,
            who: Annotated[str, Depends(user)],
            value: Annotated[Room, Body()],
            response: Response,
            limit: Annotated[int, Query(le=9)] = 3,
        ) -> Any:
            return work(room, who, value, response, limit)

    else:

        async def put_room(  # type: ignore[misc]
            room: int, value: Room, response: Response, limit: int = 3, who: str = Depends(user)
        ) -> Any:
            return work(room, who, value, response, limit)

    endpoint = versioned_endpoint(**{"max_version": 3, "adapters": rooms(), **more})(put_room)
    app.put("/rooms/{room}", response_model=Shown, status_code=201)(endpoint)
    return app, endpoint, calls


@pytest.mark.parametrize("sync", [True, False])
def test_what_fastapi_injects_is_there_in_every_version(sync: bool) -> None:
    app, _, calls = fast(sync=sync)
    bodies: list[tuple[str, Any]] = [
        ("3", {"name": "Hall", "zones": ["south"]}),
        ("2", {"title": "Hall", "zones": ["south"]}),
        ("1", {"title": "Hall", "zone": "south"}),
    ]
    answers = [
        ask(app, "PUT", "/rooms/7?limit=5", version, json=body, headers={"X-User": "ann"}) for version, body in bodies
    ]

    assert [(7, "ann", Room(name="Hall", zones=["south"]), {"name", "zones"}, 5)] * 3 == calls
    assert bodies == [(answer.headers["api-version"], answer.json()) for answer in answers]
    assert [(201, "5")] * 3 == [(answer.status_code, answer.headers["x-limit"]) for answer in answers]


@pytest.mark.parametrize("version", ["1", "3"])
@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/rooms/x", {"name": "Hall", "zones": []}, ["path", "room"]),
        ("/rooms/7?limit=no", {"name": "Hall", "zones": []}, ["query", "limit"]),
        ("/rooms/7", {"zones": []}, ["body", "name"]),
        ("/rooms/7", {"name": "Hall", "zones": 7}, ["body", "zones"]),
        ("/rooms/7", None, ["body"]),
    ],
)
def test_what_fastapi_refuses_it_refuses_in_every_version(version: str, path: str, body: Any, where: Any) -> None:
    app, _, calls = fast()
    response = ask(app, "PUT", path, version, **({} if body is None else {"json": body}))

    assert (422, where) == (response.status_code, response.json()["detail"][0]["loc"])
    assert [] == calls


def test_a_version_out_of_range_is_refused_before_its_body_is_looked_at() -> None:
    app, endpoint, calls = fast()

    assert (400, "unsupported_version", 1, 3, "server") == problem(ask(app, "PUT", "/rooms/7", "4", json={"what": 1}))
    assert ([], 1) == (calls, endpoint.traffic.refused)


@pytest.mark.parametrize("body", [[], "text", 7, None, [{"zone": 1}]])
def test_a_body_that_no_adapter_can_read_is_refused_and_reaches_nobody(body: Any) -> None:
    app, _, calls = fast()
    response = ask(app, "PUT", "/rooms/7", "1", content=json.dumps(body), headers={"content-type": "application/json"})

    assert response.status_code in (400, 422)
    assert response.status_code == 422 or problem(response)[1] == "body_not_valid_for_version"
    assert [] == calls


def test_what_a_response_model_leaves_out_stays_out_in_every_version() -> None:
    app, _, _ = fast()
    told = [
        ask(app, "PUT", "/rooms/7", version, json={"name": "Hall", "title": "Hall", "zones": [], "floor": 3}).json()
        for version in ("1", "2", "3")
    ]

    assert [{"title": "Hall", "zone": ""}, {"title": "Hall", "zones": []}, {"name": "Hall", "zones": []}] == told


def test_an_error_is_told_as_it_is() -> None:
    app, _, _ = fast()
    response = ask(app, "PUT", "/rooms/7", "1", json={"title": "teapot"})

    assert (418, {"detail": "no"}) == (response.status_code, response.json())


def test_the_schema_says_what_the_handler_takes() -> None:
    app, _, _ = fast()
    operation = app.openapi()["paths"]["/rooms/{room}"]["put"]

    assert {"room", "limit", "X-User"} == {parameter["name"] for parameter in operation["parameters"]}
    assert "#/components/schemas/Room" == operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]


def test_a_raw_request_in_fastapi_is_raised_as_well() -> None:
    app = FastAPI()

    @app.post("/raw")
    @versioned_endpoint(max_version=3, adapters=rooms())
    async def raw(request: Request, tasks: BackgroundTasks) -> Any:
        return {"name": (await request.json())["name"], "zones": []}

    response = ask(app, "POST", "/raw", "1", json={"title": "Hall"})

    assert {"title": "Hall", "zone": ""} == response.json()


def test_nothing_is_answered_where_there_is_nothing_to_say() -> None:
    app = FastAPI()

    @app.delete("/{room}", status_code=204)
    @versioned_endpoint(max_version=3, adapters=rooms())
    def delete(room: str) -> None:
        return None

    answers = [ask(app, "DELETE", "/7", version) for version in ("1", "3")]

    assert [(204, b"", "1"), (204, b"", "3")] == [
        (answer.status_code, answer.content, answer.headers["api-version"]) for answer in answers
    ]


def test_a_form_is_left_alone() -> None:
    app = FastAPI()

    @app.post("/form")
    @versioned_endpoint(max_version=2, adapters=rooms())
    async def form(request: Request) -> Any:
        return JSONResponse({"title": (await request.body()).decode(), "zones": []})

    assert {"title": "zone=x", "zone": ""} == ask(app, "POST", "/form", "1", data={"zone": "x"}).json()


def test_two_bodies_are_a_mistake_of_the_caller() -> None:
    async def both(one: Room, other: Room) -> None: ...

    with pytest.raises(LocalProtocolError, match="one, other"):
        versioned_endpoint(max_version=2)(both)


def test_an_answer_in_parts_is_a_mistake_of_the_caller() -> None:
    def parts() -> Any:
        yield 1

    async def parts_later() -> Any:
        yield 1

    for handler in (parts, parts_later):
        with pytest.raises(LocalProtocolError, match="in parts"):
            versioned_endpoint(max_version=2)(handler)


# --- Starlette ----------------------------------------------------------------------------------------------------


def starlette(handler: Any, **more: Any) -> Starlette:
    endpoint = versioned_endpoint(**{"max_version": 3, "adapters": rooms(), **more})(handler)
    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST", "PUT"])])


async def echo(request: Request) -> Response:
    response = JSONResponse(await request.json(), 201, {"X-Kept": "yes"})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


def test_a_request_is_raised_and_its_answer_lowered_with_all_that_hangs_on_it() -> None:
    body = {"title": "Hälle", "zone": "south"}
    response = ask(starlette(echo), "POST", "/", "1", json=body)

    assert (201, body, "yes", "1") == (
        response.status_code,
        response.json(),
        response.headers["x-kept"],
        response.headers["api-version"],
    )
    assert 2 == len(response.headers.get_list("set-cookie"))
    assert str(len(response.content)) == response.headers["content-length"]


def test_methods_of_a_class_are_endpoints_too() -> None:
    class Rooms(HTTPEndpoint):
        @versioned_endpoint(max_version=3, adapters=rooms())
        async def post(self, request: Request) -> Response:
            return await echo(request)

    app = Starlette(routes=[Route("/", Rooms)])

    assert {"title": "Hall", "zone": "x"} == ask(app, "POST", "/", "1", json={"title": "Hall", "zone": "x"}).json()


def test_a_handler_that_blocks_runs_beside_the_event_loop() -> None:
    def handler(request: Request) -> Response:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return JSONResponse({"name": "Hall", "zones": []})

    assert {"title": "Hall", "zone": ""} == ask(starlette(handler), "GET", "/", "1").json()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_the_handlers_to_judge(body: bytes) -> None:
    async def handler(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    response = ask(starlette(handler), "POST", "/", "1", content=body, headers={"content-type": "application/json"})

    assert (200, str(len(body))) == (response.status_code, response.text)


def test_a_body_that_cannot_be_raised_is_refused() -> None:
    response = ask(starlette(echo), "POST", "/", "1", json=7)

    assert (400, "body_not_valid_for_version", 1, 3, "unknown") == problem(response)


def test_errors_and_other_types_are_not_lowered() -> None:
    async def fails(request: Request) -> Response:
        return JSONResponse({"error": 1}, 409)

    async def text(request: Request) -> Response:
        return PlainTextResponse("name")

    assert {"error": 1} == ask(starlette(fails), "GET", "/", "1").json()
    assert "name" == ask(starlette(text), "GET", "/", "1").text


def test_a_stream_that_would_have_to_be_lowered_is_a_mistake_of_the_caller() -> None:
    async def stream(request: Request) -> Response:
        return StreamingResponse(iter([b"{}"]), media_type="application/json")

    with pytest.raises(LocalProtocolError, match="streamed"):
        ask(starlette(stream), "GET", "/", "1")
    assert {} == ask(starlette(stream), "GET", "/", "3").json()


def test_what_was_to_be_done_after_the_answer_is_done() -> None:
    done: list[str] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(done.append, "after")
        return JSONResponse({"name": "Hall", "zones": []}, background=tasks)

    ask(starlette(handler), "GET", "/", "1")

    assert ["after"] == done


def test_a_handler_without_a_request_is_a_mistake_of_the_caller() -> None:
    async def handler(what: str) -> Response:
        return Response()

    with pytest.raises(LocalProtocolError, match="takes a Request"):
        asyncio.run(versioned_endpoint(max_version=2)(handler)("x"))  # type: ignore[arg-type]


# --- absent is not delete -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False])
def test_an_old_client_that_replaces_does_not_delete_what_it_cannot_see(waits: bool) -> None:
    stored = {"name": "Hall", "zones": ["south", "ground"], "floor": 3}

    async def later(request: Request) -> Any:
        return stored

    app, _, calls = fast(current=later if waits else lambda request: stored)
    for body in ({"title": "Entrance", "zone": "south"}, {"title": "Entrance"}, {"zone": "north"}):
        assert 201 == ask(app, "PUT", "/rooms/7", "1", json=body).status_code

    assert [
        Room(name="Entrance", zones=["south", "ground"], floor=3),
        Room(name="Entrance", zones=["south", "ground"], floor=3),
        Room(name="Hall", zones=["north"], floor=3),
    ] == [call[2] for call in calls]
    assert {"name": "Hall", "zones": ["south", "ground"], "floor": 3} == stored


def test_where_nothing_is_stored_a_body_is_only_raised() -> None:
    app, _, calls = fast(current=lambda request: None)
    ask(app, "PUT", "/rooms/7", "1", json={"title": "Hall"})

    assert {"name"} == calls[0][3]


def test_a_new_client_replaces_what_it_replaces() -> None:
    def never(request: Request) -> Any:
        raise AssertionError("nobody needs to know")

    app, _, calls = fast(current=never)
    ask(app, "PUT", "/rooms/7", "3", json={"name": "Hall"})

    assert Room(name="Hall") == calls[0][2]


texts = st.text(max_size=3)
stored_rooms = st.fixed_dictionaries(
    {"name": texts, "zones": st.lists(texts, max_size=3)},
    optional={"floor": st.integers(), "more": st.dictionaries(texts, texts)},
)
old_bodies = st.fixed_dictionaries(
    {}, optional={"title": texts, "zone": texts, "note": st.none() | st.dictionaries(texts, texts)}
)


@given(stored_rooms)
def test_a_view_that_is_written_back_changes_nothing(stored: Any) -> None:
    adapters, before = rooms(), deepcopy(stored)
    seen = adapters.lowered(deepcopy(stored), 3, 1)

    assert stored == adapters.laid_over(stored, seen, 1, 3) == adapters.laid_over(stored, {}, 1, 3)
    assert before == stored


@given(stored_rooms, old_bodies)
def test_what_an_old_client_wrote_is_what_it_sees_and_the_rest_stays(stored: Any, body: Any) -> None:
    adapters = rooms()
    after = adapters.laid_over(stored, deepcopy(body), 1, 3)
    seen = adapters.lowered(deepcopy(after), 3, 1)

    assert {key: value for key, value in body.items() if not isinstance(value, dict)} == {
        key: seen[key] for key, value in body.items() if not isinstance(value, dict)
    }
    for key in ("floor", "more"):
        assert stored.get(key) == after.get(key)
    assert after == adapters.laid_over(after, deepcopy(body), 1, 3)


def test_what_is_no_object_is_replaced_whole() -> None:
    assert [3] == Adapters().laid_over([1, 2], [3], 1, 2)
    assert {"a": {"b": 1, "c": 2}} == Adapters().laid_over({"a": {"b": 1}}, {"a": {"c": 2}}, 1, 2)
    assert {"a": None} == Adapters().laid_over({"a": {"b": 1}}, {"a": None}, 1, 2)


# --- adapters -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.sets(st.integers(1, 9)))
def test_steps_go_from_neighbour_to_neighbour(one: int, other: int, registered: set[int]) -> None:
    low, high = sorted((one, other))
    adapters = Adapters()

    def noting(version: int) -> Any:
        return lambda value: [*value, version]

    for version in registered:
        adapters.up(version)(noting(version))
        adapters.down(version)(noting(version))

    assert [step for step in range(low, high) if step in registered] == adapters.raised([], low, high)
    assert [step for step in range(high, low, -1) if step in registered] == adapters.lowered([], high, low)


def test_a_second_adapter_for_one_step_is_a_mistake_of_the_caller() -> None:
    adapters = rooms()
    with pytest.raises(LocalProtocolError, match="second"):
        adapters.up(1)(lambda body: body)


# --- what it loads ------------------------------------------------------------------------------------------------


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.strip()


def test_the_decorator_can_be_imported_without_any_framework() -> None:
    code = (
        "import sys, inbetweenies; inbetweenies.versioned_endpoint; print({'starlette', 'fastapi'} & set(sys.modules))"
    )

    assert "set()" == python(code)


def test_starlette_needs_no_fastapi() -> None:
    code = """
import sys
from inbetweenies import versioned_endpoint
@versioned_endpoint(max_version=2)
async def handler(request): ...
print("fastapi" in sys.modules)
"""

    assert "False" == python(code)


def test_types_that_cannot_be_resolved_are_fastapis_to_tell() -> None:
    async def handler(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    endpoint = versioned_endpoint(max_version=2)(handler)

    assert "handler" == endpoint.__name__
