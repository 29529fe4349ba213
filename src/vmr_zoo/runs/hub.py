"""Runs of the Hugging Face hub: `run=hf://OWNER/NAME[@REVISION]`.

The files go through the cache of `huggingface_hub`, which knows the server (`HF_ENDPOINT`), the token and the
proxy. From there they are copied into `CACHE/hub/OWNER/NAME/COMMIT`, a run directory like any other:
evaluations are written below it. The file origin.json marks it as somebody else's, whatever it is called and
wherever it is moved (`directory.load_config`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.runs import directory
from vmr_zoo.utils.files import check_regular, read_text, write_json
from vmr_zoo.utils.hub import LOG_IN, hub_api, hub_endpoint, is_unreachable

SCHEME = "hf://"

EXTRACTED_FILE = "extracted-{}.json"
"""The manifest of the n-th folder of `vmr extract`, from 0, of a run on such features."""

_EXTRACTED = 8

FILES = {
    directory.CONFIG: 2**18,
    directory.METRICS: 2**22,
    directory.MANIFEST: 2**22,
    directory.ANNOTATIONS: 2**20,
    directory.ENVIRONMENT: 2**20,
    directory.STATUS: 2**16,
    directory.PREDICTIONS: 2**26,
    directory.WEIGHTS: 2**33,
    **{EXTRACTED_FILE.format(number): 2**20 for number in range(_EXTRACTED)},
}
"""The files that a repository may bring, with the bytes that each has at most. No other is downloaded."""

REQUIRED = (directory.CONFIG, directory.METRICS, directory.MANIFEST, directory.WEIGHTS)

_ADDRESS = re.compile(r"hf://(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@([\w][\w./-]{0,199}))?")
_CONTROL = re.compile(r"[\x7f-\x9f]|(?<!\\)(?:\\\\)*\\(?:[bf]|u00(?:[01]|7f|[89]))", re.IGNORECASE)
"""Control characters in JSON, which allows no others unescaped."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 20.0


@dataclass(frozen=True)
class Address:
    """A run of the hub.

    Attributes:
        name: OWNER/NAME.
        revision: a branch, a tag or a commit; None: the newest commit of the main branch.
    """

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_address(text: str) -> Address:
    """Reads `hf://OWNER/NAME[@REVISION]`.

    Raises:
        VmrError: if it is another text.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or ".." in text:
        raise VmrError(
            f"Expected run=hf://OWNER/NAME or run=hf://OWNER/NAME@REVISION, found {text}. REVISION is a "
            "branch, a tag or a commit of the repository."
        )
    return Address(found[1], found[2])


def is_address(run: str | Path) -> bool:
    """Returns whether a run is one of the hub."""
    return str(run).startswith(SCHEME)


def local_run(run: str | Path, cache: str | Path | None = None) -> Path:
    """Returns the directory of a run; downloads a run of the hub.

    Args:
        run: a directory, or hf://OWNER/NAME[@REVISION].
        cache: the project's cache folder (`paths.cache`); None: that of this user.

    Raises:
        VmrError: if the run is not on the hub, cannot be reached, or is not one.
    """
    if not is_address(run):
        return Path(run)
    from vmr_zoo.config.foreign import own_paths

    address = parse_address(str(run))
    root = Path(cache or own_paths()["cache"]).expanduser() / "hub" / address.name
    commit = address.revision
    if commit is None or not _COMMIT.fullmatch(commit) or not (root / commit / directory.ORIGIN).is_file():
        commit, listed = _listing(address)
        if commit is not None:
            _check_files(address, listed)
        if commit is None or not (root / commit / directory.ORIGIN).is_file():
            commit = _install(address, commit, root)
    print(f"{address} is commit {commit}, in {root / commit}", file=sys.stderr)
    return root / commit


def _listing(address: Address) -> tuple[str | None, dict[str, int]]:
    """Asks the hub for the commit and the sizes of the files; None if it cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError

    api = hub_api()
    try:
        info = api.model_info(address.name, revision=address.revision, files_metadata=True, timeout=_TIMEOUT)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 500)
        if status >= 500:
            print(f"The hub at {api.endpoint} answers {status}; looking for a copy here.", file=sys.stderr)
            return None, {}
        raise _refusal(address, error) from error
    except Exception as error:
        if not is_unreachable(error):
            raise
        print(f"The hub at {api.endpoint} cannot be reached; looking for a copy here.", file=sys.stderr)
        return None, {}
    if not _COMMIT.fullmatch(str(info.sha)):
        raise VmrError(f"{address}: the hub at {api.endpoint} names no commit ({info.sha!s:.60}).")
    return str(info.sha), {one.rfilename: one.size or 0 for one in info.siblings or ()}


