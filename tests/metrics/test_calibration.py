"""Calibration against a naive implementation, and isotonic regression against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_zoo.metrics.calibration import BINS, IsotonicMap, calibration_error, reliability

queries = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.integers(0, BINS).map(lambda n: n / BINS)), st.booleans()),
    min_size=1,
    max_size=30,
)


def split(pairs):
    return np.array([score for score, _ in pairs]), np.array([right for _, right in pairs])


@settings(max_examples=40, deadline=None)
@given(queries)
def test_the_error_is_that_of_the_definition(pairs):
    scores, right = split(pairs)
    edges = np.linspace(0, 1, BINS + 1)
    expected = 0.0
    for number in range(BINS):
        inside = (scores > edges[number]) & (scores <= edges[number + 1])
        if number == 0:
            inside |= scores == 0
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - scores[inside].mean())
    assert calibration_error(scores, right) == pytest.approx(expected)
    bins = reliability(scores, right)
    assert sum(one.queries for one in bins) == len(scores)
    assert all(one.low - 1e-9 <= one.score <= one.high + 1e-9 for one in bins)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=25))
def test_an_isotonic_map_rises_and_is_calibrated_where_it_was_fitted(pairs):
    scores, right = split(pairs)
    mapped = IsotonicMap(scores.astype(float), right)
    values = mapped(np.arange(-12.0, 12.0, 0.5))
    assert (np.diff(values) >= -1e-12).all()
    assert 0 <= values.min() <= values.max() <= 1
    fitted = mapped(scores.astype(float))
    for value in np.unique(fitted):  # pools of equal value hold their share of right windows
        assert right[fitted == value].mean() == pytest.approx(value)
    assert fitted.mean() == pytest.approx(right.mean())
