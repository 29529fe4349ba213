"""The command `vmr VERB …`: each verb is a Hydra app over `conf/`, and every mistake gets one clear message.

Only the verb's own module is imported, and that after its configuration has been composed, so that
`vmr --help` answers at once and `vmr score` never waits for torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmr_zoo.errors import VmrError, nearest, unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS: dict[str, tuple[str, str]] = {
    "train": ("vmr_zoo.engine.training", "train a method on a data set and predict every test split"),
    "eval": ("vmr_zoo.engine.evaluation", "score a trained run on splits of its protocol"),
    "score": ("vmr_zoo.engine.scoring", "score a predictions file against the ground truth, without a model"),
    "extract": ("vmr_zoo.cli.extract", "turn videos into features"),
    "pack": ("vmr_zoo.cli.pack", "write video features as one flat array"),
    "narrate": ("vmr_zoo.engine.narration", "turn videos into narrations"),
    "embed": ("vmr_zoo.engine.embedding", "turn sentences and narrations into text features"),
    "predict": ("vmr_zoo.cli.predict", "find moments in your own video with a trained run"),
    "report": ("vmr_zoo.report.leaderboard", "collect runs into tables"),
    "bench": ("vmr_zoo.engine.bench", "measure what a method costs on this machine"),
    "doctor": ("vmr_zoo.engine.doctor", "inspect annotations and features, and say what would fail"),
    "parity": ("vmr_zoo.parity.check", "recompute the authors' numbers from a golden case"),
    "import": ("vmr_zoo.parity.checkpoint_import", "turn the authors' checkpoint into a run"),
}

USAGE = 2
"""The exit code of a mistake that the user can mend."""

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
        argv: the arguments after `vmr`; None takes those of the process.

    Returns:
        The exit code: 0 for success, 2 for a mistake that the message explains, else the verb's own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else USAGE
    verb, rest = args[0], args[1:]
    if verb == "predict":
        rest = [_as_typed(arg) for arg in rest]
    if verb == "--version":
        from importlib.metadata import version

        print(version("vmr_zoo"))
        return 0
    if verb == "completion":
        print(_COMPLETION.replace("VERBS", " ".join(VERBS)))
        return 0
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        return _run_verb(verb, rest, full_error)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return 130
    except Exception as error:
        message = explain(error, verb, rest)
        if full_error or message is None:
            raise
        _complain(message)
        return USAGE


def overview() -> str:
    """Returns the page that `vmr --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in VERBS.items())
    return f"""\
vmr: video moment retrieval, many methods on the same data, splits, metrics and seeds.

Usage: vmr VERB [key=value …]      vmr VERB --help lists the verb's choices and keys

{verbs}

Examples
  vmr train method=bm_detr data=shapes seed=0
  vmr train -m method=predict_all,bias_kde,moment_detr,bm_detr data=shapes seed=0,1
  vmr report runs=runs
  vmr doctor data=charades_cd paths.annotations=/data/annotations

Tab completion: eval "$(vmr completion bash)\""""


def _as_typed(arg: str) -> str:
    """Turns what a user types for `vmr predict` into Hydra's grammar, which reads commas and quotes itself.

    A sentence or a file name is quoted unless it is quoted or a list already; --json is json=true. In a
    sentence "${" is what it looks like, no interpolation.
    """
    if arg == "--json":
        return "json=true"
    key, equals, value = arg.partition("=")
    if (
        not equals
        or key not in ("video", "query", "csv", "picture", "out")
        or value[:1] in ("", "[", "'", '"')
    ):
        return arg
    from hydra.core.override_parser.types import Quote, QuotedString

    if key == "query":
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _run_verb(verb: str, args: list[str], full_error: bool) -> int:
    """Hands the arguments to Hydra and returns the verb's exit code."""
    import hydra

    from vmr_zoo.config.compose import check_recipe, check_variant, config_dir, register_resolvers, settle
    from vmr_zoo.runs import sweep

    register_resolvers()
    script = sys.argv[0]
    code = 0
    failure: Exception | None = None
    token = secrets.token_hex(4)

    def run(cfg: DictConfig) -> int:
        check_recipe()
        if "variant" in cfg:
            check_variant(cfg.variant)
        main: Callable[[DictConfig], int] = importlib.import_module(VERBS[verb][0]).main
        keep_freed_memory()
        # Lightning's DDP starts its other processes by the command line that it finds.
        with _arguments([script, verb, *_as_a_single_job(cfg)]):
            return main(cfg)

    def one_of_many(cfg: DictConfig) -> float | None:
        """Runs a job of a sweep; whatever happens to it, the others go on."""
        from hydra.core.hydra_config import HydraConfig

        from vmr_zoo.runs import directory

        asked = HydraConfig.get()
        overrides = list(asked.overrides.task)
        folder = sweep.reports_folder(Path(asked.sweep.dir), token)
        where: Path | None = None

        def report(state: str, message: str = "") -> None:
            path = "" if where is None else str(where)
            sweep.Report(" ".join(overrides), state, path, message).write(folder, asked.job.num)

        try:
            report("started")
            settle(cfg)
            if verb == "train":
                where = Path(cfg.run)
                report("started")
            if where is not None and directory.is_done(where, directory.relocatable(cfg), cfg.resume):
                report("skipped")
            else:
                ended = run(cfg)
                state = "finished" if where is None else directory.status(where)["state"]
                report("failed" if ended else state, f"exit code {ended}" if ended else "")
            return None if where is None else directory.objective(where)
        except (SystemExit, KeyboardInterrupt):
            report("interrupted")
            raise
        except Exception as error:
            message = explain(error, verb, overrides)
            if full_error or message is None:
                traceback.print_exc()
            message = message or f"{type(error).__name__}: {error}"
            _complain(f"{' '.join(overrides)}\n{message}")
            if where is not None:
                directory.record_failure(where, message)
            report("failed", message)
            return None

    def job(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        nonlocal code, failure
        register_resolvers()  # a process of the launcher's has none yet
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return one_of_many(cfg)
        try:
            settle(cfg)
            code = run(cfg)
        except Exception as error:
            failure = error
        return None

    sweep.Where.folder = None
    reports: list[sweep.Report] = []
    try:
        # Hydra prints its own shorter messages unless this is set; with it, it raises, and `main` explains.
        with _environment(HYDRA_FULL_ERROR="1"), _arguments([f"vmr {verb}", *args]):
            hydra.main(config_path=str(config_dir()), config_name=verb, version_base="1.3")(job)()
    except Exception as error:
        failure = error
    finally:
        if sweep.Where.folder is not None:
            reports = sweep.collect(sweep.reports_folder(sweep.Where.folder, token))
            if reports:
                sweep.print_table(reports)
    failed = [report for report in reports if report.state not in sweep.DONE]
    if failure is not None and not failed:
        raise failure
    if failure is not None:  # the launcher's or the sweeper's, of what the table says
        _complain(f"{type(failure).__name__}: {failure}")
    return 1 if failed else code


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next allocation; does nothing where there is no glibc.

    By default it returns every block over 32 MB to the system, and gets it back page by page, zeroed. On long
    videos, whose attention weights are that large, this is up to half of a training step on the CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # the names' values in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, -1)  # never


def _as_a_single_job(cfg: DictConfig) -> list[str]:
    """Returns the arguments that run the Hydra job which is running alone, in another process."""
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get()
    given = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    overrides = [
        text for text in (*job.overrides.hydra, *job.overrides.task) if not text.startswith("hydra.mode=")
    ]
    resume = ["resume=true"] if cfg.get("resume") is True else []
    if resume:
        overrides = [text for text in overrides if not text.startswith("resume=")]
    return [
        *(f"--config-dir={path}" for path in given),
        f"--config-name={job.job.config_name}",
        *overrides,
        *resume,
        "hydra.mode=RUN",
    ]


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables for the duration of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Replaces sys.argv, the only place that Hydra reads arguments from, for the duration of the block."""
    before = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = before


def _complain(message: str) -> None:
    """Prints a message to standard error, in red where that is a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("vmr: ", "bold red"), message))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and what it was raised from, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def explain(error: BaseException, verb: str, overrides: Sequence[str]) -> str | None:
    """Turns an error that the user can mend into one message.

    Args:
        error: what was raised.
        verb: the verb that ran.
        overrides: its arguments, to find the nearest valid key.

    Returns:
        The message; None for an error that is ours to mend, whose traceback is wanted.
    """
    for cause in _causes(error):
        if isinstance(cause, VmrError):
            return str(cause)
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, OverrideParseException):
        return f"Cannot read '{error.override}': expected key=value. {error.message.splitlines()[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return str(unknown(group, name, [option for option in error.options if option != "default"]))
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(str(error), verb, overrides)
    if isinstance(error, InstantiationException):
        return _failed_construction(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error).rsplit(" ", 1)[-1]
        return f"vmr {verb} needs a value for '{key}': add {key}=…"
    if isinstance(error, OmegaConfBaseException | HydraException):
        return str(error).strip().splitlines()[0]
    return None


def _unknown_key(message: str, verb: str, overrides: Sequence[str]) -> str:
    """Names the keys nearest to the one that Hydra could not override."""
    found = re.search(
        r"[Cc]ould not (?:override|append to config|delete from config)[^'`]*['`]([^'`]+)['`]", message
    )
    if not found:
        return " ".join(message.split("\n")[:2]).strip()
    key = found.group(1).split("@")[0]
    valid = _valid_keys(verb, [o for o in overrides if o.lstrip("+~").partition("=")[0].split("@")[0] != key])
    by_leaf = {name: name.rsplit(".", 1)[-1] for name in valid}
    leaf = key.rsplit(".", 1)[-1]
    exact = [name for name, last in by_leaf.items() if last == leaf]
    close = list(dict.fromkeys([*exact, *nearest(key, valid)]))[:4]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown key '{key}' for vmr {verb}.{hint} `vmr {verb} --cfg job` prints every key."


