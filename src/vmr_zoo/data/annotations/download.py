"""Downloads the published annotation files: `vmr doctor data=NAME download=true`.

`conf/sources/published.yaml` lists the files with their URLs, checksums and licences. An existing file is
never changed. A file is downloaded as `FILE.CHECKSUM.part` into its folder, verified and then renamed; a part
that a broken connection left behind is resumed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.text import Text

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.download import (
    DownloadError,
    DownloadSettings,
    PublishedFile,
    fetch,
    part_of,
    progress_bars,
    remote_size,
)
from vmr_zoo.utils.files import atomic_path, lock_folder, write_json, writing
from vmr_zoo.utils.hashing import sha256_of


@dataclass(frozen=True)
class AnnotationSource:
    """Files that are published together.

    Attributes:
        title: common name.
        read_by: data sets and feature sets that read these files.
        url: URL of the zip archive with the files, or of the folder that contains them under their names.
        archive: `size` and `sha256` of the archive; None without one.
        page: page on which the authors publish.
        licence: summary of the licence.
        terms: page with the terms.
        must_accept: whether the licence has to be accepted before use.
        citation: paper to cite.
        files: `size` and `sha256` by path below the annotations directory; None: not known. The first
            download then records them in `FILE.sha256`.
    """

    title: str
    read_by: Collection[str]
    url: str
    archive: Mapping[str, Any] | None
    page: str
    licence: str
    terms: str
    must_accept: bool
    citation: str
    files: Mapping[str, Mapping[str, Any] | None]

    def known(self, path: str) -> PublishedFile | None:
        """Returns what is published of a file, or None."""
        facts = self.files[path]
        return PublishedFile(**facts) if facts else None


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
        with lock_folder(root):
            absent = [path for path in paths if not (root / path).exists()]  # others may have been faster
            if absent:
                _fetch_source(name, read[name], absent, root, network, console)
        outcome.kept.extend(path for path in paths if path not in absent)
        outcome.fetched.extend(absent)
        for path in absent:
            console.print(Text(f"fetched {root / path}, {(root / path).stat().st_size:,} bytes"))
            if read[name].files[path] is None:
                console.print(_unverified(root / path))
    if outcome.kept and not outcome.fetched:
        console.print(Text(f"All {len(outcome.kept)} files exist, as published."))
    return outcome


def _missing(source: AnnotationSource, root: Path, outcome: DownloadResult, console: Console) -> list[str]:
    """Returns the files of a source that do not exist, and notes the others in `outcome`."""
    missing = []
    for path in source.files:
        published = source.known(path) or _recorded(root / path)
        if not (root / path).exists():
            missing.append(path)
        elif published is None or _matches(root / path, published):
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
    try:
        with progress_bars(console) as progress, writing(root):
            if source.archive is not None:
                place = root / paths[0]
                archive = PublishedFile(**source.archive)
                part = part_of(place.with_name(source.url.rsplit("/", 1)[-1]), archive.sha256)
                by_hand += f"its {', '.join(PurePosixPath(path).name for path in paths)} into {place.parent}"
                fetch(source.url, part, archive, network, progress)
                for path in paths:
                    member = source.known(path)
                    assert member is not None  # an archive whose content is not known has no entry
                    _extract_member(part, path, member, root / path, source.url)
                part.unlink()
                return
            for path in paths:
                place = root / path
                url = f"{source.url.rstrip('/')}/{place.name}"
                by_hand = f"Or fetch it by hand ({source.page}) and put it at {place}"
                known = source.known(path) or _recorded(place)
                published = known or PublishedFile(remote_size(url, network.timeout), None)
                part = part_of(place, published.sha256)
                found = fetch(url, part, published, network, progress)
                part.replace(place)
                if source.files[path] is None:
                    write_json(_record_of(place), {"size": published.size, "sha256": found})
    except DownloadError as error:
        raise VmrError(f"{error} {by_hand}; {mirror}.") from error


def _extract_member(archive: Path, path: str, published: PublishedFile, place: Path, url: str) -> None:
    """Extracts one member of a zip archive to its place; paths inside the archive are ignored."""
    name = PurePosixPath(path).name
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if PurePosixPath(info.filename).name == name]
        if len(members) != 1:
            raise DownloadError(f"{url}: expected one {name} in the archive, found {len(members)}.")
        with atomic_path(place) as temporary:
            with opened.open(members[0]) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
            found = sha256_of(temporary)
            if found != published.sha256:
                raise DownloadError(
                    f"{url}: the checksum of {name} in it does not match; it was not installed. Expected "
                    f"SHA-256 {published.sha256}, found {found}."
                )


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> PublishedFile | None:
    """Returns what an earlier download of a file recorded, of which the source states nothing."""
    record = _record_of(path)
    if not record.is_file():
        return None
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        return PublishedFile(int(known["size"]), str(known["sha256"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VmrError(f"{record} is no record of a download ({error}). Delete it.") from error


def _unverified(path: Path) -> Text:
    return Text.assemble(
        ("warning: ", "yellow"),
        f"no checksum of {path.name} is known, so it was not verified. Its own is in {_record_of(path)}; "
        "later downloads compare with it.",
    )


def _matches(path: Path, published: PublishedFile) -> bool:
    if not path.is_file() or path.stat().st_size != published.size:
        return False
    return sha256_of(path) == published.sha256


def _warning(path: Path, published: PublishedFile) -> Text:
    found = f"SHA-256 {sha256_of(path)} ({path.stat().st_size:,} bytes)" if path.is_file() else "no file"
    return Text.assemble(
        ("warning: ", "yellow"),
        f"{path} differs from the published file and was not changed: found {found}, expected "
        f"{published.sha256} ({published.size:,} bytes). To fetch it again, delete or move it.",
    )
