"""What looks like a secret, and how it is kept out of logs, tools and error texts (design: the event log, trust)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|ACCESSKEY|SECRETKEY|PRIVATEKEY|CREDENTIAL|SSHPASS)S?(?:_|$)|"
    r"(?:^|_)(?:API_?KEYS?|KEYS?|AUTH|PASS|PAT|DSN|JWT|COOKIE|AUTHORIZATION|PRIVATE|CONNECTION_STRING|DATABASE_URL)"
    r"(?:_|$)|_PWD$",
    re.IGNORECASE,
)
_SAFE_NAMES = frozenset({"SSH_AUTH_SOCK", "XDG_SESSION_COOKIE", "ATHENA_COOKIE"})
_URL_PASSWORD = re.compile(r"^[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@]+)@", re.IGNORECASE)

MIN_SECRET_CHARS = 8
"""Shorter values are not redacted: they would match ordinary text."""

MIN_KEY_CHARS = 16
"""Shorter values do not take a variable from the tools that happens to contain them: a password may well be a part of
``PATH``."""


def looks_secret(name: str, value: str) -> bool:
    """Whether an environment variable seems to hold a secret, by its name or by a password inside a URL."""
    if name in _SAFE_NAMES:
        return False
    return bool(_SECRET_NAME.search(name) or _URL_PASSWORD.match(value))


def tool_env(env: Mapping[str, str], allow: Iterable[str] = (), *, secrets: Iterable[str] = ()) -> dict[str, str]:
    """The part of a session's environment that its tools may see: what is in ``allow``, and what neither looks like a
    secret nor holds one of ``secrets`` under a harmless name."""
    named = set(allow)
    held = [s for s in secrets if len(s) >= MIN_KEY_CHARS]

    def is_harmless(name: str, value: str) -> bool:
        return not looks_secret(name, value) and not any(s in value for s in held)

    return {k: v for k, v in env.items() if k in named or is_harmless(k, v)}


class Redactor:
    """Replaces every secret value that a session holds by ``[redacted:NAME]``."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        # Longest first: one secret may contain another.
        found = sorted(((v, k) for k, v in secrets.items() if len(v) >= MIN_SECRET_CHARS), key=lambda p: -len(p[0]))
        self._names = {value: name for value, name in reversed(found)}
        self._pattern = re.compile("|".join(re.escape(v) for v, _ in found)) if found else None

    def text(self, value: str) -> str:
        """``value`` without secrets."""
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda m: f"[redacted:{self._names[m.group()]}]", value)

    def json(self, value: Any) -> Any:
        """``value`` without secrets in any string of it."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.json(k): self.json(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.json(v) for v in value]
        return value


def session_secrets(env: Mapping[str, str], api_key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """Name to value of every secret a session holds; a password inside a URL, and the key behind a header's scheme,
    by themselves too."""
    found = {k: v for k, v in env.items() if looks_secret(k, v)}
    found.update({f"header {k}": v for k, v in headers.items() if looks_secret(k.replace("-", "_"), v)})
    for name, value in list(found.items()):
        inner = _URL_PASSWORD.match(value)
        bare = inner[1] if inner else value.rpartition(" ")[2] if name.startswith("header ") else value
        if bare != value:
            found[f"{name}'s secret"] = bare
    if api_key:
        found["api_key"] = api_key
    return found
