"""Everything that can be wrong with a request, and the one table from error to HTTP status.

Each error says what is wrong, in which field, with which value, and what to do about it. Whoever raises one
knows nothing of HTTP; routes never pick a status.
"""

# ruff: noqa: N818 - the names are those of the field: QueueFull, InvalidImage

from typing import ClassVar

Value = str | int | float | bool | None

_LONGEST_VALUE = 120
_LONGEST_MESSAGE = 2_000
"""Where a message names what was received, which may be as long as a body."""


class ServiceError(Exception):
    """The base of all errors that a client gets to see.

    Args:
        message: what is wrong.
        field: the parameter, header or part of the body that it is about, shortened.
        value: what was received, shortened.
        remedy: what the client can do.
        retry_after: seconds after which trying again makes sense.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: Value = None,
        remedy: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _encodable(message[:_LONGEST_MESSAGE])
        self.field = None if field is None else _encodable(field[:_LONGEST_VALUE])
        self.value = _shown(value)
        self.remedy = remedy
        self.retry_after = retry_after

    def body(self) -> dict[str, Value]:
        """Return the JSON that the client gets."""
        return {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "value": self.value,
            "remedy": self.remedy,
        }


def _encodable(text: str) -> str:
    """Replace what UTF-8 cannot write, such as half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(value: Value) -> Value:
    if isinstance(value, str):
        return _encodable(value[:_LONGEST_VALUE])
    if isinstance(value, int) and value.bit_length() > 63:  # more than JSON's readers and writers take
        return f"a whole number of {value.bit_length()} bits"
    return value


class InternalError(ServiceError):
    """The service's own fault."""


class InferenceFailed(ServiceError):
    """The model's run failed for the batch that this image was in."""

    code = "inference_failed"


class InvalidRequest(ServiceError):
    """What was sent is no HTTP request."""

    code = "invalid_request"


class UnsupportedCoding(ServiceError):
    """The body comes in a transfer coding that is not understood."""

    code = "unsupported_coding"


class HeadTooLarge(ServiceError):
    """The request's head has too many bytes."""

    code = "head_too_large"


class HeadTooSlow(ServiceError):
    """The request's head did not arrive in time."""

    code = "head_too_slow"


class InvalidBody(ServiceError):
    """The body is not what its content type says."""

    code = "invalid_body"


class InvalidImage(ServiceError):
    """A picture is broken, or of a kind that is not served."""

    code = "invalid_image"


class InvalidParameter(ServiceError):
    """A parameter is unknown, repeated, malformed or out of its range."""

    code = "invalid_parameter"


class BodyTooLarge(ServiceError):
    """The body has too many bytes."""

    code = "body_too_large"


class BodyTooSlow(ServiceError):
    """The body did not arrive in time."""

    code = "body_too_slow"


class ImageTooLarge(ServiceError):
    """A picture has too many pixels."""

    code = "image_too_large"


class TooManyImages(ServiceError):
    """One request holds more images than it may."""

    code = "too_many_images"


class AnswerTooLarge(ServiceError):
    """The answer to one request would be larger than it may."""

    code = "answer_too_large"


class UnsupportedMediaType(ServiceError):
    """The content type is none that is served."""

    code = "unsupported_media_type"


class NotFound(ServiceError):
    """There is nothing at this path."""

    code = "not_found"


class InvalidKey(ServiceError):
    """A key is needed, or the one given is unknown or revoked."""

    code = "invalid_key"


class AdminOnly(ServiceError):
    """Only the admin key opens this."""

    code = "admin_only"


class UnknownClient(ServiceError):
    """There is no client of this name."""

    code = "unknown_client"


class UnknownKey(ServiceError):
    """The client has no key of this id."""

    code = "unknown_key"


class ClientExists(ServiceError):
    """There is a client of this name."""

    code = "client_exists"


class PolicyMismatch(ServiceError):
    """A client's policy does not fit the model that is served."""

    code = "policy_mismatch"


class MethodNotAllowed(ServiceError):
    """The path is right and the method is not."""

    code = "method_not_allowed"


class QueueFull(ServiceError):
    """As many images wait as may."""

    code = "queue_full"


class RateLimited(ServiceError):
    """The client has sent as many images as it may."""

    code = "rate_limited"


class StoreUnavailable(ServiceError):
    """The database of policies and feedback does not answer.

    Args:
        message, remedy, retry_after: as of all errors.
        reason: what the database or its driver said, which may name hosts and accounts: for the operator alone.
    """

    code = "store_unavailable"

    def __init__(
        self, message: str, *, remedy: str | None = None, retry_after: int | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy, retry_after=retry_after)
        self.reason = reason

    def __str__(self) -> str:
        """Return all of it, for the log and the command line."""
        return self.message if self.reason is None else f"{self.message} {self.reason}"


class ShuttingDown(ServiceError):
    """The service finishes what it has accepted and takes no more."""

    code = "shutting_down"


class NotReady(ServiceError):
    """The service is alive and must not be sent requests."""

    code = "not_ready"


class DeadlineExceeded(ServiceError):
    """The answer did not come in time; work not begun by then was dropped."""

    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__(
            "The answer did not come within the time allowed.",
            remedy="Try again when it is calmer, or with fewer images in a request.",
        )


class ClientLeft(ServiceError):
    """Nobody waits for the answer any more. No client sees this; logs and metrics do."""

    code = "client_left"


STATUS: dict[type[ServiceError], int] = {
    InvalidRequest: 400,
    InvalidBody: 400,
    InvalidImage: 400,
    InvalidKey: 401,
    AdminOnly: 403,
    NotFound: 404,
    UnknownClient: 404,
    UnknownKey: 404,
    MethodNotAllowed: 405,
    BodyTooSlow: 408,
    HeadTooSlow: 408,
    ClientExists: 409,
    PolicyMismatch: 409,
    BodyTooLarge: 413,
    ImageTooLarge: 413,
    TooManyImages: 413,
    AnswerTooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidParameter: 422,
    QueueFull: 429,
    RateLimited: 429,
    HeadTooLarge: 431,
    ClientLeft: 499,
    InternalError: 500,
    InferenceFailed: 500,
    UnsupportedCoding: 501,
    ShuttingDown: 503,
    NotReady: 503,
    StoreUnavailable: 503,
    DeadlineExceeded: 504,
}
