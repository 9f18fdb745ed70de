"""What the gateway and its router decide, without a cluster."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, OwnerDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import Response

from running import TOKEN
from weightpager.answers.kinds import EncodingKind
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.ray.application import FAIRNESS, LoadAim, policy, wanted
from weightpager.ray.gateway import Gateway, Reply
from weightpager.ray.messages import ForwardedRequest, Piece, ResponseStart, Standing, task_of
from weightpager.ray.server_replica import ServerReplica
from weightpager.ray.task_router import KnownReplicas, known_replicas
from weightpager.routing import Affinity, ReplicaView
from weightpager.server.scheduling.settings import Settings
from weightpager.server.scheduling.worker import Worker
from weightpager.server.schema import ErrorDetail


def standing(replica: str, sequence: int = 1, free: int = 0, request_bytes: float = 0.0, **lacks: int) -> Standing:
    return Standing(replica, 1, sequence, lacks, free, request_bytes, None, 0, 0, 0)


def request(key: str, task: str) -> ForwardedRequest:
    return ForwardedRequest(key, task, "POST", "/v1/completions", b"", (), b"")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"model"',
        b'{"model": 3}',
        b'{"prompt": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": null}',
    ],
)
def test_a_body_that_names_no_task_is_the_servers_to_judge(body: bytes) -> None:
    assert task_of(body) == ""


def test_a_request_goes_through_whole() -> None:
    headers = [(b"authorization", b"Bearer x"), (b"content-type", b"application/json")]
    scope = {"method": "POST", "path": "/v1/completions", "query_string": b"a=1", "headers": headers}
    body = json.dumps({"model": "spam", "prompt": "x"}).encode()
    found = ForwardedRequest.of(scope, body)
    assert (found.task, found.body) == ("spam", body)
    again = found.scope()
    assert {name: again[name] for name in scope} == scope
    assert ForwardedRequest.of(scope, body).key != found.key


def test_what_was_sent_is_seen_by_the_next_request() -> None:
    known = KnownReplicas()
    known.told(standing("a", free=7, spam=30, topic=40))
    assert known.views(["a", "b"], "spam") == [ReplicaView(30, 7, 0), ReplicaView(0, 0, 0)]
    first, second = request("1", "spam"), request("2", "topic")
    known.begun(first)
    known.begun(second)
    assert known.views(["a"], "spam") == [ReplicaView(30, 7, 0)]  # neither is routed yet
    known.sent(first, "a")
    assert known.views(["a"], "spam") == [ReplicaView(0, 7, 1)]  # its pages come in any case
    assert known.views(["a"], "topic") == [ReplicaView(40, 7, 1)]
    known.sent(second, "a")
    known.sent(second, "b")  # it died, and another got the request
    assert known.views(["a", "b"], "topic") == [ReplicaView(40, 7, 1), ReplicaView(0, 0, 1)]
    for one in (first, second, second):
        known.ended(one)
    assert known.views(["a", "b"], "spam") == [ReplicaView(30, 7, 0), ReplicaView(0, 0, 0)]


def test_a_request_that_is_given_up_before_it_is_routed_is_not_counted() -> None:
    known = KnownReplicas()
    one = request("1", "spam")
    known.begun(one)
    known.ended(one)
    known.sent(one, "a")  # the router had not heard of it
    assert known.views(["a"], "spam") == [ReplicaView(0, 0, 0)]


def test_words_that_overtake_each_other_are_sorted_out() -> None:
    known = KnownReplicas()
    known.told(standing("a", sequence=2, spam=5, request_bytes=10.0))
    known.told(standing("a", sequence=1, spam=9))
    known.told(standing("b"))
    assert known.standings() == [standing("a", sequence=2, spam=5, request_bytes=10.0), standing("b")]
    assert known.request_bytes() == 10.0  # of those that know
    known.only(["b", "c"])
    assert known.standings() == [standing("b")]
    assert known.request_bytes() == 0.0
    known.told(standing("a", sequence=3, request_bytes=10.0))  # its last answer comes when it has gone
    known.told(standing("c"))
    assert known.standings() == [standing("b"), standing("c")]
    assert known.request_bytes() == 0.0


def eligible(known: KnownReplicas, task: str = "spam") -> dict[str, bool]:
    """Whether each of these servers may get a request."""
    return {name: view.eligible for name, view in zip("abc", known.views(["a", "b", "c"], task), strict=True)}


def test_a_server_that_seems_dead_gets_nothing_until_it_says_a_word() -> None:
    known = KnownReplicas()
    known.told(standing("a", spam=0))
    assert eligible(known) == {"a": True, "b": True, "c": True}
    one = request("1", "spam")
    known.begun(one)
    known.lost(one)  # before it was routed: no server is blamed
    assert eligible(known) == {"a": True, "b": True, "c": True}
    for name in "ab":
        known.sent(one, name)
        known.lost(one)
    known.told(standing("a", spam=0))  # what was heard before
    assert eligible(known) == {"a": False, "b": False, "c": True}
    known.told(standing("a", sequence=2, spam=0))
    assert eligible(known) == {"a": True, "b": False, "c": True}
    known.only(["a", "c"])
    known.only(["a", "b", "c"])
    assert eligible(known) == {"a": True, "b": True, "c": True}


def test_servers_that_all_seem_dead_are_asked_all_the_same() -> None:
    known = KnownReplicas()
    for name in "abc":
        one = request(name, "spam")
        known.begun(one)
        known.sent(one, name)
        known.lost(one)
    assert eligible(known) == {"a": True, "b": True, "c": True}


def test_a_server_that_hangs_gets_nothing_until_its_step_is_over() -> None:
    known = KnownReplicas()
    known.told(replace(standing("a", spam=0), stuck=True))
    known.told(standing("b", spam=1000))
    assert eligible(known) == {"a": False, "b": True, "c": True}
    known.told(standing("a", sequence=2, spam=0))
    assert eligible(known) == {"a": True, "b": True, "c": True}


def test_servers_that_all_hang_are_asked_all_the_same_but_for_those_that_seem_dead() -> None:
    known = KnownReplicas()
    for name in "abc":
        known.told(replace(standing(name), stuck=True))
    assert eligible(known) == {"a": True, "b": True, "c": True}
    one = request("1", "spam")
    known.begun(one)
    known.sent(one, "b")
    known.lost(one)
    assert eligible(known) == {"a": True, "b": False, "c": True}


def test_a_server_whose_bundle_has_no_such_task_gets_nothing_unless_none_has_it() -> None:
    known = KnownReplicas()
    known.told(standing("a", spam=0))
    known.told(standing("b", spam=0, topic=1000))
    known.told(standing("c", spam=0))
    assert eligible(known, "topic") == {"a": False, "b": True, "c": False}
    assert eligible(known, "spam") == {"a": True, "b": True, "c": True}
    assert eligible(known, "none") == {"a": True, "b": True, "c": True}  # any of them says so
    assert eligible(known, "") == {"a": True, "b": True, "c": True}


def test_a_server_that_has_said_nothing_may_have_the_task() -> None:
    known = KnownReplicas()
    known.told(standing("a", spam=0))
    known.told(standing("b", spam=0))
    assert eligible(known, "topic") == {"a": False, "b": False, "c": True}
    assert eligible(known, "") == {"a": True, "b": True, "c": True}


def test_a_server_that_hangs_is_asked_rather_than_one_that_has_no_such_task() -> None:
    """To ask again may help after a 504; after a 404 it seems not to."""
    known = KnownReplicas()
    known.told(standing("a", spam=0))
    known.told(replace(standing("b", spam=0, topic=0), stuck=True))
    known.told(standing("c", spam=0))
    assert eligible(known, "topic") == {"a": False, "b": True, "c": False}
    one = request("1", "topic")
    known.begun(one)
    known.sent(one, "b")
    known.lost(one)
    assert eligible(known, "topic") == {"a": False, "b": True, "c": False}


def test_every_request_for_a_new_task_goes_where_it_is() -> None:
    """While Serve replaces servers one by one; each request is answered before the next comes."""
    known, router = KnownReplicas(), Affinity(2, 1000.0, FAIRNESS)
    known.told(standing("new", free=1 << 20, spam=0, topic=300_000))
    known.told(standing("old", free=1 << 20, spam=0))
    assert {router.choose(known.views(["new", "old"], "topic")) for _ in range(200)} == {0}


def test_a_server_of_an_older_version_does_not_say_whether_it_hangs() -> None:
    old = standing("a")
    del vars(old)["stuck"]
    assert not Standing(**vars(old)).stuck
    assert asdict(pickle.loads(pickle.dumps(old))) == asdict(standing("a"))


@dataclass
class Client:
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


JSON = ResponseStart(200, ((b"content-type", b"application/json"),))
STREAM = ResponseStart(200, ((b"Content-Type", b"text/event-stream; charset=utf-8"),))


def test_an_answer_is_kept_until_it_is_whole() -> None:
    client = Client()
    reply = Reply(client.send)

    async def take() -> None:
        for piece in (JSON, b'{"a":', b"1}"):
            await reply.take(piece)
            assert not reply.begun
        await reply.take(standing("a"))

    asyncio.run(take())
    assert client.body == b'{"a":1}'
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert client.sent[-1]["more_body"] is False


def test_a_stream_comes_as_it_is_made_and_says_why_it_ends() -> None:
    client = Client()
    reply = Reply(client.send)

    async def take() -> None:
        await reply.take(STREAM)
        assert not reply.begun
        await reply.take(b"data: 1\n\n")
        assert reply.begun
        assert client.body == b"data: 1\n\n"
        await reply.cut(ErrorDetail(message="over", type="server_error", code="server_ended"))

    asyncio.run(take())
    event = client.body.removeprefix(b"data: 1\n\ndata: ")
    assert json.loads(event)["error"]["code"] == "server_ended"
    assert [message.get("more_body") for message in client.sent] == [None, True, False]


@pytest.mark.parametrize(("path", "status"), [("/replicas", 200), ("/metrics", 404), ("/admin/budget", 404)])
def test_what_the_gateway_answers_itself(path: str, status: int) -> None:
    servers: Any = SimpleNamespace(options=lambda **_: None)
    gateway = Gateway(servers, Settings(token=TOKEN))

    def ask(*headers: tuple[bytes, bytes]) -> Response:
        return asyncio.run(gateway(Request({"type": "http", "path": path, "headers": headers})))

    assert ask((b"authorization", f"Bearer {TOKEN}".encode())).status_code == status
    refused = ask()
    kind = json.loads(bytes(refused.body))["error"]["type"]
    wanted = (401, "authentication_error") if status == 200 else (404, "not_found_error")
    assert (refused.status_code, kind) == wanted


@dataclass
class Servers:
    """A handle whose servers give these pieces and then raise these errors, one after the other."""

    answers: list[tuple[list[Piece], Exception | None]]
    asked: int = 0

    @property
    def answer(self) -> Servers:
        return self

    def options(self, **_: Any) -> Servers:
        return self

    def remote(self, _: ForwardedRequest) -> Any:
        self.asked += 1
        return Answer(*self.answers[min(self.asked, len(self.answers)) - 1])


@dataclass
class Answer:
    pieces: list[Piece]
    error: Exception | None

    async def __anext__(self) -> Piece:
        if self.pieces:
            return self.pieces.pop(0)
        raise self.error or StopAsyncIteration

    def __aiter__(self) -> Answer:
        return self

    def cancel(self) -> None:
        pass


def forwarded(servers: Any, task: str = "spam") -> Client:
    """What a client gets of a request."""
    client = Client()
    body = [{"type": "http.request", "body": json.dumps({"model": task}).encode(), "more_body": False}]

    async def receive() -> Any:
        return body.pop()

    scope: Any = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
    asyncio.run(Gateway(servers, Settings()).forward(scope, receive, client.send))
    return client


OOM = OutOfMemoryError("the node is low on memory")


def died() -> ActorDiedError:
    return ActorDiedError()


def test_another_server_is_asked_when_one_dies() -> None:
    servers = Servers([([JSON, b"{"], died()), ([], died()), ([JSON, b"{}", standing("b")], None)])
    assert forwarded(servers).body == b"{}"
    assert servers.asked == 3


@pytest.mark.parametrize(
    "error",
    [OwnerDiedError("a", None, ""), ObjectLostError("a", None, ""), NodeDiedError("b"), OOM],
)
def test_another_server_is_asked_when_a_machine_takes_an_answer_with_it(error: Exception) -> None:
    servers = Servers([([JSON, b"{"], error), ([JSON, b"{}", standing("b")], None)])
    assert forwarded(servers).body == b"{}"
    assert servers.asked == 2


@dataclass
class Routed(Servers):
    """Two servers, between which the gateway's router chooses. The first was killed, and Serve hasn't seen it."""

    router: Affinity = field(default_factory=lambda: Affinity(2, 0.0, FAIRNESS))

    def remote(self, request: ForwardedRequest) -> Any:
        self.asked += 1
        name = "ab"[self.router.choose(known_replicas().views(["a", "b"], request.task))]
        known_replicas().sent(request, name)
        return Answer([], OOM) if name == "a" else Answer([JSON, b"{}", standing("b")], None)


@pytest.fixture
def nothing_known() -> Iterator[None]:
    """A gateway's process that has just begun."""
    known_replicas.cache_clear()
    yield
    known_replicas.cache_clear()


