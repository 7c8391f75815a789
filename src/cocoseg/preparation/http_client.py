"""Download over HTTP: proxies of the environment, redirects, retries with growing pauses, resumption."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import responses
from pathlib import Path
from threading import Lock
from typing import IO
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout, Url, make_headers, parse_url

from cocoseg import __version__
from cocoseg.errors import CocosegError
from cocoseg.progress import track

MIB = 2**20
CHUNK = 2**16  # bytes of a body in memory at a time
CONNECTIONS = 16
TIMEOUT = Timeout(connect=20.0, read=30.0)  # seconds without a byte, so that slow servers may keep sending
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # status codes that a retry may change
SCHEMES = ("http", "https")
MAX_REDIRECTS = 10
LONGEST_PAUSE = 60  # seconds between two attempts, even if the server asks for more
# The first retry comes at once, the next ones after 2, 4, 8, … seconds and at most a second more, at random.
RETRY = Retry(5, backoff_factor=1.0, backoff_jitter=1.0, backoff_max=LONGEST_PAUSE)
# Uncompressed: a part of a compressed body can't be resumed, and hides the true size.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"cocoseg/{__version__}"}


class FetchError(CocosegError):
    """A file could not be fetched, or is not the expected one."""


class UnreachableError(FetchError):
    """There is no connection to the server."""


class HttpClient:
    """Fetches files, from any number of threads, and with `progress` shows how far each is."""

    def __init__(self, *, progress: bool = False):
        self._progress = progress
        self._opening = Lock()
        self._closed = False
        self._direct = urllib3.PoolManager(maxsize=CONNECTIONS)
        proxies = getproxies().items()
        self._proxies = {scheme: _connect_proxy(scheme, url) for scheme, url in proxies if scheme in SCHEMES}

    def fetch(
        self, url: str, path: Path, limit: int, check: Callable[[Path], None], *, resume: bool = False
    ) -> None:
        """Fetch a file, with further attempts after server errors, broken connections and timeouts.

        Args:
            path: gets the file.
            limit: in bytes; larger files are refused.
            check: called with the path of the complete file, raises FetchError where it is damaged. The file
                is then fetched a second time.
            resume: append to the file at `path`. The check must detect parts that do not belong together.

        Raises:
            FetchError: the file can't be fetched.
            UnreachableError: there is no connection to the server.
            OSError: `path` can't be written.
        """
        retry, damaged = RETRY, False
        while True:
            begin = _size(path) if resume else 0
            response = None
            try:
                with self._follow(url, begin) as response:
                    self._save(response, path, begin, limit)
            except FetchError:
                path.unlink(missing_ok=True)
                raise
            except HTTPError as error:
                if resume and _size(path) > begin + MIB:  # a bad connection that makes progress
                    retry = RETRY
                if retry.total == 0:
                    raise _explain(error, url) from error
                # `increment` forgets retry_after_max.
                retry = retry.increment("GET", error=error).new(retry_after_max=LONGEST_PAUSE)
                with suppress(HTTPError, ValueError):  # Retry-After may make no sense
                    retry.sleep(response)
                continue
            try:
                check(path)
                return
            except FetchError:
                path.unlink()
                if damaged:
                    raise
                damaged, resume = True, False

    def _save(self, response: BaseHTTPResponse, path: Path, begin: int, limit: int) -> None:
        """Write a body to `path`: after its first `begin` bytes if the server sends what follows them."""
        if begin and response.status == 416:  # nothing follows
            return
        follows = begin > 0 and response.status == 206
        if response.status != 200 and not follows:
            reason = f"the server answered {response.status} {responses.get(response.status, '')}".rstrip()
            raise HTTPError(reason) if response.status in TEMPORARY else FetchError(reason)
        chunks = iter(partial(response.read, CHUNK), b"")
        if self._progress:
            chunks = track(chunks, total=response.length_remaining, what=path.stem, size=len)
        with self._open(path, "ab" if follows else "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                if file.tell() > limit:  # counted, for Content-Length may be wrong or absent
                    raise FetchError(f"larger than {limit} bytes")

    def _open(self, path: Path, mode: str) -> IO[bytes]:
        with self._opening:
            if self._closed:
                raise FetchError("the download has ended")
            return path.open(mode)

    def close(self) -> None:
        """Let no thread open a file from now on."""
        with self._opening:
            self._closed = True

    def _follow(self, url: str, begin: int) -> BaseHTTPResponse:
        """Request a file from a byte on. Follow redirects, but unlike urllib3 never from https to http."""
        address = parse_address(url)
        for _ in range(MAX_REDIRECTS + 1):
            proxy = self._proxies.get(str(address.scheme))
            manager = self._direct if proxy is None or proxy_bypass(str(address.netloc)) else proxy
            response = manager.request(
                "GET",
                address._replace(fragment=None).url,
                headers={**HEADERS, "Range": f"bytes={begin}-"} if begin else HEADERS,
                timeout=TIMEOUT,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            location = response.get_redirect_location()
            if not location:
                return response
            response.close()
            target = parse_address(location, base=address.url)
            if target.scheme == "http" and address.scheme == "https":
                raise FetchError(f"redirected from https to {target.url}")
            address = target
        raise FetchError(f"redirected more than {MAX_REDIRECTS} times")


def parse_address(url: str, base: str = "") -> Url:
    """Parse an http or https address; a relative one is relative to `base`.

    Raises:
        FetchError: it is no such address, or holds a user and password, which logs would show.
    """
    address = _parse(url, base)
    if address.auth:
        raise FetchError(f"no user and password can be sent to {address.host}; get the files by other means")
    return address


def _parse(url: str, base: str = "") -> Url:
    with suppress(ValueError):
        address = parse_url(urljoin(base, url))
        if address.scheme in SCHEMES and address.host:
            address.host.encode("idna")  # urllib3 would raise at each of several attempts
            return address
    raise FetchError(f"{url!a} is no http or https address")


def _explain(error: HTTPError, url: str) -> FetchError:
    cause: BaseException = error
    while cause.__context__ is not None:  # down to the error of the operating system
        cause = cause.__context__
    reason = getattr(cause, "strerror", None) or ascii(str(cause))[:200]
    if isinstance(error, ConnectTimeoutError | ProxyError | SSLError):
        return UnreachableError(f"no connection to {parse_address(url).host} ({reason})")
    return FetchError(reason)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _connect_proxy(scheme: str, url: str) -> urllib3.ProxyManager:
    try:
        proxy = _parse(url if "://" in url else f"http://{url}")
    except FetchError as error:
        raise CocosegError(f"{scheme}_proxy: no http or https address; unset it, or correct it") from error
    login = make_headers(proxy_basic_auth=unquote(proxy.auth)) if proxy.auth else None
    return urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=login, maxsize=CONNECTIONS)
