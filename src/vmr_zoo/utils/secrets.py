"""Keys and tokens in texts: recognised by their form, or because an environment variable holds them."""

from __future__ import annotations

import os
import re

SECRET_FORMS = re.compile(
    r"\b(?:hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16}|"
    r"AIza[\w-]{35})|://[^/\s:@\"']+:[^/\s@\"']+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8


def secret_variables(**further: str) -> dict[str, str]:
    """Returns the environment variables that hold a key, a token or a password, by name.

    Args:
        **further: other secrets by name.
    """
    found = {name: value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return {name: value for name, value in {**found, **further}.items() if len(value) >= _SHORTEST_SECRET}


def redacted(text: str) -> str:
    """Replaces every secret in a text by the name of its variable, or by "secret".

    >>> redacted("hf_abcdefghijklmnopqrstuvwxyz is refused")
    '[secret] is refused'
    """
    for name, value in secret_variables().items():
        text = text.replace(value, f"[{name}]")
    return SECRET_FORMS.sub("[secret]", text)
