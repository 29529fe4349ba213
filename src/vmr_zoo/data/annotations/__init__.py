"""Published annotation files: download, readers, protocols."""

from vmr_zoo.data.annotations.records import PUBLISHED, Protocol, Query, Split

__all__ = ["PUBLISHED", "Protocol", "Query", "Split"]
