# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Docker's events, from an engine of the test's own that the real SDK talks to."""

from __future__ import annotations

import http.server
import json
import queue
import select
import socketserver
import threading
import time
import typing as t
import urllib.parse
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._events import (
    Connected,
    Event,
    Gone,
    Lost,
    Mailbox,
    Message,
    NotInspected,
    Watcher,
    parse_event,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerGone, Inspection

ID = "a" * 64
NETWORK = "b" * 64

# As Engine 20.10 sends them; newer ones leave status, id and from out.
CREATE = {
    "status": "create",
    "id": ID,
    "from": "workload",
    "Type": "container",
    "Action": "create",
    "Actor": {"ID": ID, "Attributes": {"image": "workload", "name": "web", "com.example.tier": "front"}},
    "scope": "local",
    "time": 1700000000,
    "timeNano": 1700000000123456789,
}
CONNECT = {
    "Type": "network",
    "Action": "connect",
    "Actor": {"ID": NETWORK, "Attributes": {"container": ID, "name": "bridge", "type": "bridge"}},
    "scope": "local",
    "time": 1700000000,
    "timeNano": 1700000000223456789,
}


def test_events_of_a_real_engine() -> None:
    assert parse_event(CREATE) == Event("container", "create", ID, "", "web", {"com.example.tier": "front"})
    assert parse_event(CONNECT) == Event("network", "connect", ID, NETWORK)
    made = {"Type": "network", "Action": "create", "Actor": {"ID": NETWORK, "Attributes": {"name": "n"}}}
    assert parse_event(made) == Event("network", "create", "", NETWORK)
    assert parse_event({**CREATE, "Type": "image"}) is None


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        "x",
        {},
        {"Type": "container"},
        {"Type": "container", "Action": "create"},
        {"Type": "container", "Action": "create", "Actor": None},
        {"Type": "container", "Action": "create", "Actor": {"ID": 7}},
        {"Type": "container", "Action": ["create"], "Actor": {"ID": ID}},
        {"Type": "container", "Action": "create", "Actor": {"ID": ID, "Attributes": {"a": 1}}},
        {"Type": "network", "Action": "connect", "Actor": {"ID": NETWORK, "Attributes": {}}},
        {"Type": "network", "Action": "connect", "Actor": {"ID": NETWORK, "Attributes": []}},
    ],
)
def test_what_is_not_understood_is_told_so(item: t.Any) -> None:
    """Then only a look at everything can tell what happened."""
    assert parse_event(item) == Event("", "")


def test_the_mailbox_wakes_and_keeps_order() -> None:
    mailbox = Mailbox()
    try:
        assert mailbox.take() == []
        sent = [Gone(str(number)) for number in range(100_000)]  # more than a pipe holds
        for message in sent:
            mailbox.put(message)
        assert select.select([mailbox], [], [], 0)[0]
        assert mailbox.take() == sent
        assert not select.select([mailbox], [], [], 0)[0]
        mailbox.wake()
        assert select.select([mailbox], [], [], 0)[0]
        assert mailbox.take() == []
    finally:
        mailbox.close()
    mailbox.wake()  # by a thread that ends later


# The threads, with an engine by hand


class Engine:
    """An engine: one script for each connection, and answers to inspections."""

    def __init__(self, *scripts: t.Any) -> None:
        self.scripts = list(scripts)
        self.connections: t.List[float] = []
        self.inspections: t.Dict[str, t.Any] = {}
        self.blocked: queue.SimpleQueue[t.Any] = queue.SimpleQueue()

    def connect(self) -> t.Any:
        self.connections.append(time.monotonic())
        script = self.scripts.pop(0) if self.scripts else DockerError("Docker does not answer.")
        if isinstance(script, Exception):
            raise script
        return Client(self, script)


class Client:
    def __init__(self, engine: Engine, script: t.Any) -> None:
        self.engine = engine
        self.script = script

    def keeps_containers(self) -> bool:
        return True

    def events(self) -> t.Any:
        return Stream(self.engine, self.script)

    def inspect(self, identity: str) -> t.Any:
        answer = self.engine.inspections.get(identity, DockerGone("No such container: %s" % identity))
        if isinstance(answer, Exception):
            raise answer
        return answer


