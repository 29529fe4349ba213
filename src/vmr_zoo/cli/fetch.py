"""`vmr fetch`: downloads published features and ends with what `vmr doctor` says of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from vmr_zoo.cli.doctor import show
from vmr_zoo.config.allowed import check_names
from vmr_zoo.config.arguments import as_typed
from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.config.files import read_yaml
from vmr_zoo.data.features.fetch import DOWNLOADS, LICENCE, Fetched, fetch_features
from vmr_zoo.data.features.published import PublishedFeatures, choose
from vmr_zoo.engine.doctor import diagnose
from vmr_zoo.errors import VmrError, abbreviate, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Fetches features, or lists what is published.

    Args:
        cfg: composed from `conf/fetch.yaml`.

    Returns:
        0 if the features are there and nothing would fail in training; 1 if something would, or if the files
        have to be downloaded with a browser first.

    Raises:
        VmrError: if nothing published has these names, or a file cannot be fetched.
    """
    sources = _catalogue(cfg.catalogue)
    console = Console()
    chosen = HydraConfig.get().runtime.choices
    features, data = chosen.get("features"), chosen.get("data")
    if features is None and cfg.source is None:
        _list(sources, console)
        return 0
    try:
        name, *others = choose(sources, features, data, cfg.source)
    except VmrError:
        _list(sources, console)
        raise
    source = sources[name]
    folder = Path(cfg.out or Path(cfg.paths.features) / name).expanduser()
    accepted, network = cfg.accept_licence, instantiate(cfg.network)
    done = fetch_features(name, source, folder, network, accepted, Console(soft_wrap=True))
    data = data or next(iter(source.data))
    typed = [text for text in HydraConfig.get().overrides.task if text.lstrip("+~").startswith(_KEPT)]
    doctor = [f"data={data}", f"features={source.features}", *source.overrides(data), *typed]
    doctor.append(f"paths.features={folder}")
    if done is None:
        console.print(Text(_by_hand(source, folder, doctor)), soft_wrap=True)
        return 1
    _report(done, folder, console)
    if others:
        entries = ", ".join(f"source={other}" for other in others)
        console.print(Text(f"Also published for these features and data: {entries}."), soft_wrap=True)
    return _doctor(doctor, cfg.paths, console)


_KEPT = ("features/", "features.", "data/", "data.", "variant", "max_query_tokens", "normalise", "paths.ann")
"""Starts of the typed overrides that change how features are read; the check and what comes next get them."""

_LEGEND = """\
features=NAME data=NAME fetches the first entry that fits; source=ENTRY another.
GB: the download, as others report it. from: the Hugging Face hub, or Drive, Box
or OneDrive, which need a browser: the command then prints what to do. seen:
whether somebody has fetched the files with this entry. If not, it was written
from public pages, and records commits and checksums on first use.
Next: vmr fetch features=NAME data=NAME"""


def _catalogue(file: str | None) -> dict[str, PublishedFeatures]:
    """Reads the entries of a file, or those of `conf/published`.

    Raises:
        VmrError: if the file is not YAML, or holds anything but entries.
    """
    shipped = (config_dir() / "published" / f"{name}.yaml" for name in ("hub", "browser"))
    entries: dict[str, PublishedFeatures] = {}
    for path in [Path(file)] if file else shipped:
        try:
            tree = read_yaml(path)
            check_names(tree, str(path))
            entries.update(instantiate(tree, _convert_="all"))
        except (YAMLError, InstantiationException, TypeError, ValueError) as error:
            raise VmrError(f"{path} is no catalogue as those in conf/published ({error}).") from error
    if wrong := [name for name, entry in entries.items() if not isinstance(entry, PublishedFeatures)]:
        raise VmrError(f"{file} names no features under {abbreviate(wrong)}; see conf/published.")
    return entries


_WIDTHS = {"entry": 25, "data=": 20, "GB": 5, "licence": 12, "from": 8, "seen": 4}
"""Columns of the list, which fit into 80 characters."""


def _list(sources: Mapping[str, PublishedFeatures], console: Console) -> None:
    """Prints what is published, by feature set."""
    for features in sorted({source.features for source in sources.values()}):
        table = Table(title=f"features={features}", title_justify="left", box=None, padding=(0, 1, 0, 0))
        for column, width in _WIDTHS.items():
            table.add_column(
                column, width=width, overflow="fold", justify="right" if column == "GB" else "left"
            )
        for name, source in sources.items():
            if source.features == features:
                size = "?" if source.gigabytes is None else f"{source.gigabytes:,.1f}"
                seen = "yes" if source.verified else "no"
                table.add_row(name, _short(source.data), size, source.short_licence, source.where, seen)
        console.print(table)
        console.print()
    console.print(Text(_LEGEND), soft_wrap=True)


def _short(data: Iterable[str]) -> str:
    """Joins names, without the part that repeats the first: "charades_sta _cg _cd"."""
    first, *others = data
    start = first.partition("_")[0]
    return " ".join([first, *(name.removeprefix(start) for name in others)])


def _report(done: Fetched, folder: Path, console: Console) -> None:
    """Says what is in the folder now."""
    if done.kept:
        console.print(Text(f"Files in {folder}: {done.files:,}, as fetched before."), soft_wrap=True)
        return
    console.print(
        Text(f"Files in {folder}: {done.files:,}. Their licence is in {folder / LICENCE}."), soft_wrap=True
    )
    if done.left_out:
        names = abbreviate([printable(name) for name in done.left_out], 3)
        console.print(Text(f"Not needed, and left out: {names}."), soft_wrap=True)
    for pattern in done.unused:
        warning = f"no file fitted {pattern}. The check below says whether it is missing."
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _by_hand(source: PublishedFeatures, folder: Path, doctor: list[str]) -> str:
    """Says how to download files that need a browser."""
    places = ", ".join(sorted({target.replace("{name}", "…") for target in source.place.values()}))
    listed = "\n".join(f"     {url}  ({what})" for what, url in source.browser.items())
    return (
        f"These files need a browser ({source.where}); nothing was fetched.\n"
        f"  1. Open, and download what belongs to {', '.join(source.data)}:\n{listed}\n"
        f"  2. Put the files, as downloaded (packed, whole or in parts), into {folder / DOWNLOADS}\n"
        f"  3. Run the same command again: it unpacks them into {folder}, and checks them.\n"
        f"If you unpack them yourself, {folder} must have {places}. Then check them:\n"
        f"  {_command('doctor', doctor)}"
    )


def _doctor(arguments: list[str], paths: DictConfig, console: Console) -> int:
    """Prints what `vmr doctor` says, and what comes next."""
    given = [f"paths.{key}={paths[key]}" for key in ("annotations", "cache")]
    cfg = compose("doctor", as_typed("doctor", [*arguments, *given]))
    try:
        report = diagnose(cfg)
    except VmrError as error:
        console.print(Text.assemble(("Not checked yet: ", "yellow"), str(error)), soft_wrap=True)
        console.print(Text(f"Next: {_command('doctor', [*arguments, 'download=true'])}"), soft_wrap=True)
        return 0
    show(report, console)
    if report["ok"]:
        console.print(Text(f"Next: {_command('train', [*arguments, 'method=NAME'])}"), soft_wrap=True)
        return 0
    console.print(Text(f"Next: see the errors above, then {_command('doctor', arguments)}"), soft_wrap=True)
    return 1


def _command(verb: str, arguments: list[str]) -> str:
    return f"vmr {verb} {' '.join(map(shlex.quote, arguments))}"
