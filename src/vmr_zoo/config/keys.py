"""What a configuration key takes: text that arrives as typed, a whole number, one of a few names.

One table for two uses: the command line quotes text by it before Hydra parses, and `check_kind` refuses other
values. A key of a `_target_` node that is not in the table has the type of the constructor's argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vmr_zoo.errors import VmrError, unknown


@dataclass(frozen=True)
class Text:
    """A path, a sentence or a name.

    Attributes:
        several: whether [one,two] is a list of texts.
        null: whether `null` is no text, as the configuration files use it; otherwise it is the word.
        sentence: whether "${" is text in a sweep, too. In a sweep, a path may contain ${seed}.
        exists: what must exist before the verb starts: a "file", a "folder", a "run" directory, or "videos"
            (a folder, a glob or a file); None: nothing.
    """

    several: bool = False
    null: bool = False
    sentence: bool = False
    exists: str | None = None


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; `above`: greater than `low`; `null`: or null."""

    whole: bool = True
    low: float | None = None
    high: float | None = None
    above: bool = False
    null: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]
    null: bool = False


@dataclass(frozen=True)
class Container:
    """A list or a mapping."""

    type: type[list] | type[dict]
    null: bool = False


FLAG = Choice((True, False))
COUNT = Number(low=1)
COUNT_OR_NULL = Number(low=1, null=True)
SHARE = Number(whole=False, low=0, high=1)
SECONDS_OR_NULL = Number(whole=False, low=0, above=True, null=True)
NAMES = Text(several=True)
DTYPE = Choice(("float32", "bfloat16", "float16"))
LIST = Container(list)
PRECISION = Choice(
    ("32-true", "64-true", "bf16-mixed", "16-mixed", "32", "64", "bf16", "16", 32, 64, 16)
)  # not bf16-true and 16-true: methods keep masks, positions and losses in float32


@dataclass(frozen=True)
class Device:
    """A name of torch.device, or null."""


Kind = Text | Number | Choice | Container | Device

VERB_KINDS: dict[str, dict[str, Kind]] = {
    "demo": {
        "run": Text(several=True, null=True, exists="run"),
        "videos": Text(several=True, null=True, exists="videos"),
        "narrations": Text(exists="file"),
        "top_k": COUNT,
        "window": SECONDS_OR_NULL,
        "host": Text(),
        "port": Number(low=0, high=65535),
        "upload_mb": Number(low=0),
        "open": FLAG,
        "dtype": DTYPE,
    },
    "draw": {
        "run": Text(exists="run"),
        "query": Text(sentence=True),
        "sentence": Text(sentence=True),
        "videos": Text(exists="folder"),
    },
    "embed": {"queries": Text(exists="file"), "narrations": Text(exists="file")},
    "eval": {
        "run": Text(exists="run"),
        "split": NAMES,
        "details": FLAG,
        "frame_probability": FLAG,
        "other_annotations": FLAG,
        "change": Container(dict, null=True),
    },
    "extract": {
        "videos": Text(several=True, exists="videos"),
        "batch_size": COUNT,
        "processes": COUNT_OR_NULL,
        "dtype": DTYPE,
        "storage": Choice(("float32", "float16")),
    },
    "fetch": {"source": Text(null=True), "catalogue": Text(null=True, exists="file")},
    "gpu": {
        "stages": LIST,
        "size": Choice(("full", "tiny")),
        "device": Choice(("cuda", "cpu")),
        "minutes": SECONDS_OR_NULL,
        "list": FLAG,
        "retry": FLAG,
        "videos": COUNT,
        "clips": COUNT,
        "frame_rate": COUNT,
        "frame_height": COUNT,
        "narrated_batches": COUNT,
        "charades_epochs": COUNT,
        **dict.fromkeys(("methods", "residency_methods", "encoders", "dtypes", "language_models"), LIST),
        **dict.fromkeys(("worlds", "encoder_overrides", "train_overrides", "bench_overrides"), LIST),
    },
    "import": {"checkpoint": Text(exists="file")},
    "narrate": {"videos": Text(several=True, exists="videos")},
    "pack": {"dtype": Choice(("float32", "float16"))},
    "parity": {"case": Text(exists="file")},
    "predict": {
        "run": Text(exists="run"),
        "video": Text(several=True, exists="videos"),
        "cut": Text(),
        "dtype": DTYPE,
        "query": Text(several=True, sentence=True),
        "csv": Text(exists="file"),
        "narrations": Text(exists="file"),
        "top_k": COUNT,
        "window": SECONDS_OR_NULL,
        "json": FLAG,
    },
    "bench": {"settings": LIST, "reference": Container(dict, null=True)},
    "push": {
        "run": Text(exists="run"),
        "repo": Text(),
        "branch": Text(),
        "licence": Text(null=True),
        "out": Text(null=True),
        "private": FLAG,
    },
    "report": {
        "costs": FLAG,
        "trials": FLAG,
        "claims": Text(exists="folder"),
        "format": Choice(("table", "markdown", "csv", "long", "latex", "json")),
        "runs": Text(several=True, exists="folder"),
        "source": Choice(("runs", "wandb")),
        "log": Choice(("wandb",), null=True),
        "columns": NAMES,
        "where": Container(dict, null=True),
        "printed": NAMES,
        "evals": FLAG,
        "significance": FLAG,
        "by": NAMES,
        "reliability": Text(),
        "html": FLAG,
        "videos": Text(exists="folder"),
        "narrations": Text(exists="file"),
        "study": Text(exists="file"),
        "open": FLAG,
        "browse": Number(low=0),
    },
    "score": {
        "predictions": Text(several=True, exists="file"),
        "split": NAMES,
        "unit": Choice(("seconds", "fractions", "percent"), null=True),
        "missing": Choice(("refuse", "misses")),
        "extra": Choice(("refuse", "skip")),
        "run": Text(null=True),
        "model.name": Text(null=True, sentence=True),
        "model.revision": Text(null=True, sentence=True),
        "model.prompt": Text(null=True, sentence=True),
        "model.fps": Number(whole=False, low=0, above=True, null=True),
        "model.pixels": Text(null=True, sentence=True),
        "model.parameters": Number(low=0, null=True),
    },
    "train": {"run": Text()},
}
"""Keys of single verbs."""