class Stream:
    """Blocks at its end, until it is closed, if the script ends with an ellipsis."""

    def __init__(self, engine: Engine, script: t.Any) -> None:
        self.engine = engine
        self.script = iter(script)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> t.Any:
        item = next(self.script)
        if item is ...:
            self.engine.blocked.get()
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.engine.blocked.put(None)


def collect(mailbox: Mailbox, wanted: int, seconds: float = 5.0) -> t.List[Message]:
    """So many messages, at least."""
    found: t.List[Message] = []
    deadline = time.monotonic() + seconds
    while len(found) < wanted:
        left = deadline - time.monotonic()
        assert left > 0, found
        select.select([mailbox], [], [], left)
        found += mailbox.take()
    return found


@pytest.fixture
def mailbox() -> t.Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.close()


def started(engine: Engine, mailbox: Mailbox, **options: t.Any) -> Watcher:
    watcher = Watcher(engine.connect, mailbox, delays=(0.01, 0.04), **options)
    watcher.start()
    return watcher


def ended(watcher: Watcher) -> bool:
    watcher.stop(5)
    return not any(thread.is_alive() for thread in watcher._threads)


def test_a_created_container_is_inspected_at_once(mailbox: Mailbox) -> None:
    engine = Engine([CREATE, CONNECT, ...])
    inspection: t.Any = Inspection(t.cast(t.Any, None), (), False)
    engine.inspections[ID] = inspection
    watcher = started(engine, mailbox)
    found = collect(mailbox, 4)
    assert isinstance(found[0], Connected)
    assert found[0].keeps_containers
    assert [item for item in found if isinstance(item, Event)] == [parse_event(CREATE), parse_event(CONNECT)]
    assert inspection in found[2:]
    assert ended(watcher)


def test_inspections_that_fail_are_told(mailbox: Mailbox) -> None:
    engine = Engine([...])
    engine.inspections["bad"] = KeyError("Id")
    watcher = started(engine, mailbox)
    collect(mailbox, 1)
    watcher.inspect("gone")
    watcher.inspect("bad")
    found = collect(mailbox, 2)
    assert Gone("gone") in found
    assert NotInspected("bad", "'Id'") in found
    assert ended(watcher)


def test_it_comes_back_when_docker_does(mailbox: Mailbox) -> None:
    engine = Engine([], DockerError("Docker does not answer (x)."), [KeyError("y")], [CONNECT, ...])
    watcher = started(engine, mailbox)
    kinds = [type(item).__name__ for item in collect(mailbox, 7)]
    assert kinds == ["Connected", "Lost", "Lost", "Connected", "Lost", "Connected", "Event"]
    assert ended(watcher)


def test_attempts_become_rarer(mailbox: Mailbox) -> None:
    engine = Engine()
    watcher = started(engine, mailbox)
    assert all(isinstance(item, Lost) for item in collect(mailbox, 6))
    assert ended(watcher)
    gaps = [two - one for one, two in zip(engine.connections, engine.connections[1:])]
    assert gaps[0] >= 0.01
    assert gaps[1] >= 0.02
    assert all(gap >= 0.04 for gap in gaps[2:])


def test_a_docker_that_somebody_stopped_is_not_started(mailbox: Mailbox) -> None:
    engine = Engine([...])
    may = [False]
    watcher = started(engine, mailbox, may_connect=lambda: may[0])
    assert all(isinstance(item, Lost) for item in collect(mailbox, 3))
    assert engine.connections == []
    may[0] = True
    deadline = time.monotonic() + 5
    while not engine.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(engine.connections) == 1
    assert ended(watcher)


# The real SDK


