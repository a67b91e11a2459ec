"""Encoded images to a model's image input, several of them in threads."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np

from models.card import ImageInput
from service import imaging
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
)
from service.settings import Settings
from service.tensors import Array


class Decoder:
    """Decodes within the limits that the settings fix."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def check(self, images: Sequence[bytes]) -> None:
        """Refuse a request with no image, or with too many.

        Raises:
            InvalidRequest: It has none.
            TooLarge: It has too many.
        """
        if not images:
            raise InvalidRequest("the request holds no image", code="no_image")
        limit = self._settings.max_images_per_request
        if len(images) > limit:
            raise TooLarge(
                f"the request holds {len(images)} images; at most {limit} are allowed",
                code="too_many_images",
            )

    def at_once(self, images: Sequence[bytes], image_input: ImageInput) -> Array | None:
        """What `in_threads` would answer, where the wait for a thread takes longer.

        Returns:
            `dtype[1, H, W, C]`; `None` where it is to be done in threads.

        Raises:
            InvalidImage: The image cannot be decoded.
            TooLarge: It has too many pixels.
        """
        if len(images) > 1 or imaging.is_slow(images[0]):
            return None
        instance = self._decode(images[0], image_input)
        return instance[None].astype(image_input.dtype, copy=False)

    async def in_threads(
        self, images: Sequence[bytes], image_input: ImageInput, deadline: float
    ) -> Array:
        """Decode each image into its place.

        Args:
            images: Encoded images.
            image_input: What they become.
            deadline: Moment of `time.monotonic`, in seconds.

        Returns:
            `dtype[len(images), H, W, C]`.

        Raises:
            InvalidImage: An image cannot be decoded.
            TooLarge: An image has too many pixels.
            DeadlineExceeded: The deadline has passed.
        """
        loop = asyncio.get_running_loop()
        rows = np.empty((len(images), *image_input.shape), image_input.dtype)

        def decode(index: int) -> None:
            which = f"image {index}: " if len(images) > 1 else ""
            rows[index] = self._decode(images[index], image_input, which)

        jobs = [
            loop.run_in_executor(self._threads, decode, index)
            for index in range(len(images))
        ]
        try:
            async with asyncio.timeout(deadline - monotonic()):
                await asyncio.gather(*jobs)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request's time ran out while its images were decoded; allow more "
                "time, or send fewer or smaller images"
            ) from error
        finally:
            for job in jobs:
                job.cancel()  # those that have not begun cost nothing
        return rows

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _decode(self, data: bytes, image_input: ImageInput, which: str = "") -> Array:
        limit = self._settings.max_image_pixels
        try:
            return imaging.decode(data, image_input, max_pixels=limit)
        except BlockserveError as error:
            error.message = which + error.message
            raise