VARIANTS = ("paper", "released")

KINDS: dict[str, Kind] = {
    # keys of several verbs
    "variant": Choice(VARIANTS),
    "seed": Number(low=0, high=2**32 - 1),
    "threads": COUNT_OR_NULL,
    "compile": FLAG,
    "resume": FLAG,
    "normalise_features": FLAG,
    "max_query_tokens": COUNT_OR_NULL,
    "tf32": Choice((True, False), null=True),
    "warmup": Number(low=0),
    "steps": COUNT,
    "rounds": COUNT,
    "download": FLAG,
    "accept_licence": FLAG,
    "device": Device(),
    "encoder.device": Device(),
    "narrator.device": Device(),
    "text_encoder.device": Device(),
    "out": Text(),
    "name": Text(),
    "picture": Text(),
    "shard": Text(),
    "revision": Text(),
    "only": Text(),
    "entity": Text(),
    "project": Text(),
    "log": Text(),
    "sort": Text(),
    # folders, files and names below groups
    "paths.*": Text(),
    "choices.*": Text(),
    "logger.*.name": Text(),
    "logger.*.project": Text(),
    "logger.*.entity": Text(),
    "logger.*.group": Text(),
    "logger.*.save_dir": Text(),
    "logger.wandb.tags": NAMES,
    "logger.tensorboard.tags": NAMES,
    "logger.*.tags.*": Text(),
    "logger.*.id": Text(null=True),
    "logger.*.run_id": Text(null=True),
    "logger.*.notes": Text(null=True, sentence=True),
    "logger.*.job_type": Text(),
    "logger.*.experiment_name": Text(),
    "logger.*.run_name": Text(),
    "logger.*.tracking_uri": Text(null=True),
    "data.name": Text(),
    "data.selection": Text(),
    "features.name": Text(),
    "features.origin": Text(),
    "*.packed": Text(null=True),
    "*.folder": Text(),
    "*.folders": NAMES,
    "*.file": Text(),
    "*.cache": Text(),
    "*.root": Text(),
    "*.annotations": Text(),
    "*.dirpath": Text(),
    "*.last.path": Text(),
    "*.filename": Text(),
    "*.key": Text(),
    "*.suffix": Text(),
    "*.query.name": Text(),
    "text_encoder.name": Text(),
    "text_encoder.model": Text(),
    "text_encoder.pretrained": Text(null=True),
    "encoder.model": Text(),
    "encoder.weights": Text(null=True),
    "encoder.pretrained": Text(null=True),
    "encoders.*.model": Text(),
    "encoders.*.weights": Text(null=True),
    "encoders.*.pretrained": Text(null=True),
    "encoder.preprocess": Text(null=True),
    "narrator.model": Text(),
    "narrator.revision": Text(null=True),
    "narrator.prompt": Text(several=True, null=True, sentence=True),
    "narrator.template": Text(null=True, sentence=True),
    # numbers that no constructor checks before training
    "trainer.precision": PRECISION,
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.num_workers": Number(low=0),
    "data.repeat_batch": COUNT_OR_NULL,
    "trainer.max_epochs": Number(low=0),
    "callbacks.plateau.stops": FLAG,
    "callbacks.plateau.patience": COUNT,
    "callbacks.model_summary.show": Choice((True, False), null=True),
    "callbacks.model_summary.max_depth": Number(low=-1),
    "method.*heads": COUNT,
    "method.*queries": COUNT,
    "method.*answers": COUNT,
    "method.*segments": COUNT,
    "method.*positives": COUNT,
    "method.*block": COUNT_OR_NULL,
    "method.*dim": COUNT_OR_NULL,
    "method.*max_snippets": COUNT_OR_NULL,
    "method.*vocabulary": COUNT,
    "method.*.frames": COUNT_OR_NULL,
    "method.*.decoder_layers": COUNT,
    "method.*.projection_layers": COUNT,
    "method.*layers": Number(low=0, null=True),
    "*.optimizer.lr": Number(whole=False, low=0, above=True),
    "*.optimizer.weight_decay": Number(whole=False, low=0),
    "*dropout": SHARE,
    "*.clip_seconds": SECONDS_OR_NULL,
}
"""Keys of all verbs: patterns of `fnmatch`, the first that matches counts."""


