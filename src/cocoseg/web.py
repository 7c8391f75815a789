"""Requests over HTTP: what their failures mean, and the pauses between attempts."""

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import BinaryIO

import aiohttp
from yarl import URL

from cocoseg import __version__
from cocoseg.errors import CocosegError
from cocoseg.progress import Progress

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 20.0  # seconds
SILENCE_TIMEOUT = 30.0  # seconds without a byte; a server that is slow but alive is fine
LONGEST_PAUSE = 60.0  # seconds between two attempts, also where the server asks for more
MAX_REDIRECTS = 10

_jitter = random.Random()  # its own: the seeded one belongs to the user


class FinalError(Exception):
    """Another attempt would end the same way, or there have been enough."""

    def __init__(self, reason: str, *, unreachable: bool = False):
        super().__init__(reason)
        self.unreachable = unreachable  # there was no connection at all


class RetryError(Exception):
    """Another attempt may succeed."""

    def __init__(
        self, reason: str, *, after: float = 0.0, at_most: float = float("inf"), unreachable: bool = False
    ):
        super().__init__(reason)
        self.after = after  # seconds that the server asks to wait
        self.at_most = at_most  # retries that are worth it
        self.unreachable = unreachable
        self.advanced = False  # it got further than any attempt before


class Client:
    """Requests, what their failures mean, and the pauses between attempts."""

    def __init__(self, session: aiohttp.ClientSession, retries: int, pause: float):
        self._session = session
        self._retries = retries
        self._pause = pause
        self.answered = False  # by any server, ever

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str] | None = None, accept: Iterable[int] = (200,)
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of an accepted status, its body still to be read.

        Raises:
            FinalError, RetryError: all that can go wrong on the network, inside the block too.
        """
        try:
            async with self._session.get(
                parse_url(url), headers=headers, max_redirects=MAX_REDIRECTS
            ) as response:
                self.answered = True
                _check_answer(response, accept)
                yield response
        except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
            raise self._meaning(error) from error

    async def persist(self, attempt: Callable[[], Awaitable[None]], name: str, level: int) -> None:
        """Call `attempt` until it succeeds, with growing pauses between; `level`: how loud retries are.

        Raises:
            FinalError: it can't, or has not within the retries.
        """
        number = 0
        while True:
            try:
                return await attempt()
            except RetryError as error:
                number = 0 if error.advanced else number
                if number >= min(self._retries, error.at_most):
                    raise FinalError(str(error), unreachable=error.unreachable) from error
                seconds = self._seconds(number, error.after)
                log.log(level, "%s: %s; trying again in %.1f s", name, error, seconds)
                number += 1
            await asyncio.sleep(seconds)

    def _seconds(self, number: int, after: float) -> float:
        """Random by a quarter, so that what failed together doesn't come back together."""
        growing = min(self._pause * 2**number, LONGEST_PAUSE) * _jitter.uniform(0.75, 1.25)
        return max(growing, min(after, LONGEST_PAUSE))

    def _meaning(self, error: Exception) -> FinalError | RetryError:
        match error:
            case aiohttp.NonHttpUrlClientError():
                return FinalError(f"it leads to {str(error)!a}, which is no http or https address")
            case aiohttp.InvalidURL() | UnicodeError():
                return FinalError("no valid address")
            case aiohttp.TooManyRedirects():
                return FinalError(f"redirected more than {MAX_REDIRECTS} times")
            case aiohttp.ClientConnectorCertificateError():
                return FinalError(f"the certificate is not valid: {error}", unreachable=True)
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                # The network is down, most likely: no need to wait for all the retries before saying so.
                enough = float("inf") if self.answered else 2
                reason = getattr(error, "strerror", None) or f"no connection in {CONNECT_TIMEOUT:g} s"
                return RetryError(reason, at_most=enough, unreachable=True)
            case TimeoutError():
                return RetryError(f"nothing came for {SILENCE_TIMEOUT:g} s")
            case aiohttp.ClientPayloadError():
                return RetryError("the body was cut off")
            case aiohttp.ClientResponseError():
                return RetryError(f"the answer is no proper HTTP ({error.message!a})")
        return RetryError(str(error) or type(error).__name__)


def open_session(connections: int) -> aiohttp.ClientSession:
    """At most so many connections at a time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        # No `connect`: it would count the time in the queue for a connection.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE_TIMEOUT),
        # Bytes as they are: a part of a compressed body can't be resumed, and would hide the true size.
        headers={"Accept-Encoding": "identity", "User-Agent": f"cocoseg/{__version__}"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=True,  # the user's proxy
    )


def parse_url(url: str) -> URL:
    """Plain text is taken as it stands: yarl would write %2B as +, which S3 reads as a blank.

    Raises:
        FinalError: it is no http or https address.
    """
    try:
        parsed = URL(url, encoded=re.fullmatch(r"[!-~]+", url) is not None)
    except ValueError as error:
        raise FinalError("no valid address") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise FinalError("no http or https address")
    return parsed


def checked_url(url: str) -> URL:
    """`parse_url` of what a user gave; raises CocosegError."""
    try:
        return parse_url(url)
    except FinalError as error:
        raise CocosegError(f"{shown(url)!r} is {error}") from error


def shown(url: str) -> str:
    """Without user name and password: it goes into messages and files."""
    with suppress(ValueError):
        return str(URL(url, encoded=True).with_user(None)) if "@" in url else url
    return url


def _check_answer(response: aiohttp.ClientResponse, accept: Iterable[int]) -> None:
    status = response.status
    if status not in accept:
        with suppress(ValueError):
            status = f"{status} {HTTPStatus(status).phrase}"  # not the server's own words
        reason = f"the server answered {status}"
        if response.status >= 500 or response.status in (408, 425, 429):
            raise RetryError(reason, after=_retry_after(response.headers))
        raise FinalError(reason)
    if response.headers.get("Content-Encoding", "").lower() in ("gzip", "deflate", "br", "zstd"):
        raise FinalError("the server compresses it, though asked not to")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, 0 where it does not say."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


async def save(response: aiohttp.ClientResponse, file: BinaryIO, limit: int, progress: Progress) -> None:
    """Append the body to `file`, which may grow to `limit` bytes, whatever the header promises."""
    async for chunk in response.content.iter_any():
        file.write(chunk)
        progress.received(len(chunk))
        if file.tell() > limit:
            raise FinalError(f"larger than {limit} bytes")
