"""The environment that Athena's own processes are exec'd with, and where they import Athena from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The directory that ``athena`` and ``supervisor`` are imported from."""

INHERITED_VARIABLES = frozenset(
    {
        "ATHENA_HOME", "ATHENA_SUPERVISOR_FAILPOINT", "ATHENA_TEST_TIME_UNIT", "HOME", "LANG", "LANGUAGE",
        "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER",
        "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME",
    }
)  # fmt: skip
"""All that a scrubbed environment keeps, besides ``LC_*``. A forked child's ``/proc/<pid>/environ`` shows it for ever,
so it names what is harmless instead of guessing what is secret."""


COOKIE_VARIABLE = "ATHENA_COOKIE"
"""The environment variable by which everything that a child started is known as that child's; its value is new for
every launch."""


def scrubbed_environment(source: Mapping[str, str], **extra: str) -> dict[str, str]:
    """What of ``source`` an Athena process is exec'd with, and ``extra``. See :data:`INHERITED_VARIABLES`."""
    kept = {key: value for key, value in source.items() if key in INHERITED_VARIABLES or key.startswith("LC_")}
    if not ROOT.is_relative_to(sys.prefix):
        kept["PYTHONPATH"] = str(ROOT)  # run from a source tree: an interpreter finds Athena only if told where
    return kept | extra
