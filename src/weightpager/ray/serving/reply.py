"""What of a server's answer has reached the client."""

from __future__ import annotations

from starlette.types import Send

from weightpager.ray.serving.messages import Piece, ResponseStart, Standing
from weightpager.server.schema.common import ErrorAnswer, ErrorDetail

_STREAM = b"text/event-stream"


class Reply:
    """An answer on its way. A stream is passed on as it comes; anything else once it is whole.

    So a server that dies costs an answer only if it was streaming it.

    Attributes:
        begun: whether the client has something of it.
    """

    def __init__(self, send: Send) -> None:
        """``send`` is the client's, as ASGI has it."""
        self._send = send
        self._start = ResponseStart(500, ())
        self._held: list[bytes] = []
        self.begun = False

    async def take(self, piece: Piece) -> None:
        """Pass a piece on, or keep it. A standing says that the answer is whole."""
        if isinstance(piece, ResponseStart):
            self._start = piece
        elif isinstance(piece, Standing):
            await self._pass_on(b"".join(self._held), more=False)
        elif self._streams:
            await self._pass_on(piece, more=True)
        else:
            self._held.append(piece)

    async def cut(self, why: ErrorDetail) -> None:
        """End a stream by an event that says why, as a server does whose task fails."""
        event = f"data: {ErrorAnswer(error=why).model_dump_json()}\n\n"
        await self._pass_on(event.encode(), more=False)

    @property
    def _streams(self) -> bool:
        return any(name.lower() == b"content-type" and value.startswith(_STREAM) for name, value in self._start.headers)

    async def _pass_on(self, body: bytes, *, more: bool) -> None:
        if not self.begun:
            self.begun = True
            headers = list(self._start.headers)
            await self._send({"type": "http.response.start", "status": self._start.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
