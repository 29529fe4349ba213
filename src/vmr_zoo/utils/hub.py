"""The Hugging Face hub, as all our requests to it use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi


LOG_IN = "`hf auth login`, or the environment variable HF_TOKEN"
"""The ways to log in, for messages."""


def hub_endpoint() -> str | None:
    """Returns the server that HF_ENDPOINT names now; `huggingface_hub` reads it when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def hub_api() -> HfApi:
    """Returns the client."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint())


def is_unreachable(error: Exception) -> bool:
    """Returns whether the server could not be reached; the transport's errors change with its version."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0].startswith("httpx")
