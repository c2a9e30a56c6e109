"""Finding files and lines without other programs: the walk and match of ``glob``, and ``grep`` where ripgrep is not.

Runs as a script too (``python -I scan.py`` with a JSON request as its argument), which is how ``grep`` uses it: a
regular expression can take forever while it holds the interpreter lock, and only a process of its own can be stopped.
So it imports nothing but the standard library. Its output is what ``rg --null`` prints: path, NUL, line number, text.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from fnmatch import translate
from functools import cache
from typing import Any

Stop = Callable[[], bool]

MAX_FILE_BYTES = 20_000_000
_BINARY_PROBE_BYTES = 8192


def walk(root: str, hidden: list[str], stop: Stop = lambda: False) -> Iterator[tuple[str, bool]]:
    """All entries below ``root`` in name order: path relative to it, and whether it is a directory.

    Directories named in ``hidden`` (a name, or the last names of a path) are left out; symlinks to directories are
    listed and not entered.
    """
    queue = [""]
    while queue and not stop():
        prefix = queue.pop()
        below = []
        for name, is_directory in _entries(os.path.join(root, prefix)):
            path = f"{prefix}{name}"
            if is_directory and any(f"/{path}".endswith(f"/{artifact}") for artifact in hidden):
                continue
            yield path, is_directory
            if is_directory and not os.path.islink(os.path.join(root, path)):
                below.append(f"{path}/")
        queue.extend(reversed(below))


def _entries(directory: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(directory) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return []


def glob_matcher(pattern: str, *, dotfiles: bool = False) -> Callable[[str], bool]:
    """A function that tells whether a relative path matches ``pattern``.

    ``*``, ``?`` and ``[...]`` stay inside a name, ``**`` is any number of names, ``{a,b}`` is one of several. Unless
    ``dotfiles``, a name with a leading dot is met only by a part of the pattern that has one.
    """
    alternatives = [_parts(expanded, dotfiles) for expanded in expand_braces(pattern)]
    return lambda path: any(_matches(parts, path.split("/")) for parts in alternatives)


Part = tuple[str, Callable[[str], bool]]


def _parts(pattern: str, dotfiles: bool) -> list[Part]:
    return [(part, _name_matcher(part, dotfiles)) for part in pattern.split("/") if part not in ("", ".")]


def _name_matcher(part: str, dotfiles: bool) -> Callable[[str], bool]:
    match = re.compile(translate("*" if part == "**" else part)).match
    if dotfiles or part.startswith("."):
        return lambda name: match(name) is not None
    return lambda name: not name.startswith(".") and match(name) is not None


def _matches(parts: list[Part], names: list[str]) -> bool:
    """Whether the names match the parts; each pair is looked at once, so many ``**`` cost nothing."""

    @cache
    def from_here(part: int, name: int) -> bool:
        if part == len(parts):
            return name == len(names)
        text, fits = parts[part]
        if text == "**":
            skip = name < len(names) and fits(names[name]) and from_here(part, name + 1)
            return skip or from_here(part + 1, name)
        return name < len(names) and fits(names[name]) and from_here(part + 1, name + 1)

    return from_here(0, 0)


def expand_braces(pattern: str, limit: int = 256) -> list[str]:
    """``a{b,c}`` as ``ab`` and ``ac``; at most ``limit`` patterns, further braces stay literal."""
    done: list[str] = []
    queue = [pattern]
    while queue:
        text = queue.pop(0)
        braces = re.search(r"\{([^{}]*,[^{}]*)\}", text)
        if braces is None or len(queue) + len(done) >= limit:
            done.append(text)
            continue
        queue.extend(text[: braces.start()] + choice + text[braces.end() :] for choice in braces[1].split(","))
    return done


def file_filter(path_glob: str | None) -> Callable[[str], bool]:
    """Which files to search: a glob without a slash is for the name at any depth, as in ripgrep."""
    if path_glob is None:
        return lambda path: True
    anchored = path_glob.removeprefix("./").removeprefix("/")
    return glob_matcher(anchored if "/" in path_glob else f"**/{path_glob}", dotfiles=True)


def scan_file(path: str, search: Callable[[str], object], limit: int) -> Iterator[tuple[int, str]]:
    """Numbers and texts of at most ``limit`` matching lines; none for a binary, special or unreadable file."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            row = os.fstat(file.fileno())
            if not stat.S_ISREG(row.st_mode) or row.st_size > MAX_FILE_BYTES:
                return
            if b"\0" in file.read(_BINARY_PROBE_BYTES):
                return
            file.seek(0)
            found = 0
            for number, raw in enumerate(file, 1):
                line = raw.rstrip(b"\r\n").decode("utf-8", "replace")
                if search(line):
                    yield number, line
                    found += 1
                    if found >= limit:
                        return
    except OSError:
        return


def main(request: dict[str, Any], write: Callable[[bytes], object]) -> None:
    """Print every matching line of the files that the request selects."""
    search = re.compile(request["pattern"]).search
    wanted = file_filter(request["path_glob"])
    for path, is_directory in walk(request["root"], request["hidden"]):
        if is_directory or not wanted(path):
            continue
        for number, line in scan_file(os.path.join(request["root"], path), search, request["limit"]):
            write(os.fsencode(path) + f"\0{number}:{line}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.stdout.buffer.write)
