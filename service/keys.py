"""API keys: made at random, shown once, kept as a hash. It knows neither clients nor HTTP.

A key holds 256 random bits, so one round of SHA-256 is enough: there is nothing to guess, and a lookup costs a
microsecond on the way of each request. The key's id, by which it is listed and revoked, is the hash's beginning.
"""

import re
import secrets
from hashlib import sha256
from hmac import compare_digest

PREFIX = "ek_"
_HASH_MARK = "sha256:"


def new_key() -> str:
    """Return a new key.

    >>> new_key().startswith("ek_") and new_key() != new_key()
    True
    """
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return what is kept of a key: 64 hex digits."""
    return sha256(key.encode()).hexdigest()


def key_id(digest: str) -> str:
    """Return the short name of a key, from its hash."""
    return digest[:12]


def can_be_id(text: str) -> bool:
    """Return whether a key may have this id.

    >>> can_be_id(key_id(hash_key("secret"))), can_be_id("")
    (True, False)
    """
    return bool(re.fullmatch("[0-9a-f]{12}", text))


def without_keys(text: str) -> str:
    """Return the text with what looks like a key left out.

    >>> without_keys("/clients/shop/keys/" + new_key())
    '/clients/shop/keys/ek_...'
    """
    return re.sub(rf"(?<![A-Za-z0-9_-]){PREFIX}[A-Za-z0-9_-]{{30,}}", f"{PREFIX}...", text)


def can_match(expected: str) -> bool:
    """Return whether there may be a key that `matches` what is expected.

    >>> can_match("secret"), can_match("sha256:" + hash_key("secret")), can_match("sha256:secret")
    (True, True, False)
    """
    return not expected.startswith(_HASH_MARK) or bool(re.fullmatch("[0-9a-fA-F]{64}", expected[len(_HASH_MARK) :]))


def matches(key: str, expected: str) -> bool:
    """Return whether a key is the expected one, which is written as itself or as 'sha256:' and its hash.

    The comparison takes the same time wherever the two differ.

    >>> matches("secret", "secret"), matches("secret", "sha256:" + hash_key("secret")), matches("other", "secret")
    (True, True, False)
    """
    digest = expected.removeprefix(_HASH_MARK).lower() if expected.startswith(_HASH_MARK) else hash_key(expected)
    return compare_digest(hash_key(key), digest)
