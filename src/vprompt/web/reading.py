"""Reading: the bytes of a request become named images, and one image becomes pixels."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from vprompt.core.errors import VPromptError
from vprompt.data.decoding import TooLarge, fit, read_rgb
from vprompt.data.preprocessing import DataConfig, Values
from vprompt.web.limits import Limits, Refused


class Picture(BaseModel):
    """One image of a JSON request, and the artefact to label it with."""

    image: str = Field(description="The bytes of an image file, base64.")
    artifact: str | None = Field(None, description="Its name; may be left out where one is served.")


class Ask(BaseModel):
    """A JSON request."""

    images: list[Picture] = Field(min_length=1)


@dataclass(frozen=True)
class Named:
    """The bytes of one image file, and the artefact that it asks for."""

    data: bytes
    artifact: str | None


# What a request may look like, for OpenAPI: both are read from the raw body.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        },
                        "artifact": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "One for each image in their order, or one for all.",
                        },
                    },
                }
            },
            "application/json": {"schema": Ask.model_json_schema()},
        },
    }
}


async def read(request: Request, limits: Limits) -> list[Named]:
    """Return the images of a request; raises Refused with what was wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _of_json(await request.body())
    if kind == "multipart/form-data":
        return await _of_form(request, limits)
    raise Refused(
        415,
        f"A request is multipart/form-data or application/json, but got {kind or 'no type'!r}.",
    )


def _of_json(body: bytes) -> list[Named]:
    try:
        ask = Ask.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Refused(
            400,
            f'The JSON is {{"images": [{{"image": "<base64>", "artifact": "name"}}]}}, but '
            f"{place}: {first['msg']}.",
        ) from None
    return [Named(_bytes_of(each.image), each.artifact) for each in ask.images]


def _bytes_of(text: str) -> bytes:
    """Return what base64 says, also behind the `data:` of a page; nothing where it is not that."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""  # refused as no image, this one alone


async def _of_form(request: Request, limits: Limits) -> list[Named]:
    async with request.form(max_files=limits.queue, max_fields=limits.queue) as form:
        files = [each for each in form.getlist("images") if isinstance(each, UploadFile)]
        names = [each for each in form.getlist("artifact") if isinstance(each, str)]
        if not files:
            raise Refused(400, "The form has no file called `images`.")
        if len(names) not in (0, 1, len(files)):
            raise Refused(
                400,
                f"The form has {len(files)} images and {len(names)} times `artifact`: name one for "
                "each image, or one for all.",
            )
        chosen: Sequence[str | None] = names if len(names) == len(files) else (names or [None])
        if len(chosen) == 1:
            chosen = list(chosen) * len(files)
        data = [await each.read() for each in files]
    return [Named(each, name) for each, name in zip(data, chosen, strict=True)]


def pixels_of(data: bytes, config: DataConfig, limits: Limits) -> NDArray[np.uint8]:
    """Return one image at the backbone's size; raises Refused where it is none or too large."""
    try:
        with Image.open(BytesIO(data)) as opened:
            width, height = opened.size
        if width * height > limits.megapixels * 1e6:
            raise Refused(
                413,
                f"The image has {width} x {height} pixels, and the limit is {limits.megapixels:g} "
                "megapixels.",
            )
        return fit(read_rgb(BytesIO(data), config.values or Values()), config)
    except Refused:
        raise
    except (TooLarge, Image.DecompressionBombError) as error:
        raise Refused(413, str(error)) from None
    except VPromptError as error:
        raise Refused(422, str(error)) from None
    except Exception:  # broken files make Pillow raise almost anything
        raise Refused(422, "The file cannot be read as an image.") from None
