"""Which files a repository of the Hugging Face hub holds at a commit, and how to request them.

`huggingface_hub` lists them and knows the server (`HF_ENDPOINT`), the token and the cache. Its own downloads
start again after a process was stopped, so the bytes go through `vmr_zoo.utils.download`, which resumes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmr_zoo.data.features.published import Repository
from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.utils.archives import check_name
from vmr_zoo.utils.hub import LOG_IN, hub_api, hub_endpoint, is_unreachable

_CARDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""Files that say under which licence a repository is; kept beside the features."""

_LARGEST_CARD = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file to be fetched.

    Attributes:
        key: unique among all files of a source; a relative path.
        path: path in its repository; what the catalogue's patterns are compared with.
        url: where it is.
        size: bytes; None: the server says.
        sha256: its checksum, if known.
        version: changes with the content, if the checksum is not known.
        headers: for its requests.
        cached: a copy in the cache of `huggingface_hub`.
    """

    key: str
    path: str
    url: str
    size: int | None
    sha256: str | None
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    cached: Path | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at a commit.

    Attributes:
        commit: the commit.
        licence: the licence that its page declares, or None.
        files: those that the catalogue selects.
        cards: its README and licence.
        others: names of the other files.
    """

    commit: str
    licence: str | None
    files: list[RemoteFile]
    cards: list[RemoteFile]
    others: list[str]


def list_repository(repository: Repository, revision: str | None, timeout: float) -> Listing:
    """Lists a repository.

    Args:
        repository: its description.
        revision: the commit, if one is known; None: the newest.
        timeout: seconds to wait for the server.

    Raises:
        VmrError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for transport in ("httpx", "httpx2"):  # of several versions; each logs every request
        logging.getLogger(transport).setLevel(logging.WARNING)
    api = hub_api()
    asked: dict[str, Any] = {"repo_id": repository.name, "repo_type": repository.type}
    try:
        info = api.repo_info(**asked, revision=revision, timeout=timeout)
        commit = str(info.sha)
        found = [
            entry
            for entry in api.list_repo_tree(**asked, revision=commit, recursive=True)
            if isinstance(entry, RepoFile)
        ]
    except (HfHubHTTPError, HFValidationError) as error:
        raise VmrError(_refusal(repository, revision, error)) from error
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise VmrError(
            f"The hub at {api.endpoint} cannot be reached ({error}). Check the network (and HTTPS_PROXY), or "
            "set HF_ENDPOINT to a mirror."
        ) from error
    card = getattr(info, "card_data", None)
    listing = Listing(commit, card.get("license") if card else None, [], [], [])
    for entry in found:
        check_name(entry.path, repository.name)
        if entry.path in _CARDS and entry.size <= _LARGEST_CARD:
            listing.cards.append(_remote(repository, commit, entry))
        elif repository.selects(entry.path):
            listing.files.append(_remote(repository, commit, entry))
        elif not entry.path.startswith("."):
            listing.others.append(entry.path)
    return listing


def _remote(repository: Repository, commit: str, entry: Any) -> RemoteFile:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    place = {"repo_id": repository.name, "repo_type": repository.type, "revision": commit}
    cached = try_to_load_from_cache(filename=entry.path, **place)
    return RemoteFile(
        key=f"{repository.name}/{entry.path}",
        path=entry.path,
        url=hf_hub_url(filename=entry.path, endpoint=hub_endpoint(), **place),
        size=entry.size,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        version=entry.blob_id,
        headers=build_hf_headers(library_name="vmr_zoo"),
        cached=Path(cached) if isinstance(cached, str) else None,
    )


def _refusal(repository: Repository, revision: str | None, error: Exception) -> str:
    """Says what a refusal of the hub means for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"The {repository.type} {repository.name}"
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is open only to those whom its authors let in. Ask for access on its page, then log in "
            f"({LOG_IN})."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is not on the hub, or is private. It may have moved since the entry in "
            "conf/published was written."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{name} no longer has the commit {revision}, from which these features were taken before. Its "
            "history was rewritten: the files may have changed. To fetch what is there now, use another out=."
        )
    return f"{name}: the hub refused ({first_line(error)})."