@pytest.mark.usefixtures("nothing_known")
def test_a_server_that_was_killed_for_its_memory_is_asked_once() -> None:
    """Serve keeps it until health checks have failed, and it alone had the task in memory."""
    known_replicas().told(standing("a", spam=0))
    known_replicas().told(standing("b", spam=1000))
    servers = Routed([])
    for asked in (2, 3, 4):
        assert forwarded(servers).body == b"{}"
        assert servers.asked == asked


def test_no_server_runs_or_starts() -> None:
    servers = Servers([([], DeploymentUnavailableError(DeploymentID("servers")))])
    client = forwarded(servers)
    assert client.sent[0]["status"] == 503
    assert (b"retry-after", b"1") in client.sent[0]["headers"]
    error = json.loads(client.body)["error"]
    assert error["message"] == "expected a server, found none that runs or starts; ask again"
    assert error["type"] == "server_error"
    assert servers.asked == 1


def test_no_server_is_left() -> None:
    servers = Servers([([], died())])
    client = forwarded(servers)
    assert client.sent[0]["status"] == 503
    assert (b"retry-after", b"1") in client.sent[0]["headers"]
    assert servers.asked == 4


def test_a_request_that_takes_too_long_is_over_and_no_server_is_blamed() -> None:
    servers = Servers([([JSON, b"{"], asyncio.TimeoutError())])
    client = forwarded(servers)
    assert client.sent[0]["status"] == 504
    error = json.loads(client.body)["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "timeout")
    assert servers.asked == 1


def test_the_log_has_a_bounded_name_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    forwarded(Servers([([], died())]), "x" * 100_000)
    assert len(caplog.messages) == 4
    assert all("a request for 'xxx" in message and len(message) < 200 for message in caplog.messages)


@pytest.mark.parametrize(
    ("error", "code"),
    [(died(), "server_ended"), (OOM, "server_ended"), (asyncio.TimeoutError(), "timeout")],
)
def test_a_stream_that_has_begun_is_not_begun_again(error: Exception, code: str) -> None:
    servers = Servers([([STREAM, b"data: 1\n\n"], error)])
    client = forwarded(servers)
    assert servers.asked == 1
    assert client.body.startswith(b"data: 1\n\ndata: {")
    assert json.loads(client.body.rpartition(b"data: ")[2])["error"]["code"] == code
    assert [message["type"] for message in client.sent].count("http.response.start") == 1


@pytest.fixture
def replica(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerReplica]:
    """A server, made as Serve does."""
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="a"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setenv("WEIGHTPAGER_THREADS", "1")
    found = ServerReplica(str(assistant_bundle), Settings(), 1, {})
    yield found
    found._service.close()


def classified(replica: ServerReplica, task: str) -> list[Piece]:
    """A server's answer to a request for a task."""

    async def pieces() -> list[Piece]:
        body = json.dumps({"model": task, "input": "sun"}).encode()
        headers = ((b"content-type", b"application/json"),)
        asked = ForwardedRequest("1", task, "POST", "/v1/classifications", b"", headers, body)
        return [piece async for piece in replica.answer(asked)]

    return asyncio.run(pieces())


def test_a_server_tells_what_it_lacks_of_every_task(replica: ServerReplica) -> None:
    tasks = set(replica._service.engine.bundle.tasks)
    before = replica.standing().lacks
    assert set(before) == tasks
    assert before["weather"] > 0
    *_, last = classified(replica, "weather")
    assert isinstance(last, Standing)
    assert set(last.lacks) == tasks
    assert last.lacks["weather"] == 0


def test_an_unforeseen_failure_has_openais_form(replica: ServerReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a private matter")

    monkeypatch.setattr(EncodingKind, "encode", broken)
    start, body, last = classified(replica, "weather")
    assert isinstance(start, ResponseStart)
    assert start.status == 500
    assert b"x-request-id" in dict(start.headers)
    assert isinstance(body, bytes)
    assert json.loads(body)["error"]["message"] == "the server failed; its log says why"
    assert isinstance(last, Standing)


def test_a_server_is_replaced_once_a_step_takes_longer_than_a_request_may(
    replica: ServerReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = Settings().timeout
    assert not replica.standing().stuck
    monkeypatch.setattr(Worker, "busy", most - 1)
    assert not replica._service.ready  # a balancer would send requests elsewhere
    assert replica.standing().stuck  # so does the gateway
    replica.check_health()
    monkeypatch.setattr(Worker, "busy", most + 1)
    with pytest.raises(WeightpagerError, match=f"at most {most:g} seconds"):
        replica.check_health()
    monkeypatch.setattr(Worker, "alive", False)
    with pytest.raises(WeightpagerError, match="worker runs, found it ended"):
        replica.check_health()


@pytest.mark.parametrize(
    ("busy", "waiting", "servers"),
    [
        ([0.0], [0.0], 1),
        ([0.7], [0.0], 1),
        ([0.8], [0.0], 2),
        ([0.7, 0.7], [0.0, 0.0], 2),
        ([0.1, 0.1, 0.1], [0.0] * 3, 1),
        ([1.0, 1.0], [8.0, 16.0], 3),
        ([1.0], [80.0], 10),
    ],
)
def test_as_many_servers_as_the_load_needs(busy: list[float], waiting: list[float], servers: int) -> None:
    assert wanted(busy, waiting, LoadAim()) == servers


def test_serve_asks_for_them() -> None:
    metrics = {"busy": {"a": 0.9, "b": 0.9}, "waiting": {"a": 1.0, "b": 2.0}}
    context: Any = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=2)
    assert policy(context) == (3, {})
    silent: Any = SimpleNamespace(aggregated_metrics={}, target_num_replicas=2)
    assert policy(silent) == (2, {})  # no server has said a word yet


@pytest.mark.parametrize(
    ("field_name", "value"), [("busy", 0.0), ("busy", 1.1), ("waiting", 0.0), ("waiting", float("nan"))]
)
def test_an_aim_that_is_none(field_name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field_name}: expected"):
        LoadAim(**{field_name: value})