class Api(http.server.BaseHTTPRequestHandler):
    """As much of the API of an engine as is asked for; ``server.chunks`` are sent as events."""

    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "test"

    def log_message(self, format: str, *args: t.Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        server: t.Any = self.server
        path, _mark, query = self.path.partition("?")
        path = path[path.index("/", 1) :] if path.startswith("/v1.") else path
        server.asked.append(path)
        if path == "/events":
            server.filters = json.loads(urllib.parse.parse_qs(query)["filters"][0])
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                chunk = server.chunks.get()
                if chunk is None:
                    self.close_connection = True
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
        answer = server.answers.get(path)
        body = json.dumps({"message": "no such thing"} if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class ApiServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str) -> None:
        super().__init__(path, Api)
        self.asked: t.List[str] = []
        self.chunks: queue.Queue[t.Optional[bytes]] = queue.Queue()
        self.filters: t.Dict[str, t.List[str]] = {}
        self.answers: t.Dict[str, t.Any] = {
            "/version": {"ApiVersion": "1.41", "Version": "20.10.24"},
            "/info": {"LiveRestoreEnabled": False},
            "/containers/json": [],
            "/networks": [],
        }


@pytest.fixture
def api(tmp_path: Path) -> t.Iterator[ApiServer]:
    with ApiServer(str(tmp_path / "docker.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.chunks.put(None)
        server.shutdown()
        thread.join()


# The other Pythons' environments have no SDK.
@pytest.mark.big
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sdk_hears_events_and_comes_back(api: ApiServer, mailbox: Mailbox) -> None:
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

    socket = "unix://%s" % api.server_address
    api.answers["/containers/%s/json" % ID] = {
        "Id": ID,
        "Name": "/web",
        "State": {"Status": "created"},
        "HostConfig": {"NetworkMode": "default", "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
        "Config": {"Labels": None},
        "NetworkSettings": {"Networks": {"bridge": {"NetworkID": "", "IPAddress": ""}}, "Ports": {}},
    }
    api.answers["/networks/" + NETWORK] = {
        "Id": NETWORK,
        "Name": "bridge",
        "Driver": "bridge",
        "Options": {"com.docker.network.bridge.name": "docker0"},
        "Containers": {
            ID: {"IPv4Address": "172.17.0.2/16", "IPv6Address": ""},
            "ep-1": {"IPv4Address": "172.17.0.9/16"},
        },
    }
    watcher = Watcher(lambda: Docker(socket, timeout=5), mailbox, delays=(0.01, 0.04))
    watcher.start()
    connected = collect(mailbox, 1)[0]
    assert isinstance(connected, Connected)
    assert not connected.keeps_containers
    docker = connected.docker

    # Two events in one piece, and one in two.
    api.chunks.put(json.dumps(CREATE).encode() + b"\n" + json.dumps(CONNECT).encode() + b"\n")
    found = collect(mailbox, 3)
    assert [item for item in found if isinstance(item, Event)] == [parse_event(CREATE), parse_event(CONNECT)]
    inspection = next(item for item in found if isinstance(item, Inspection))
    assert (inspection.container.name, inspection.bindings[0].host_port) == ("web", 8080)
    text = json.dumps(CONNECT).encode()
    api.chunks.put(text[:20])
    api.chunks.put(text[20:] + b"\n")
    assert collect(mailbox, 1) == [parse_event(CONNECT)]
    assert set(api.filters["type"]) == {"container", "network"}
    assert {"create", "start", "die", "destroy", "rename", "connect", "disconnect"} <= set(api.filters["event"])

    # What the loop asks, while the stream goes on.
    network, addresses = docker.network_endpoints(NETWORK)
    assert (network.bridge, addresses) == ("docker0", {ID: ("172.17.0.2",)})
    with pytest.raises(DockerGone):
        docker.network_endpoints("c" * 64)
    assert docker.inventory().containers == ()

    # The stream ends, in the middle or not, or holds nonsense: it is heard again, and Docker was lost in between.
    for last in (None, text[:30], b"{nonsense}\n"):
        if last is not None:
            api.chunks.put(last)
        api.chunks.put(None)
        kinds = [type(item).__name__ for item in collect(mailbox, 2)]
        assert kinds == ["Lost", "Connected"]
    api.chunks.put(text + b"\n")
    assert collect(mailbox, 1) == [parse_event(CONNECT)]
    assert ended(watcher)
