"""Requests to a server that speaks OpenAI's chat API.

What the server sends is data: its size is bounded, and its text is shown on one line. The key comes from an
environment variable and appears nowhere: not in the configuration, the manifest or a message.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import requests

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.retries import LATER, retries, wait
from vmr_zoo.utils.text import one_line

_BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
_MOST_BYTES = 1_000_000
"""Size of a reply; of longer ones, the rest is not read."""


class ServerError(VmrError):
    """One request failed; others may succeed."""


@dataclass(eq=False)
class ChatServer:
    """A server and how it is reached.

    Attributes:
        base_url: address of the API, such as `http://localhost:8000/v1`.
        key_variable: name of the environment variable that holds the key; None: the server needs none.
        timeout: seconds to wait for an answer.
        retries: how often a request is repeated.
        connections: number of connections that are kept open.

    Raises:
        VmrError: if the address or the name of the variable is none, or holds a secret.
    """

    base_url: str
    key_variable: str | None
    timeout: float
    retries: int
    connections: int

    def __post_init__(self) -> None:
        self.base_url = _check_address(self.base_url)
        # A key that was entered here by mistake must not be shown.
        if self.key_variable is not None and not re.fullmatch("[A-Z][A-Z0-9_]{0,63}", self.key_variable):
            raise VmrError(
                "Expected the name of an environment variable in narrator.key_variable, in capitals, such as "
                "OPENAI_API_KEY. What was found there is not shown, since it may be a key."
            )

    def get(self, path: str) -> Any:
        """Returns the JSON value at a path; gives up soon, since a wrong address is more likely than a pause.

        Raises:
            VmrError: as `post`.
        """
        return self._request("GET", path, None, min(2, self.retries))

    def post(self, path: str, fields: dict[str, Any]) -> Any:
        """Sends JSON to a path and returns the JSON value of the reply.

        A request is repeated after a time-out, a broken connection and the statuses 408, 425, 429, 500, 502,
        503, 504 and 529: after the time that the server states, else at once, then after about 2, 4, … s.

        Raises:
            ServerError: if the server refuses this request, fails every time, or sends no JSON.
            VmrError: if it would refuse every request.
        """
        return self._request("POST", path, fields, self.retries)

    def public(self, text: str, longest: int = 500) -> str:
        """Returns text of the server for a message: one line, short, without the key."""
        return one_line(self.without_key(text))[:longest]

    def without_key(self, text: str) -> str:
        """Returns text of the server without the key."""
        return text if self._key is None else text.replace(self._key, "***")

    @cached_property
    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch("[!-~]{1,4096}", key):
            raise VmrError(
                f"Expected a key of printable characters in the environment variable {self.key_variable} "
                "(narrator.key_variable); found none. Set it, or narrator.key_variable=null for a server "
                "without keys."
            )
        return key

    @cached_property
    def _session(self) -> requests.Session:
        session = requests.Session()
        session.auth = _Bearer(self._key)
        adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=self.connections)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session

    def _request(self, method: str, path: str, fields: dict[str, Any] | None, tries: int) -> Any:
        """Sends a request until it succeeds, `tries` times after the first."""
        url, state = f"{self.base_url}/{path}", retries(tries)
        while True:
            response: Any = None
            try:
                status, response, body = self._send(method, url, fields)
            except _BROKEN as error:  # its text has the address, not the headers
                failure = f"{error}. Is the server running?"
            except requests.RequestException as error:
                raise VmrError(self.public(f"{url} cannot be reached: {error}")) from None
            else:
                if status == 200:
                    return self._decode(body, url)
                failure = f"status {status}, {body[:1000].decode(errors='replace')}"
                if status not in LATER:
                    raise self._refusal(status, self.public(f"{url}: {failure}"))
            following = wait(state, response)
            if following is None:
                raise ServerError(self.public(f"{url} failed {tries + 1} times: {failure}"))
            state = following

    def _send(self, method: str, url: str, fields: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        """Sends a request once; returns status, urllib3's response and the body."""
        with self._session.request(
            method,
            url,
            json=fields,
            timeout=(min(30, self.timeout), self.timeout),
            allow_redirects=False,  # the key and the frames go to the named server only
            stream=True,
        ) as response:
            body = b""
            for piece in response.iter_content(65536):
                body += piece
                if len(body) > _MOST_BYTES:
                    raise ServerError(f"{url} sent more than {_MOST_BYTES} bytes.")
            return response.status_code, response.raw, body

    def _decode(self, body: bytes, url: str) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            found = body[:200].decode(errors="replace")
            raise ServerError(self.public(f"Expected JSON from {url}, found {found!r}.")) from None

    def _refusal(self, status: int, text: str) -> VmrError:
        """Returns the error for a status after which repeating the request is no use."""
        if status in (401, 403):
            if self.key_variable is None:
                return VmrError(f"The server expects a key: set narrator.key_variable. {text}")
            return VmrError(f"The server does not accept the key in {self.key_variable}. {text}")
        if status == 404 or 300 <= status < 400:
            return VmrError(f"Check narrator.base_url, which usually ends in /v1. {text}")
        return ServerError(f"The server refused the request. {text}")


class _Bearer(requests.auth.AuthBase):
    """Adds the key to a request; without a key nothing, also not what ~/.netrc has for the host."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _check_address(address: str) -> str:
    """Returns an address without a slash at its end."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise VmrError("narrator.base_url is no address. Expected http://HOST:PORT/v1.") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise VmrError(
            "Expected narrator.base_url=http://HOST:PORT/v1 without a user name, a password or a query: it "
            "would be stored. A key is named by narrator.key_variable."
        )
    if not valid:
        raise VmrError(f"Expected narrator.base_url=http://HOST:PORT/v1, found {address!r}.")
    return address.rstrip("/")
