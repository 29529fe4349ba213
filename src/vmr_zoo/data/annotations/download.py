"""Fetching the published annotation files: `vmr doctor data=NAME download=true`.

`conf/sources/published.yaml` lists the files, their addresses, checksums and licences. What lies in the place
of a file already is never touched. A file is fetched under the name `FILE.CHECKSUM.part` beside its place,
compared with the checksum, and only then renamed; a part left over from a broken connection is resumed.
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

_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that another try may change."""

_HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Published:
    """A file as it was published.

    Attributes:
        size: bytes.
        sha256: in hexadecimal.
    """

    size: int
    sha256: str


class Source:
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
            title: the name that people know.
            read_by: the data sets and feature sets that read these files.
            url: of the zip archive that holds the files, or of the folder that they lie in under their names.
            archive: `size` and `sha256` of the archive; None without one.
            page: where the authors publish.
            licence: its statement in short.
            terms: the page that the statement is from.
            must_accept: whether the licence asks for agreement before the files are used.
            citation: the paper to cite.
            files: `size` and `sha256` by path below the annotations directory.
        """
        self.title = title
        self.read_by = read_by
        self.url = url.rstrip("/")
        self.archive = Published(**archive) if archive else None  # type: ignore[arg-type]
        self.page = page
        self.licence = licence
        self.terms = terms
        self.must_accept = must_accept
        self.citation = citation
        self.files = {path: Published(**file) for path, file in files.items()}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Network:
    """How patient a download is.

    Attributes:
        timeout: seconds to wait for a connection and for each further byte.
        retries: tries after the first, where a further one may help.
        backoff: seconds before the first retry, doubled for each further one.
    """

    timeout: float = 30.0
    retries: int = 4
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the files of a data set, as paths below the annotations directory.

    Attributes:
        kept: were there, with the published checksum.
        fetched: are there now.
        different: were there with another content, which was left alone.
    """

    kept: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


class _PassingError(Exception):
    """A try failed; another one may not."""


class _LastingError(Exception):
    """A try failed, and another one would too."""


def download(
    names: Collection[str],
    sources: Mapping[str, Source],
    root: Path,
    network: Network,
    accepted: bool,
    console: Console,
) -> Outcome:
    """Fetches the files that a data set and its features read, except those that are there.

    Args:
        names: of the data set and of the feature set.
        sources: what is published, by name.
        root: the annotations directory.
        network: how patient to be.
        accepted: whether the user agrees to the licences that ask for it.
        console: to say on what is fetched, and under which licence.

    Returns:
        What became of each file.

    Raises:
        VmrError: if a licence has to be accepted first, or a file cannot be had. Files that were complete
            before that stay.
    """
    outcome = Outcome()
    wanted: dict[str, list[str]] = {}
    read = {name: source for name, source in sources.items() if set(names) & set(source.read_by)}
    if not read:
        console.print(Text(f"{' and '.join(names)}: no published annotation files to fetch."))
    for name, source in read.items():
        for path, published in source.files.items():
            if (root / path).exists():
                same = _matches(root / path, published)
                (outcome.kept if same else outcome.different).append(path)
                if not same:
                    console.print(_different(root / path, published))
            else:
                wanted.setdefault(name, []).append(path)

    for name in wanted:
        source = read[name]
        console.print(
            Text(
                f"{source.title}\n  licence: {source.licence}\n  terms: {source.terms}\n"
                f"  cite: {source.citation}\n  from: {source.url}"
            )
        )
    unaccepted = [read[name] for name in wanted if read[name].must_accept and not accepted]
    if unaccepted:
        raise VmrError(
            "Nothing was fetched. Read "
            + " and ".join(f"{source.terms} ({source.title}: {source.licence})" for source in unaccepted)
            + " If you agree to it, add accept_licence=true."
        )
    for name, paths in wanted.items():
        _fetch_source(name, read[name], paths, root, network, console)
        outcome.fetched.extend(paths)
        for path in paths:
            console.print(Text(f"fetched {root / path}, {read[name].files[path].size:,} bytes"))
    if outcome.kept and not outcome.fetched:
        console.print(Text(f"{len(outcome.kept)} files are there, as published."))
    return outcome


def _fetch_source(
    name: str, source: Source, paths: list[str], root: Path, network: Network, console: Console
) -> None:
    """Fetches the missing files of one source, all of them or an error."""
    by_hand = f"Or fetch it by hand ({source.page}) and put "
    mirror = f"a mirror is given as sources.{name}.url=…"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            if source.archive is not None:
                place = root / paths[0]
                part = place.with_name(f"{source.url.rsplit('/', 1)[-1]}.{source.archive.sha256[:8]}.part")
                by_hand += f"its {', '.join(PurePosixPath(path).name for path in paths)} into {place.parent}"
                _fetch(source.url, part, source.archive, network, progress)
                for path in paths:
                    _take(part, path, source.files[path], root / path, source.url)
                part.unlink()
                return
            for path in paths:
                published, place = source.files[path], root / path
                url = f"{source.url}/{place.name}"
                by_hand = f"Or fetch it by hand ({source.page}) and put it at {place}"
                part = place.with_name(f"{place.name}.{published.sha256[:8]}.part")
                _fetch(url, part, published, network, progress)
                part.replace(place)
    except (_PassingError, _LastingError) as error:
        raise VmrError(f"{error} {by_hand}; {mirror}.") from error
    except OSError as error:
        raise VmrError(
            f"Cannot write {error.filename or root}: {error.strerror}. Choose another paths.annotations, or "
            "mend its permissions or space."
        ) from error


