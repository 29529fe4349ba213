"""A wrapped source serves everything that its source serves."""

import inspect
from types import NoneType
from typing import get_type_hints
from unittest.mock import create_autospec

import pytest

from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.data.features.wrapped import WrappedNarrations, WrappedQueries, WrappedVideos


@pytest.mark.parametrize(
    ("base", "wrapper"),
    [(VideoSource, WrappedVideos), (QuerySource, WrappedQueries), (NarrationSource, WrappedNarrations)],
)
def test_every_public_member_is_that_of_the_source(base, wrapper):
    members = {"dim": None} | {name: getattr(base, name) for name in dir(base) if not name.startswith("_")}
    source = create_autospec(base, instance=True)
    for name, member in members.items():
        if not callable(member):
            setattr(source, name, object())
    wrapped = wrapper(source)
    for name, member in members.items():
        if not callable(member):
            assert getattr(wrapped, name) is getattr(source, name), name
            continue
        given = [[]] * (len(inspect.signature(member).parameters) - 1)
        returned = getattr(wrapped, name)(*given)
        getattr(source, name).assert_called_once_with(*given)
        if get_type_hints(member)["return"] is NoneType:
            assert returned is None, name
        else:
            assert returned is getattr(source, name).return_value, name
