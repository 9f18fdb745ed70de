"""Bodies that are larger than usual, as pictures make them, share so many bytes until they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from weightpager.server.middleware import BodyLimit

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}


class Held:
    """An application that answers when it may; it says how long the bodies were that it got."""

    def __init__(self) -> None:
        self.bodies: list[int] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append(len((await receive())["body"]))
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def post(app: BodyLimit, *chunks: int, filled: bytes = b"x", **scope: Any) -> int:
    """The status of a request whose body comes in such chunks."""
    left, statuses = list(chunks), list[int]()

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": filled * left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(SCOPE | scope, receive, send)
    return statuses[0]


async def limited() -> tuple[BodyLimit, Held]:
    held = Held()
    return BodyLimit(held, most=100, seconds=5, usual=20, together=120), held


def test_large_bodies_have_so_many_bytes_together_until_they_are_answered() -> None:
    async def scenario() -> None:
        app, held = await limited()
        large = asyncio.create_task(post(app, 60, 40))  # 80 bytes more than usual
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(post(app, 30, 40), 1) == 429
        usual = [asyncio.create_task(post(app, 20)) for _ in range(50)]
        small = asyncio.create_task(post(app, 60))  # 40 more
        await asyncio.sleep(0.01)
        assert sorted(held.bodies) == [20] * 50 + [60, 100]
        held.go_on.set()
        assert await large == await small == 200
        assert await asyncio.gather(*usual) == [200] * 50
        assert await post(app, 100) == 200

    asyncio.run(scenario())


def test_what_is_refused_gives_its_bytes_back() -> None:
    async def scenario() -> None:
        app, held = await limited()
        held.go_on.set()
        for _ in range(5):
            assert await post(app, 60, 41) == 413
        assert list(await asyncio.gather(post(app, 100), post(app, 60))) == [200, 200]

    asyncio.run(scenario())


def test_a_body_takes_no_share_where_all_of_it_is_usual() -> None:
    async def scenario() -> None:
        held = Held()
        app = BodyLimit(held, most=100, seconds=5, together=0)
        held.go_on.set()
        assert await asyncio.gather(*(post(app, 100) for _ in range(5))) == [200] * 5

    asyncio.run(scenario())


def test_routes_without_pictures_take_usual_bodies_alone() -> None:
    async def scenario() -> None:
        app, held = await limited()
        held.go_on.set()
        for path in ("/v1/embeddings", "/v1/classifications", "/admin/budget", "/nowhere", "/v1/completions/"):
            assert await post(app, 20, path=path) == 200
            assert await post(app, 20, 1, path=path) == 413
            assert await post(app, 0, path=path, headers=[(b"content-length", b"21")]) == 413
        assert await post(app, 21, method="GET") == 413
        assert await post(app, 100, path="/v1/chat/completions") == 200
        assert held.bodies == [20] * 5 + [100]

    asyncio.run(scenario())


def test_a_large_body_may_hold_as_many_values_as_a_usual_one() -> None:
    async def scenario() -> None:
        app, held = await limited()
        held.go_on.set()
        for mark in (b"[", b"{", b","):
            assert await post(app, 20, filled=mark) == 200
            assert await post(app, 10, 11, filled=mark) == 413
        assert await post(app, *[1] * 7, filled=b"1,1 xxxxx") == 200  # 63 bytes with 7 marks
        assert await post(app, *[1] * 11, filled=b"1,1 xxxxx") == 413
        assert list(await asyncio.gather(post(app, 100), post(app, 60))) == [200, 200]

    asyncio.run(scenario())


def test_a_body_grows_beyond_the_usual_for_those_alone_who_may_use_the_server() -> None:
    async def scenario() -> None:
        held = Held()
        app = BodyLimit(held, 100, 5, usual=20, may=lambda request: request.headers.get("authorization") == "Bearer me")
        held.go_on.set()
        assert await post(app, 20) == 200  # a route judges those
        assert await post(app, 20, 1) == 401
        assert await post(app, 0, headers=[(b"content-length", b"21")]) == 401
        assert await post(app, 100, headers=[(b"authorization", b"Bearer me")]) == 200
        assert held.bodies == [20, 100]

    asyncio.run(scenario())


def test_two_of_the_largest_bodies_are_there_at_a_time_unless_told_otherwise() -> None:
    async def scenario() -> None:
        held = Held()
        app = BodyLimit(held, most=100, seconds=5, usual=20)
        large = [asyncio.create_task(post(app, 100)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(post(app, 21), 1) == 429
        held.go_on.set()
        assert await asyncio.gather(*large, post(app, 20)) == [200] * 3

    asyncio.run(scenario())
