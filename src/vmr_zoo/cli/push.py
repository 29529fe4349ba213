"""`vmr push`: publishes a run on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.hub import LOG_IN, hub_api, is_unreachable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.runs.publish import Staged


def main(cfg: DictConfig) -> int:
    """Publishes the run of the configuration composed from `conf/push.yaml`, or writes the folder `out`.

    Raises:
        VmrError: if the run cannot be published, would give a secret away, or the hub refuses.
    """
    from vmr_zoo.report.card import model_card
    from vmr_zoo.runs import publish
    from vmr_zoo.runs.hub import parse_address
    from vmr_zoo.utils.files import atomic_write

    repository = str(cfg.repo).removeprefix("hf://")
    if "@" in repository:
        raise VmrError(
            f"Expected repo=OWNER/NAME, found repo={cfg.repo}. To choose a branch, set branch=NAME."
        )
    parse_address(f"hf://{repository}")
    run, out = Path(cfg.run), None if cfg.out is None else Path(cfg.out).expanduser()
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VmrError(f"out={out} exists already. Name a new folder.")
    if not re.fullmatch(r"\w[\w./-]*", str(cfg.branch)) or ".." in str(cfg.branch):
        raise VmrError(
            f"Expected branch=NAME of letters, digits, '.', '/' and '-', found branch={cfg.branch}."
        )
    # Beside the run: the weights need no copy there.
    with tempfile.TemporaryDirectory(dir=run if out is None else _parent(out), prefix=".push-") as temporary:
        folder = Path(temporary) / "run"
        folder.mkdir()
        staged = publish.stage(run, folder)
        card = model_card(staged, repository, None if cfg.licence is None else str(cfg.licence))
        atomic_write(folder / publish.CARD, card)
        publish.check_secrets(folder)
        _show(folder, staged)
        if out is None:
            _upload(folder, repository, cfg, staged)
        else:
            if out.exists():
                out.rmdir()
            folder.rename(out)
    address = repository if cfg.branch == "main" else f"{repository}@{cfg.branch}"
    if out is not None:
        print(
            f"Written: {out}. Nothing was uploaded. Read {out / publish.CARD}, then leave out out=… to "
            "publish."
        )
    else:
        print(f"Next: vmr predict run=hf://{address} video=FILE query=…, or vmr eval run=hf://{address}")
    return 0


def _parent(out: Path) -> Path:
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    return out.absolute().parent


def _show(folder: Path, staged: Staged) -> None:
    """Lists the files that are published, and what was changed or left out."""
    table = Table("file", title="To be published", title_justify="left")
    table.add_column("bytes", justify="right")
    for path in sorted(folder.iterdir()):
        table.add_row(Text(path.name), f"{path.stat().st_size:,}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for old, new in staged.moved.items():
        console.print(Text(f"Replaced in config.yaml: {old} by {new}"))
    for name, reason in staged.left_out.items():
        console.print(Text(f"Left out: {name}, {reason}"))


def _upload(folder: Path, repository: str, cfg: DictConfig, staged: Staged) -> None:
    """Creates the repository and the branch if necessary, and uploads the folder in one commit."""
    from vmr_zoo.runs.hub import FILES

    api = hub_api()
    branch = str(cfg.branch)
    try:
        api.create_repo(repository, private=True if cfg.private else None, exist_ok=True)
        if cfg.private and not api.model_info(repository).private:
            raise VmrError(
                f"{repository} exists already and is public: nothing was uploaded. Make it private on its "
                "page, or choose another name."
            )
        if branch != "main":
            api.create_branch(repository, branch=branch, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=branch,
            commit_message=f"{staged.header['name']}, seed {staged.header['seed']}",
            delete_patterns=list(FILES),  # of an earlier push
        )
    except VmrError:
        raise
    except Exception as error:
        raise _refusal(repository, api.endpoint, error) from error
    print(f"Published {repository}, commit {done.oid}: {api.endpoint}/{repository}")


def _refusal(repository: str, endpoint: str, error: Exception) -> Exception:
    """Says what a refusal of the hub means for the user; other errors stay."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(error).split())
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return VmrError(
            f"The hub at {endpoint} does not know you. Log in with a token that may write ({LOG_IN})."
        )
    if status == 403:
        return VmrError(
            f"Your token may not write to {repository}. Check its name, and the rights of the token."
        )
    if isinstance(error, HfHubHTTPError | ValueError):
        return VmrError(f"The hub refused {repository}: {text:.300}")
    if is_unreachable(error):
        return VmrError(
            f"The hub at {endpoint} cannot be reached ({text:.200}). The same command tries again."
        )
    return error
