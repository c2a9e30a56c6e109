"""What runs between the plain launcher's spawn and the program it launches: it prepares the process, then execs.

``posix_spawn`` already gave it a session of its own, default signals, and its stdio. What it cannot give is done here,
since code between fork and exec is unsafe in a supervisor that has threads: the subreaper flag, the working directory,
and an environment and argv from a memory file, so that neither is ever seen on a wrong command line.

Run by file path with ``python -I -S``: standard library only. On success the report descriptor closes with the exec;
otherwise it carries one line of text that says what failed.
"""

import ctypes
import json
import os

REPORT_FD = 3
"""Ends silently when the exec succeeds (close-on-exec)."""

SPEC_FD = 4
"""JSON: ``argv``, ``env``, ``cwd``, ``fds`` (how many descriptors from :data:`FIRST_PASSED_FD` on it keeps)."""

FIRST_PASSED_FD = 5

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Prepare and exec; on failure report, and exit with 127 as a shell does."""
    os.set_inheritable(REPORT_FD, False)
    with open(SPEC_FD, "rb") as file:
        file.seek(0)
        spec = json.load(file)
    os.closerange(FIRST_PASSED_FD + spec["fds"], os.sysconf("SC_OPEN_MAX"))
    try:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except (OSError, ValueError, AttributeError) as error:
        os.write(REPORT_FD, str(error).encode()[:1024])
        os._exit(127)


if __name__ == "__main__":
    main()
