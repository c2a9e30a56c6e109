"""The one place where foreign failures become :class:`~athena.errors.ProviderError`.

HTTP statuses, error bodies, errors inside a stream and httpx exceptions all end here, so every provider names the same
failure in the same way. The texts name the endpoint and say what to do, in one line, and never carry a secret: servers
like to echo the key they refused, whole or in part.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from athena.errors import ProviderError

_MAX_DETAIL_CHARS = 400
_MIN_ECHO_CHARS = 6  # shorter pieces of a key say nothing and would blank ordinary words

_KIND_OF_STATUS = {
    401: "unauthorized",
    403: "unauthorized",
    404: "not_found",
    408: "timeout",
    413: "context_length_exceeded",
    429: "rate_limited",
    504: "timeout",
}

_HINTS: dict[str, str] = {
    "unauthorized": "check the API key",
    "not_found": "check model and base_url",
    "rate_limited": "wait, or lower the request rate",
    "timeout": "raise the time limit, or check the server's load",
    "context_length_exceeded": "shorten or compact the conversation",
    "transport": "check that the server runs and base_url is right",
}

# Words of OpenAI, llama.cpp, Ollama, vLLM and gateways for one fact: the prompt does not fit.
_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|context[ _](length|size|window)|maximum context"
    r"|prompt is too long|input (is )?too long|too many (input )?tokens|input length exceeds",
    re.IGNORECASE,
)
_MASKED = re.compile(r"\S*\*{3,}\S*")
_WORD = re.compile(rf"[A-Za-z0-9_\-]{{{_MIN_ECHO_CHARS},}}")


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """Who failed: provider name, the endpoint as shown to people, its secrets, and its own hints by error kind."""

    provider: str
    endpoint: str
    secrets: tuple[str, ...] = field(default=(), repr=False)
    hints: Mapping[str, str] = field(default_factory=dict)

    def error(
        self, kind: str, detail: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> ProviderError:
        """A :class:`ProviderError` of this ``kind`` with a one-line text, free of secrets."""
        said = redact(" ".join(detail.split()), self.secrets)
        if len(said) > _MAX_DETAIL_CHARS:
            said = said[:_MAX_DETAIL_CHARS] + "..."
        hint = self.hints.get(kind) or _HINTS.get(kind)
        text = f"{self.provider} at {self.endpoint}: {said}" + (f" ({hint})" if hint else "")
        return ProviderError(text, kind=kind, status=status, retry_after_s=retry_after_s, provider=self.provider)


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` without any of ``secrets``, and without the parts and masked forms of them that servers echo."""
    if not secrets:
        return text
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = _MASKED.sub("[redacted]", text)
    return _WORD.sub(lambda m: "[redacted]" if any(m[0] in s or s in m[0] for s in secrets) else m[0], text)


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait as the server asks, from ``Retry-After`` (seconds or an HTTP date, RFC 9110 10.2.3) or the
    millisecond form some gateways send. ``None`` if it says nothing usable."""
    millis = headers.get("retry-after-ms")
    value = headers.get("retry-after")
    try:
        if millis is not None:
            return max(0.0, float(millis) / 1000)
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError):
        return None


def from_status(context: ErrorContext, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error that an HTTP answer with ``status`` >= 300 means."""
    detail, code = _described(body)
    kind = _kind_of(status, f"{code} {detail}")
    if status < 400:
        detail = f"redirects to {headers.get('location', 'another address')}; set base_url to the final address"
    return context.error(
        kind, f"HTTP {status}: {detail or 'no details'}", status=status, retry_after_s=retry_after_s(headers)
    )


def from_payload(context: ErrorContext, payload: Any) -> ProviderError:
    """The error that a server reports inside a stream it had begun with status 200."""
    detail, code = _described(payload)
    status = int(code) if re.fullmatch(r"[45]\d\d", code) else None
    kind = _kind_of(status or 500, f"{code} {detail}")
    if "rate_limit" in code:
        kind = "rate_limited"
    elif status is None and "invalid" in code:
        kind = "bad_request"
    return context.error(kind, f"error in the stream: {detail or 'no details'}", status=status)


def from_httpx(context: ErrorContext, exc: Exception) -> ProviderError:
    """The error that an exception of the HTTP client means."""
    if isinstance(exc, httpx.TimeoutException):
        return context.error("timeout", f"no connection in time ({type(exc).__name__})")
    if isinstance(exc, httpx.ConnectError):
        return context.error("transport", f"cannot connect: {exc}")
    return context.error("transport", f"the connection broke: {str(exc) or 'no details'} ({type(exc).__name__})")


def _kind_of(status: int, said: str) -> str:
    kind = _KIND_OF_STATUS.get(status)
    # A token-per-minute refusal is also worded with "too many tokens"; its status is the better witness.
    if kind is None and _OVERFLOW.search(said):
        return "context_length_exceeded"
    if kind is not None:
        return kind
    return "server_error" if status >= 500 else "bad_request"


def _described(body: Any) -> tuple[str, str]:
    """The message and the code or type in an error body, whatever its shape."""
    value = body
    if isinstance(body, bytes):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return body.decode("utf-8", "replace"), ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or ""
    code = error.get("type") if error.get("code") in (None, "", 400, "400") else error.get("code")
    return str(message or orjson.dumps(error, default=str).decode()), str(code or "")
