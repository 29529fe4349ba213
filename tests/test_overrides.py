"""Overrides of every key of every verb: accepted, or refused with one message; text arrives as typed."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from batches import make_batch, shrink
from test_methods_contract import composed
from vmr_zoo.cli.explain import explain
from vmr_zoo.cli.main import VERBS
from vmr_zoo.config.allowed import allowed_names
from vmr_zoo.config.arguments import as_typed, overrides_of, texts_of
from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.config.files import read_yaml
from vmr_zoo.config.keys import Choice, Number, Text, kind_of
from vmr_zoo.config.values import _type_of_argument, check_type, check_values
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.trees import walk

BASES: dict[str, list[str]] = {
    **{verb: [] for verb in VERBS},
    "extract": ["encoder=motion"],
    "embed": ["data=charades_cd", "text_encoder=sentence"],
    "narrate": ["narrator=llava"],
    "train": ["data=charades_cd", "features=slowfast_clip", "features/query=clip"],
    "bench": ["data=charades_cd", "features=action_labels", "method=mesm"],
}
METHODS = ["bm_detr", "emb", "lmr", "mesm", "mmn", "moment_detr", "qd_detr", "tea", "vdi"]

TEXTS = [
    *(
        "12_05",
        "1_000",
        "null",
        "yes",
        "True",
        "1e5",
        "nan",
        ".5",
        "0x10",
        "1:30",
        "~",
        "~/a",
        "a%b",
        "-x",
        "=x",
    ),
    *(
        "==",
        " a ",
        " ",
        "a,b",
        "a, b",
        "it's",
        "'tis",
        '"he" said',
        "'a' and 'b'",
        "[a].mp4",
        "clip [x_1].mp4",
    ),
    *(
        "{a}",
        "a{b",
        "${HOME}",
        "a${seed}",
        "\\${x}",
        "a\\",
        "C:\\a\\b",
        "é ü 中 🎬",
        "a\tb",
        "a\nb",
        "#x",
        "x #y",
    ),
    *(
        "(a",
        "choice(a,b)",
        "@f",
        "!x",
        "&a",
        "*",
        "?",
        "a|b",
        "a\\,b",
        "a'",
        "a=b",
        "--help",
        "runs/2026-11-27/x",
    ),
]
JUNK = [
    *("abc", "-1", "0", "1", "1.5", "-0.1", "1e400", "nan", "inf", "true", "null", "''", "[]", "[1,a]", "{}"),
    *(
        "{a:1}",
        "x y",
        "99999999999999999999",
        "4294967296",
        "1_0",
        "banana",
        "cuda:99",
        "???",
        "[null]",
        "[[1]]",
    ),
    *("0.0", "1e-30"),
]


@functools.cache
def base(verb: str, method: str = "") -> DictConfig:
    chosen = [f"method={method}", *BASES[verb]] if method else BASES[verb]
    return compose(verb, chosen)


def keys(cfg: DictConfig) -> list[str]:
    """Lists every key; a required one has the value ???."""
    tree: Any = OmegaConf.to_container(cfg)
    return [key for key, _ in walk(tree) if not key.rpartition(".")[2].isdigit() and "_target_" not in key]


@contextlib.contextmanager
def overridden(cfg: DictConfig, verb: str, argument: str) -> Iterator[None]:
    """The configuration with an argument of the command line, read as Hydra reads it."""
    (typed,) = as_typed(verb, [argument])
    (override,) = OverridesParser.create().parse_overrides([typed])
    key = override.key_or_group
    above, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(cfg, above) if above else cfg
    before = copy.deepcopy(parent._get_node(leaf))
    try:
        OmegaConf.update(cfg, key, override.value(), merge=True)
        yield
    finally:
        before._set_parent(parent)
        parent.__dict__["_content"][leaf] = before


def outcome(verb: str, cfg: DictConfig, argument: str) -> tuple[str | None, Any]:
    """Returns the message about an argument, None if it is accepted, and the value that arrives."""
    key = argument.partition("=")[0]
    arrived = None
    try:
        with overridden(cfg, verb, argument):
            arrived = OmegaConf.select(cfg, key)
            if OmegaConf.is_config(arrived):
                arrived = OmegaConf.to_container(arrived, resolve=True)
            check_values(verb, cfg, [argument])
    except Exception as error:
        failure = error
    else:
        return None, arrived
    message = explain(failure, verb, [argument])
    assert message, f"vmr {verb} {argument} ends in {type(failure).__name__}: {failure}"
    return message, arrived


def cases(count: int, seed: int) -> Iterator[tuple[str, DictConfig, str, str]]:
    """Yields verbs, configurations, keys and values: each key of each verb at least once, then at random."""
    rng = random.Random(seed)
    places = [(verb, "") for verb in VERBS if verb != "train"] + [("train", method) for method in METHODS]
    all_keys = [(verb, method, key) for verb, method in places for key in keys(base(verb, method))]
    rng.shuffle(all_keys)
    for number in range(count):
        verb, method, key = all_keys[number % len(all_keys)]
        kind = kind_of(verb, key)
        value = rng.choice(TEXTS if isinstance(kind, Text) else JUNK)
        yield verb, base(verb, method), key, value


def check_one(verb: str, cfg: DictConfig, key: str, value: str) -> bool:
    """Checks one override; returns whether it was refused."""
    kind = kind_of(verb, key)
    message, arrived = outcome(verb, cfg, f"{key}={value}")
    if isinstance(kind, Text) and not (kind.null and value == "null"):
        assert message is None or "contains '${'" in message, (verb, key, value, message)
        assert message or arrived == value, (verb, key, value, arrived)
    elif isinstance(kind, Number | Choice) and message is None:
        assert arrived is None or isinstance(arrived, str | int | float), (verb, key, value)
        if isinstance(kind, Number) and arrived is not None:
            assert not isinstance(arrived, str | bool)
            assert arrived >= (kind.low if kind.low is not None else arrived)
        elif isinstance(kind, Choice) and arrived is not None:
            assert arrived in kind.values
    return message is not None


@pytest.mark.parametrize("count", [3100, pytest.param(20000, marks=pytest.mark.slow)])
def test_an_override_is_accepted_or_refused_with_one_message(count: int) -> None:
    refused = [check_one(*case) for case in cases(count, seed=count)]
    assert len(refused) >= 2000
    assert 0.1 < sum(refused) / len(refused) < 0.9


@pytest.mark.parametrize("per_key", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_a_size_trains_or_is_refused_with_one_message(name: str, per_key: int) -> None:
    """Every whole number in the configuration of a method: a step and a prediction, or a user's error."""
    rng, trained = random.Random(name), 0
    shrunk = copy.deepcopy(composed(name, "paper"))
    shrink(shrunk.method)
    sizes = [key for key, value in walk(OmegaConf.to_container(shrunk.method)) if type(value) is int]
    for key in sizes:
        for size in rng.sample([-1, 0, 1, 2, 3, 5, 7, 13], per_key):
            cfg = copy.deepcopy(shrunk)
            OmegaConf.update(cfg.method, key, size)
            argument = [f"method.{key}={size}"]
            failure = None
            try:
                check_values("train", OmegaConf.create({"method": cfg.method}), argument)
                method = instantiate(cfg.method).train()
                method.total_loss(method.losses(make_batch(method.needs))).backward()
                method.eval().predict(make_batch(method.needs))
                trained += 1
            except Exception as error:
                failure = error
            assert failure is None or explain(failure, "train", argument), f"{argument}: {failure!r}"
    assert trained or per_key == 1


