"""Opens pages in the browser of a desktop."""

from __future__ import annotations

import os
import sys
import webbrowser


def open_page(address: str) -> bool:
    """Opens an address if this terminal belongs to a desktop; a browser in text mode would take the terminal.

    Returns:
        Whether a browser was asked to.
    """
    desktop = (
        sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    )
    local = desktop and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ
    return local and webbrowser.open(address)
