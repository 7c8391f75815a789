"""GET requests over HTTP: proxies of the environment, redirects, and retries with growing pauses."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import responses
from typing import TypeVar
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout, Url, make_headers, parse_url

from cocoseg import __version__
from cocoseg.errors import CocosegError

T = TypeVar("T")

CONNECT_TIMEOUT = 20.0  # seconds
SILENCE_TIMEOUT = 30.0  # seconds without a byte; a slow server that keeps sending is fine
LONGEST_PAUSE = 60  # seconds between two attempts, even if the server asks for more
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later
MAX_REDIRECTS = 10
CHUNK = 2**16  # bytes of a body that are in memory at a time
# Uncompressed: a part of a compressed body can't be resumed, and hides the true size.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"cocoseg/{__version__}"}


class FetchError(CocosegError):
    """A file could not be fetched.

    Attributes:
        retry: another attempt may succeed.
        unreachable: there was no connection.
        response: the server's refusal, which may say how long to wait.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry: bool = False,
        unreachable: bool = False,
        response: BaseHTTPResponse | None = None,
    ):
        super().__init__(reason)
        self.retry = retry
        self.unreachable = unreachable
        self.response = response


class HttpClient:
    """Sends requests, from any number of threads.

    Args:
        connections: kept open per host.
        retries: further attempts after server errors, broken connections and timeouts.
        pause: seconds; the first retry comes at once, the next ones after 2, 4, 8, … times as long.
    """

    def __init__(self, connections: int, retries: int, pause: float):
        self._retry = Retry(
            retries,
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
                    reason = f"the server answered {response.status} {responses.get(response.status, '')}"
                    raise FetchError(reason.rstrip(), retry=response.status in TEMPORARY, response=response)
                yield response
        except HTTPError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # down to the error of the operating system
                cause = cause.__context__
            raise FetchError(
                getattr(cause, "strerror", None) or ascii(str(cause))[:200],
                retry=True,
                unreachable=isinstance(error, ConnectTimeoutError | ProxyError | SSLError),
            ) from error

    def persist(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it succeeds or has failed for good."""
        retry = self._retry
        while True:
            try:
                return attempt()
            except FetchError as error:
                if not error.retry or retry.total == 0:
                    raise
                retry = retry.increment("GET", error=error)
                with suppress(HTTPError, ValueError):  # Retry-After may make no sense
                    retry.sleep(error.response)

    def _follow(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send a request, and follow redirects; urllib3 would follow them from https to http as well."""
        address = parse_address(url)
        for _ in range(MAX_REDIRECTS + 1):
            proxy = self._proxies.get(address.scheme)
            manager = self._direct if proxy is None or proxy_bypass(address.netloc) else proxy
            login = make_headers(basic_auth=unquote(address.auth)) if address.auth else {}
            response = manager.request(
                "GET",
                address._replace(auth=None, fragment=None).url,
                headers={**HEADERS, **headers, **login},
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


def read_body(response: BaseHTTPResponse, limit: int) -> Iterator[bytes]:
    """Yield a body in pieces of at most CHUNK bytes; raise FetchError if it has more than `limit`."""
    size = 0
    while chunk := response.read(CHUNK):
        size += len(chunk)
        if size > limit:  # counted, for Content-Length may be wrong or absent
            raise FetchError(f"larger than {limit} bytes")
        yield chunk


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


def _connect_proxy(scheme: str, url: str, connections: int) -> urllib3.ProxyManager:
    try:
        proxy = parse_address(url if "://" in url else f"http://{url}")
    except FetchError as error:
        raise CocosegError(f"{error}; unset {scheme}_proxy, or set it to an http proxy") from error
    login = make_headers(proxy_basic_auth=unquote(proxy.auth)) if proxy.auth else None
    return urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=login, maxsize=connections)
