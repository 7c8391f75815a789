"""GET requests over HTTP: proxies of the environment, redirects, and retries with growing pauses."""

import logging
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import responses
from typing import TypeVar
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationValueError, ProxyError, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout, Url, parse_url

from cocoseg import __version__
from cocoseg.errors import CocosegError

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT = 20.0  # seconds
SILENCE_TIMEOUT = 30.0  # seconds without a byte; a slow server that keeps sending is fine
LONGEST_PAUSE = 60  # seconds between two attempts, even if the server asks for more
MAX_REDIRECTS = 10
CHUNK = 2**16  # bytes of a body that are in memory at a time
# Uncompressed: a part of a compressed body can't be resumed, and hides the true size.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"cocoseg/{__version__}"}


class FetchError(CocosegError):
    """An attempt failed.

    Attributes:
        retry: another attempt may succeed.
        after: seconds that the server asks to wait before it.
        unreachable: there was no connection.
    """

    def __init__(self, reason: str, *, retry: bool = False, after: float = 0.0, unreachable: bool = False):
        super().__init__(reason)
        self.retry = retry
        self.after = after
        self.unreachable = unreachable


class HttpClient:
    """Sends requests, from any number of threads.

    Args:
        connections: kept open per host.
        retries: further attempts after server errors, broken connections and timeouts.
        pause: seconds; the first retry comes at once, the next ones after 2, 4, 8, … times as long.
    """

    def __init__(self, connections: int, retries: int, pause: float):
        self._retries = retries
        self._retry = Retry(
            total=None,
            backoff_factor=pause,
            backoff_jitter=pause,
            backoff_max=LONGEST_PAUSE,
            retry_after_max=LONGEST_PAUSE,
        )
        self._direct = urllib3.PoolManager(maxsize=connections)
        self._proxies = {
            scheme: _connect_proxy(scheme, url, connections)
            for scheme, url in getproxies().items()
            if scheme in ("http", "https")
        }
        self.stopped = threading.Event()  # ends the reading and the pauses of all threads

    @contextmanager
    def get(
        self, url: str, headers: Mapping[str, str] | None = None, accept: Collection[int] = (200,)
    ) -> Iterator[BaseHTTPResponse]:
        """Yield a response whose status is one of `accept`, its body unread.

        Raises:
            FetchError: errors of the network, those inside the block included.
        """
        try:
            with self._follow(url, headers or {}) as response:
                if response.status not in accept:
                    raise self._refusal(response)
                yield response
        except HTTPError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # down to the error of the operating system
                cause = cause.__context__
            raise FetchError(
                getattr(cause, "strerror", None) or ascii(str(cause))[:200],
                retry=not isinstance(error, LocationValueError),
                unreachable=isinstance(error, ConnectTimeoutError | ProxyError | SSLError),
            ) from error

    def read(self, response: BaseHTTPResponse, limit: int) -> Iterator[bytes]:
        """Yield the body in pieces of at most CHUNK bytes; raise FetchError if it has more than `limit`."""
        size = 0
        while chunk := response.read(CHUNK):
            size += len(chunk)
            if size > limit:  # counted, for Content-Length may be wrong or absent
                raise FetchError(f"larger than {limit} bytes")
            if self.stopped.is_set():
                raise FetchError("stopped")
            yield chunk

    def persist(self, attempt: Callable[[], T], name: str, level: int) -> T:
        """Call `attempt` until it succeeds or has failed for good; retries are logged at `level`."""
        retry = self._retry
        while True:
            try:
                return attempt()
            except FetchError as error:
                if not error.retry or len(retry.history) == self._retries:
                    raise
                retry = retry.increment("GET", error=error)
                seconds = max(retry.get_backoff_time(), error.after)
                log.log(level, "%s: %s; trying again in %.1f s", name, error, seconds)
                if self.stopped.wait(seconds):
                    raise

    def _follow(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send a request, and follow redirects; urllib3 would follow them from https to http as well."""
        address = parse_address(url)
        for _ in range(MAX_REDIRECTS + 1):
            proxy = self._proxies.get(address.scheme)
            manager = self._direct if proxy is None or proxy_bypass(address.netloc) else proxy
            response = manager.request(
                "GET",
                address._replace(auth=None, fragment=None).url,
                headers={**HEADERS, **headers, **_login("Authorization", address)},
                timeout=Timeout(connect=CONNECT_TIMEOUT, read=SILENCE_TIMEOUT),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            location = response.get_redirect_location()
            if not location:
                return response
            with response:
                response.read(CHUNK)  # its connection can be used again if this was all
            target = parse_address(location, base=address.url)
            if target.scheme == "http" and address.scheme == "https":
                raise FetchError(f"redirected from https to {without_login(target.url)}")
            address = target
        raise FetchError(f"redirected more than {MAX_REDIRECTS} times")

    def _refusal(self, response: BaseHTTPResponse) -> FetchError:
        status, after = response.status, 0.0
        with suppress(HTTPError, ValueError, OverflowError):  # Retry-After may make no sense
            after = self._retry.get_retry_after(response) or 0.0
        reason = f"the server answered {status} {responses.get(status, '')}".rstrip()
        return FetchError(reason, retry=status >= 500 or status in (408, 425, 429), after=after)


def parse_address(url: str, base: str = "") -> Url:
    """Parse an http or https address; `base`: the address that a relative one is relative to.

    Raises:
        FetchError: it is none.
    """
    with suppress(ValueError):
        address = parse_url(urljoin(base, url))
        if address.scheme in ("http", "https") and address.host:
            return address
    raise FetchError(f"{without_login(url)!a} is no http or https address")


def without_login(url: str) -> str:
    """Remove user name and password from an address that goes into a message or a file."""
    return re.sub(r"//[^/?#]*@", "//", url, count=1)


def _login(header: str, address: Url) -> dict[str, str]:
    if address.auth is None:
        return {}
    return {header: f"Basic {b64encode(unquote(address.auth).encode()).decode()}"}


def _connect_proxy(scheme: str, url: str, connections: int) -> urllib3.ProxyManager:
    try:
        proxy = parse_address(url if "://" in url else f"http://{url}")
    except FetchError as error:
        raise CocosegError(f"{error}; unset {scheme}_proxy, or set it to an http proxy") from error
    headers = _login("Proxy-Authorization", proxy)
    return urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=headers, maxsize=connections)
