"""How a connected peer goes on from an answer (PROTOCOL 5.18): its own request, from where the answer ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inbetweenies.wire import load

V1, V2 = load()["inbetweenies-v1"], load()["inbetweenies-v2"]


def follow(wire: Any, asked: dict[str, Any], told: dict[str, Any]) -> Any:
    return wire.follow(json.dumps(asked).encode(), json.dumps(told).encode())


def test_a_peer_with_features_goes_on_at_the_cursor() -> None:
    asked = {"device_id": "d", "sync_type": "full", "changes": [{}], "filters": {"since": "x"}, "cursor": "old"}
    told = {"changes": [{}], "server_time": "t", "cursor": "new", "more": True, "features": ["paging"]}
    found = follow(V2, asked, told)

    assert {"device_id": "d", "sync_type": "delta", "changes": [], "cursor": "new"} == json.loads(found.request)
    assert ("new", True, True) == (found.after, found.news, found.more)


@pytest.mark.parametrize("filters", [None, {"since": "old", "entity_types": ["room"]}])
def test_a_deployed_peer_goes_on_at_the_time(filters: Any) -> None:
    asked = {"device_id": "d", "sync_type": "full", "changes": [], "filters": filters}
    found = follow(V2, asked, {"changes": [], "server_time": "t", "cursor": None})
    kept = {"entity_types": ["room"]} if filters else {}

    assert {**kept, "since": "t"} == json.loads(found.request)["filters"]
    assert (None, False, False) == (found.after, found.news, found.more)


@pytest.mark.parametrize("more", [{"resync": True}, {"listing": ""}, {"parts": []}])
def test_a_peer_that_has_yet_to_find_out_where_it_stands_hears_no_news(more: dict[str, Any]) -> None:
    told = {"changes": [], "server_time": "t", "cursor": "c", "features": ["witness"], **more}

    assert None is follow(V2, {"device_id": "d"}, told)


def test_news_are_not_an_answer_to_a_message_that_was_answered_before() -> None:
    asked = {"device_id": "d", "request_id": "r", "witness": "w", "want": [1], "skip": [[1, 1]], "pushes": {"now": "x"}}
    found = follow(V2, asked, {"changes": [], "server_time": "t", "cursor": "c", "features": ["witness"]})

    assert {"device_id": "d", "sync_type": "delta", "changes": [], "cursor": "c"} == json.loads(found.request)


def test_a_v1_request_goes_on_and_nothing_else_does() -> None:
    asked = {"type": "sync_request", "client_id": "c", "last_sync": None, "entity_types": ["homes"]}
    found = follow(V1, asked, {"type": "sync_delta", "server_time": "t", "changes": [{}]})

    assert {**asked, "last_sync": "t"} == json.loads(found.request)
    assert (None, True) == (found.after, found.news)
    assert None is follow(V1, {}, {"type": "sync_result", "applied": []})
    assert None is follow(V1, {}, {"type": "sync_ack_response", "server_time": "t"})
