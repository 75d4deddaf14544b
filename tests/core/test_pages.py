"""How much of an answer is read and told at once (PROTOCOL 4.9), without any wire version."""

from __future__ import annotations

import pytest

from inbetweenies.limits import Limits
from inbetweenies.model import Reads, Row, Span, SyncResponse, Unread
from inbetweenies.pieces import FRAME_BYTES
from tests.support import Server, at, edge, entity


def ids(response: SyncResponse) -> list[str]:
    return [row.id for row in response.rows]


def test_a_page_ends_before_it_is_too_large_and_pages_still_cover_the_log() -> None:
    server = Server(limits=Limits(page_bytes_max=1_500))
    sizes = (100, 100, 900, 2_000, 100, 2_000, 2_000, 300, 300, 300)
    server.push(*(entity(f"x{number}", at(number), {"n": "n" * size}) for number, size in enumerate(sizes)))
    rows = server.held(Reads(span=Span(after=0, upto=99))).span
    pages: list[tuple[Row, ...]] = []
    cursor, more = None, True
    while more:
        response = server.pull(cursor=cursor, full=True, features=frozenset({"paging"}))
        cursor, more = response.served, response.more
        pages.append(response.rows)
        assert (response.served.seq, response.served.chain) == (pages[-1][-1].seq, pages[-1][-1].chain)

    assert rows == tuple(row for page in pages for row in page)
    for page, after in zip(pages, (*pages[1:], ()), strict=True):
        size = sum(len(row.body) + FRAME_BYTES for row in page)
        # As much as fits, but for a row that would fit into none.
        assert size <= 1_500 or len(page) == 1
        assert not after or size + len(after[0].body) + FRAME_BYTES > 1_500
    assert [2, 1, 1, 1, 1, 1, 2, 1] == [len(page) for page in pages]


def test_a_page_that_ends_with_the_log_is_the_last_one_even_if_it_is_full() -> None:
    server = Server(limits=Limits(page_bytes_max=1))
    server.push(entity("x", at(0)), entity("y", at(1)))

    first = server.pull(full=True, features=frozenset({"paging"}))
    last = server.pull(cursor=first.served, features=frozenset({"paging"}))
    assert (["x"], True) == (ids(first), first.more)
    assert (["y"], False) == (ids(last), last.more)


def test_only_what_may_be_told_in_pieces_is_left_unread_and_only_if_it_is_too_much_for_one() -> None:
    server = Server(limits=Limits(page_rows_max=3))
    server.push(*(entity(f"x{number}", at(number)) for number in range(3)))
    once = server.pull(full=True)
    in_pieces = server.pull(full=True, pieces=True)
    delta = server.pull(pieces=True, after=1)

    assert (None, 3) == (once.unread, len(once.rows))
    assert (Unread(after=0), ()) == (in_pieces.unread, in_pieces.rows)
    assert (None, ["x1", "x2"]) == (delta.unread, ids(delta))


@pytest.mark.parametrize("features", [frozenset[str](), frozenset({"acks"}), frozenset({"paging"})])
def test_an_edge_passes_a_filter_with_its_entity_wherever_that_is_told(features: frozenset[str]) -> None:
    server = Server()
    lamp, hall = entity("lamp", at(0)), entity("hall", at(0), entity_type="room")
    server.push(lamp, hall)
    server.push(edge("in", lamp, hall), edge("of", hall, lamp))
    only = frozenset({"device"})
    pages = [server.pull(full=True, entity_types=only, features=features, page_rows=2)]
    while pages[-1].more:
        pages.append(server.pull(cursor=pages[-1].served, entity_types=only, features=features, page_rows=2))

    assert ["lamp", "in"] == [id_ for page in pages for id_ in ids(page)]
    # The edge alone has changed, or its entity has just been sent.
    assert ["in"] == ids(server.pull(after=2, entity_types=only, features=features))
    pushed = server.push(lamp, full=True, entity_types=only, features=features)
    assert ["in"] == [id_ for id_ in ids(pushed) if id_ != "lamp" or features]
