"""Which commands only read: the tables behind :mod:`athena.bash_rules`.

A command is in :data:`ANY_ARGUMENTS` only if no argument makes it write a file, run a program, or change the system;
otherwise it has a check in :data:`RESTRICTED`, which gets words that the shell would not expand any further.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Word:
    """A word of a command: text without its quotes; whether the shell would put variables or file names in."""

    text: str = ""
    expands: bool = False
    globs: bool = False


Check = Callable[[Sequence[Word]], str | None]
"""Says what is wrong with the arguments, or ``None``."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ANY_ARGUMENTS = _names(
    """
    arch b2sum base32 base64 basename cat cd cksum cmp column comm cut df diff dirname du echo egrep expand expr false
    fgrep fmt fold free getconf grep groups head id join jq ls lscpu lsblk md5sum nl nproc numfmt od paste pr printenv
    ps pwd readlink realpath rev seq sha1sum sha224sum sha256sum sha384sum sha512sum sleep stat strings sum tac tail tr
    true tsort type uname unexpand uptime users wc whereis which who whoami zcat
    """
)

_FIND_ACTIONS = ("-delete", "-exec", "-execdir", "-fls", "-fprint", "-fprint0", "-fprintf", "-ok", "-okdir")

_GIT_READS = _names(
    """
    blame cat-file check-ignore count-objects describe diff diff-index diff-tree for-each-ref grep log ls-files ls-tree
    merge-base name-rev rev-list rev-parse shortlog show show-ref status version whatchanged
    """
)
_GIT_WRITING_OPTIONS = ("--output", "--ext-diff", "--open-files-in-pager", "--exec-path", "--upload-pack")
_GIT_LISTS: dict[str, re.Pattern[str]] = {
    "branch": re.compile(r"(?:-[arv]+|-vv|--all|--remotes|--verbose|--list|--show-current|--no-color|--sort=\S+)"),
    "tag": re.compile(r"(?:-l|--list|-n\d*|--sort=\S+)"),
    "remote": re.compile(r"(?:-v|--verbose)"),
}
_GIT_SECOND: dict[str, frozenset[str]] = {
    "stash": frozenset({"list", "show"}),
    "reflog": frozenset({"show"}),
    "remote": frozenset({"get-url", "show"}),
    "worktree": frozenset({"list"}),
    "config": frozenset({"--get", "--get-all", "--get-regexp", "--list", "-l", "get", "list"}),
}

_GH_READS: dict[str, frozenset[str]] = {
    "auth": frozenset({"status"}),
    "issue": frozenset({"list", "status", "view"}),
    "label": frozenset({"list"}),
    "pr": frozenset({"checks", "diff", "list", "status", "view"}),
    "release": frozenset({"list", "view"}),
    "repo": frozenset({"list", "view"}),
    "run": frozenset({"list", "view"}),
    "search": frozenset({"code", "commits", "issues", "prs", "repos"}),
    "workflow": frozenset({"list", "view"}),
}


def _has_option(text: str, long: Collection[str], short: str = "") -> bool:
    """Whether a word is one of the options, also abbreviated (``--outp``) or in a cluster of letters (``-no``)."""
    if text.startswith("--"):
        name = text.split("=", 1)[0]
        return len(name) > 2 and any(option.startswith(name) for option in long)
    return text.startswith("-") and any(letter in text[1:] for letter in short)


def _without(long: Collection[str] = (), short: str = "") -> Check:
    def check(words: Sequence[Word]) -> str | None:
        for word in words:
            if _has_option(word.text, long, short):
                return f"has an option that may write or run something ({word.text[:60]!r})"
        return None

    return check


def _check_find(words: Sequence[Word]) -> str | None:
    for word in words:
        if word.text in _FIND_ACTIONS:
            return f"has an action that writes or runs something ({word.text!r})"
    return None


def _check_uniq(words: Sequence[Word]) -> str | None:
    operands = [word for word in words if not word.text.startswith("-")]
    return "names an output file" if len(operands) > 1 else None


def _check_sed(words: Sequence[Word]) -> str | None:
    """Only the printing of a range of lines: the language of sed can write files and run commands."""
    texts = [word.text for word in words]
    is_print = len(texts) >= 2 and texts[0] == "-n" and re.fullmatch(r"(?:\d+|\$)(?:,(?:\d+|\$|\+\d+))?p", texts[1])
    if not is_print or any(text.startswith("-") for text in texts[2:]):
        return "is more than sed -n 'FIRST,LASTp' FILE"
    return None


def _check_date(words: Sequence[Word]) -> str | None:
    for text in (word.text for word in words):
        sets = _has_option(text, ("--set",), "s") and not text.startswith("-I")  # -Iseconds is a format
        if sets or re.fullmatch(r"\d{8,}[\d.]*", text):
            return "may set the clock"
    return None


def _check_hostname(words: Sequence[Word]) -> str | None:
    allowed = {"-f", "-s", "-i", "-I", "-d", "-A"}
    return None if all(word.text in allowed for word in words) else "may set the host's name"


def _check_command(words: Sequence[Word]) -> str | None:
    return None if words and words[0].text in ("-v", "-V") else "runs another command"


def _check_git(words: Sequence[Word]) -> str | None:
    texts = [word.text for word in words]
    while texts and texts[0] in ("--no-pager", "-C", "--no-optional-locks"):
        del texts[: 2 if texts[0] == "-C" else 1]
    if not texts:
        return "has no subcommand"
    name, rest = texts[0], texts[1:]
    for text in rest:
        if _has_option(text, _GIT_WRITING_OPTIONS, "O" if name == "grep" else ""):
            return f"has an option that may write or run something ({text[:60]!r})"
    if name in _GIT_READS or (not rest and name == "reflog") or (rest and rest[0] in _GIT_SECOND.get(name, ())):
        return None
    if name in _GIT_LISTS:
        # With --list a name is a pattern; without it, it would be created.
        options = [text for text in rest if text.startswith("-") or "--list" not in rest]
        if all(_GIT_LISTS[name].fullmatch(text) for text in options):
            return None
    return f"is not a git command that only reads ({' '.join([name, *rest[:1]])[:60]!r})"


def _check_gh(words: Sequence[Word]) -> str | None:
    texts = [word.text for word in words]
    if len(texts) < 2 or texts[1] not in _GH_READS.get(texts[0], ()):
        return f"is not a gh command that only reads ({' '.join(texts[:2])[:60]!r})"
    if any(_has_option(text, ("--web",), "w") for text in texts[2:]):
        return "opens a browser"
    return None


RESTRICTED: dict[str, Check] = {
    "[": _without(short="v"),
    "command": _check_command,
    "date": _check_date,
    "file": _without(("--compile",), "C"),
    "find": _check_find,
    "gh": _check_gh,
    "git": _check_git,
    "hostname": _check_hostname,
    "printf": _without(short="v"),
    "rg": _without(("--pre", "--hostname-bin", "--search-zip"), "z"),
    "sed": _check_sed,
    "sort": _without(("--output", "--compress-program", "--files0-from"), "o"),
    "test": _without(short="v"),
    "tree": _without(("--output",), "oR"),
    "uniq": _check_uniq,
}
