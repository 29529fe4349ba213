"""vmr_zoo: nine published methods for video moment retrieval, and baselines, in one framework.

`vmr_zoo.Retriever` finds moments in a video file. It is imported on first use, so `import vmr_zoo` does not
import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmr_zoo.engine.retriever import Retriever

__version__ = "0.2.0"
__all__ = ["Retriever", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `Retriever` on first use."""
    if name == "Retriever":
        from vmr_zoo.engine.retriever import Retriever

        return Retriever
    raise AttributeError(f"module 'vmr_zoo' has no attribute '{name}'")
