"""What every answer tells a browser not to do. A route that says something itself is not contradicted."""

from service.telemetry import Headers

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NO_REFERRER = (b"referrer-policy", b"no-referrer")
_OWN_ORIGIN = (b"cross-origin-resource-policy", b"same-origin")
_POLICY = b"content-security-policy"
_NOTHING_AT_ALL = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")
_NO_FRAMES = (_POLICY, b"frame-ancestors 'none'")

OF_DATA: Headers = [_NO_SNIFFING, _NO_REFERRER, _OWN_ORIGIN, _NOTHING_AT_ALL]
"""For whatever is no page."""


def missing(headers: Headers) -> Headers:
    """Return what an answer with these headers still lacks.

    A page may load what it needs unless it says otherwise; nothing may be shown within another site's frame.

    >>> missing([(b"content-type", b"text/html"), (b"referrer-policy", b"origin")])[-1]
    (b'content-security-policy', b"frame-ancestors 'none'")
    """
    said = dict(headers)
    is_page = said.get(b"content-type", b"").startswith(b"text/html")
    wanted = [*OF_DATA[:-1], _NO_FRAMES if is_page else _NOTHING_AT_ALL]
    return [header for header in wanted if header[0] not in said]