def _refusal(address: Address, error: Exception) -> VmrError:
    """Says what a refusal of the hub means for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        text = f"its authors let in whom they choose. Ask for access on its page, then log in ({LOG_IN})."
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            "the hub has no such model, or it is private. Check the name; for a private one, log in "
            f"({LOG_IN})."
        )
    elif isinstance(error, RevisionNotFoundError):
        text = f"the repository has no branch, tag or commit {address.revision}."
    else:
        text = f"the hub refused ({first_line(error):.200})."
    return VmrError(f"{address}: {text}")


def _check_files(address: Address, listed: Mapping[str, int]) -> None:
    """Refuses a repository that is no run, or has a file of another size than runs have."""
    missing = [name for name in REQUIRED if name not in listed]
    if missing:
        found = ", ".join(sorted(listed)[:6]) or "nothing"
        raise VmrError(
            f"{address} is not a run of vmr_zoo: it has no {', '.join(missing)}. Found: {found}. "
            "`vmr push` publishes a run."
        )
    for name, most in FILES.items():
        if listed.get(name, 0) > most:
            raise VmrError(
                f"{address} has a {name} of {listed[name]:,} bytes; that of a run has at most {most:,}. "
                "Nothing was downloaded."
            )


def _install(address: Address, commit: str | None, root: Path) -> str:
    """Downloads the files of a run and copies them into its directory; returns the commit.

    Args:
        address: the run.
        commit: what its revision is; None: the hub cannot be reached, and a copy is looked for.
        root: gets a folder named by the commit.
    """
    snapshot = _snapshot(address, offline=commit is None)
    if commit not in (None, snapshot.name):
        raise VmrError(f"{address} has changed while it was downloaded. Run the same command again.")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".tmp-") as folder:
        building = Path(folder) / "run"
        building.mkdir()
        storage = snapshot.parents[1].resolve()
        for name, most in FILES.items():
            if os.path.lexists(snapshot / name):
                _copy(snapshot / name, building / name, storage, most)
        _check_files(address, {path.name: path.stat().st_size for path in building.iterdir()})
        check_texts(building, str(address))
        check_weights(building, str(address))
        for number in range(_EXTRACTED):
            if (building / EXTRACTED_FILE.format(number)).exists():
                folder_of_one = building / directory.EXTRACTED / str(number)
                folder_of_one.mkdir(parents=True)
                (building / EXTRACTED_FILE.format(number)).rename(folder_of_one / "manifest.json")
        origin = {"repository": address.name, "commit": snapshot.name}
        write_json(building / directory.ORIGIN, origin)
        directory.install(building, root / snapshot.name)
    return snapshot.name


def _snapshot(address: Address, offline: bool) -> Path:
    """Returns the snapshot in the cache of `huggingface_hub`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                address.name,
                revision=address.revision,
                allow_patterns=list(FILES),
                endpoint=hub_endpoint(),
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError as error:
        raise VmrError(
            f"{address} is not complete on this machine, and the hub cannot be reached. Check the network "
            "(and HTTPS_PROXY), or set HF_ENDPOINT to a mirror."
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(address, error) from error
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise VmrError(
            f"{address}: the download broke off ({' '.join(str(error).split()):.200}). The same command "
            "keeps the complete files."
        ) from error


def _copy(source: Path, target: Path, storage: Path, most: int) -> None:
    """Copies a file of a snapshot, which is a link to a file in the same repository's folder.

    Raises:
        VmrError: if it is a link to another place, a folder, a device, or too large.
    """
    place = source.resolve()
    if not place.is_relative_to(storage) or not place.exists():
        raise VmrError(f"{source} is a link to {place}, outside of its repository. Remove {storage}.")
    if check_regular(place) > most:
        raise VmrError(f"{source} has {place.stat().st_size:,} bytes; expected at most {most:,}.")
    try:
        os.link(place, target)  # weights need no second copy on the same disk
    except OSError:
        shutil.copyfile(place, target)


def check_texts(run: Path, name: str) -> None:
    """Refuses characters that a terminal obeys: headers and manifests are printed."""
    for file in (*REQUIRED[1:3], directory.ANNOTATIONS, directory.ENVIRONMENT, directory.STATUS):
        if (run / file).is_file() and _CONTROL.search(read_text(run / file, FILES[file])):
            raise VmrError(f"{name}: {file} holds control characters, which could steer your terminal.")


def check_weights(run: Path, name: str) -> None:
    """Refuses a run whose weights are not those that its metrics were computed with.

    Args:
        run: a directory with metrics.json and weights.
        name: what the user calls it.
    """
    header: Any = directory.read_json(run / directory.METRICS)
    header = header.get(directory.HEADER) if isinstance(header, dict) else None
    recorded = header.get(directory.DIGEST) if isinstance(header, dict) else None
    found = directory.weights_digest(run)
    if recorded != found:
        raise VmrError(
            f"{name}: {directory.WEIGHTS} does not belong to {directory.METRICS}, which records weights with "
            f"the SHA-256 {recorded!s:.64}; found {found}. One of the two was replaced."
        )
