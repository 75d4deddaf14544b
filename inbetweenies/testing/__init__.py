"""The kit that tests this project, for those who write stores, handlers or wire versions of their own.

- `StoreTests`: subclass it, return your store, run pytest.
- `MixedFleet`: old, new and unknown clients against your handler or store; the laws are checked after every step.
- `simulator`: histories of such a fleet with crashes, restores, clock jumps and more, thousands a minute, each from one
  seed; ``python -m inbetweenies.testing simulate``.
- `strategies`: Hypothesis strategies for every value and message of both wire versions, legal and broken.
- `vectors`: golden exchanges as plain JSON, for servers in any language.

Needs the extra ``testing`` (hypothesis, pytest), but for the simulator. Loaded when first used.
"""

from importlib import import_module as _import
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import simulator, strategies, vectors
    from .fleet import BrokenLaw, MixedFleet
    from .store_tests import StoreTests

_HOMES = {"BrokenLaw": ".fleet", "MixedFleet": ".fleet", "StoreTests": ".store_tests"}
__all__ = ["BrokenLaw", "MixedFleet", "StoreTests", "simulator", "strategies", "vectors"]


def __getattr__(name: str) -> Any:
    if name in ("simulator", "strategies", "vectors"):
        return _import(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "StoreTests":
        # Its asserts are what a store's author reads.
        _import("pytest").register_assert_rewrite(f"{__name__}.store_tests")
    return getattr(_import(_HOMES[name], __name__), name)
