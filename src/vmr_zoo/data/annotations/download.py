"""Downloads the published annotation files: `vmr doctor data=NAME download=true`.

`conf/sources/published.yaml` lists the files with their URLs, checksums and licences. An existing file is
never changed. A file is downloaded as `FILE.CHECKSUM.part` into its folder, verified and then renamed; a part
that a broken connection left behind is resumed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import atomic_path

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes that a retry may change."""

_HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """Size and checksum of a file as published.

    Attributes:
        size: bytes.
        sha256: hexadecimal digest.
    """

    size: int
    sha256: str


class AnnotationSource:
    """Files that are published together."""

    def __init__(
        self,
        title: str,
        read_by: Collection[str],
        url: str,
        archive: Mapping[str, int | str] | None,
        page: str,
        licence: str,
        terms: str,
        must_accept: bool,
        citation: str,
        files: Mapping[str, Mapping[str, int | str]],
    ) -> None:
        """Stores the description.

        Args:
            title: common name.
            read_by: data sets and feature sets that read these files.
            url: URL of the zip archive with the files, or of the folder that contains them under their names.
            archive: `size` and `sha256` of the archive; None without one.
            page: page on which the authors publish.
            licence: summary of the licence.
            terms: page with the terms.
            must_accept: whether the licence has to be accepted before use.
            citation: paper to cite.
            files: `size` and `sha256` by path below the annotations directory.
        """
        self.title = title
        self.read_by = read_by
        self.url = url.rstrip("/")
        self.archive = PublishedFile(**archive) if archive else None  # type: ignore[arg-type]
        self.page = page
        self.licence = licence
        self.terms = terms
        self.must_accept = must_accept
        self.citation = citation
        self.files = {path: PublishedFile(**file) for path, file in files.items()}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Timeout and retries of a download.

    Attributes:
        timeout: seconds to wait for a connection and for each further byte.
        retries: attempts after the first.
        backoff: seconds before the first retry, doubled for each further one.
    """

    timeout: float = 30.0
    retries: int = 4
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """Result of a download, as paths below the annotations directory.

    Attributes:
        kept: existed with the published checksum.
        fetched: downloaded.
        different: existed with other content and were not changed.
    """

    kept: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


class _TransientError(Exception):
    """A failure that a retry may not repeat."""


class _PermanentError(Exception):
    """A failure that a retry would repeat."""


def download(
    names: Collection[str],
    sources: Mapping[str, AnnotationSource],
    root: Path,
    network: DownloadSettings,
    accepted: bool,
    console: Console,
) -> DownloadResult:
    """Fetches the missing files of a data set and its features.

    Args:
        names: names of the data set and of the feature set.
        sources: what is published, by name.
        root: the annotations directory.
        network: timeout and retries.
        accepted: whether the user accepts the licences that require it.
        console: where to report what is fetched, and under which licence.

    Raises:
        VmrError: if a licence has to be accepted first, or a file cannot be fetched. Files that were complete
            before stay.
    """
    outcome = DownloadResult()
    read = {name: source for name, source in sources.items() if set(names) & set(source.read_by)}
    if not read:
        console.print(Text(f"{' and '.join(names)}: no published annotation files to fetch."))
    missing = {name: paths for name in read if (paths := _missing(read[name], root, outcome, console))}
    _show_licences([read[name] for name in missing], accepted, console)
    for name, paths in missing.items():
        _fetch_source(name, read[name], paths, root, network, console)
        outcome.fetched.extend(paths)
        for path in paths:
            console.print(Text(f"fetched {root / path}, {read[name].files[path].size:,} bytes"))
    if outcome.kept and not outcome.fetched:
        console.print(Text(f"All {len(outcome.kept)} files exist, as published."))
    return outcome


def _missing(source: AnnotationSource, root: Path, outcome: DownloadResult, console: Console) -> list[str]:
    """Returns the files of a source that do not exist, and notes the others in `outcome`."""
    missing = []
    for path, published in source.files.items():
        if not (root / path).exists():
            missing.append(path)
        elif _matches(root / path, published):
            outcome.kept.append(path)
        else:
            outcome.different.append(path)
            console.print(_warning(root / path, published))
    return missing


def _show_licences(sources: list[AnnotationSource], accepted: bool, console: Console) -> None:
    """Prints the licence of each source; raises if one has to be accepted first."""
    for source in sources:
        console.print(
            Text(
                f"{source.title}\n  licence: {source.licence}\n  terms: {source.terms}\n"
                f"  cite: {source.citation}\n  from: {source.url}"
            )
        )
    unaccepted = [source for source in sources if source.must_accept and not accepted]
    if unaccepted:
        terms = " and ".join(f"{source.terms} ({source.title}: {source.licence})" for source in unaccepted)
        raise VmrError(f"Nothing was fetched. Read {terms} If you accept it, add accept_licence=true.")


def _fetch_source(
    name: str,
    source: AnnotationSource,
    paths: list[str],
    root: Path,
    network: DownloadSettings,
    console: Console,
) -> None:
    """Fetches the given files of one source."""
    by_hand = f"Or fetch it by hand ({source.page}) and put "
    mirror = f"sources.{name}.url=… sets a mirror"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            if source.archive is not None:
                place = root / paths[0]
                part = place.with_name(f"{source.url.rsplit('/', 1)[-1]}.{source.archive.sha256[:8]}.part")
                by_hand += f"its {', '.join(PurePosixPath(path).name for path in paths)} into {place.parent}"
                _fetch(source.url, part, source.archive, network, progress)
                for path in paths:
                    _extract_member(part, path, source.files[path], root / path, source.url)
                part.unlink()
                return
            for path in paths:
                published, place = source.files[path], root / path
                url = f"{source.url}/{place.name}"
                by_hand = f"Or fetch it by hand ({source.page}) and put it at {place}"
                part = place.with_name(f"{place.name}.{published.sha256[:8]}.part")
                _fetch(url, part, published, network, progress)
                part.replace(place)
    except (_TransientError, _PermanentError) as error:
        raise VmrError(f"{error} {by_hand}; {mirror}.") from error
    except OSError as error:
        raise VmrError(
            f"Cannot write {error.filename or root}: {error.strerror}. Choose another paths.annotations, "
            "or fix its permissions or free space."
        ) from error


def _fetch(
    url: str, part: Path, published: PublishedFile, network: DownloadSettings, progress: Progress
) -> None:
    """Downloads a URL into `part` and verifies it."""
    part.parent.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(url.rsplit("/", 1)[-1], total=published.size)
    for _ in range(2):
        resumed = _download_part(
            url, part, published, network, lambda size: progress.update(task, completed=size)
        )
        found = _sha256(part)
        if found == published.sha256:
            return
        part.unlink()
        if not resumed:
            break
        # The pieces may stem from different versions of the file: start again.
    raise _PermanentError(
        f"{url}: the checksum does not match; nothing was installed. Expected SHA-256 {published.sha256}, "
        f"found {found}. The file was changed on the server or in transit."
    )


def _download_part(
    url: str, part: Path, published: PublishedFile, network: DownloadSettings, report: Callable[[int], object]
) -> bool:
    """Retries until `part` has its full size; returns whether it consists of several pieces."""
    resumed = False
    for attempt in range(network.retries + 1):
        if attempt:
            time.sleep(network.backoff * 2 ** (attempt - 1))
        try:
            try:
                return _attempt(url, part, published, network.timeout, report) or resumed
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                raise _TransientError(_reason(error)) from error
            except requests.RequestException as error:
                raise _PermanentError(f"{url}: {error}.") from error
        except _TransientError as error:
            resumed = resumed or part.exists()
            last = error
    have = part.stat().st_size if part.exists() else 0
    kept = f" {have:,} of {published.size:,} bytes are kept in {part}; the next call resumes." * bool(have)
    raise _TransientError(
        f"{url}: {last} (attempts: {network.retries + 1}).{kept} Check the network (and "
        "HTTPS_PROXY) or try later."
    )


def _attempt(
    url: str, part: Path, published: PublishedFile, timeout: float, report: Callable[[int], object]
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
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and _start(answer) != have):
            part.unlink(missing_ok=True)
            raise _TransientError(f"the server did not resume at byte {have:,}")
        status = f"the server answered {answer.status_code} {answer.reason}"
        if answer.status_code in _TRANSIENT:
            raise _TransientError(status)
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
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate was not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not connect"
    text = str(error)
    for pattern, reason in (
        ("refused", "the connection was refused"),
        ("resolve", "the server name could not be resolved"),
        ("timed out", "the server did not respond in time"),
        ("unreachable", "the network is unreachable"),
    ):
        if pattern in text:
            return reason
    return "the connection broke off"


def _extract_member(archive: Path, path: str, published: PublishedFile, place: Path, url: str) -> None:
    """Extracts one member of a zip archive to its place; paths inside the archive are ignored."""
    name = PurePosixPath(path).name
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if PurePosixPath(info.filename).name == name]
        if len(members) != 1:
            raise _PermanentError(f"{url}: expected one {name} in the archive, found {len(members)}.")
        with atomic_path(place) as temporary:
            with opened.open(members[0]) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
            found = _sha256(temporary)
            if found != published.sha256:
                raise _PermanentError(
                    f"{url}: the checksum of {name} in it does not match; it was not installed. Expected "
                    f"SHA-256 {published.sha256}, found {found}."
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, published: PublishedFile) -> bool:
    if not path.is_file() or path.stat().st_size != published.size:
        return False
    return _sha256(path) == published.sha256


def _warning(path: Path, published: PublishedFile) -> Text:
    found = f"SHA-256 {_sha256(path)} ({path.stat().st_size:,} bytes)" if path.is_file() else "no file"
    return Text.assemble(
        ("warning: ", "yellow"),
        f"{path} differs from the published file and was not changed: found {found}, expected "
        f"{published.sha256} ({published.size:,} bytes). To fetch it again, delete or move it.",
    )
