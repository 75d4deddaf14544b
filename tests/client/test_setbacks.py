"""Everything at once: clients that write, servers that are set back, messages that are lost; nothing else is."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blowing_off import BlowingOffClient, Refused, Unreachable
from inbetweenies.limits import Limits
from inbetweenies.stores.memory import MemoryStore
from tests.client.test_client import Clock, Home, client_of
from tests.client.test_rewind import lacking
from tests.support import NOW, SECOND, run


class Setbacks(RuleBasedStateMachine):
    """Three clients and a server that is set back again and again, to any backup, and goes on from there.

    In the end everybody syncs, and every row that any client ever had from the server, or had acknowledged by it, is in
    its log again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Home(limits=Limits(page_rows_max=3))
        self.numbers, self.nonces = count(), count()
        self.clients = [self.device(who) for who in range(3)]
        self.backups: list[MemoryStore] = []

    def device(self, who: int) -> BlowingOffClient:
        name, skew = (("ann", 0), ("bob", -100), ("eve", 1000))[who]
        return client_of(
            self.home,
            name,
            batch_changes=2,
            clock=Clock(NOW + skew * SECOND),
            ids=lambda: f"id-{next(self.numbers):03}",  # the same with every run
            nonces=lambda: f"{next(self.nonces):08x}",
        )

    @initialize()
    def begin(self) -> None:
        self.keep_a_backup()

    def some(self, client: BlowingOffClient, pick: int) -> str | None:
        ids = [copy.id for copy in client.store.find()]
        return ids[pick % len(ids)] if ids else None

    @rule(
        who=st.integers(0, 2),
        what=st.sampled_from(["add", "change", "change", "delete", "link", "link"]),
        pick=st.integers(0, 5),
        value=st.integers(0, 9),
    )
    def edit(self, who: int, what: str, pick: int, value: int) -> None:
        client = self.clients[who]
        id_ = self.some(client, pick)
        if what == "add" or id_ is None:
            run(client.add("device", f"Lamp {value}", {"n": value}))
        elif what == "change":
            run(client.change(id_, patch={f"k{value % 3}": value}))
        elif what == "delete":
            run(client.delete(id_))
        else:
            other = self.some(client, pick + 1) or id_
            run(client.link(id_, other, "located_in", {"n": value}, id=f"edge{value % 2}"))

    @rule(who=st.integers(0, 2), faults=st.lists(st.sampled_from(["", "", "lost", "unheard", "twice"]), max_size=4))
    def sync(self, who: int, faults: list[str]) -> None:
        self.home.faults.extend(faults)
        with suppress(Unreachable, Refused):
            run(self.clients[who].sync())
        self.home.faults.clear()

    @rule(who=st.integers(0, 2), what=st.sampled_from(["add", "change", "link"]), value=st.integers(0, 9))
    def is_seen_by_all(self, who: int, what: str, value: int) -> None:
        self.edit(who, what, value, value)
        for client in (self.clients[who], *self.clients):
            run(client.sync())

    @rule(who=st.integers(0, 2))
    def wipe(self, who: int) -> None:
        run(self.clients[who].close())
        self.clients[who] = self.device(who)

    @rule()
    def keep_a_backup(self) -> None:
        store = self.home.store
        assert isinstance(store, MemoryStore)
        self.backups.append(store.copy())

    @rule(which=st.integers(0, 5))
    def restore(self, which: int) -> None:
        self.home.use(self.backups[which % len(self.backups)].copy())

    @rule()
    def replace(self) -> None:
        self.home.use(MemoryStore())

    @invariant()
    def marks_are_what_is_shown(self) -> None:
        for client in self.clients:
            marks = client.store._db.execute("SELECT kind, id, hash FROM pending WHERE NOT quiet ORDER BY n")
            for (kind, id_), hash_ in {(kind, id_): hash_ for kind, id_, hash_ in marks}.items():
                visible = client.store.visible(kind, id_)
                assert visible is not None
                assert hash_ == visible.hash

    def teardown(self) -> None:
        for client in self.clients * 2:
            run(client.sync())
        reports = [run(client.sync()) for client in self.clients]
        # An edge whose end was lost with the server and is held by nobody can only wait.
        assert {item.code for report in reports for item in report.refused} <= {"unknown_endpoint"}
        assert [True] * 3 == [report.equal for report in reports]
        assert [(False, False)] * 3 == [(report.rewound, report.healed) for report in reports]
        for client in self.clients:
            assert [] == lacking(self.home, client)
            run(client.close())


Setbacks.TestCase.settings = settings(max_examples=int(os.environ.get("DEEP_EXAMPLES", "50")), stateful_step_count=25)
TestSetbacks = Setbacks.TestCase