def kind_of(verb: str, key: str) -> Kind | None:
    """Returns what a key of a verb takes; None: the table does not say."""
    own = VERB_KINDS.get(verb, {})
    if key in own:
        return own[key]
    return next((kind for pattern, kind in KINDS.items() if fnmatchcase(key, pattern)), None)


def check_kind(key: str, value: Any, kind: Kind) -> None:
    """Refuses a value that a key does not take.

    Args:
        key: named in the message.
        value: plain, without interpolations.
        kind: from the table.

    Raises:
        VmrError: says what the key takes.
    """
    if value is None and (isinstance(kind, Text | Device) or kind.null):
        return
    match kind:
        case Choice():
            if not any(type(value) is type(valid) and value == valid for valid in kind.values):
                raise unknown(key, _shown(value), _names([*kind.values, *([None] if kind.null else [])]))
        case Number():
            _check_number(key, value, kind)
        case Container():
            if not isinstance(value, kind.type):
                form = "a list, [a,b]" if kind.type is list else "a mapping, {key:value}"
                raise VmrError(f"Expected {key} to be {form}; found {_shown(value)}.")
        case Device():
            _check_device(key, value)
        case Text():
            if not isinstance(value, str) and not (kind.several and _all_text(value)):
                raise VmrError(
                    f"Expected {key} to be text; found {_shown(value)}. {how_to_quote(key, value)}"
                )
            if "\0" in str(value):
                raise VmrError(f"{key} contains a null character, which no path, name or sentence can.")


def how_to_quote(key: str, value: Any) -> str:
    """Says how to type a value that must be text but was read as something else, such as a number."""
    text = "['…']" if isinstance(value, list) else "'…'"
    return f'Digits, true, false and null are text only in quotes: "{key}={text}".'


def _check_number(key: str, value: Any, kind: Number) -> None:
    number = isinstance(value, int if kind.whole else int | float) and not isinstance(value, bool)
    low, high = kind.low, kind.high
    fits = number and (low is None or (value > low if kind.above else value >= low))
    if fits and (high is None or value <= high) and abs(value) != float("inf"):
        return
    limits = [f"{'more than' if kind.above else 'at least'} {low:g}"] if low is not None else []
    limits += [f"at most {high:.0f}" if kind.whole else f"at most {high:g}"] if high is not None else []
    expected = ", ".join(["a whole number" if kind.whole else "a number", *limits])
    raise VmrError(
        f"Expected {key} to be {expected}{' (or null)' if kind.null else ''}; found {_shown(value)}."
    )


def _check_device(key: str, value: Any) -> None:
    """Refuses a name that torch does not know, and a GPU that this machine lacks."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(value)):
        raise unknown(key, _shown(value), ("cpu", "cuda", "cuda:0", "mps"))
    if value == "cpu":
        return
    import torch

    if value == "mps":
        available = torch.backends.mps.is_available()
    else:
        available = int(str(value).partition(":")[2] or 0) < torch.cuda.device_count()
    if not available:
        raise VmrError(
            f"{key}={value}: torch {torch.__version__} finds no such device on this machine. Use {key}=cpu."
        )


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: Any) -> str:
    """Formats a value as it is typed."""
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else f"{value}" or "''"


def _names(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(map(_shown, values)))
