"""An fsync that fails, for real: the system refuses the call. For the long tests only, since only Linux can do so.

Whether what was written is on the disk then, nobody knows: the log holds all of it, and whoever opens the file next
finds it. What counts is that it was not acknowledged, and that the same again makes it once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.storm.log import lines
from tests.storm.test_io_errors import home, stored
from tests.storm.test_real_faults import broken, push

TIMES: Final = int(os.environ.get("DEEP_EXAMPLES", "3"))


def test_a_commit_whose_fsync_fails_is_not_acked_and_the_same_again_makes_it_once(tmp_path: Path) -> None:
    base = home(tmp_path / "base.db")
    push(base, tmp_path / "after.db")
    before, after = stored(base), stored(tmp_path / "after.db")
    statuses = broken("fsync", base, tmp_path, list(range(TIMES)))
    kept = 0
    for number in statuses:
        path = tmp_path / f"{number}.db"
        left = stored(path)
        assert left in (before, after)
        kept += left == after
        push(None, path)
        assert after == stored(path)
        lines(path)

    print(f"figures: {TIMES} commits whose fsync failed, 0 acked, {kept} found in the log when it was opened again")
    assert [503] * TIMES == [*statuses.values()]
