"""Pictures of requests' prompts, from data URLs or addresses to what the worker gives to a picture tower."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.bundle.format.manifest import Pictures
from weightpager.errors import ImageError, RequestError
from weightpager.readers.image_reader import check_pillow, from_base64, pixel_count
from weightpager.readers.picture import Picture
from weightpager.readers.picture_reader import PictureReader, content_of, is_url
from weightpager.server.inputs.image_inputs import LARGE, MOST_PIXELS, EncodedImage, check_together
from weightpager.server.inputs.lanes import TwoLanes
from weightpager.server.inputs.picture_hosts import AllowedHost, PictureHosts, is_address

MOST_PICTURES = 8
"""Pictures of a request, at most."""

MOST_PICTURE_BYTES = 4 * 2**20
"""Bytes of a picture's file, at most: more than a camera's JPEG of `MOST_PIXELS`."""

MOST_URL_CHARACTERS = -(-MOST_PICTURE_BYTES // 3) * 4 + 64
"""Characters of the URL that holds such a file."""

_EITHER = "a picture as a data URL, or its base64 alone"


def body_bytes(texts: int, pictures: Pictures | None) -> int:
    """Bytes of the largest body, where so many may be texts and what stands around them."""
    return texts if pictures is None else texts + MOST_PICTURES * MOST_URL_CHARACTERS


class PictureInputs:
    """Reads the pictures of requests in threads of their own. Nothing is fetched but from hosts that are allowed."""

    def __init__(self, reader: PictureReader, *, most: int, hosts: Sequence[AllowedHost] = ()) -> None:
        """``most`` is that of `TwoLanes`, and of pictures that are fetched.

        Raises:
            ConfigError: Pillow isn't installed, or urllib3 where hosts are allowed.
        """
        check_pillow()
        self.reader = reader
        self.lanes = TwoLanes(reader, lambda: reader, most)
        self._hosts = PictureHosts(hosts, most_bytes=MOST_PICTURE_BYTES, most=most) if hosts else None

    async def read(self, urls: Sequence[str], param: str) -> tuple[Picture, ...]:
        """A request's pictures; too many pixels are refused before any is decoded.

        Errors are those of `TwoLanes.run`, too.

        Args:
            urls: data URLs, the base64 of files' contents, or addresses where hosts are allowed.
            param: the field that they came in.

        Raises:
            RequestError: one is no picture, too large, or takes too long to be read.
        """
        try:
            images = await self.lanes.run(_opened, await self._contents(urls))
            large = check_together(images) > LARGE
            return tuple(await self.lanes.run(_decoded, images, large=large))
        except ImageError as error:
            raise RequestError(str(error), param, "invalid_image") from error
        except RequestError as error:
            raise RequestError(str(error), param, error.code) from error

    async def _contents(self, urls: Sequence[str]) -> list[str | bytes]:
        """URLs, with files in place of addresses."""
        if self._hosts is None:
            return list(urls)
        addresses = [url for url in urls if is_address(url)]
        files = iter(await self._hosts.fetch(addresses))
        return [next(files) if is_address(url) else url for url in urls]

    def close(self) -> None:
        self.lanes.close()
        if self._hosts is not None:
            self._hosts.close()


def _opened(_: PictureReader, given: str | bytes) -> EncodedImage:
    content = given if isinstance(given, bytes) else _content_of(given)
    if len(content) > MOST_PICTURE_BYTES:
        raise ImageError(f"expected a picture of at most {MOST_PICTURE_BYTES} bytes, found {len(content)}")
    return EncodedImage(content, pixel_count(content, MOST_PIXELS))


def _content_of(url: str) -> bytes:
    return content_of(url) if is_url(url) else from_base64(url, _EITHER)


def _decoded(reader: PictureReader, image: EncodedImage) -> Picture:
    """A picture that holds nothing but the pixels that the tower takes, whatever the size of the file's."""
    picture = reader.read(image.content, MOST_PIXELS)
    if picture.is_scaled:
        return picture
    pixels = picture.pixels
    return Picture(picture.key, lambda: pixels, picture.tokens)