def _fetch(url: str, part: Path, published: Published, network: Network, progress: Progress) -> None:
    """Fetches an address into `part`, until `part` is what was published."""
    part.parent.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(url.rsplit("/", 1)[-1], total=published.size)
    for _ in range(2):
        resumed = _persist(url, part, published, network, lambda have: progress.update(task, completed=have))
        found = _sha256(part)
        if found == published.sha256:
            return
        part.unlink()
        if not resumed:
            break
        # The pieces may be of different files: once more, from the start.
    raise _LastingError(
        f"{url}: the checksum does not match; nothing was installed. Expected SHA-256 {published.sha256}, "
        f"found {found}. The file was changed there or on the way."
    )


def _persist(
    url: str, part: Path, published: Published, network: Network, report: Callable[[int], object]
) -> bool:
    """Tries until `part` has its full size; returns whether that took more than one piece."""
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
                raise _PassingError(_reason(error)) from error
            except requests.RequestException as error:
                raise _LastingError(f"{url}: {error}.") from error
        except _PassingError as error:
            resumed = resumed or part.exists()
            last = error
    have = part.stat().st_size if part.exists() else 0
    kept = f" {have:,} of {published.size:,} bytes are kept in {part}; the next call goes on there." * bool(
        have
    )
    raise _PassingError(
        f"{url}: {last} (tries: {network.retries + 1}).{kept} Check the network (and HTTPS_PROXY) "
        "or try later."
    )


def _attempt(
    url: str, part: Path, published: Published, timeout: float, report: Callable[[int], object]
) -> bool:
    """Asks once for what `part` lacks, and writes it there.

    Returns:
        Whether there was something in `part` before that was used.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == published.size:
        return True
    if have > published.size:
        part.unlink()
        have = 0
    # Lengths and offsets count the bytes of the file, so it must not be compressed on the way.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and _start(answer) != have):
            part.unlink(missing_ok=True)
            raise _PassingError(f"the server did not go on at byte {have:,}")
        status = f"the server answered {answer.status_code} {answer.reason}"
        if answer.status_code in _PASSING:
            raise _PassingError(status)
        if answer.status_code not in (200, 206):
            raise _LastingError(f"{url}: {status}, expected the file.")
        if "html" in answer.headers.get("Content-Type", ""):
            raise _LastingError(_web_page(url))
        if answer.status_code == 200:  # also of a server that knows no ranges
            have = 0
        resumed = have > 0
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != published.size:
            raise _LastingError(
                f"{url}: wrong length, expected {published.size:,} bytes, found {have + int(length):,}. The "
                "file was changed there."
            )
        with part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                if not have and _HTML.match(chunk):
                    part.unlink()
                    raise _LastingError(_web_page(url))
                have += len(chunk)
                if have > published.size:
                    part.unlink()
                    raise _LastingError(
                        f"{url}: wrong length, expected {published.size:,} bytes, found more. The file was "
                        "changed there."
                    )
                file.write(chunk)
                report(have)
    if have < published.size:
        raise _PassingError(f"the connection broke off after {have:,} of {published.size:,} bytes")
    return resumed


def _start(answer: requests.Response) -> int | None:
    """Returns the offset that a partial answer begins at."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else None


def _web_page(url: str) -> str:
    return f"{url}: expected the file, found a web page (of a log-in, a filter, or a file that has moved)."


def _reason(error: requests.RequestException) -> str:
    """Says in words what `requests` raised; its own text shows objects of three libraries."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate was not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not connect"
    text = str(error)
    for sign, words in (
        ("refused", "the connection was refused"),
        ("resolve", "the server's name is not known here"),
        ("timed out", "the server did not answer in time"),
        ("unreachable", "the network is unreachable"),
    ):
        if sign in text:
            return words
    return "the connection broke off"


def _take(archive: Path, path: str, published: Published, place: Path, url: str) -> None:
    """Writes one member of a zip archive to its place; the paths inside the archive decide nothing."""
    name = PurePosixPath(path).name
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if PurePosixPath(info.filename).name == name]
        if len(members) != 1:
            raise _LastingError(f"{url}: expected one {name} in the archive, found {len(members)}.")
        with atomic_path(place) as temporary:
            with opened.open(members[0]) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
            found = _sha256(temporary)
            if found != published.sha256:
                raise _LastingError(
                    f"{url}: the checksum of {name} in it does not match; it was not installed. Expected "
                    f"SHA-256 {published.sha256}, found {found}."
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, published: Published) -> bool:
    if not path.is_file() or path.stat().st_size != published.size:
        return False
    return _sha256(path) == published.sha256


def _different(path: Path, published: Published) -> Text:
    found = f"SHA-256 {_sha256(path)} ({path.stat().st_size:,} bytes)" if path.is_file() else "no file"
    return Text.assemble(
        ("warning: ", "yellow"),
        f"{path} is not as published and was left alone: found {found}, expected {published.sha256} "
        f"({published.size:,} bytes). To fetch it anew, delete or move it.",
    )
