"""What a reader of one's own data set needs (docs/add_a_data_set.md); these names stay when files move."""

from __future__ import annotations

from vmr_zoo.data.annotations.building import SplitRows, build_protocol
from vmr_zoo.data.annotations.readers import read_by_video as by_video
from vmr_zoo.data.annotations.readers import read_qvhighlights as qvhighlights
from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.annotations.rows import RowCollector, numbered, split_of

__all__ = [
    "Protocol",
    "RowCollector",
    "SplitRows",
    "build_protocol",
    "by_video",
    "numbered",
    "qvhighlights",
    "split_of",
]
