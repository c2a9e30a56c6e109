"""A child whose import fails while a flag is set: its start fails, at once or after the seconds that the flag says."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.tree_children import serve

__all__ = ["serve"]

_flag = Path(os.environ["SWITCH"])
if _flag.exists():
    time.sleep(float(_flag.read_text() or 0))
    raise RuntimeError("flag")
