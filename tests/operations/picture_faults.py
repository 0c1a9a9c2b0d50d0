"""Faults of what a request holds: pictures that are none, or too much, and numbers that are none."""

import io
import json
import pickle
import random
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from urllib.parse import quote

import numpy as np
from PIL import Image

from tests.operations.client import PNG, request, send
from tests.operations.fault import Fault, Try, fault
from tests.service.fakes import picture
from tests.service.test_image_fuzz import mutated, mutated_within, originals

TOO_WIDE = 100_000


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *parts: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of these chunks; its header states any size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND", b"")


@cache
def bombs() -> tuple[bytes, ...]:
    """Small files of much: pixels, pixels beyond the picture, text, colour profile, an endless side, an animation."""
    pixels = zlib.compress(bytes(20_001 * 2_501), 9)
    beyond = zlib.compress(bytes(50_000_000), 9)
    small = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    animation = io.BytesIO()
    frames = [Image.new("P", (500, 500), shade) for shade in range(50)]
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:])
    return (
        png(20_000, 20_000, chunk(b"IDAT", pixels), depth=1),
        png(8, 8, chunk(b"IDAT", beyond)),
        png(8, 8, chunk(b"zTXt", b"a\0\0" + beyond), small),
        png(8, 8, chunk(b"iCCP", b"a\0\0" + beyond), small),
        png(40_000_000, 1, chunk(b"IDAT", zlib.compress(bytes(5_000_001), 9)), depth=1),
        png(1, 20_000_000, chunk(b"IDAT", zlib.compress(bytes(40_000_000), 9))),
        animation.getvalue(),
    )


@cache
def whole() -> dict[str, bytes]:
    """Undamaged pictures of every kind, made once: a client that is busy is slow, and slowness is another fault."""
    return originals()


def wide(chance: random.Random) -> bytes:
    """A header of 100,000 pixels' width, over little or nothing."""
    height = chance.choice((1, 8, 300, 401, TOO_WIDE, 2**31 - 1))
    lossy = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (TOO_WIDE - 1).to_bytes(3, "little")
    lossy += (min(height, 2**24) - 1).to_bytes(3, "little")
    jpeg = bytearray(whole()["jpeg"])
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", min(height, 0xFFFF), 0xFFFF)  # as wide as a JPEG's header can say
    row = zlib.compress(bytes(TOO_WIDE + 1))
    return chance.choice(
        (
            png(TOO_WIDE, height, chunk(b"IDAT", row)),
            png(TOO_WIDE, height),
            b"RIFF" + struct.pack("<I", len(lossy) + 4) + b"WEBP" + lossy,
            bytes(jpeg),
        )
    )


def other_kinds() -> list[bytes]:
    """Files that are no JPEG, PNG or WebP, some of which Pillow could open."""
    files = []
    for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PDF"):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (40, 0, 0)).save(buffer, kind)
        files.append(buffer.getvalue())
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch /tmp/evenkeel-was-here) (w) file\n"
    markup = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    return [
        *files,
        postscript,
        markup,
        pickle.dumps({"a": np.zeros(3)}),
        b"",
        b"\0" * 1000,
        b"http://127.0.0.1:1/a.png",
    ]


def pictures(name: str, expected: tuple[str, ...], make: Callable[[random.Random], bytes]) -> Fault:
    """Return the fault of sending a picture as `make` makes it, in any of the three forms."""

    async def once(tried: Try) -> str:
        data, form = make(tried.chance), tried.chance.randrange(3)
        if form == 0:
            return str((await send(tried.port, request(data))).status)
        if form == 1:
            body = json.dumps({"images": [{"data": b64encode(data).decode()}]}).encode()
            return str((await send(tried.port, request(body, headers={"Content-Type": "application/json"}))).status)
        body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        return str((await send(tried.port, request(body, headers=headers))).status)

    return Fault(name, frozenset(expected), once)


def _any(chance: random.Random) -> bytes:
    return chance.choice(list(whole().values()))


def _mutated(chance: random.Random) -> bytes:
    original = _any(chance)
    return mutated_within(original, chance) if original.startswith(b"\x89PNG") else mutated(original, chance)


@fault("NaN, infinite and other impossible alphas", "422")
async def impossible_alphas(tried: Try) -> str:
    text = tried.chance.choice(("nan", "NaN", "inf", "-inf", "Infinity", "1e999", "-1", "9e9", "0x1", "1_0", "", "٣"))
    name = tried.chance.choice(("alpha", "prior_strength"))
    match tried.chance.randrange(4):
        case 0:
            data = request(picture(), path=f"/predict?{name}={quote(text)}")
        case 1:
            number = tried.chance.choice(("1e999", "-1e999", "1e400", '"nan"', '"Infinity"', "[0]", "-0.5"))
            body = f'{{"images": [{{"data": "{b64encode(picture()).decode()}", "{name}": {number}}}]}}'
            data = request(body.encode(), headers={"Content-Type": "application/json"})
        case 2:
            body = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n--x\r\n'
            body += 'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            form = body.encode() + picture() + b"\r\n--x--\r\n"
            data = request(form, headers={"Content-Type": "multipart/form-data; boundary=x"})
        case _:
            data = _tensor_of(name, tried.chance.choice((float("nan"), float("inf"), -float("inf"), 1e30, -0.5)))
    return str((await send(tried.port, data)).status)


def _tensor_of(name: str, value: float) -> bytes:
    pixels, knob = bytes(8 * 8 * 3), struct.pack("<f", value)
    sizes = (("image", "UINT8", [1, 8, 8, 3], len(pixels)), (name, "FP32", [1], len(knob)))
    inputs = [
        {"name": each, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": size}}
        for each, kind, shape, size in sizes
    ]
    message = json.dumps({"inputs": inputs}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(message))}
    return request(message + pixels + knob, path="/v2/models/tiny/infer", headers=headers)


@fault("types that are not served, declared or not", "400", "415")
async def wrong_types(tried: Try) -> str:
    declared = tried.chance.choice(
        (PNG["Content-Type"], "image/jpeg", "image/gif", "text/html", "image/svg+xml", "*/*")
    )
    data = tried.chance.choice(other_kinds())
    return str((await send(tried.port, request(data, headers={"Content-Type": declared}))).status)


@fault("JSON that is no request", "400", "413", "422")
async def wrong_json(tried: Try) -> str:
    bodies: tuple[bytes, ...] = (
        b"[" * 100_000,
        b'{"images": {}}',
        b'{"images": []}',
        b'{"images": [{"url": "http://127.0.0.1:1/a.png"}]}',
    )
    bodies += (
        b'{"images": [null]}',
        b'{"images": [{"data": 7}]}',
        b"\xff\xfe{}",
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"",
    )
    bodies += (b'{"images": ' + json.dumps([{"data": ""}] * 33).encode() + b"}", b'{"images": NaN}', b"null")
    data = request(tried.chance.choice(bodies), headers={"Content-Type": "application/json"})
    return str((await send(tried.port, data)).status)


FAULTS = [
    pictures(
        "truncated pictures", ("200", "400"), lambda chance: (file := _any(chance))[: chance.randrange(len(file))]
    ),
    pictures("corrupt pictures", ("200", "400", "413"), _mutated),
    pictures("decompression bombs", ("200", "400", "413"), lambda chance: chance.choice(bombs())),
    pictures("headers of 100,000 pixels' width", ("200", "400", "413", "504"), wide),
    wrong_types,
    impossible_alphas,
    wrong_json,
]
