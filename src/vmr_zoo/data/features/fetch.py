"""Fetches published features into the layout that `features=` reads: the work of `vmr fetch`.

Each file is downloaded into `downloads/` below the folder, verified, and recorded in `fetched.json`; then its
content goes to its places, and the download is deleted. A second call goes on where the first one stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from vmr_zoo.data.features.hub import Listing, RemoteFile, list_repository
from vmr_zoo.data.features.published import PublishedFeatures, matches
from vmr_zoo.data.features.record import Record
from vmr_zoo.data.features.unpack import place_content
from vmr_zoo.errors import VmrError, abbreviate, printable
from vmr_zoo.utils.archives import is_archive, whole_name
from vmr_zoo.utils.download import (
    DownloadError,
    DownloadSettings,
    PublishedFile,
    fetch,
    part_of,
    progress_bars,
    remote_size,
)
from vmr_zoo.utils.files import atomic_write, lock_folder, writing
from vmr_zoo.utils.hashing import sha256_of

DOWNLOADS = "downloads"
"""Folder for what is being downloaded, and for what a browser downloaded."""

LICENCE = "licence/LICENCE.txt"
"""Where the licence is kept, below the folder of the features."""

_UNPACKED = 1.3
"""Guessed size of an archive's content, in sizes of the archive: arrays of numbers compress little."""

_UNFINISHED = (".part", ".crdownload", ".download")


@dataclass
class Fetched:
    """What a call did.

    Attributes:
        files: files of the features that are in their places now.
        kept: whether all of them were before.
        left_out: files that were downloaded with them and have no place.
        unused: patterns of the catalogue that no file fitted.
    """

    files: int = 0
    kept: bool = False
    left_out: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Download:
    """One file as published: alone, or in parts."""

    name: str
    key: str
    parts: list[RemoteFile]

    @property
    def size(self) -> int:
        return sum(part.size or 0 for part in self.parts)

    @property
    def content(self) -> int:
        """Bytes that it takes beside the download itself; a file that is renamed takes none."""
        joined = self.size if len(self.parts) > 1 or self.parts[0].cached else 0
        return int(self.size * _UNPACKED) if is_archive(self.name) else joined


def fetch_features(
    name: str,
    source: PublishedFeatures,
    folder: Path,
    network: DownloadSettings,
    accepted: bool,
    console: Console,
) -> Fetched | None:
    """Fetches what is missing.

    Args:
        name: the entry of the catalogue.
        source: the entry.
        folder: where the features go.
        network: timeout and retries.
        accepted: whether the user accepts the licence, if it requires that.
        console: where to report.

    Returns:
        What was done; None if the files need a browser, and none was found in `downloads/`.

    Raises:
        VmrError: if a licence has to be accepted first, the disk is too small, or a file cannot be fetched or
            differs from what it was. What was complete before stays.
    """
    if (kept := _kept(Record.read(folder, name), folder)) is not None:
        return kept
    console.print(Text(licence_text(source)))
    if source.must_accept and not accepted:
        raise VmrError(
            f"Nothing was fetched. Read {source.terms} ({source.title}: {source.licence}) If you accept it, "
            "add accept_licence=true."
        )
    if source.browser and not any(_by_hand(folder)):
        return None
    with lock_folder(folder), progress_bars(console) as progress:
        record = Record.read(folder, name)  # another process may have fetched some meanwhile
        return _kept(record, folder) or _Call(name, source, folder, network, record, progress).run()


def _kept(record: Record, folder: Path) -> Fetched | None:
    """Returns what is said of features that are complete; None if they are not."""
    if record.complete and all(record.holds(folder, key) for key in record.placed):
        return Fetched(sum(map(len, record.placed.values())), kept=True)
    return None


def licence_text(source: PublishedFeatures) -> str:
    """Returns what is shown of the licence, and kept beside the files."""
    origins = [f"{one.type} {one.name} on the Hugging Face hub" for one in source.repositories]
    origins += [f"{facts['url']}" for facts in source.links.values()]
    origins += [f"{url} ({what})" for what, url in source.browser.items()]
    lines = [f"licence: {source.licence}", f"terms: {source.terms}", f"cite: {source.citation}"]
    lines += [f"from: {origin}" for origin in origins]
    return "\n  ".join([source.title, *lines, *([f"note: {source.note}"] if source.note else [])])


