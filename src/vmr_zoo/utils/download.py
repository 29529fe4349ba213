"""Resumable downloads over HTTP: a file arrives as a part, is verified, and only then gets its name.

Used for annotation files and for published features. A part that a broken connection left behind is continued
by the next call.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from urllib3.exceptions import NameResolutionError, ReadTimeoutError
from urllib3.util.retry import Retry

from vmr_zoo.errors import VmrError, causes
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.utils.retries import LATER, retries, wait

_REASONS: dict[type[Exception], str] = {
    requests.exceptions.SSLError: "the server's certificate was not accepted",
    requests.exceptions.ProxyError: "the proxy did not connect",
    requests.Timeout: "the server did not respond in time",
    ReadTimeoutError: "the server did not respond in time",
    NameResolutionError: "the server name could not be resolved",
    ConnectionRefusedError: "the connection was refused",
    TimeoutError: "the server did not respond in time",
}
_HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """Size and checksum of a file as published.

    Attributes:
        size: bytes.
        sha256: hexadecimal digest; None: not known.
    """

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Timeout and retries of a download.

    Attributes:
        timeout: seconds to wait for a connection and for each further byte.
        retries: attempts after the first.
        backoff: seconds that waiting grows from, as in `utils.retries.retries`. A Retry-After comes first.
    """

    timeout: float = 30.0
    retries: int = 4
    backoff: float = 1.0


class DownloadError(VmrError):
    """A file that could not be downloaded; the message names the URL and the reason."""


class _TransientError(DownloadError):
    """A failure that a retry may not repeat, with urllib3's response if there is one."""

    def __init__(self, message: str, response: Any = None) -> None:
        super().__init__(message)
        self.response = response


class _PermanentError(DownloadError):
    """A failure that a retry would repeat."""


def progress_bars(console: Console) -> Progress:
    """Returns the bars of a download, which disappear when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True)


def part_of(place: Path, version: str | None) -> Path:
    """Returns where a file is collected: beside its place, under a name that changes with its content.

    Args:
        place: the finished file.
        version: its checksum, or another text that changes with it; None: nothing is known.
    """
    return place.with_name(f"{place.name}.{(version or '')[:8]}.part")


def fetch(
    url: str,
    part: Path,
    published: PublishedFile,
    network: DownloadSettings,
    progress: Progress,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Downloads a URL into `part` and verifies it; continues a part that exists.

    Args:
        url: the file.
        part: where the bytes go. Its name should change with the content: parts of two versions do not fit.
        published: what is known of the file.
        network: timeout and retries.
        progress: gets a bar for this file.
        headers: sent with each request.

    Returns:
        The SHA-256 of the file.

    Raises:
        DownloadError: if the file did not arrive as published. Bytes that may still be right stay.
        OSError: if the part cannot be written.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(url.rsplit("/", 1)[-1], total=published.size)
    for _ in range(2):
        resumed = _download_part(
            url, part, published, network, headers or {}, lambda size: progress.update(task, completed=size)
        )
        found = sha256_of(part)
        if published.sha256 in (None, found):
            return found
        part.unlink()
        if not resumed:
            break
        # The pieces may stem from different versions of the file: start again.
    raise _PermanentError(
        f"{url}: the checksum does not match; nothing was installed. Expected SHA-256 {published.sha256}, "
        f"found {found}. The file was changed on the server or in transit."
    )


def _download_part(
    url: str,
    part: Path,
    published: PublishedFile,
    network: DownloadSettings,
    headers: Mapping[str, str],
    report: Callable[[int], object],
) -> bool:
    """Retries until `part` has its full size; returns whether it consists of several pieces."""
    resumed, last = False, _TransientError("")
    state: Retry | None = retries(network.retries, network.backoff)
    while state is not None:
        try:
            return _attempt(url, part, published, network.timeout, headers, report) or resumed
        except _TransientError as error:
            last = error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            last = _TransientError(_reason(error))
        except requests.RequestException as error:
            raise _PermanentError(f"{url}: {error}.") from error
        resumed = resumed or part.exists()
        state = wait(state, last.response)
    have = part.stat().st_size if part.exists() else 0
    kept = f" {have:,} of {published.size:,} bytes are kept in {part}; the next call resumes." * bool(have)
    raise _TransientError(
        f"{url}: {last} (attempts: {network.retries + 1}).{kept} Check the network (and "
        "HTTPS_PROXY) or try later."
    )


def _attempt(
    url: str,
    part: Path,
    published: PublishedFile,
    timeout: float,
    headers: Mapping[str, str],
    report: Callable[[int], object],
) -> bool:
    """Requests the missing bytes of `part` once, and appends them.

    Returns:
        Whether `part` held bytes that were kept.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == published.size:
        return True
    if have > published.size:
        part.unlink()
        have = 0
    # Lengths and offsets count bytes of the file, so transfer compression must be off.
    headers = {**headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and _start(answer) != have):
            part.unlink(missing_ok=True)
            raise _TransientError(f"the server did not resume at byte {have:,}")
        status = f"the server answered {answer.status_code} {answer.reason}"
        if answer.status_code in LATER:
            raise _TransientError(status, answer.raw)
        if answer.status_code not in (200, 206):
            raise _PermanentError(f"{url}: {status}, expected the file.")
        if "html" in answer.headers.get("Content-Type", ""):
            raise _PermanentError(_web_page(url))
        if answer.status_code == 200:  # also from a server without range requests
            have = 0
        resumed = have > 0
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != published.size:
            raise _PermanentError(
                f"{url}: wrong length, expected {published.size:,} bytes, found {have + int(length):,}. The "
                "file was changed on the server."
            )
        with part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                if not have and _HTML.match(chunk):
                    part.unlink()
                    raise _PermanentError(_web_page(url))
                have += len(chunk)
                if have > published.size:
                    part.unlink()
                    raise _PermanentError(
                        f"{url}: wrong length, expected {published.size:,} bytes, found more. The file was "
                        "changed on the server."
                    )
                file.write(chunk)
                report(have)
    if have < published.size:
        raise _TransientError(f"the connection broke off after {have:,} of {published.size:,} bytes")
    return resumed


def _start(answer: requests.Response) -> int | None:
    """Returns the first byte of a partial response."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else None


def _web_page(url: str) -> str:
    return f"{url}: expected the file, found a web page (of a log-in, a filter, or a file that has moved)."


def _reason(error: requests.RequestException) -> str:
    """Describes an exception of `requests`, whose own text shows objects of three libraries."""
    for cause in causes(error):
        for kind, reason in _REASONS.items():
            if isinstance(cause, kind):
                return reason
        if isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return "the network is unreachable"
    return "the connection broke off"


def remote_size(url: str, timeout: float) -> int:
    """Returns the size that a server announces for a file.

    Raises:
        DownloadError: if it announces none.
    """
    try:
        headers = {"Accept-Encoding": "identity"}
        with requests.head(url, headers=headers, timeout=timeout, allow_redirects=True) as answer:
            length = answer.headers.get("Content-Length", "") if answer.ok else ""
            if length.isdigit():
                return int(length)
            raise _PermanentError(f"{url}: the server answered {answer.status_code} and no size.")
    except requests.RequestException as error:
        raise _TransientError(f"{url}: {_reason(error)}. Check the network (and HTTPS_PROXY).") from error
