"""What every answer tells a browser not to do. A route that says something itself is not contradicted."""

from service.telemetry import Headers

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NO_REFERRER = (b"referrer-policy", b"no-referrer")
_OWN_ORIGIN = (b"cross-origin-resource-policy", b"same-origin")
_NOTHING_AT_ALL = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

OF_DATA: Headers = [_NO_SNIFFING, _NO_REFERRER, _OWN_ORIGIN, _NOTHING_AT_ALL]
"""For whatever is no page: a page says itself what it may load."""


LINES_OF_DATA = b"".join(b"%b: %b\r\n" % header for header in OF_DATA)
"""The same as lines of a head."""


def missing(headers: Headers) -> Headers:
    """Return what an answer with these headers still lacks.

    >>> [name for name, _ in missing([(b"content-security-policy", b"x"), (b"referrer-policy", b"origin")])]
    [b'x-content-type-options', b'cross-origin-resource-policy']
    """
    said = dict(headers)
    return [header for header in OF_DATA if header[0] not in said]