@dataclass
class _Call:
    """The work of one call, while the folder is locked."""

    name: str
    source: PublishedFeatures
    folder: Path
    network: DownloadSettings
    record: Record
    progress: Progress
    done: Fetched = field(default_factory=Fetched)

    def run(self) -> Fetched:
        """Does what is left to do."""
        listings = self._listings()
        files = [one for listing in listings.values() for one in listing.files]
        found = _grouped([*files, *self._links(), *_by_hand(self.folder)])
        downloads = [one for one in found if is_archive(one.name) or self.source.target(one.name)]
        self.done.left_out += [one.name for one in found if one not in downloads]
        for part in (part for download in downloads for part in download.parts):
            self.record.check(part.key, part.size, part.sha256)
        waiting = [one for one in downloads if not self.record.holds(self.folder, one.key)]
        self._check_disk(waiting)
        self._keep_licence(listings)
        for download in waiting:
            self._fetch(download)
        self.done.files = sum(map(len, self.record.placed.values()))
        if not self.done.files:
            raise VmrError(self._nothing_fits(listings))
        self.record.complete = True
        self.record.write(self.folder)
        placed = [path for paths in self.record.placed.values() for path in paths]
        targets = {pattern: target.replace("{name}", "*") for pattern, target in self.source.place.items()}
        self.done.unused = [
            pattern
            for pattern, target in targets.items()
            if not any(matches(path, target) for path in placed)
        ]
        if not self.source.browser:
            shutil.rmtree(self.folder / DOWNLOADS, ignore_errors=True)
        return self.done

    def _listings(self) -> dict[str, Listing]:
        """Lists the repositories, each at the commit of the catalogue or of the first use."""
        listings = {}
        for repository in self.source.repositories:
            revision = repository.revision or self.record.commits.get(repository.name)
            listing = list_repository(repository, revision, self.network.timeout)
            self.record.commits[repository.name] = listing.commit
            for one in listing.files:
                known = repository.known(one.path)
                if known and (known.size != one.size or one.sha256 not in (None, known.sha256)):
                    raise VmrError(
                        f"{one.key}: the hub announces {one.size:,} bytes with SHA-256 {one.sha256}; "
                        f"expected {known.size:,} bytes with {known.sha256}. Nothing was fetched."
                    )
            listings[repository.name] = listing
        return listings

    def _links(self) -> Iterator[RemoteFile]:
        for file, facts in self.source.links.items():
            size = facts["size"]
            if size is None:
                size = remote_size(facts["url"], self.network.timeout)
            yield RemoteFile(f"links/{file}", file, facts["url"], size, facts["sha256"])

    def _check_disk(self, waiting: Sequence[_Download]) -> None:
        """Raises if the disk cannot hold the downloads, one after the other, and their content."""
        content, peak = 0, 0
        for download in waiting:
            here = [path for part in download.parts for path in (self._place(part), self._part(part))]
            missing = max(0, download.size - sum(path.stat().st_size for path in here if path.is_file()))
            peak = max(peak, content + missing + download.content)
            content += download.content or missing
        # What an interrupted call unpacked takes no more space.
        recorded = sum(size for paths in self.record.placed.values() for size in paths.values())
        peak -= max(0, _size_of(self.folder, DOWNLOADS) - recorded) if peak else 0
        free = shutil.disk_usage(self.folder).free
        if peak > free:
            raise VmrError(
                f"{self.folder} has {_gigabytes(free)} free; the download and its content need about "
                f"{_gigabytes(peak)}. Nothing was fetched. Free some space, or choose a folder on another "
                "disk: out=DIR."
            )

    def _keep_licence(self, listings: Mapping[str, Listing]) -> None:
        """Writes the licence beside the files, with the pages of the repositories as they are today."""
        text = licence_text(self.source)
        for name, listing in listings.items():
            text += f"\n  commit of {name}: {listing.commit}; licence declared there: {listing.licence}"
            for card in listing.cards:
                kept = (self.folder / LICENCE).parent / card.key
                if not kept.is_file():
                    part = kept.with_name(f"{kept.name}.part")
                    self._download(card, part)
                    part.replace(kept)
        atomic_write(self.folder / LICENCE, text + "\n")

    def _fetch(self, download: _Download) -> None:
        """Downloads a file and puts its content into place."""
        paths = [self._fetch_part(part) for part in download.parts]
        task = self.progress.add_task(f"{Path(download.name).name}: content", total=None)
        kept = bool(download.parts[0].cached)  # a copy of a browser or of the hub's cache is the user's
        self.record.placed[download.key] = place_content(
            download.name,
            paths,
            self.source,
            self.folder,
            self.done.left_out,
            lambda size: self.progress.update(task, advance=size),
            may_move=not kept,
        )
        self.progress.remove_task(task)
        self.record.write(self.folder)
        for path in paths if not kept else ():
            path.unlink(missing_ok=True)

    def _fetch_part(self, part: RemoteFile) -> Path:
        """Downloads and verifies a file, unless that was done before; returns its place."""
        place, known = self._place(part), self.record.files.get(part.key)
        if place.is_file():
            if known and known["size"] == place.stat().st_size:
                return place
            found = sha256_of(place)
            if part.sha256 not in (None, found):
                raise VmrError(f"{place}: expected SHA-256 {part.sha256}, found {found}. Delete it.")
            self.record.check(part.key, None, found)
        else:
            unfinished = self._part(part)
            try:
                found = self._download(part, unfinished)
            except DownloadError as error:
                raise VmrError(f"{error} The same command goes on from there.") from error
            self.record.check(part.key, None, found)
            unfinished.replace(place)
        self.record.files[part.key] = {"size": place.stat().st_size, "sha256": found}
        self.record.write(self.folder)
        return place

    def _download(self, remote: RemoteFile, part: Path) -> str:
        """Downloads and verifies one file; returns its SHA-256."""
        published = PublishedFile(remote.size or 0, remote.sha256)
        with writing(part):
            return fetch(remote.url, part, published, self.network, self.progress, remote.headers)

    def _place(self, part: RemoteFile) -> Path:
        return part.cached or self.folder / DOWNLOADS / part.key

    def _part(self, part: RemoteFile) -> Path:
        return part_of(self.folder / DOWNLOADS / part.key, part.sha256 or part.version)

    def _nothing_fits(self, listings: Mapping[str, Listing]) -> str:
        """Says that the catalogue's patterns fit nothing, and what there is instead."""
        patterns = [pattern for one in self.source.repositories for pattern in one.files]
        names = self.done.left_out or [name for listing in listings.values() for name in listing.others]
        expected = ", ".join([*self.source.place] if self.done.left_out else patterns)
        key = "place" if self.done.left_out else "repositories"
        return (
            f"{self.source.title}: no file fits what the catalogue expects ({expected}). Found: "
            f"{abbreviate([printable(one) for one in names], 12) or 'nothing'}. The entry was written "
            f"without seeing the files. Copy {self.name} from conf/published into a file, correct its {key}, "
            "and run the same command with catalogue=FILE. What was downloaded stays."
        )


def _by_hand(folder: Path) -> Iterator[RemoteFile]:
    """Yields what a browser put into `downloads/`."""
    place = folder / DOWNLOADS
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_UNFINISHED):
            yield RemoteFile(path.name, path.name, "", path.stat().st_size, None, cached=path)


def _grouped(files: Sequence[RemoteFile]) -> list[_Download]:
    """Brings the parts of split files together, in order."""
    groups: dict[str, list[RemoteFile]] = {}
    for one in sorted(files, key=lambda one: (len(one.key), one.key)):  # part2 comes before part10
        groups.setdefault(whole_name(one.key), []).append(one)
    return [_Download(whole_name(parts[0].path), key, parts) for key, parts in groups.items()]


def _size_of(folder: Path, without: str) -> int:
    """Returns the bytes of the files below a folder, without one of its subfolders."""
    total = 0
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and without in folders:
            folders.remove(without)
        total += sum(os.lstat(os.path.join(place, file)).st_size for file in files)
    return total


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