def test_the_table_names_every_key_of_every_verb() -> None:
    missing = [
        f"{verb} {key}"
        for verb in VERBS
        for key, value in read_yaml(config_dir() / f"{verb}.yaml").items()
        if key not in ("defaults", "hydra") and not isinstance(value, dict) and kind_of(verb, key) is None
    ]
    assert not missing


def test_every_key_that_holds_a_path_takes_text() -> None:
    others = {
        f"{verb} {key}={value}"
        for verb, method in [*((verb, "") for verb in VERBS), *(("train", method) for method in METHODS)]
        for key, value in walk(OmegaConf.to_container(base(verb, method)))
        if isinstance(value, str) and ("${paths." in value or value.startswith(("${run}", "/")))
        if not isinstance(kind_of(verb, key), Text) and not key.rpartition(".")[2].isdigit()
    }
    assert not others


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("run=a,1_0", "run=a,'1_0'"),
        ("run=runs/${seed}", "run=runs/${seed}"),
        ("paths.runs='a,b',c", "paths.runs='a,b',c"),
        ("seed=0,1", "seed=0,1"),
        ("run=choice(a,b)", "run=choice(a,b)"),
    ],
)
def test_commas_separate_values_in_a_sweep_alone(typed: str, expected: str) -> None:
    assert as_typed("train", ["-m", typed]) == ["-m", expected]
    assert dict(overrides_of_one(typed)) == {typed.partition("=")[0]: typed.partition("=")[2]}


