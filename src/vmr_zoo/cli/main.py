"""The command `vmr VERB …`: each verb is a Hydra app over `conf/`; a user error gets one clear message.

Only the module of the verb is imported, and only after its configuration is composed: `vmr --help` answers at
once and `vmr score` never waits for torch.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from vmr_zoo.cli import completion
from vmr_zoo.cli.explain import complain, exit_code, explain
from vmr_zoo.cli.help import page
from vmr_zoo.cli.jobs import run_verb
from vmr_zoo.cli.paths import check_paths, local_runs
from vmr_zoo.config.arguments import (
    as_typed,
    check_options,
    composes_only,
    is_sweep,
    options_first,
    with_present_keys,
)
from vmr_zoo.errors import VmrError, unknown

VERBS: dict[str, tuple[str, str]] = {
    "train": ("vmr_zoo.cli.train", "train a method on a data set and predict every test split"),
    "eval": ("vmr_zoo.cli.eval", "score a trained run on splits of its protocol, or of other data"),
    "score": ("vmr_zoo.cli.score", "score a predictions file against the ground truth, without a model"),
    "fetch": ("vmr_zoo.cli.fetch", "download published features, and check them"),
    "extract": ("vmr_zoo.cli.extract", "turn videos into features"),
    "pack": ("vmr_zoo.cli.pack", "write video features as one flat array"),
    "narrate": ("vmr_zoo.cli.narrate", "turn videos into narrations"),
    "embed": ("vmr_zoo.cli.embed", "turn sentences and narrations into text features"),
    "predict": ("vmr_zoo.cli.predict", "find moments in your own videos, with a trained run or none"),
    "demo": ("vmr_zoo.cli.demo", "open a local page that finds moments in videos, also without training"),
    "draw": ("vmr_zoo.cli.draw", "draw what a run computes for one query"),
    "report": ("vmr_zoo.cli.report", "collect runs into tables"),
    "push": ("vmr_zoo.cli.push", "publish a run on the Hugging Face hub"),
    "bench": ("vmr_zoo.cli.bench", "measure training-step and inference time, memory and FLOPs"),
    "gpu": ("vmr_zoo.cli.gpu", "measure everything that only a GPU can tell, in stages"),
    "doctor": ("vmr_zoo.cli.doctor", "inspect annotations and features, and say what would fail"),
    "parity": ("vmr_zoo.cli.parity", "recompute the authors' numbers from a golden case"),
    "import": ("vmr_zoo.cli.import_", "turn the authors' checkpoint into a run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: the arguments after `vmr`; None: those of the process.

    Returns:
        The exit code: 0 for success, 2 for a user-fixable error, 3 for a disk that cannot be written, else
        the verb's own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        code = _run(args, full_error)
        sys.stdout.flush()  # a closed pipe shows here, not while Python ends
        return code
    except BrokenPipeError:
        # The reader of the pipe is gone; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        complain("Interrupted.")
        return 130
    except Exception as error:
        message = explain(error, args[0], args[1:])
        if full_error or message is None:
            raise
        complain(message)
        return exit_code(error)


def _run(args: Sequence[str], full_error: bool) -> int:
    """Prints a page, or runs a verb. Checks that need no composed configuration come before Hydra."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else VmrError.exit_code
    verb, rest = args[0], args[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(version("vmr_zoo"))
    elif verb == "completion":
        print(completion.script(rest[0] if rest else "bash"), end="")
    elif verb == "_complete":
        print(*completion.complete(rest[0], rest[1], tuple(VERBS)), sep="\n")
    elif verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    elif {"-h", "--help"} & set(rest):
        print(page(verb, rest))
    else:
        rest = ["json=true" if arg == "--json" and verb == "predict" else arg for arg in rest]
        check_options(rest)
        rest, notes = with_present_keys(rest)
        for note in notes:
            complain(note)
        if composes_only(rest):
            logging.raiseExceptions = False  # Hydra prints by logging, which would report a closed pipe
        if is_sweep(rest) and {"--cfg", "-c"} & set(rest):
            raise VmrError(
                "--cfg shows the configuration of one job: leave out -m, and give each key one value."
            )
        check_paths(verb, rest)
        rest = local_runs(verb, rest)
        return run_verb(verb, VERBS[verb][0], as_typed(verb, options_first(rest)), full_error)
    return 0


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

Tab completion: eval "$(vmr completion bash)", or zsh, or: vmr completion fish | source"""


if __name__ == "__main__":
    sys.exit(main())
