"""Tab completion, without Hydra and without a change to the shell outside of `vmr`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmr_zoo.cli import main
from vmr_zoo.cli.completion import SCRIPTS, complete


def replies(line: str, breaks: str = "") -> list[str]:
    return complete(line, breaks, tuple(main.VERBS))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vmr tra", ["train"]),
        ("vmr completion z", ["zsh"]),
        ("vmr train data=charades_c", ["data=charades_cd", "data=charades_cg"]),
        ("vmr train -m method=mesm,te", ["method=mesm,tea"]),
        ("vmr train ablation=mesm/table5_s", ["ablation=mesm/table5_ss", "ablation=mesm/table5_ss_enc"]),
        ("vmr train experiment=bm_detr/qv", ["experiment=bm_detr/qvhighlights"]),
        ("vmr train features/quer", ["features/query="]),
        ("vmr train vari", ["variant="]),
        ("vmr train variant=", ["variant=paper", "variant=released"]),
        ("vmr train trainer.max", ["trainer.max_epochs="]),
        ("vmr train method=mesm method.frame_word.vo", ["method.frame_word.vocabulary="]),
        ("vmr train data=charades_cd data.batch", ["data.batch_size="]),
        ("vmr report significance=t", ["significance=true"]),
        ("vmr train --conf", ["--config-dir", "--config-name"]),
        ("vmr nothing da", []),
        ("vmr predict query='a man ", []),
    ],
)
def test_replies_are_words_that_start_as_typed(line: str, expected: list[str]) -> None:
    assert replies(line) == expected


def test_paths_complete_for_the_keys_that_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    (tmp_path / "rain.mp4").touch()
    assert replies("vmr predict run=r") == ["run=runs/"]
    assert replies("vmr predict video=r") == ["video=rain.mp4", "video=runs/"]
    assert replies("vmr predict run=runs/") == ["run=runs/a\\ b/"]
    assert replies("vmr predict run=runs/a\\ ") == ["run=runs/a\\ b/"]
    assert replies("vmr train paths.runs=r", "=:") == ["rain.mp4", "runs/"]
    assert replies("vmr predict query=r") == []


def test_bash_completes_and_keeps_its_settings(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    (tmp_path / "vmr").write_text(f'#!/bin/sh\nexec {sys.executable} -m vmr_zoo.cli.main "$@"\n')
    (tmp_path / "vmr").chmod(0o755)
    (tmp_path / "completion.sh").write_text(SCRIPTS["bash"])
    line = "vmr train data=charades_c"
    ask = (
        f"before=$COMP_WORDBREAKS; source {tmp_path}/completion.sh;"
        f'COMP_LINE="{line}"; COMP_POINT={len(line)};'
        '_vmr; echo "${COMPREPLY[*]}"; [ "$before" = "$COMP_WORDBREAKS" ] && complete -p'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run([bash, "-c", ask], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.splitlines() == ["charades_cd charades_cg", "complete -F _vmr vmr"]


def asked_for_files(tmp_path: Path, shell: str, script: str) -> str:
    """Runs a script in a shell beside the files `a b.mp4` and `abc.mp4`, with `vmr` in its path."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell}")
    (tmp_path / "vmr").write_text(f'#!/bin/sh\nexec {sys.executable} -m vmr_zoo.cli.main "$@"\n')
    (tmp_path / "vmr").chmod(0o755)
    for name in ("a b.mp4", "abc.mp4"):
        (tmp_path / name).touch()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    return subprocess.run(
        [program, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    ).stdout


def test_fish_completes_and_quotes_a_space_once(tmp_path: Path) -> None:
    ask = 'vmr completion fish | source; complete --escape -C "vmr predict video=a"'
    assert sorted(asked_for_files(tmp_path, "fish", ask).splitlines()) == [
        "video=a\\ b.mp4",
        "video=abc.mp4",
    ]


def test_zsh_completes_and_quotes_a_space_once(tmp_path: Path) -> None:
    """Outside of its line editor: the words that the function would add."""
    ask = """
    compdef() { }
    compadd() { print -rl -- "$@" }
    eval "$(vmr completion zsh)"
    LBUFFER='vmr predict video=a'
    _vmr
    """
    assert asked_for_files(tmp_path, "zsh", ask).splitlines() == [
        "-Q", "-S", "", "--", "video=a\\ b.mp4", "video=abc.mp4",
    ]  # fmt: skip
