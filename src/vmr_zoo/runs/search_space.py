"""The space of a search, in Hydra's syntax of extended overrides, as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.errors import VmrError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass
class Space:
    """What a search varies, and what stays.

    Attributes:
        distributions: by key.
        fixed: overrides that all trials share, by key.
        texts: what to type for each choice, by key and choice.
    """

    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    texts: dict[str, dict[Any, str]] = field(default_factory=dict)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Returns the overrides of the trial with these values."""
        typed = {key: self.texts.get(key, {}).get(value, str(value)) for key, value in values.items()}
        return [*self.fixed.values(), *(f"{key}={text}" for key, text in typed.items())]

    def lowest(self) -> dict[str, Any]:
        """Returns the low end of each range, or the first choice."""
        ranges: dict[str, Any] = self.distributions
        return {key: one.choices[0] if hasattr(one, "choices") else one.low for key, one in ranges.items()}


def read_space(ranges: Mapping[str, Any], arguments: Sequence[str]) -> Space:
    """Reads the space of a search.

    Args:
        ranges: by key, such as `{"method.network.dim": "choice(64, 128)"}`.
        arguments: overrides of the command line; a value for a key replaces its range.

    Raises:
        VmrError: for a range that Optuna does not know, or among the arguments.
    """
    parser, space = OverridesParser.create(), Space()
    for override in parser.parse_overrides(list(arguments)):
        if override.is_sweep_override():
            raise VmrError(
                f"A search takes one value for each key of the command line; found {override.input_line}. "
                "Ranges belong in hydra.sweeper.params, as in "
                "'hydra.sweeper.params.method.network.dim=\"choice(64,128)\"'. "
                "Several seeds or data sets are searches of their own."
            )
        space.fixed[override.get_key_element()] = str(override.input_line)
    left = [f"{key}={value}" for key, value in ranges.items() if key not in space.fixed]
    for override in parser.parse_overrides(left):
        key = override.get_key_element()
        if override.is_sweep_override():
            space.distributions[key], space.texts[key] = _distribution(override)
        else:
            space.fixed[key] = str(override.input_line)
    if not space.distributions:
        raise VmrError(
            "The search varies nothing: expected 'hydra.sweeper.params.KEY=\"interval(low, high)\"'."
        )
    return space


def configured(space: Space, config: DictConfig) -> dict[str, Any] | None:
    """Returns the values that a configuration has where a search varies it.

    Args:
        space: of the search.
        config: of the command.

    Returns:
        Values by key; None unless the space holds all of them.
    """
    from optuna.trial import create_trial

    values = {
        key: OmegaConf.select(config, key.lstrip("+"), throw_on_missing=False) for key in space.distributions
    }
    try:
        create_trial(value=0.0, params=values, distributions=space.distributions)
    except ValueError:  # one is outside of its distribution
        return None
    return values


def _distribution(override: Override) -> tuple[BaseDistribution, dict[Any, str]]:
    """Returns the distribution of a range, and what to type for each choice."""
    from optuna.distributions import CategoricalDistribution

    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, ChoiceSweep):
            typed = list(override.sweep_string_iterator())
            texts = dict(zip(map(_plain, value.list, typed), typed, strict=True))
            return CategoricalDistribution(list(texts)), texts
        if isinstance(value, RangeSweep):
            numbers, step = list(value.range()), value.step
            if not numbers:
                raise ValueError("the range is empty")
            return _number(min(numbers), max(numbers), log, abs(step)), {}
        if isinstance(value, IntervalSweep):
            return _number(value.start, value.end, log), {}
    except (TypeError, ValueError) as error:
        raise VmrError(f"Cannot search over {override.input_line}: {error}") from error
    raise VmrError(
        f"Cannot search over {override.input_line}. Expected interval(low, high), int(interval(low, high)), "
        "choice(a, b), range(low, end, step), or tag(log, interval(low, high))."
    )


def _number(low: Any, high: Any, log: bool, step: Any = None) -> BaseDistribution:
    """Returns the distribution of whole numbers if all that is given are whole, else of real ones."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if all(isinstance(one, int) for one in (low, high, step) if one is not None):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _plain(choice: Any, typed: str) -> Any:
    """Returns a choice as a value that Optuna stores: a list or a mapping as it is typed."""
    if isinstance(choice, QuotedString):
        return choice.text
    return choice if choice is None or isinstance(choice, bool | int | float | str) else typed
