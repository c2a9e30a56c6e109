"""Is a shell command read-only? A pure judgement for phase ``plan``, by an allow list, closed by default.

The command line is lexed as ``sh`` and ``bash`` both would; whatever the two read differently, or this lexer does not
know for certain, is refused: parentheses, substitutions, assignments, redirects other than to ``/dev/null`` or between
descriptors. Then every command must be on the list, with the arguments that could make it write or run others refused.
It protects against mistakes of a model in a project that is trusted; it is no sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from athena.bash_commands import ANY_ARGUMENTS, RESTRICTED, Word


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a command is not read-only: the segment of it that is at fault, and what is wrong there."""

    segment: str
    reason: str


@dataclass(slots=True)
class Segment:
    """One simple command: its source text, and its words with the quotes taken off."""

    text: str = ""
    words: list[Word] = field(default_factory=list)


class Refused(Exception):
    """The lexer met something that is never read-only, or that it does not understand."""


def find_violation(command: str) -> Violation | None:
    """``None`` if ``command`` only reads; else what is wrong with it. Never raises."""
    lexer = _Lexer(command)
    try:
        segments = lexer.run()
    except Refused as refused:
        return Violation(lexer.current_text(), str(refused))
    if not segments:
        return Violation(command.strip()[:200], "has no command in it")
    for segment in segments:
        reason = _judge(segment.words)
        if reason is not None:
            return Violation(segment.text, reason)
    return None


def split_segments(command: str) -> list[str]:
    """The texts of the simple commands in ``command``, split where ``sh`` does; as far as it could be read."""
    lexer = _Lexer(command)
    try:
        return [segment.text for segment in lexer.run()]
    except Refused:
        return [segment.text for segment in lexer.segments] + [lexer.current_text()]


def _judge(words: Sequence[Word]) -> str | None:
    command, arguments = words[0], words[1:]
    if command.expands:
        return "does not name its command literally"
    if command.text in ANY_ARGUMENTS:
        return None
    check: Callable[[Sequence[Word]], str | None] | None = RESTRICTED.get(command.text)
    if check is None:
        return f"is not known to be read-only ({command.text[:60]!r})"
    for word in arguments:
        if word.expands or (word.globs and word.text not in ("[", "{}")):
            # It may turn into an option that writes: a variable's value, or a file that is named like one.
            return f"has an argument that the shell would expand ({word.text[:60]!r}); quote it or write it out"
    return check(arguments)


_REDIRECT = re.compile(r"(?:[<>]&[ \t]*(?:[0-9]|-)|(?:>>?|<|&>>?)[ \t]*/dev/null)(?=[ \t\n;&|<>]|\Z)")
_PLAIN_VARIABLE = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\}|[0-9?#$!@*-])")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\[.*\])?\+?=", re.DOTALL)


class _Lexer:
    """Splits a command line into segments of words. One pass, one character or operator a step."""

    def __init__(self, command: str) -> None:
        self.segments: list[Segment] = []
        self._source = command
        self._at = 0
        self._start = 0
        self._segment = Segment()
        self._word: Word | None = None
        self._quoted_word = False

    def current_text(self) -> str:
        """The segment that is being read, up to the next obvious end of it."""
        rest = re.split(r"[;\n|&]", self._source[max(self._at, self._start) :], maxsplit=1)[0]
        return (self._source[self._start : max(self._at, self._start)] + rest).strip()[:200]

    def run(self) -> list[Segment]:
        """All segments. Raises :class:`Refused`."""
        if "\0" in self._source:
            raise Refused("has a NUL character in it")
        while self._at < len(self._source):
            self._step(self._source[self._at])
        self._end_segment(self._at)
        return self.segments

    def _step(self, char: str) -> None:
        redirect = _REDIRECT.match(self._source, self._at)
        if self._source.startswith("\\\n", self._at):
            self._at += 2  # a continued line: for the shell these two were never there
        elif redirect:
            self._take_redirect(redirect.end())
        elif char in "<>" or self._source.startswith("&>", self._at):
            raise Refused("redirects input or output")
        elif char in "()":
            raise Refused("has a subshell, function or group in it")
        elif char == "`":
            raise Refused("has a command substitution in it")
        elif char in ";&|\n":
            self._end_segment(self._at)
            self._at += 1
            self._start = self._at
        elif char in " \t":
            self._end_word()
            self._at += 1
        elif char == "#" and self._word is None:
            self._skip_comment()
        else:
            self._take_character(char)

    def _take_redirect(self, end: int) -> None:
        if self._word is not None and self._word.text.isdecimal() and not self._quoted_word:
            self._word = None  # the number of the descriptor
        self._end_word()
        self._at = end

    def _skip_comment(self) -> None:
        end = self._source.find("\n", self._at)
        self._at = len(self._source) if end < 0 else end

    def _take_character(self, char: str) -> None:
        word = self._word = self._word or Word()
        if char == "'":
            self._take_single_quoted(word)
        elif char == '"':
            self._take_double_quoted(word)
        elif char == "\\":
            self._take_escape(word)
        elif char == "$":
            self._take_variable(word, quoted=False)
        else:
            # Only at its start can a pattern become an option.
            word.globs |= not word.text and char in "*?[{"
            word.text += char
            self._at += 1

    def _take_single_quoted(self, word: Word) -> None:
        self._quoted_word = True
        end = self._source.find("'", self._at + 1)
        if end < 0:
            raise Refused("has a quote that is not closed")
        word.text += self._source[self._at + 1 : end]
        self._at = end + 1

    def _take_double_quoted(self, word: Word) -> None:
        self._quoted_word = True
        self._at += 1
        while self._at < len(self._source):
            char = self._source[self._at]
            if char == '"':
                self._at += 1
                return
            if char == "`":
                raise Refused("has a command substitution in it")
            if char == "$" and self._source[self._at + 1 : self._at + 2] not in ('"', " ", ""):
                self._take_variable(word, quoted=True)
            elif char == "\\" and self._source[self._at + 1 : self._at + 2] in ("$", "`", '"', "\\", "\n"):
                self._take_escape(word)
            else:
                word.text += char
                self._at += 1
        raise Refused("has a quote that is not closed")

    def _take_escape(self, word: Word) -> None:
        escaped = self._source[self._at + 1 : self._at + 2]
        if not escaped:
            raise Refused("ends with a backslash")
        if escaped != "\n":  # continued inside double quotes
            word.text += escaped
            self._quoted_word = True
        self._at += 2

    def _take_variable(self, word: Word, *, quoted: bool) -> None:
        variable = _PLAIN_VARIABLE.match(self._source, self._at)
        following = self._source[self._at + 1 : self._at + 2]
        if variable:
            word.expands = True
            word.text += variable[0]
            self._at = variable.end()
        elif following == "" or following in " \t\n;|&" or (quoted and following not in "({[`'"):
            word.text += "$"
            self._at += 1
        else:
            raise Refused("has a substitution in it")

    def _end_word(self) -> None:
        word, self._word = self._word, None
        quoted, self._quoted_word = self._quoted_word, False
        if word is None or (not word.text and not quoted):
            return
        if not self._segment.words and _ASSIGNMENT.match(word.text):
            raise Refused("sets a variable")
        self._segment.words.append(word)

    def _end_segment(self, end: int) -> None:
        self._end_word()
        self._segment.text = self._source[self._start : end].strip()[:200]
        if self._segment.words:
            self.segments.append(self._segment)
        self._segment = Segment()
