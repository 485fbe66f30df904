"""Limits of requests, and the exception `Refused` with which a request is turned away.

`admission.py` enforces the limits of bodies, the queue and connections, `parsing/bodies.py` the numbers of
images, prompts, pairs and characters, and `parsing/images.py` the pixels. Options of `imagereward serve`
(`cli/serving.py`) set some of them.
"""

from dataclasses import dataclass, fields

from imagereward.config import whole_number
from imagereward.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all requests together; whole numbers of at least 1.

    body                     bytes of one body
    images, prompts, pairs   in one request
    characters               of one prompt
    image_pixels             width times height of one image, read from its header before decoding
    request_pixels           pixels of all images of one request
    queue                    images of all requests that are read, decoded or waiting; beyond: 429
    held                     bytes of all bodies in memory; beyond: 429
    decoded                  bytes of all images, as their models take them, that wait; beyond: 429, and 413
                             for one request that has more
    seconds                  to send a body
    unauthenticated          open connections that have not shown the token; beyond: the oldest is closed
    unauthenticated_seconds  after which a connection without a token, or idle between requests, is closed

    Raises InputError for a value out of range, `images` above `queue`, or `body` above `held`.
    """

    body: int = 64 * 2**20
    images: int = 256
    prompts: int = 256
    pairs: int = 2**16
    characters: int = 4096
    image_pixels: int = 64 * 2**20
    request_pixels: int = 256 * 2**20
    queue: int = 1024
    held: int = 2**30
    decoded: int = 4 * 2**30
    seconds: int = 60
    unauthenticated: int = 256
    unauthenticated_seconds: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            whole_number(field.name, getattr(self, field.name), 1)
        # A request that never fits an empty queue would be answered 429 and be sent again for ever.
        if self.images > self.queue:
            raise InputError(
                f"images={self.images} (--max-images) is above queue={self.queue} (--queue): expected at "
                "most as many images in a request as the queue holds"
            )
        if self.body > self.held:
            raise InputError(f"body={self.body} bytes (--max-body) is above held={self.held}: lower it")


class Refused(Exception):
    """Turns a request away: HTTP status, reason, headers of the answer.

    images   index of a faulty image in the request -> its fault
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        headers: dict[str, str] | None = None,
        images: dict[int, str] | None = None,
    ):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.images = images or {}

    def alone(self) -> "Refused":
        """This exception without cause, context and traceback: their stack frames hold the request's body."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def content(self) -> dict:
        """The answer's JSON: `detail`, and `images` where images are at fault."""
        named = {str(index): reason for index, reason in self.images.items()}
        return {"detail": self.reason, **({"images": named} if named else {})}
