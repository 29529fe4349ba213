"""The command `vmr VERB …`: each verb is a Hydra app over `conf/`; a user error gets one clear message.

Only the module of the verb is imported, and only after its configuration is composed: `vmr --help` answers at
once and `vmr score` never waits for torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Sequence

from vmr_zoo.cli.explain import complain, explain
from vmr_zoo.cli.jobs import run_verb
from vmr_zoo.errors import unknown

VERBS: dict[str, tuple[str, str]] = {
    "train": ("vmr_zoo.cli.train", "train a method on a data set and predict every test split"),
    "eval": ("vmr_zoo.cli.eval", "score a trained run on splits of its protocol"),
    "score": ("vmr_zoo.cli.score", "score a predictions file against the ground truth, without a model"),
    "extract": ("vmr_zoo.cli.extract", "turn videos into features"),
    "pack": ("vmr_zoo.cli.pack", "write video features as one flat array"),
    "narrate": ("vmr_zoo.cli.narrate", "turn videos into narrations"),
    "embed": ("vmr_zoo.cli.embed", "turn sentences and narrations into text features"),
    "predict": ("vmr_zoo.cli.predict", "find moments in your own video with a trained run"),
    "draw": ("vmr_zoo.cli.draw", "draw what a run computes for one query"),
    "report": ("vmr_zoo.cli.report", "collect runs into tables"),
    "bench": ("vmr_zoo.cli.bench", "measure training-step and inference time, memory and FLOPs"),
    "gpu": ("vmr_zoo.cli.gpu", "measure everything that only a GPU can tell, in stages"),
    "doctor": ("vmr_zoo.cli.doctor", "inspect annotations and features, and say what would fail"),
    "parity": ("vmr_zoo.cli.parity", "recompute the authors' numbers from a golden case"),
    "import": ("vmr_zoo.cli.import_", "turn the authors' checkpoint into a run"),
}

_PLAIN_TEXT = {
    "predict": ("video", "query", "csv", "picture", "out"),
    "draw": ("query", "sentence", "videos", "out"),
}
"""Keys of a verb whose value is a sentence, an id or a path: it arrives as typed."""

USAGE = 2
"""Exit code of a user-fixable error."""

_COMPLETION = """\
_vmr() {
  local words=($COMP_LINE) word=${COMP_WORDS[$COMP_CWORD]} rest choices
  if [ "$COMP_CWORD" -le 1 ]; then
    COMPREPLY=($(compgen -W "VERBS completion" -- "$word"))
    return
  fi
  rest="vmr${COMP_LINE#*${words[1]}}"
  choices=$(COMP_LINE=$rest COMP_POINT=$COMP_POINT command vmr "${words[1]}" -sc query=bash 2>/dev/null)
  COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _vmr vmr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: the arguments after `vmr`; None: those of the process.

    Returns:
        The exit code: 0 for success, 2 for a user-fixable error, else the verb's own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else USAGE
    verb, rest = args[0], args[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(version("vmr_zoo"))
        return 0
    if verb == "completion":
        print(_COMPLETION.replace("VERBS", " ".join(VERBS)))
        return 0
    if verb in _PLAIN_TEXT:
        rest = [quote_plain_text(arg, _PLAIN_TEXT[verb]) for arg in rest]
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        return run_verb(verb, VERBS[verb][0], rest, full_error)
    except BrokenPipeError:
        # The reader of the pipe is gone; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        complain("Interrupted.")
        return 130
    except Exception as error:
        message = explain(error, verb, rest)
        if full_error or message is None:
            raise
        complain(message)
        return USAGE


def overview() -> str:
    """Returns the page that `vmr --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in VERBS.items())
    return f"""\
vmr: video moment retrieval, many methods on the same data, splits, metrics and seeds.

Usage: vmr VERB [key=value …]      vmr VERB --help lists the choices and keys of a verb

{verbs}

Examples
  vmr train method=bm_detr data=shapes seed=0
  vmr train -m method=predict_all,bias_kde,moment_detr,bm_detr data=shapes seed=0,1
  vmr report runs=runs
  vmr doctor data=charades_cd paths.annotations=/data/annotations

Tab completion: eval "$(vmr completion bash)\""""


def quote_plain_text(arg: str, keys: Collection[str]) -> str:
    """Quotes a sentence or file name given to one of the keys, where Hydra would parse commas and quotes.

    Quoted values and lists stay as they are. "${" in a sentence is literal. --json becomes json=true.
    """
    if arg == "--json":
        return "json=true"
    key, equals, value = arg.partition("=")
    if not equals or key not in keys or value[:1] in ("", "[", "'", '"'):
        return arg
    from hydra.core.override_parser.types import Quote, QuotedString

    if key in ("query", "sentence"):
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


if __name__ == "__main__":
    sys.exit(main())
