"""What an operator may set: `EVENKEEL_*` in the environment. It knows no defaults of any model."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.database import check_url
from service.errors import InvalidParameter
from service.keys import can_match
from service.objectives import parse_objective

_PREFIX = "EVENKEEL_"

MOST_IMAGES = 4096
"""In one request, whatever is set: to read a list of millions holds up everyone."""


class Settings(BaseSettings):
    """Every setting of the service; the environment variable is the name in capitals after `EVENKEEL_`."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="how log lines are written: for people or machines")
    access_log: bool = Field(False, description="log a line for each request")
    otlp_endpoint: str | None = Field(
        None, description="where a span for each request goes (OTLP over HTTP); needs evenkeel[telemetry]"
    )

    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; cuda refuses to start without it, auto takes it where there is one"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of ONNX Runtime; unset: the cores this process may really use"
    )
    decode_threads: int | None = Field(
        None, ge=1, le=1024, description="threads that decode large pictures; unset: the cores this process may use"
    )

    max_batch_size: int = Field(32, ge=1, le=4096, description="most images in one run of the model")
    max_queue_size: int = Field(256, ge=1, le=1_000_000, description="most images that may wait; beyond: 429")
    max_queue_delay: float = Field(
        0.0, ge=0, le=10, allow_inf_nan=False, description="seconds to wait for a fuller batch; 0: never wait"
    )
    request_timeout: float = Field(
        10.0, gt=0, le=3600, allow_inf_nan=False, description="seconds until an unanswered request gets 504"
    )
    stall_timeout: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds that one run of the model may last, or all may fail, until readiness goes off",
    )

    max_body_bytes: int = Field(20 * 2**20, ge=1, description="most bytes of a request's body; beyond: 413")
    max_image_pixels: int = Field(
        40_000_000, ge=1, description="most pixels of a picture, told from its header before it is decoded"
    )
    max_images_per_request: int = Field(32, ge=1, le=MOST_IMAGES, description="most images in one request")
    max_prior_strength: float = Field(
        4.0, ge=0, le=100, allow_inf_nan=False, description="largest prior_strength that a request may ask for"
    )

    authentication: bool = Field(False, description="on: every prediction needs a client's key; off: it may name one")
    admin_key: SecretStr | None = Field(
        None, description="opens the routes of /clients, as itself or as sha256: and its hash; unset: they stay closed"
    )
    database_url: str = Field(
        "sqlite:///state/evenkeel.sqlite",
        description="policies, kept predictions and labels: a SQLite file, or postgresql://user:password@host/name",
    )
    kept_share: float = Field(
        1.0, ge=0, le=1, allow_inf_nan=False, description="share of predictions that is kept for feedback"
    )
    kept_rate: float = Field(
        250.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="most predictions a second that are kept on average, ten thousand at once; beyond: a sample",
    )
    kept_predictions: int = Field(
        200_000,
        ge=0,
        description="most predictions without a label that are kept, fairly shared by clients; the oldest go first",
    )
    kept_labels: int = Field(
        20_000, ge=1, description="most predictions with a label that are kept of each client; the oldest go first"
    )
    kept_days: float = Field(
        30.0, gt=0, le=36_500, allow_inf_nan=False, description="days after which a kept prediction is forgotten"
    )
    store_buffer: int = Field(
        10_000, ge=1, le=1_000_000, description="most predictions that wait to be written while the database is away"
    )
    max_client_labels: int = Field(
        50, ge=0, le=1000, description="most clients with a label of their own in the metrics; the rest are other"
    )

    recommend_interval: float = Field(
        300.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds between looks at what new labels recommend, for the metrics; 0: never",
    )
    recommend_objective: str = Field("balanced", description="what is recommended for, as tune --objective takes it")

    watch_bundle: float = Field(
        0.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds between looks whether the bundle has changed, to take it over; 0: only on SIGHUP",
    )
    drain_delay: float = Field(
        1.0, ge=0, le=600, allow_inf_nan=False, description="seconds from SIGTERM, while not ready, to closing the door"
    )
    shutdown_timeout: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds that accepted requests then have to finish; beyond: 503",
    )

    @field_validator("database_url")
    @classmethod
    def _a_database_that_can_be_used(cls, url: str) -> str:
        return check_url(url)

    @field_validator("otlp_endpoint")
    @classmethod
    def _an_address_that_can_be_sent_to(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        address, *rest = re.split("[?#]", endpoint)
        if rest:  # which the exporter logs whenever it reaches nobody
            raise ValueError(
                "must end with the path; put what the collector wants as a secret into OTEL_EXPORTER_OTLP_HEADERS"
            )
        if not re.match(r"https?://[^/\s]", address, re.IGNORECASE):
            shown = address.rpartition("@")[2]
            raise ValueError(f"must be an address such as http://collector:4318/v1/traces, and is {shown!r}")
        return endpoint

    @field_validator("admin_key")
    @classmethod
    def _a_key_that_can_be_matched(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not can_match(key.get_secret_value()):
            raise ValueError("behind sha256: there must be 64 hex digits: printf %s KEY | sha256sum | cut -c-64")
        return key

    @field_validator("recommend_objective")
    @classmethod
    def _an_objective_that_can_be_read(cls, text: str) -> str:
        try:
            return parse_objective(text).text
        except InvalidParameter as error:
            raise ValueError(f"{error.message} {error.remedy}") from error

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Self:
        if self.max_images_per_request > self.max_queue_size:
            raise ValueError(
                f"max_images_per_request ({self.max_images_per_request}) must not exceed max_queue_size "
                f"({self.max_queue_size}), or such a request could never be admitted; lower one or raise the other"
            )
        return self


def what_is_wrong(error: ValidationError) -> str:
    """Return all that was found wrong with settings in one line, each by the name of its variable."""
    return "; ".join(
        "".join(f"{_PREFIX}{str(name).upper()}: " for name in each["loc"][:1])
        + each["msg"].removeprefix("Value error, ")
        for each in error.errors()
    )


def misspelt(variables: Iterable[str]) -> dict[str, str | None]:
    """Return the names of variables that are like settings and are none, each with the closest setting if one is close.

    >>> misspelt(["HOME", "EVENKEEL_PORT", "EVENKEEL_QUEUE_SIZE", "EVENKEEL_COLOUR"])
    {'EVENKEEL_QUEUE_SIZE': 'EVENKEEL_MAX_QUEUE_SIZE', 'EVENKEEL_COLOUR': None}
    """
    known = [name.upper() for name in Settings.model_fields]
    found: dict[str, str | None] = {}
    for variable in variables:
        name = variable.upper()  # as upper and lower case mean the same setting
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in known:
            closest = get_close_matches(name.removeprefix(_PREFIX), known, n=1)
            found[variable] = f"{_PREFIX}{closest[0]}" if closest else None
    return found
