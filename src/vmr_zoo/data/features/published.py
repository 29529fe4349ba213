"""What is published: the entries of `conf/published`, from which `vmr fetch` takes features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.archives import check_name
from vmr_zoo.utils.download import PublishedFile


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub.

    Attributes:
        name: OWNER/NAME.
        files: size and checksum (or null) by file name or pattern, as in `place`. Which of the names a
            pattern covers is seen on the hub.
        type: kind of the repository.
        revision: the commit; None: not known. The first use then records the newest one.
    """

    name: str
    files: Mapping[str, Mapping[str, Any] | None]
    type: Literal["dataset", "model"] = "dataset"
    revision: str | None = None

    def known(self, path: str) -> PublishedFile | None:
        """Returns what the catalogue states of a file, or None."""
        stated = next((facts for pattern, facts in self.files.items() if matches(path, pattern)), None)
        return PublishedFile(**stated) if stated else None

    def selects(self, path: str) -> bool:
        """Returns whether a file of the repository is one of these features."""
        return any(matches(path, pattern) for pattern in self.files)


@dataclass(frozen=True)
class PublishedFeatures:
    """Features that are published together.

    Attributes:
        title: what they are.
        features: the file of `conf/features` that reads them.
        data: overrides that a data set needs with them, by the data set; `overrides` reads them.
        place: where files go, by a pattern of their path in the archive or repository; the first that fits
            counts. Patterns are compared from the right: "clip/*.npz" fits "a/b/clip/x.npz". "{name}" stands
            for the file's own name.
        licence: the licence in short, a full stop, and more about it.
        terms: page with the terms.
        citation: paper to cite.
        gigabytes: size of the download as others report it; None: not known.
        repositories: where they are on the hub.
        links: files with plain URLs that belong to them: `url`, `size`, `sha256`, by the file's name.
        browser: addresses that need a browser, by what is there.
        must_accept: whether the licence has to be accepted before use.
        verified: whether somebody has fetched them with this entry.
        note: what else to know.
    """

    title: str
    features: str
    data: Mapping[str, Sequence[str]]
    place: Mapping[str, str]
    licence: str
    terms: str
    citation: str
    gigabytes: float | None = None
    repositories: Sequence[Repository] = ()
    links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    browser: Mapping[str, str] = field(default_factory=dict)
    must_accept: bool = False
    verified: bool = False
    note: str = ""

    @property
    def short_licence(self) -> str:
        """The licence's name."""
        return self.licence.partition(". ")[0].rstrip(".")

    @property
    def where(self) -> str:
        """Who serves the files, in a word or two."""
        hosts = {"drive.google": "Drive", "box.com": "Box", "sharepoint": "OneDrive"}
        for url in self.browser.values():
            return next((name for part, name in hosts.items() if part in url), "browser")
        return "hub"

    def overrides(self, data: str) -> list[str]:
        """Returns the overrides of a data set; "index=FILES" is short for files below `index/`."""
        given = []
        for text in self.data[data]:
            key, _, files = text.partition("=")
            if key == "index":
                paths = ",".join(f"${{paths.features}}/index/{file}" for file in files.split(","))
                text = f"+features.query.index=[{paths}]"
            given.append(text)
        return given

    def target(self, path: str) -> str | None:
        """Returns where a file goes, as a path below the folder of the features; None: it is not needed.

        Raises:
            VmrError: if the catalogue names a path that leaves the folder.
        """
        name = PurePosixPath(path).name
        if name.startswith("."):  # such as the "._x" that macOS adds
            return None
        for pattern, target in self.place.items():
            if matches(path, pattern):
                found = target.replace("{name}", name)
                check_name(found, "the catalogue")
                return found
        return None


def matches(path: str, pattern: str) -> bool:
    """Returns whether a path ends as a pattern says, compared folder by folder."""
    return PurePosixPath(path).match(pattern)


def choose(
    sources: Mapping[str, PublishedFeatures], features: str | None, data: str | None, name: str | None
) -> list[str]:
    """Selects entries of the catalogue.

    Args:
        sources: the catalogue.
        features: a feature set; None: any.
        data: a data set; None: any.
        name: an entry; None: any.

    Returns:
        Names that fit, those first that need no browser, else in the order of the catalogue.

    Raises:
        VmrError: if none fits; says which value is wrong.
    """
    if name is not None and name not in sources:
        raise unknown("source of features", name, sources)
    listed = {key: one for key, one in sources.items() if name in (None, key)}
    for kind, value, offered in (
        ("published features", features, lambda one: {one.features}),
        ("data set of these features", data, lambda one: set(one.data)),
    ):
        if value is None:
            continue
        fitting = {key: one for key, one in listed.items() if value in offered(one)}
        if not fitting:
            raise unknown(kind, value, set().union(*map(offered, listed.values())))
        listed = fitting
    if not listed:
        raise VmrError("The catalogue has no entries.")
    return sorted(listed, key=lambda key: bool(listed[key].browser))
