"""The address of a server, apart from what must stay secret: its key, and a user name and password."""

import base64
import dataclasses
import urllib.parse
from collections.abc import Mapping

from flowley_jax.errors import FlowleyError

_HIDDEN = "***"


@dataclasses.dataclass(frozen=True)
class ServerAddress:
    """An HTTP address and the secrets that belong to it.

    Attributes:
      shown: the address for messages and files: without user name, password and query, which may hold a key.
      query: the query of the address; it is sent with every request.
      headers: headers that authorise a request.
      secrets: texts that must not be written or logged.
    """

    shown: str
    query: str = dataclasses.field(repr=False)
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    secrets: tuple[str, ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, url: str, key: str | None) -> "ServerAddress":
        """Return the parts of an address.

        Args:
          url: address that begins with http:// or https://. A user name and password in it are sent instead
            of the key.
          key: API key; None or an empty text sends none.

        Raises:
          FlowleyError: the address or the key cannot be used. The message does not hold a secret.
        """
        parts = _split(url)
        host = parts.netloc.rpartition("@")[2]
        shown = urllib.parse.urlunsplit((parts.scheme.lower(), host, parts.path.rstrip("/"), "", ""))
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise FlowleyError("the key of the server must be printable ASCII text on one line")
        secrets = {key, *(value for _, value in urllib.parse.parse_qsl(parts.query))}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if "@" in parts.netloc:
            written = (parts.username or "", parts.password or "")
            user, password = map(urllib.parse.unquote, written)
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers = {"Authorization": f"Basic {token}"}
            secrets |= {*written, user, password, token}
        return cls(shown, parts.query, headers, tuple(sorted(secrets - {""}, key=len, reverse=True)))

    def of(self, path: str) -> str:
        """Return the address of a path below this one, with the query."""
        return f"{self.shown}/{path}{'?' if self.query else ''}{self.query}"

    def without_secrets(self, text: str) -> str:
        """Return a text of the server with the secrets replaced: servers repeat a wrong key, for example."""
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def without_user(url: str) -> str:
    """Return an address from its host on, with its scheme, whatever is wrong with its user and password."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _split(url: str) -> urllib.parse.SplitResult:
    shown = without_user(url).partition("?")[0]
    if not url.lower().startswith(("http://", "https://")):
        raise FlowleyError(f"{shown}: the address of a server must begin with http:// or https://")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise FlowleyError(f"{shown!r}: the address of a server must be ASCII text without spaces")
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        parts = None
    # A password with a slash that is not percent-encoded would end up in the path.
    if parts is None or not parts.hostname or "@" in parts.path:
        raise FlowleyError(
            f"{shown}: is not the address of a server, such as http://HOST:8000/v1; "
            "marks in a password must be percent-encoded"
        )
    return parts
