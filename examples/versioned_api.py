"""A REST API of which old clients use an old version, served by handlers that only know the newest one.

    python examples/versioned_api.py

Version 2 renamed `zone` of a room to `zones`, a list. The handlers are written for that. Who still says version 1, or
says nothing, is understood and answered in version 1; what that version cannot see is not lost when it writes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from inbetweenies import Adapters, Notice, versioned_endpoint

api = FastAPI()
rooms: dict[str, dict[str, Any]] = {}
adapters = Adapters()


class Room(BaseModel):
    name: str
    zones: list[str] = []
    colour: str | None = None  # new in version 2


@adapters.up(1)
def _(body: dict[str, Any]) -> dict[str, Any]:
    if "zone" in body:  # what an old client does not say must not be invented
        body["zones"] = [body.pop("zone")]
    return body


@adapters.down(2)
def _(answer: dict[str, Any]) -> dict[str, Any]:
    zones = answer.pop("zones", [])
    answer.pop("colour", None)
    return {**answer, "zone": zones[0] if zones else ""}


def stored(request: Request) -> dict[str, Any] | None:
    """What an old client's body is laid over."""
    return rooms.get(request.path_params["room"])


versioned = versioned_endpoint(
    min_version=1,
    max_version=2,
    adapters=adapters,
    current=stored,
    deprecated={1: Notice(since=1_790_000_000_000_000, successor="https://example.org/api/v2")},
)


@api.put("/rooms/{room}")
@versioned
async def put_room(room: str, value: Room) -> Room:
    rooms[room] = value.model_dump()
    return value


@api.get("/rooms/{room}")
@versioned
def get_room(room: str) -> Room:
    if room not in rooms:
        raise HTTPException(404)
    return Room(**rooms[room])


async def main() -> None:
    new = {"API-Version": "2"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://api") as client:
        hall = {"name": "Hall", "zones": ["ground", "south"], "colour": "red"}
        await client.put("/rooms/hall", json=hall, headers=new)
        old = await client.get("/rooms/hall", headers={"API-Version": "1"})
        print("version 1 sees", old.json(), "and is told", old.headers["deprecation"])
        await client.put("/rooms/hall", json={"name": "Entrance", "zone": "ground"})
        print("version 2 sees", (await client.get("/rooms/hall", headers=new)).json())
        refused = await client.get("/rooms/hall", headers={"API-Version": "v10"})
        print(refused.status_code, refused.json()["detail"])
    print("read so far, by version:", get_room.traffic.served, "- refused:", get_room.traffic.refused)


if __name__ == "__main__":
    asyncio.run(main())
