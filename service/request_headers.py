"""The headers of a request that several parts of the way through the service ask for, one after the other.

The framework's own search all headers for each question, and raise an error inside where there is none: 3 us a
question, five questions a request. Here they are sorted once. It knows no header by name.
"""

from functools import lru_cache
from typing import TypeVar, overload

from starlette.datastructures import Headers
from starlette.types import Scope

Default = TypeVar("Default")


@lru_cache(maxsize=256)
def _name(key: str) -> bytes:
    return key.lower().encode("latin-1")


class SortedHeaders(Headers):
    """Headers that answer `get` by one lookup; of a header that came several times the first, as ever.

    >>> headers = SortedHeaders({"headers": [(b"host", b"a"), (b"host", b"b")]})
    >>> headers.get("Host"), headers.get("accept"), headers.getlist("host")
    ('a', None, ['a', 'b'])
    """

    def __init__(self, scope: Scope) -> None:
        self._list = scope["headers"] = list(scope["headers"])
        self._first = dict(reversed(self._list))

    @overload
    def get(self, key: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str | Default, /) -> str | Default: ...
    def get(self, key: str, default: str | Default | None = None, /) -> str | Default | None:
        """Return the value of a header, or the default."""
        value = self._first.get(_name(key))
        return default if value is None else value.decode("latin-1")
