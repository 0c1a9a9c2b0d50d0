"""A picture decoded, and waited for: the service only begins it, and waits for several at once."""

import asyncio
from concurrent.futures import Future

from service.images import ImageDecoder, Pixels


async def decode(decoder: ImageDecoder, data: bytes, *, field: str = "body") -> Pixels:
    """The pixels once they are there; arguments and errors are those of `ImageDecoder.begin`."""
    begun = decoder.begin(data, field=field)
    return await asyncio.wrap_future(begun) if isinstance(begun, Future) else begun
