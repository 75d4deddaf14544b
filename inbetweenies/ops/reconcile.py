"""What became of the rows of a store since a rollout began, with an audit and a shadow comparison beside it.

What is counted is decided in `inbetweenies.rollout.reconcile`. Nothing is changed; a server may run meanwhile.
"""

from __future__ import annotations

from msgspec import Struct

from ..exchange import carry_out
from ..limits import LIMITS, Limits
from ..merge import Policy
from ..registry import registry_of
from ..rollout.integrity import Report
from ..rollout.orders import DOCUMENTS, orders_in
from ..rollout.reconcile import Accounts, accounted
from ..rollout.shadow import Compared
from ..router import FALLBACK
from ..store import Store
from ..wire import load
from .integrity import DataIntegrityMonitor
from .shadow import ShadowComparison, comparable


class Reconciled(Struct, frozen=True, kw_only=True):
    """What became of the rows of one graph.

    Attributes:
        accounts: of each row that was written since then.
        offered: the wire versions that this graph is offered now. What they hide is shown again by those that show it,
            once these are given again.
        lost: rows that the journal, or what is kept beside the database, knows of and the log does not.
        report: of the audit.
        compared: of the shadow comparison; None where the log is to be put right first.
    """

    graph: str
    accounts: Accounts
    offered: tuple[str, ...]
    lost: int
    report: Report
    compared: Compared | None

    @property
    def count(self) -> int:
        """How much is unexplained: rows, and what the audit and the comparison found."""
        shadow = 0 if self.compared is None else self.compared.count
        return self.accounts.fates["unexplained"] + self.lost + self.report.count + shadow


async def reconcile(
    store: Store,
    graph: str,
    *,
    since: int = 0,
    policy: Policy | None = None,
    limits: Limits = LIMITS,
    known: int = 0,
) -> Reconciled:
    """What became of each row of `graph` that was committed at `since` (microseconds since 1970) or later.

    Args:
        policy: by which the server decides; what it leaves to people cannot be told from what was lost without it.
        known: the seq up to which the log went, as far as anybody outside of the database knows.

    Raises:
        StoreError: the graph could not be read.
    """
    wires = load()
    report = await DataIntegrityMonitor(store).report(graph)
    compared = None if report.count else await ShadowComparison(store, rows_max=None).compare(graph)
    accounts = await carry_out(
        lambda: accounted(comparable(wires.values()), since, policy or Policy(), limits), store, graph, write=False
    )
    orders = orders_in({name: await store.document(name) for name in DOCUMENTS})
    registry = registry_of(tuple(wires), orders.decisions, fallback=FALLBACK, missing=FALLBACK)
    return Reconciled(
        graph=graph,
        accounts=accounts,
        offered=orders.registry(registry, graph).supported,
        lost=max(known - accounts.head.seq, 0),
        report=report,
        compared=compared,
    )
