# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What happens in Docker, as messages for the follower's one loop.

Threads of ours block on Docker's sockets and put what they hear into a mailbox; its file descriptor wakes the loop.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import threading
import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerGone, Inspection

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

CONTAINER = "container"
NETWORK = "network"

#: Seconds between two attempts to reach Docker: the first, and the longest. A Docker that starts has its containers run
#: before it answers, and what is allowed shall soon pass.
FIRST_DELAY = 0.2
LAST_DELAY = 1.0
#: A stream of events that ends sooner than this many seconds after it began counts as a failed attempt.
SHORT_LIVED = 1.0
#: One inspection may take as long as a container's start, and a hundred may be wanted at once.
INSPECTORS = 4


class Event(t.NamedTuple):
    """Something that happened to a container or network, or to both (connect, disconnect).

    ``kind`` is empty for what could not be understood. ``name`` and ``labels`` are the container's.
    """

    kind: str
    action: str
    container: str = ""
    network: str = ""
    name: str = ""
    labels: t.Mapping[str, str] = {}


class Connected(t.NamedTuple):
    """Docker answers, and its events are heard from now on. ``keeps_containers``: they run on without the daemon."""

    docker: Docker
    keeps_containers: bool


class Lost(t.NamedTuple):
    """Docker does not answer, in one sentence."""

    reason: str


class Gone(t.NamedTuple):
    """The container that should be inspected was removed meanwhile."""

    container: str


class NotInspected(t.NamedTuple):
    """The container could not be inspected, in one sentence."""

    container: str
    reason: str


Message = t.Union[Event, Connected, Lost, Inspection, Gone, NotInspected]


def parse_event(item: t.Any) -> t.Optional[Event]:
    """One event of C(GET /events); None if it is of no interest."""
    try:
        kind, action = item["Type"], item["Action"]
        if kind not in (CONTAINER, NETWORK):
            return None
        attributes = item["Actor"].get("Attributes") or {}
        identity = _text(item["Actor"]["ID"])
        if kind == NETWORK:
            joins = action in ("connect", "disconnect")
            return Event(kind, _text(action), _text(attributes["container"]) if joins else "", identity)
        labels = {_text(key): _text(value) for key, value in attributes.items() if key not in ("image", "name")}
        return Event(kind, _text(action), identity, "", _text(attributes.get("name") or identity[:12]), labels)
    except (AttributeError, KeyError, TypeError):
        return Event("", "")


def _text(value: t.Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


class Mailbox:
    """Messages of threads for one reader, who sleeps on :meth:`fileno` until there is something."""

    def __init__(self) -> None:
        self._messages: t.Deque[Message] = collections.deque()
        self._reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._reader

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self.wake()

    def wake(self) -> None:
        """A full pipe wakes the reader just as well, and a closed one has none."""
        with contextlib.suppress(OSError):
            os.write(self.writer, b"\0")

    def take(self) -> t.List[Message]:
        """All messages that are there."""
        # The pipe first: what comes in between wakes the reader once too often, never once too seldom.
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        messages: t.List[Message] = []
        while self._messages:
            messages.append(self._messages.popleft())
        return messages

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)


class Watcher:
    """Listens to Docker in threads of its own, and comes back whenever Docker does.

    :param connect: makes a client; raises an error with one sentence if Docker does not answer.
    :param mailbox: gets the messages.
    :param may_connect: False while asking would start a Docker that somebody stopped.
    """

    def __init__(
        self,
        connect: t.Callable[[], Docker],
        mailbox: Mailbox,
        may_connect: t.Callable[[], bool] = lambda: True,
        delays: t.Tuple[float, float] = (FIRST_DELAY, LAST_DELAY),
    ) -> None:
        self._connect = connect
        self._mailbox = mailbox
        self._may_connect = may_connect
        self._delays = delays
        self._stopping = threading.Event()
        self._docker: t.Optional[Docker] = None
        self._stream: t.Any = None
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._watch, name="events", daemon=True)]
        for number in range(INSPECTORS):
            name = "inspector-%d" % number
            self._threads.append(threading.Thread(target=self._inspect_all, name=name, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, wait: float = 0.5) -> None:
        """End the threads; one that Docker keeps waiting for longer than that many seconds dies with the process."""
        self._stopping.set()
        for _thread in self._threads[1:]:
            self._wanted.put("")
        with contextlib.suppress(Exception):  # the SDK reaches into the connection, whatever state that is in
            self._stream.close()
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def inspect(self, container: str) -> None:
        """Have the container inspected; the answer is a message."""
        self._wanted.put(container)

    def _watch(self) -> None:
        delay = self._delays[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            connected = False
            try:
                if not self._may_connect():
                    raise ConnectionError("Docker is stopped, and asking its socket would start it.")
                docker = self._connect()
                self._stream = docker.events()
                self._docker = docker
                connected = True
                self._mailbox.put(Connected(docker, docker.keeps_containers()))
                for item in self._stream:
                    self._hear(item)
                reason = "Docker ended its stream of events."
            except Exception as error:  # noqa: BLE001 -- whatever it is, the next attempt may go better
                # The short sentence of DockerSilent is without advice for policies.
                reason = str(getattr(error, "short", error)) or repr(error)
            if connected and time.monotonic() - began >= SHORT_LIVED:
                # Perhaps it was only the stream that ended. Whether Docker answers, the next attempt tells.
                delay = self._delays[0]
                continue
            self._mailbox.put(Lost(reason))
            self._stopping.wait(delay)
            delay = min(2 * delay, self._delays[1])

    def _hear(self, item: t.Any) -> None:
        event = parse_event(item)
        if event is None:
            return
        self._mailbox.put(event)
        if event.kind == CONTAINER and event.action == "create":
            # At once, and not when the loop has time: as soon as it starts, Docker answers no more until it runs.
            self.inspect(event.container)

    def _inspect_all(self) -> None:
        while True:
            container = self._wanted.get()
            if self._stopping.is_set():
                return
            docker = self._docker
            if docker is None:
                self._mailbox.put(NotInspected(container, "Docker does not answer."))
                continue
            try:
                self._mailbox.put(docker.inspect(container))
            except DockerGone:
                self._mailbox.put(Gone(container))
            except Exception as error:  # noqa: BLE001 -- one bad container must not end the inspections
                self._mailbox.put(NotInspected(container, str(error) or repr(error)))
