"""What is edited, by whom, in which order. Read `story`."""

from __future__ import annotations

import httpx
from msgspec import Struct

from .clients import Member, RecordClient, Replica
from .home import Cast
from .ledger import Ledger


class Fleet(Struct, kw_only=True):
    """Everybody who takes part."""

    phone: RecordClient
    tablet: Replica
    laptop: Replica
    panel: RecordClient
    http: httpx.AsyncClient
    fresh_token: str
    ledger: Ledger

    @property
    def members(self) -> tuple[Member, ...]:
        return (self.phone, self.tablet, self.laptop, self.panel)


async def story(fleet: Fleet, cast: Cast) -> None:
    """The first afternoon: everybody is offline, and edits the same five devices at the same time."""
    phone, tablet, laptop, panel = fleet.phone, fleet.tablet, fleet.laptop, fleet.panel
    one, two, three, four, five = cast.devices
    names = cast.names

    # Content, which v1 cannot see, of the device that v1 renames below.
    await tablet.change(one, f"makes {names[one]} a favourite", favourite=True, colour="warm white")
    # The same key of the same device, differently: a true conflict.
    await tablet.change(two, f"labels {names[two]} 'reading'", label="reading")
    await laptop.change(two, f"labels {names[two]} 'television'", label="television")
    # Deleted by one, edited by the other.
    await tablet.delete(three, f"deletes {names[three]}")
    await laptop.change(three, f"edits {names[three]}", label="still in use")
    # Many edits of one device before any of them is sent: each is a row of its own.
    await laptop.change(four, f"notes when the warranty of {names[four]} ends", warranty_until="2028-05-01")
    await laptop.change(four, f"corrects that of {names[four]}", warranty_until="2029-05-01")
    await laptop.change(four, f"renames {names[four]}", name=f"{names[four]} upstairs")
    # Things that only newer versions know, around a device that v1 edits.
    note = await tablet.add("note", f"About {names[four]}", {"text": "The reset button is under the lid."})
    await tablet.link(four, note.id, "documented_by")
    await tablet.link(four, cast.manual, "documented_by")
    await tablet.change(four, f"notes where {names[four]} was bought", bought_at="the shop in the old town")
    await laptop.change(cast.door, "paints the front door", colour="green")
    await laptop.change(cast.automation, "moves good night to 22:45", at="22:45")
    await laptop.change(cast.automation, "adds the locks to good night", do=["lights off", "lock doors"])

    phone.edit("accessory", one, f"renames {names[one]}", name=f"{names[one]} by the window")
    phone.edit("accessory", four, f"updates the firmware of {names[four]}", firmware_version="9.1.0")
    phone.edit("accessory", one, f"moves {names[one]} to the cabin", home_id=cast.cabin)
    phone.edit("room", cast.study, "moves the study to the cabin", home_id=cast.cabin)
    phone.edit("accessory", five, f"renames {names[five]}", name=f"{names[five]} (old)")

    panel.add("room", "adds a greenhouse", name="Greenhouse", home_id=cast.home)
    panel.edit("accessory", two, f"renames {names[two]}", name=f"{names[two]} at the sofa")
    panel.edit("accessory", five, f"renames {names[five]} too", name=f"{names[five]} (spare)")


async def sequel(fleet: Fleet, cast: Cast) -> None:
    """The next day: everybody has seen what became of it, is offline again, and goes on from there."""
    phone, tablet, laptop, panel = fleet.phone, fleet.tablet, fleet.laptop, fleet.panel
    one, two, three, four, _ = cast.devices
    names = cast.names

    # Back again, by an edit that knows of the deletion.
    await laptop.change(three, f"brings {names[three]} back", deleted=None)
    # What v1 sends back says nothing of notes, labels and edges. They must survive it.
    phone.edit("accessory", four, f"updates {names[four]} once more", firmware_version="9.2.0")
    await tablet.change(four, f"gives {names[four]} a shelf", shelf=3)
    found = [edge for edge in await tablet.client.links(four) if edge.to_entity_id == cast.manual]
    await tablet.unlink(found[0].id, f"takes the manual away from {names[four]}")
    await laptop.change(one, f"dims {names[one]}", colour="candle light")
    greenhouse = next(id_ for (type_, id_), record in panel.records.items() if record["name"] == "Greenhouse")
    panel.edit("room", greenhouse, "renames the greenhouse", name="Winter garden")
    panel.edit("accessory", two, f"blocks {names[two]}", is_blocked=True)
    # An old client may well be the one who wins.
    await tablet.change(one, f"renames {names[one]}", name=f"{names[one]} in the niche")
    phone.edit("accessory", one, f"renames {names[one]} too", name=f"{names[one]} at the door")
