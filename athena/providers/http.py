"""HTTP for all providers: one client factory, one way to read a stream, one set of time limits.

Rule of this file: nothing leaves it but JSON values, :class:`~athena.errors.ProviderError` and cancellation.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import orjson

from athena.errors import InvalidOption, ProviderError
from athena.messages import clean_json
from athena.providers import http_errors
from athena.providers.base import ProviderSettings
from athena.providers.framing import Framing, framer
from athena.providers.http_body import TimedPieces, head_of

_IDLE_S = 60.0  # tools often run longer than httpx's 5 s between two calls, and a new TLS handshake costs more
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WRONG_TYPES = ("text/html", "application/json")  # an answer of these is a page or an error, whatever its status
_SECRET_HEADER_WORDS = ("auth", "key", "token", "secret", "cookie")


@functools.cache
def tls_context(cafile: str | None = None) -> ssl.SSLContext:
    """The process's TLS context; made once (about 28 ms), before the fork where a zygote asks for it."""
    return ssl.create_default_context(cafile=cafile) if cafile else httpx.create_ssl_context()


@functools.cache
def _no_tls() -> ssl.SSLContext:
    """A context that trusts nobody, for clients of plain ``http``: cheap, and a stray https request fails closed."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def checked_base_url(value: str, *, option: str = "base_url") -> str:
    """``value`` without a trailing slash. Raises :class:`InvalidOption` if it is no http(s) address with a host."""
    try:
        url = httpx.URL(value.strip())
    except (httpx.InvalidURL, AttributeError, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or url.userinfo:
        expected = "http(s)://host[:port][/path], without credentials or a query"
        shown = "(with credentials, not shown)" if url.userinfo else repr(value)
        raise InvalidOption(
            f"{option}={shown} is not a server address; expected {expected}",
            option=option,
            value=shown,
            expected=expected,
        )
    return str(url).rstrip("/")


def checked_key(value: str) -> str:
    """``value`` without the white space that keys read from files have around them.

    Raises :class:`InvalidOption`, which does not show it, if no HTTP header can carry it.
    """
    key = value.strip()
    if not key or not key.isascii() or not key.isprintable():
        expected = "printable ASCII characters on one line"
        raise InvalidOption(f"api_key: expected {expected}", option="api_key", value="(not shown)", expected=expected)
    return key


def proxy_for(base_url: str, env: Mapping[str, str]) -> str | None:
    """The proxy that ``env`` names for ``base_url``, by the usual variables. Loopback never goes through one."""
    url = httpx.URL(base_url)
    skip = [p.strip().lstrip(".") for p in (env.get("NO_PROXY") or env.get("no_proxy") or "").split(",")]
    if url.host in _LOOPBACK or "*" in skip or any(p and (url.host == p or url.host.endswith("." + p)) for p in skip):
        return None
    names = (f"{url.scheme}_proxy", f"{url.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    return next((env[n] for n in names if env.get(n)), None)


def make_client(base_url: str, settings: ProviderSettings, headers: Mapping[str, str]) -> httpx.AsyncClient:
    """A client for ``base_url``. Proxies and CA files come from ``settings.env`` only, never from this process."""
    secure = base_url.startswith("https:")
    return httpx.AsyncClient(
        # Lower case, so that the user's own header takes the place of ours instead of standing beside it.
        headers={**headers, **{k.lower(): v for k, v in settings.extra_headers.items()}},
        verify=tls_context(settings.env.get("SSL_CERT_FILE") or None) if secure else _no_tls(),
        proxy=proxy_for(base_url, settings.env),
        trust_env=False,
        timeout=httpx.Timeout(None, connect=settings.timeouts.connect_s),
        limits=httpx.Limits(keepalive_expiry=_IDLE_S),
    )


def encode(value: Any) -> bytes:
    """``value`` as JSON. What orjson refuses (lone surrogates, great integers or depth) is cleaned first."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(clean_json(value), ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: str | bytes) -> Any:
    """The JSON value in ``data``. Raises ``ValueError``; a broken ``\\ud83d`` escape is replaced, not refused."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return clean_json(json.loads(data))
        except RecursionError as exc:
            raise ValueError("nested too deep") from exc


class Endpoint:
    """One server: a client, its time limits and the words for its failures. Close it once with :meth:`aclose`."""

    def __init__(
        self,
        provider: str,
        base_url: str,
        settings: ProviderSettings,
        *,
        api_key: str | None = None,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = checked_base_url(base_url)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        secrets = []
        if api_key:
            secrets.append(checked_key(api_key))
            headers["authorization"] = f"Bearer {secrets[0]}"
        secrets += [
            v for k, v in settings.extra_headers.items() if v and any(w in k.lower() for w in _SECRET_HEADER_WORDS)
        ]
        self.errors = http_errors.ErrorContext(provider, self.base_url, tuple(secrets), hints or {})
        self._limits = settings.timeouts
        self._was_used = False
        self._made: httpx.AsyncClient | None = None
        self._make = functools.partial(make_client, self.base_url, settings, headers)
        # An idle session does without a client, which takes 2 ms and 1 MB. But what the caller gave for it may be
        # wrong, and that is an error of the start.
        own_ca = self.base_url.startswith("https:") and settings.env.get("SSL_CERT_FILE")
        if settings.extra_headers or own_ca or proxy_for(self.base_url, settings.env):
            self._made = self._make()

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def stream(self, path: str, body: dict[str, Any], framing: Framing) -> AsyncGenerator[dict[str, Any], None]:
        """POST ``body`` and yield the JSON objects of the streamed answer; closing the iterator closes the connection.

        Whether the last object is the protocol's final one is the caller's to check. Raises :class:`ProviderError`.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.first_byte_s
        response = await self._send(path, body, deadline)
        pieces = TimedPieces(response, self._limits.gap_s, deadline, self.errors)
        frames = framer(framing)
        try:
            if framing == "sse" and response.headers.get("content-type", "").startswith(_WRONG_TYPES):
                raise self.garbage(await head_of(response))
            while (piece := await pieces.next_piece()) is not None:
                for data in frames.feed(piece):
                    if data == b"[DONE]":
                        pieces.drain()
                        continue
                    value = self._object(data)
                    yield value
                    if value.get("done") is True:
                        pieces.drain()
            for data in frames.end():
                yield self._object(data)
        except (httpx.HTTPError, httpx.StreamError) as exc:
            raise http_errors.from_httpx(self.errors, exc) from exc
        finally:
            self._was_used = True
            pieces.close()
            await response.aclose()

    async def _send_once_alive(self, request: httpx.Request) -> httpx.Response:
        """Send on a living connection. A kept one may have been closed by the server just now, without its having read
        the request (RFC 9112 9.3.1); llama.cpp closes after every stream and does not say so. That is no failed
        attempt.
        """
        try:
            return await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not self._was_used:
                raise  # the connection was new: the server refused this very request
        return await self._client.send(request, stream=True)

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = decode(data)
        except ValueError as exc:
            raise self.garbage(data) from exc
        if not isinstance(value, dict):
            raise self.garbage(data)
        if value.get("error"):
            raise http_errors.from_payload(self.errors, value)
        return value

    async def get_json(self, path: str) -> Any:
        """The JSON answer to a GET, within the first-byte limit. Raises :class:`ProviderError`."""
        try:
            async with asyncio.timeout(self._limits.first_byte_s):
                response = await self._client.get(self.base_url + path)
        except TimeoutError as exc:
            raise self._late(self._limits.first_byte_s) from exc
        except httpx.HTTPError as exc:
            raise http_errors.from_httpx(self.errors, exc) from exc
        if response.status_code >= 300:
            raise http_errors.from_status(self.errors, response.status_code, response.headers, response.content)
        try:
            return decode(response.content)
        except ValueError as exc:
            raise self.garbage(response.content) from exc

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        if self._made is not None:
            await self._made.aclose()

    def incomplete(self) -> ProviderError:
        """The error for a stream that ended, in good order, before the protocol's final marker."""
        return self.errors.error("transport", "the stream ended before the answer was complete")

    def garbage(self, data: str | bytes) -> ProviderError:
        """The error for bytes that are no JSON object where one was due."""
        return self.errors.error("transport", f"the answer is not what the protocol says: {data[:80]!r}")

    def _late(self, limit_s: float) -> ProviderError:
        return self.errors.error("timeout", f"no first byte within {limit_s:g} s")

    async def _send(self, path: str, body: dict[str, Any], deadline: float) -> httpx.Response:
        request = self._client.build_request("POST", self.base_url + path, content=encode(body))
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._send_once_alive(request)
        except TimeoutError as exc:
            raise self._late(self._limits.first_byte_s) from exc
        except httpx.HTTPError as exc:
            raise http_errors.from_httpx(self.errors, exc) from exc
        if response.status_code < 300:
            return response
        try:
            content = await head_of(response)
        finally:
            await response.aclose()
        raise http_errors.from_status(self.errors, response.status_code, response.headers, content)