def overrides_of_one(argument: str) -> Iterator[tuple[str, str]]:
    yield from ((key, value) for _, key, value in overrides_of([argument]))


def test_a_list_of_sentences_keeps_each_as_typed() -> None:
    cfg = base("predict")
    message, arrived = outcome("predict", cfg, "query=[it's a dog, null,1_0,'x, y',${HOME}]")
    assert message is None
    assert arrived == ["it's a dog", "null", "1_0", "x, y", "${HOME}"]
    assert [text for _, _, text in texts_of("predict", ["video='a b'", "run=x"])] == ["a b", "x"]


def test_a_range_of_a_search_has_a_key_with_dots() -> None:
    typed = 'hydra.sweeper.params.method.network.dim="choice(128,256)"'
    (argument,) = as_typed("train", [typed])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == {"method.network.dim": "choice(128,256)"}


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [(str, 12, "'…'"), (str | None, True, "'…'"), (Sequence[str], [12, "a"], "['…']")],
)
def test_a_number_that_must_be_text_is_refused_with_what_to_type(hint: Any, value: Any, text: str) -> None:
    with pytest.raises(VmrError) as caught:
        check_type("ids", value, hint)
    assert str(caught.value).endswith(f'only in quotes: "ids={text}".')
    (typed,) = OverridesParser.create().parse_overrides([f"ids={text.replace('…', '12')}"])
    check_type("ids", typed.value(), hint)


def partly_hinted(number: int, path: ForTypeCheckersOnly) -> None:  # noqa: F821
    """Like a constructor that imports a type for type checkers only."""


def test_a_hint_that_cannot_be_evaluated_turns_off_no_other_check() -> None:
    cfg = OmegaConf.create({"node": {"_target_": f"{__name__}.partly_hinted", "number": "ten", "path": 1}})
    check_values("train", cfg, ["node.path=1"])
    with pytest.raises(VmrError, match=r"Expected node\.number to be a whole number"):
        check_values("train", cfg, ["node.number=ten"])


@pytest.mark.parametrize("target", sorted(allowed_names()))
def test_every_hint_of_a_constructor_of_conf_that_can_be_evaluated_is(target: str) -> None:
    made = get_object(target)
    function = made.__init__ if inspect.isclass(made) else made
    if not inspect.isfunction(function):
        return
    names = vars(sys.modules[function.__module__])
    for name, hint in inspect.get_annotations(function).items():
        if name == "return":
            continue
        with contextlib.suppress(NameError):
            found = eval(hint, names) if isinstance(hint, str) else hint
            if "ForwardRef" not in repr(found):
                assert _type_of_argument(target, name) is not None, name
