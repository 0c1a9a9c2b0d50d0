import pytest
from pydantic import ValidationError

from service.settings import Settings, misspelt, what_is_wrong


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_MAX_BATCH_SIZE", "7")
    monkeypatch.setenv("EVENKEEL_PORT", "")
    settings = Settings()
    assert (settings.max_batch_size, settings.port) == (7, 8000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PROVIDER", "tpu"),
        ("REQUEST_TIMEOUT", "nan"),
        ("MAX_BATCH_SIZE", "0"),
        ("DRAIN_DELAY", "-1"),
        ("OTLP_ENDPOINT", "collector:4318"),
        ("ADMIN_KEY", "sha256:secret"),
        ("ADMIN_KEY", f"sha256:{'0' * 64}  -"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EVENKEEL_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_request_that_could_never_be_admitted_is_refused() -> None:
    with pytest.raises(ValidationError, match="could never be admitted"):
        Settings(max_images_per_request=10, max_queue_size=9)


def test_an_admin_key_is_written_as_itself_or_as_its_hash_and_not_told() -> None:
    for key in ("secret", f"sha256:{'0aF' * 21}0"):
        found = Settings(admin_key=key).admin_key
        assert found is not None
        assert found.get_secret_value() == key
    with pytest.raises(ValidationError, match="there must be 64 hex digits") as refused:
        Settings(admin_key="sha256:swordfish")
    assert "swordfish" not in what_is_wrong(refused.value)


@pytest.mark.parametrize("endpoint", ["http://c:4318/v1/traces?token=swordfish", "user:swordfish@c:4318/v1/traces"])
def test_secrets_in_a_collectors_address_are_refused_where_they_would_be_logged_and_not_told(endpoint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(otlp_endpoint=endpoint)
    assert "swordfish" not in what_is_wrong(refused.value)


def test_all_that_is_wrong_is_told_in_one_line_by_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_DATABASE_URL", "mysql://x/y")
    monkeypatch.setenv("EVENKEEL_PORT", "-1")
    with pytest.raises(ValidationError) as refused:
        Settings()
    told = what_is_wrong(refused.value)
    assert told.startswith("EVENKEEL_PORT: Input should be greater than or equal to 0; EVENKEEL_DATABASE_URL: ")
    assert "Value error" not in told


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_variable_that_is_no_setting_is_named_with_the_closest_and_others_are_nobodys_concern() -> None:
    variables = ["PATH", "EVENKEEL", "EVENKEEL_PORT", "evenkeel_port", "EVENKEEL_DB_URL", "EVENKEEL_REQUIRE_POSTGRESQL"]
    assert misspelt(variables) == {"EVENKEEL_DB_URL": "EVENKEEL_DATABASE_URL", "EVENKEEL_REQUIRE_POSTGRESQL": None}
