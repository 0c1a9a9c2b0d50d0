"""What a class may be called: what the manifest of a bundle can hold. Knows no data set."""

from pydantic import ValidationError

from service.bundle import ClassInfo


def fault_of_class_name(name: str) -> str | None:
    """Say why no bundle can hold a class of this name; None where one can.

    Example:
        >>> fault_of_class_name("x" * 201)
        'String should have at most 200 characters'
        >>> fault_of_class_name("cat")
    """
    try:
        ClassInfo.of(name, train_count=1)
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return None
