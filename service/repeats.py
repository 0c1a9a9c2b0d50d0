"""What is given twice, of which readers take one in silence: refused by name. It knows no form of request."""

import json

from service.errors import InvalidBody, InvalidParameter


def repeated(name: str, text: str) -> InvalidParameter:
    """Return the refusal of what is given more than once."""
    return InvalidParameter(
        f"{name} is given more than once.", field=name, value=text, remedy="Give it once, in one place."
    )


def refuse_repeated_keys(text: bytes | str) -> None:
    """Refuse JSON in which a key comes twice in one object, of which JSON's readers take the last.

    Raises:
        InvalidParameter: which key.
        InvalidBody: it is nested deeper than Python reads.
        ValueError: it is no JSON.

    >>> refuse_repeated_keys('{"alpha": 0, "images": [{"alpha": 1}]}')
    """
    try:
        json.loads(text, object_pairs_hook=_refuse_repeated, parse_int=str)  # no number need fit Python's reader
    except RecursionError as error:
        raise InvalidBody(
            "The body's JSON is nested too deep.", field="body", remedy="Send JSON as GET /openapi.json shows."
        ) from error


def _refuse_repeated(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen:
            raise repeated(name, str(value))
        seen.add(name)
