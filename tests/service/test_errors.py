from service import errors
from service.errors import STATUS, ServiceError


def kinds() -> set[type[ServiceError]]:
    return {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)}


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    concrete = kinds() - {ServiceError}
    assert set(STATUS) == concrete
    assert len({kind.code for kind in concrete}) == len(concrete)


def test_a_long_value_is_shortened() -> None:
    value = ServiceError("Too long.", value="x" * 10_000).body()["value"]
    assert isinstance(value, str)
    assert len(value) < 200