def _valid_keys(verb: str, overrides: Sequence[str]) -> list[str]:
    """Lists every key of the configuration that the other overrides give; groups alone if they fail too."""
    from omegaconf import DictConfig, OmegaConf

    from vmr_zoo.config.compose import compose, config_dir

    groups = [path.name for path in config_dir().iterdir() if path.is_dir()]
    plain = [o for o in overrides if not o.startswith("-") and "hydra." not in o]
    try:
        cfg = compose(verb, plain)
    except Exception:
        # More than one key is wrong: this message is about the first, the verb's defaults serve for names.
        with contextlib.suppress(Exception):
            cfg = compose(verb)
            return _flatten(cfg, OmegaConf, DictConfig)
        return groups
    return _flatten(cfg, OmegaConf, DictConfig)


def _flatten(node: Any, omega: Any, mapping: Any, prefix: str = "") -> list[str]:
    names = []
    for key in node:
        name = f"{prefix}{key}"
        names.append(name)
        child = None if omega.is_missing(node, key) or omega.is_interpolation(node, key) else node[key]
        if isinstance(child, mapping):
            names += _flatten(child, omega, mapping, f"{name}.")
    return names


def _failed_construction(error: BaseException) -> str:
    """Explains what a constructor did not accept: its arguments stand in the configuration."""
    causes = list(_causes(error))
    for cause in causes:
        found = re.search(
            r"(\S+)\.?__init__\(\) (got an unexpected keyword argument .*|missing .*)", str(cause)
        )
        if isinstance(cause, TypeError) and found:
            return (
                f"{found.group(1).rstrip('.')} {found.group(2)}. The configuration and the constructor "
                "disagree: check the overlay files (experiment, ablation) and + overrides for a misspelt key."
            )
    where = re.search(r"full_key: (\S+)", str(error))
    what = str(causes[-1]).strip().splitlines()[0]
    return (
        f"Cannot build {where.group(1) if where else 'an object'} from the configuration: {what} "
        "(HYDRA_FULL_ERROR=1 shows the traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
