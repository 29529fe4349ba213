"""Tab completion: a small script for the shell, which calls `vmr _complete` for the words that fit.

Nothing here starts Hydra: names come from the file names of `conf/`, keys from its YAML files.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
from collections.abc import Iterator, Sequence

from vmr_zoo.config.files import groups_of, keys_of
from vmr_zoo.config.groups import members
from vmr_zoo.config.keys import Choice, Text, kind_of
from vmr_zoo.errors import unknown

_BASH = """\
_vmr() {
  local IFS=$'\\n'
  COMPREPLY=($(command vmr _complete "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null))
  case ${COMPREPLY[0]} in *[=./]) compopt -o nospace ;; esac
}
complete -F _vmr vmr
"""
_ZSH = """\
_vmr() {
  local -a replies
  replies=("${(@f)$(command vmr _complete "$LBUFFER" '' 2>/dev/null)}")
  (( $#replies )) && compadd -Q -S '' -- $replies
}
compdef _vmr vmr
"""
_FISH = """\
function _vmr
  command vmr _complete (commandline -cp | string collect) "" 2>/dev/null | string unescape
end
complete -c vmr -f -a '(_vmr)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_CURSOR = "\0"
_OPTIONS = ("-m", "--help", "--cfg", "--info", "--config-dir", "--config-name")


def script(shell: str) -> str:
    """Returns what a shell evaluates to complete `vmr`.

    Raises:
        VmrError: for a shell without a script.
    """
    if shell not in SCRIPTS:
        raise unknown("shell", shell, SCRIPTS)
    return SCRIPTS[shell]


def complete(line: str, breaks: str, verbs: Sequence[str]) -> list[str]:
    """Completes the last word of a command line.

    Args:
        line: the line up to the cursor.
        breaks: characters at which the shell divides words (bash's COMP_WORDBREAKS). A reply then replaces
            only what follows the last of them.
        verbs: the verbs.

    Returns:
        The replies, quoted for the shell.
    """
    words, current = _words(line)
    start = max((current.rfind(char) + 1 for char in "=:" if char in breaks), default=0)
    return [
        re.sub(r"([\s'\"\\$&;()<>|*?#`])", r"\\\1", reply[start:])
        for reply in _replies(words, current, verbs)
        if reply.startswith(current)
    ]


def _words(line: str) -> tuple[list[str], str]:
    """Splits a line into the words after `vmr` and the unfinished last one."""
    for close in ("", "'", '"'):  # a quote may be open
        with contextlib.suppress(ValueError):
            *words, current = shlex.split(f"{line}{_CURSOR}{close}")
            return words[1:], current.rstrip(_CURSOR)
    return [], ""


def _replies(words: Sequence[str], current: str, verbs: Sequence[str]) -> Iterator[str]:
    """Yields words that can stand in the place of the current one; some may not begin as it does."""
    if not words:
        yield from (*verbs, "completion", "--help", "--version")
        return
    verb = words[0]
    if verb == "completion":
        yield from SCRIPTS
    if verb not in verbs:
        return
    if current.startswith("-"):
        yield from _OPTIONS
        return
    plus = current[: len(current) - len(current.lstrip("+"))]
    key, equals, value = current.lstrip("+").partition("=")
    groups = groups_of(verb)
    if not equals:
        yield from (f"{plus}{name}=" for name in groups)
        yield from (f"{plus}{name}" for name in keys_of(verb, words[1:], key))
        return
    before = value[: max(value.rfind(","), value.rfind("[")) + 1]
    typed = f"{plus}{key}={before}"
    if key in groups:
        yield from (f"{typed}{name}" for name in members(key))
        return
    kind = kind_of(verb, key)
    if isinstance(kind, Choice):
        yield from (f"{typed}{str(one).lower() if isinstance(one, bool) else one}" for one in kind.values)
    elif isinstance(kind, Text) and not kind.sentence:
        yield from (f"{typed}{path}" for path in _paths(value[len(before) :], kind))


def _paths(start: str, kind: Text) -> list[str]:
    """Lists files and folders that begin so; folders end with a slash."""
    found = glob.glob(glob.escape(os.path.expanduser(start)) + "*")
    only_folders = kind.exists in ("folder", "run")
    return sorted(
        f"{path}/" if os.path.isdir(path) else path
        for path in found
        if not only_folders or os.path.isdir(path)
    )
