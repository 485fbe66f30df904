"""What a request may ask for, and how one that is turned away is told why."""

from dataclasses import dataclass, fields

from imagereward.config import whole_number


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all requests together.

    body, image_pixels     bytes of one body; pixels of one image, by its header, before it is decoded
    images, prompts, pairs, characters   in one request; characters of one prompt
    request_pixels         pixels of all images of one request
    queue                  images of all requests that are read, decoded or waiting; beyond: 429
    held                   bytes of all bodies in memory; beyond: 429
    seconds                to send a body
    unproven               connections that have not shown the token; beyond: the oldest is closed
    unproven_seconds       after which such a connection is closed, and one that is between two requests
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
    seconds: int = 60
    unproven: int = 256
    unproven_seconds: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            whole_number(field.name, getattr(self, field.name), 1)
        # What passes the bounds of one request must fit an empty queue, or it would be sent again for ever.
        whole_number("images", self.images, 1, self.queue)
        whole_number("body", self.body, 1, self.held)


class Refused(Exception):
    """A request that is turned away: an HTTP status, the reason, and which images it is about, if any.

    `images` maps an image's place in the request to what is wrong with it.
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
        """Itself, without the errors and stack frames that led to it, which hold the request's body."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def content(self) -> dict:
        """The answer's JSON."""
        named = {str(index): reason for index, reason in self.images.items()}
        return {"detail": self.reason, **({"images": named} if named else {})}
