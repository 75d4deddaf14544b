"""``python -m blowing_off.demo [FILE...]``: the demo without its command line."""

import sys
from pathlib import Path

from . import main

if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]], as_json=False))
