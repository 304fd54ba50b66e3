# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The follower with an engine and a reconciler by hand: what it knows, when it runs, and what it says."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _follower
from ansible_collections.quaywall.docker.plugins.module_utils._events import (
    Connected,
    Event,
    Gone,
    Lost,
    Mailbox,
    Message,
    NotInspected,
)
from ansible_collections.quaywall.docker.plugins.module_utils._follower import (
    ERROR,
    EXPECTED,
    Follower,
    Journal,
    Known,
    Processes,
    main,
    may_ask_docker,
    notify,
    one_line,
    sentence,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    DockerError,
    DockerGone,
    Inspection,
    Inventory,
    Network,
    to_stored,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError

A, B, C = "a" * 64, "b" * 64, "c" * 64
NET, OTHER = "1" * 64, "2" * 64
BRIDGE = Network("bridge", NET, "bridge", "docker0", False, ("172.17.0.0/16",))
APP = Network("app", OTHER, "bridge", "br-222222222222", False, ("172.18.0.0/16",))
BINDING = Binding("tcp", 8080, 9000, "", True)


def container(identity: str, name: str, *addresses: str, running: t.Optional[bool] = None) -> Container:
    up = bool(addresses) if running is None else running
    return Container(name, identity, up, "default", {}, {"bridge": addresses}, {"bridge": NET}, ())


class Outcome(t.NamedTuple):
    """As that of the reconciler."""

    changed: bool = False
    messages: t.Tuple[str, ...] = ()
    waiting: t.Mapping[str, str] = {}
    warnings: t.Tuple[str, ...] = ()


class Docker:
    """An engine of the test's own."""

    def __init__(self, *containers: Container) -> None:
        self.containers = {item.id: item for item in containers}
        self.networks: t.Dict[str, t.Tuple[Network, t.Dict[str, t.Tuple[str, ...]]]] = {NET: (BRIDGE, {})}
        self.fixed: t.Dict[str, t.Any] = {}
        self.errors: t.List[Exception] = []
        self.asked: t.List[str] = []

    def inventory(self) -> Inventory:
        self.asked.append("all")
        if self.errors:
            raise self.errors[0]
        networks = {item.name: item for item, _members in self.networks.values()}
        return Inventory(tuple(self.containers.values()), networks)

    def network_endpoints(self, identity: str) -> t.Tuple[Network, t.Dict[str, t.Tuple[str, ...]]]:
        self.asked.append("network " + identity[:1])
        if self.errors:
            raise self.errors[0]
        if identity not in self.networks:
            raise DockerGone("No such network.")
        return self.networks[identity]

    def inspect(self, identity: str) -> Inspection:
        self.asked.append("inspect " + identity[:1])
        found = self.fixed.get(identity, ())
        if isinstance(found, Exception):
            raise found
        return Inspection(self.containers[identity], found, False)


class Store:
    path = "/etc/quaywall/policies.json"

    def __init__(self, document: t.Optional[t.Dict[str, t.Any]] = None) -> None:
        self.document = document
        self.written = 0
        self.errors: t.List[Exception] = []

    def read_inventory(self) -> t.Optional[t.Dict[str, t.Any]]:
        return self.document

    def write_inventory(self, document: t.Dict[str, t.Any]) -> None:
        if self.errors:
            raise self.errors[0]
        self.document = document
        self.written += 1


class Lines(Journal):
    """A journal that is a list."""

    def __init__(self) -> None:
        self.lines: t.List[str] = []
        self.errors: t.List[str] = []

    def say(self, text: str, level: int = 6) -> None:
        self.lines.append(text)
        if level <= ERROR:
            self.errors.append(text)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def known(
    docker: t.Optional[Docker] = None, store: t.Optional[Store] = None, clock: t.Optional[Clock] = None
) -> t.Tuple[Known, t.List[str], Lines]:
    asked: t.List[str] = []
    journal = Lines()
    made = Known(t.cast(t.Any, store or Store()), journal, asked.append, clock or Clock())
    if docker is not None:
        assert not made.hear([connected(docker)])
        made.look()
    return made, asked, journal


def connected(docker: Docker, keeps: bool = False) -> Connected:
    return Connected(t.cast(t.Any, docker), keeps)


def addresses(made: Known) -> t.Dict[str, t.Tuple[str, ...]]:
    assert made.inventory is not None
    return {
        item.name: tuple(sorted(address for found in item.networks.values() for address in found))
        for item in made.inventory.containers
    }


def event(action: str, identity: str, name: str = "", **labels: str) -> Event:
    return Event("container", action, identity, "", name, labels)


def join(action: str, identity: str, network: str = NET) -> Event:
    return Event("network", action, identity, network)


# What is known -------------------------------------------------------------------------------------------------------


def test_a_container_is_followed_from_its_creation_to_its_end() -> None:
    docker = Docker()
    made, asked, _journal = known(docker)
    # No rule comes of a name alone, and a run now would be in the way of who inspects it.
    assert not made.hear([event("create", A, "web", tier="front")])
    docker.containers[A] = container(A, "web", running=False)
    assert made.hear([Inspection(docker.containers[A], (BINDING,), False)])
    found = made.inventory.container("web") if made.inventory else None
    assert found is not None
    assert made.bindings(found) == (BINDING,)
    # The list of all containers has no address yet; the network has.
    docker.asked.clear()
    docker.networks[NET] = (BRIDGE, {A: ("172.17.0.2",)})
    assert made.hear([join("connect", A)])
    assert docker.asked == ["network 1"]
    assert addresses(made) == {"web": ("172.17.0.2",)}
    assert not made.hear([event("start", A, "web")])
    # Engine 20.10: die, disconnect; later ones: disconnect, die.
    assert made.hear([event("die", A, "web")])
    assert addresses(made) == {"web": ()}
    assert not made.hear([join("disconnect", A)])
    assert made.hear([event("destroy", A, "web")])
    assert addresses(made) == {}
    assert not asked


def test_an_address_is_taken_away_before_another_gets_it() -> None:
    docker = Docker(container(A, "old", "172.17.0.2"), container(B, "new", running=False))
    made, _asked, _journal = known(docker)
    docker.networks[NET] = (BRIDGE, {B: ("172.17.0.2",)})
    # Even if the events of the old one are still to come.
    assert made.hear([join("connect", B)])
    assert addresses(made) == {"old": (), "new": ("172.17.0.2",)}


def test_many_joins_ask_each_network_once() -> None:
    docker = Docker(*(container(identity, identity[0], running=False) for identity in (A, B, C)))
    made, _asked, _journal = known(docker)
    docker.asked.clear()
    docker.networks[NET] = (BRIDGE, {A: ("172.17.0.2",), B: ("172.17.0.3",)})
    docker.networks[OTHER] = (APP, {C: ("172.18.0.2", "fd00::2")})
    assert made.hear([join("connect", A), join("connect", C, OTHER), join("connect", B), event("start", A)])
    assert docker.asked == ["network 1", "network 2"]
    assert addresses(made) == {"a": ("172.17.0.2",), "b": ("172.17.0.3",), "c": ("172.18.0.2", "fd00::2")}
    assert made.inventory is not None
    assert made.inventory.networks["app"] == APP


def test_a_network_that_is_gone_again() -> None:
    docker = Docker(container(A, "web", "172.17.0.2"))
    made, _asked, _journal = known(docker)
    del docker.networks[NET]
    assert made.hear([join("connect", A)])
    assert made.inventory is not None
    assert made.inventory.networks == {}
    docker.networks[OTHER] = (APP, {})
    assert made.hear([Event("network", "create", "", OTHER)])
    assert list(made.inventory.networks) == ["app"]
    assert made.hear([Event("network", "destroy", "", OTHER)])
    assert made.inventory.networks == {}


def test_static_addresses_stay() -> None:
    fixed = container(A, "web", "172.17.0.50")._replace(static={"bridge": ("172.17.0.50",)})
    made, _asked, _journal = known(Docker(fixed))
    made.hear([event("die", A), join("disconnect", A)])
    assert addresses(made) == {"web": ("172.17.0.50",)}


def test_a_renamed_container_and_one_that_takes_its_name() -> None:
    """As compose re-creates one."""
    made, _asked, _journal = known(Docker(container(A, "web", "172.17.0.2")))
    assert made.hear([event("rename", A, "aaaa_web"), event("create", B, "web")])
    assert addresses(made) == {"aaaa_web": ("172.17.0.2",), "web": ()}
    # Nobody told that the first is gone: two cannot have one name.
    made.hear([event("create", C, "web")])
    assert sorted(addresses(made)) == ["aaaa_web", "web"]


def _names(made: Known) -> t.List[str]:
    guarded = made.guarded()
    assert guarded is not None
    return sorted(item.name for item in guarded.containers)


def test_a_removed_container_is_expected_back() -> None:
    """Re-created, it may accept connections before its ports are known: those of its predecessor stay guarded."""
    clock = Clock()
    docker = Docker(container(A, "web", "172.17.0.2"), container(C, "other"))
    docker.fixed[A] = (BINDING,)
    made, _asked, _journal = known(docker, clock=clock)
    assert made.inventory is not None
    made.bindings(made.inventory.containers[0])
    made.hear([event("die", A, "web"), event("destroy", A, "web")])
    assert "web" not in addresses(made)
    assert _names(made) == ["other", "web"]
    guarded = made.guarded()
    assert guarded is not None
    left = guarded.container("web")
    assert left is not None
    assert (left.running, left.networks, made.bindings(left)) == (False, {"bridge": ()}, (BINDING,))
    # Its namesake is created, and its ports are those of its predecessor until it was inspected.
    made.hear([event("create", B, "web")])
    found = made.inventory.container("web") if made.inventory else None
    assert found is not None
    assert found.id == B
    assert made.bindings(found) == (BINDING,)
    assert _names(made) == ["other", "web"]
    made.hear([Inspection(container(B, "web", running=False), (), False)])
    assert made.bindings(found) == ()
    made.hear([event("destroy", B, "web")])
    assert _names(made) == ["other"]


def test_who_looks_later_expects_the_same_container_back() -> None:
    """One whose end nobody told of; and another process (``follow --check``), which knows only what was stored."""
    docker = Docker(container(A, "web", "172.17.0.2"))
    docker.fixed[A] = (BINDING,)
    store = Store()
    made, _asked, _journal = known(docker, store)
    assert made.inventory is not None
    made.bindings(made.inventory.containers[0])
    del docker.containers[A]
    made.look()
    assert _names(made) == ["web"]
    made.save(False)
    other, _asked, _journal = known(docker, store)
    assert addresses(other) == {}
    guarded = other.guarded()
    assert guarded is not None
    assert [(item.name, other.bindings(item)) for item in guarded.containers] == [("web", (BINDING,))]


@pytest.mark.parametrize("why", ["time", "another container has the port"])
def test_a_removed_container_is_not_expected_for_ever(why: str) -> None:
    clock = Clock()
    docker = Docker(container(A, "web", "172.17.0.2"), container(C, "other", running=False))
    docker.fixed[A] = (BINDING,)
    made, _asked, _journal = known(docker, clock=clock)
    assert made.inventory is not None
    made.bindings(made.inventory.containers[0])
    made.hear([event("destroy", A, "web")])
    assert made.expected_until() == clock.now + EXPECTED
    if why == "time":
        clock.now += EXPECTED
    else:
        made.hear([Inspection(docker.containers[C], (BINDING,), False)])
    assert _names(made) == ["other"]
    assert made.expected_until() is None


def test_what_nobody_told_of() -> None:
    made, _asked, _journal = known(Docker())
    for strange in (event("start", A), event("die", A), Event("", ""), join("connect", A)):
        made.unsure = False
        made.hear([strange])
        assert made.unsure
    made.unsure = False
    made.hear([event("destroy", B), join("disconnect", B), Event("container", "unheard-of", A), Gone(B)])
    assert not made.unsure


def test_the_list_does_not_take_an_address_from_one_that_starts() -> None:
    clock = Clock()
    docker = Docker(container(A, "web", running=False), container(B, "runs", "172.17.0.3"))
    made, _asked, _journal = known(docker, clock=clock)
    del docker.containers[B]
    docker.networks[NET] = (BRIDGE, {B: ("172.17.0.3",)})
    made.hear([join("connect", B)])
    made.look()
    assert not made.unsure  # one that runs is whole in the list
    docker.networks[NET] = (BRIDGE, {A: ("172.17.0.2",)})
    made.hear([join("connect", A)])
    made.look()
    assert addresses(made) == {"web": ("172.17.0.2",)}
    assert made.unsure  # until it has started
    clock.now += 61
    made.look()
    assert addresses(made) == {"web": ()}
    assert not made.unsure


def test_an_inspection_brings_no_old_address_back() -> None:
    """It may have waited in the box while the container ended."""
    docker = Docker(container(A, "web", "172.17.0.2"))
    made, _asked, _journal = known(docker)
    made.hear([event("die", A), Inspection(container(A, "web", "172.17.0.2"), (BINDING,), False)])
    assert addresses(made) == {"web": ()}
    made.hear([event("destroy", A), Inspection(container(A, "web", "172.17.0.2"), (BINDING,), False)])
    assert addresses(made) == {}


def test_ports_that_docker_chooses_are_asked_for_when_it_runs() -> None:
    made, asked, _journal = known(Docker(container(A, "web", running=False)))
    made.hear([event("create", A, "web"), Inspection(container(A, "web", running=False), (), True)])
    assert asked == []
    made.hear([event("start", A)])
    assert asked == [A]
    chosen = Binding("tcp", 8080, 32768, "0.0.0.0", False)
    assert made.hear([Inspection(container(A, "web", "172.17.0.2")._replace(current_ports=(chosen,)), (), True)])
    assert made.inventory is not None
    assert made.inventory.containers[0].current_ports == (chosen,)


def test_one_bad_container_is_told_once_and_keeps_nobody_waiting() -> None:
    docker = Docker(container(A, "bad", "172.17.0.2"), container(B, "good", "172.17.0.3"))
    docker.fixed = {A: DockerError("Docker refused it."), B: (BINDING,)}
    made, asked, journal = known(docker)
    assert made.inventory is not None
    for _time in range(3):
        assert [made.bindings(item) for item in made.inventory.containers] == [(), (BINDING,)]
    assert journal.lines == ["Container aaaaaaaaaaaa cannot be inspected: Docker refused it."]
    # Which may take its time: no run waits for it once more.
    assert docker.asked.count("inspect a") == 1
    assert made.unsure
    made.ask_for_the_rest()
    made.ask_for_the_rest()
    assert asked == [A]
    made.hear([NotInspected(A, "Docker refused it.")])
    assert len(journal.lines) == 1
    assert made.bindings(made.inventory.containers[0]) == ()
    assert docker.asked.count("inspect a") == 1
    made.ask_for_the_rest()
    assert asked == [A, A]
    # While it is asked for, nobody waits.
    docker.asked.clear()
    assert made.bindings(made.inventory.containers[0]) == ()
    assert docker.asked == []


@pytest.mark.parametrize("keeps", [False, True])
def test_when_docker_goes(keeps: bool) -> None:
    """Without live-restore its containers stop with it, and their addresses may be others' when it is back."""
    docker = Docker(container(A, "web", "172.17.0.2"))
    made, _asked, _journal = known()
    made.hear([connected(docker, keeps)])
    made.look()
    made.hear([Lost("gone")])
    assert addresses(made) == {"web": ("172.17.0.2",) if keeps else ()}
    assert made.docker is None
    assert not made.look()


def test_what_is_remembered() -> None:
    store = Store()
    docker = Docker(container(A, "web", "172.17.0.2"))
    docker.fixed = {A: (BINDING,)}
    made, _asked, _journal = known(docker, store)
    made.save(True)
    assert store.written == 0  # its bindings are not known yet
    assert made.inventory is not None
    made.bindings(made.inventory.containers[0])
    made.save(True)
    made.save(True)
    assert store.written == 1
    assert "172.17.0.2" not in str(store.document)

    docker.asked.clear()
    again, _asked, journal = known(None, store)
    assert addresses(again) == {"web": ()}
    assert again.ip6_dnat is True
    assert again.inventory is not None
    assert again.bindings(again.inventory.containers[0]) == (BINDING,)
    assert docker.asked == []
    assert journal.lines == []


def test_a_memory_that_somebody_spoilt() -> None:
    made, _asked, journal = known(None, Store({"containers": [{}], "networks": []}))
    assert made.inventory is None
    assert len(journal.lines) == 1


# When it runs --------------------------------------------------------------------------------------------------------


class Reconciler:
    """Notes what it is asked; ``outcomes`` are given out one by one, then nothing changes."""

    def __init__(self, clock: t.Optional[Clock] = None) -> None:
        self.runs: t.List[t.Tuple[float, t.Optional[Inventory]]] = []
        self.dnat: t.List[t.Optional[bool]] = []
        self.outcomes: t.List[t.Any] = []
        self.is_legacy = False
        self.ip6_dnat: t.Optional[bool] = None
        self.clock = clock or time.monotonic
        self.ran = threading.Event()
        self.dry = False
        self.always: t.Any = None

    def legacy(self) -> bool:
        return self.is_legacy

    def run(
        self,
        inventory: t.Optional[Inventory],
        bindings: t.Any,
        dry: bool = False,
        ip6_dnat: t.Optional[bool] = None,
    ) -> t.Any:
        self.runs.append((self.clock(), inventory))
        self.dnat.append(ip6_dnat)
        self.dry = dry
        for item in inventory.containers if inventory else ():
            bindings(item)
        outcome = self.outcomes.pop(0) if self.outcomes else self.always or Outcome()
        self.ran.set()
        if callable(outcome):
            outcome = outcome()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Watcher:
    def __init__(self) -> None:
        self.inspected: t.List[str] = []
        self.started = self.stopped = False
        self.first: t.List[Message] = []
        self.mailbox: t.Optional[Mailbox] = None

    def start(self) -> None:
        self.started = True
        for message in self.first:
            assert self.mailbox is not None
            self.mailbox.put(message)

    def stop(self) -> None:
        self.stopped = True

    def inspect(self, identity: str) -> None:
        self.inspected.append(identity)


class Listener:
    """Readable when somebody else changed something."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)

    def fileno(self) -> int:
        return self.reader.fileno()

    def tell(self) -> None:
        self.writer.send(b"x")

    def changed(self, _own: t.Container[int]) -> bool:
        try:
            return bool(self.reader.recv(100))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class Bench:
    """A follower whose time the test makes pass."""

    def __init__(self, *first: Message, store: t.Optional[Store] = None, listens: bool = True) -> None:
        self.clock = Clock()
        self.store = store or Store()
        self.reconciler = Reconciler(self.clock)
        self.watcher = Watcher()
        self.watcher.mailbox = self.mailbox = Mailbox()
        self.watcher.first = list(first)
        self.journal = Lines()
        self.listener = Listener()
        self.ready = 0
        self.known = Known(t.cast(t.Any, self.store), self.journal, self.watcher.inspect, self.clock)
        self.follower = Follower(
            t.cast(t.Any, self.reconciler),
            self.known,
            t.cast(t.Any, self.watcher),
            self.mailbox,
            self.journal,
            ready=self._ready,
            listen=self._listen if listens else self._deaf,
            clock=self.clock,
        )

    def _ready(self) -> None:
        self.ready += 1

    def _listen(self) -> t.Any:
        return self.listener

    @staticmethod
    def _deaf() -> t.Any:
        raise OSError(93, "Protocol not supported")

    def first(self) -> None:
        """Start, and let everything that follows from it be done."""
        self.watcher.start()
        self.follower._first()
        self.rest()

    def rest(self, seconds: float = 30) -> None:
        """Let time pass, from one thing that is due to the next."""
        end = self.clock.now + seconds
        while True:
            due = self.due()
            if due is None or due > end:
                break
            self.clock.now = max(self.clock.now, due)
            self.follower._step()
        self.clock.now = end

    def due(self) -> t.Optional[float]:
        follower = self.follower
        times = (follower._docker_at, follower._others_at, follower._retry_at, follower._look_at)
        return min((at for at in times if at is not None), default=None)

    def happens(self, *messages: Message) -> None:
        for message in messages:
            self.mailbox.put(message)
        self.follower._step()

    def changes(self) -> None:
        """Somebody else changes the rules."""
        self.listener.tell()
        self.follower._step()

    def close(self) -> None:
        self.listener.close()
        self.mailbox.close()


@pytest.fixture
def make_bench() -> t.Iterator[t.Callable[..., Bench]]:
    made: t.List[Bench] = []

    def make(*first: Message, **options: t.Any) -> Bench:
        made.append(Bench(*first, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def docker() -> Docker:
    found = Docker(container(A, "web", "172.17.0.2"))
    found.fixed = {A: (BINDING,)}
    return found


def test_at_rest_nothing_is_due(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    assert bench.ready == 1
    assert bench.due() is None
    assert bench.store.written == 1
    runs = len(bench.reconciler.runs)
    bench.rest(3600)
    assert len(bench.reconciler.runs) == runs
    assert bench.journal.lines == []


def test_at_boot_it_runs_without_docker_and_again_with_it(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    inventory = Inventory((container(A, "web", "172.17.0.2"),), {"bridge": BRIDGE})
    document = {**to_stored(inventory, lambda item: (BINDING,)), "ip6_dnat": True}
    bench = make_bench(Lost("Docker does not answer at unix:///x (connection refused)."), store=Store(document))
    bench.first()
    assert bench.ready == 1
    first = bench.reconciler.runs[0][1]
    assert first is not None
    assert first.containers[0].networks == {"bridge": ()}
    assert bench.reconciler.dnat[0] is True
    bench.happens(connected(docker))
    last = bench.reconciler.runs[-1][1]
    assert last is not None
    assert last.containers[0].networks == {"bridge": ("172.17.0.2",)}
    assert bench.reconciler.dnat[-1] is None
    bench.rest()
    assert bench.journal.lines == [
        "Docker does not answer at unix:///x (connection refused).",
        "Docker answers again.",
    ]


def test_a_docker_that_says_nothing_is_not_waited_for_long(make_bench: t.Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.follower._clock = time.monotonic
    began = time.monotonic()
    bench.watcher.start()
    bench.follower._first()
    assert len(bench.reconciler.runs) == 1
    assert bench.reconciler.runs[0][1] is None
    assert bench.ready == 1
    assert time.monotonic() - began < 10


def test_a_single_event_is_acted_on_at_once(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    docker.networks[NET] = (BRIDGE, {A: ("172.17.0.3",)})
    bench.reconciler.runs.clear()
    bench.happens(join("connect", A))
    assert [at for at, _inventory in bench.reconciler.runs] == [bench.clock.now]
    bench.rest(0.5)
    # Events that change no rule start no run.
    bench.reconciler.runs.clear()
    bench.happens(event("start", A))
    assert bench.reconciler.runs == []


def test_a_burst_is_few_runs(make_bench: t.Callable[..., Bench]) -> None:
    names = ["%064x" % number for number in range(100)]
    docker = Docker(*(container(name, name[-3:], running=False) for name in names))
    bench = make_bench(connected(docker))
    bench.first()
    bench.reconciler.runs.clear()
    bench.reconciler.always = Outcome(changed=True)
    members: t.Dict[str, t.Tuple[str, ...]] = {}
    last = bench.clock.now
    for number, name in enumerate(names):
        members[name] = ("172.17.1.%d" % number,)
        docker.networks[NET] = (BRIDGE, dict(members))
        bench.happens(join("connect", name))
        last = bench.clock.now
        bench.rest(0.02)
    bench.rest(0.9)
    # Two seconds of events: at once while they are few, then four times a second.
    assert 5 <= len(bench.reconciler.runs) <= 20
    done, inventory = bench.reconciler.runs[-1]
    assert done - last <= 0.25
    assert inventory is not None
    assert sum(1 for item in inventory.containers if item.networks["bridge"]) == 100


def test_one_container_is_never_a_burst(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    bench.reconciler.always = Outcome(changed=True)
    for number in range(40):
        docker.networks[NET] = (BRIDGE, {A: ("172.17.0.%d" % (number + 3),)})
        bench.reconciler.runs.clear()
        bench.happens(join("connect", A))
        assert len(bench.reconciler.runs) == 1
        bench.rest(0.05)


def test_others_are_let_finish_what_they_do(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    """Docker takes its jump away and puts it back; in between there must be no third hand."""
    bench = make_bench(connected(docker))
    bench.first()
    bench.reconciler.runs.clear()
    began = bench.clock.now
    for _time in range(3):
        bench.changes()
        bench.clock.now += 0.01
    assert bench.reconciler.runs == []
    bench.rest(1)
    assert [at - began for at, _inventory in bench.reconciler.runs] == [pytest.approx(0.17)]
    # And those who never finish are not waited for.
    bench.reconciler.runs.clear()
    began = bench.clock.now
    while bench.clock.now < began + 1:
        bench.changes()
        bench.clock.now += 0.05
    assert bench.reconciler.runs[0][0] - began <= 0.56


def test_a_fight_is_told_once_and_taken_slowly(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    bench.reconciler.runs.clear()
    bench.reconciler.always = Outcome(changed=True)
    began = bench.clock.now
    while bench.clock.now < began + 50:
        bench.changes()
        bench.rest(0.3)
    told = [line for line in bench.journal.lines if "Another program" in line]
    assert len(told) == 1
    assert 20 <= len(bench.reconciler.runs) <= 20 + 12
    # When the minute is over and nobody fights, all is as before.
    bench.reconciler.always = None
    bench.rest(120)
    bench.reconciler.runs.clear()
    assert bench.due() is None
    bench.changes()
    bench.rest(1)
    assert len(bench.reconciler.runs) == 1


def test_containers_are_followed_during_a_fight(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    bench.follower._tired_until = bench.clock.now + 60
    docker.networks[NET] = (BRIDGE, {A: ("172.17.0.3",)})
    bench.reconciler.runs.clear()
    bench.happens(join("connect", A))
    assert len(bench.reconciler.runs) == 1


@pytest.mark.parametrize("why", ["legacy", "deaf"])
def test_who_is_not_told_looks_once_a_second(make_bench: t.Callable[..., Bench], docker: Docker, why: str) -> None:
    bench = make_bench(connected(docker), listens=why == "legacy")
    bench.reconciler.is_legacy = why == "legacy"
    bench.first()
    bench.reconciler.runs.clear()
    bench.rest(10)
    assert 9 <= len(bench.reconciler.runs) <= 11
    assert len(bench.journal.lines) == (0 if why == "legacy" else 1)


def test_an_error_is_told_once_and_tried_again(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    bench.reconciler.runs.clear()
    bench.reconciler.outcomes = [FirewallError("iptables-restore refused the rules: no.")] * 8
    bench.follower.reload()
    bench.happens()
    bench.rest(60)
    assert bench.journal.lines == ["iptables-restore refused the rules: no.", "Rules can be written again."]
    times = [at for at, _inventory in bench.reconciler.runs]
    gaps = [round(two - one, 3) for one, two in zip(times, times[1:])]
    assert gaps[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert bench.due() is None


def test_an_error_nobody_thought_of_ends_nothing(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.reconciler.outcomes = [ZeroDivisionError("division by zero")]
    bench.first()
    assert bench.ready == 1
    assert len(bench.reconciler.runs) > 1
    (line,) = bench.journal.errors
    assert "ZeroDivisionError" in line
    assert "test__follower.py:" in line


def test_a_network_that_cannot_be_asked_for(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    docker.errors.append(DockerError("Docker does not answer."))
    bench.happens(join("connect", A))
    assert bench.journal.errors == ["Docker does not answer."]
    docker.errors.clear()
    docker.containers[A] = container(A, "web", "172.17.0.9")
    bench.happens(event("start", A))
    bench.rest()
    last = bench.reconciler.runs[-1][1]
    assert last is not None
    assert last.containers[0].networks == {"bridge": ("172.17.0.9",)}
    assert bench.due() is None


def test_a_full_disk_is_told_and_ends_nothing(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    bench.store.errors.append(FirewallError("/var/lib/quaywall/inventory.json cannot be written (no space left)."))
    bench.first()
    assert bench.journal.errors == [str(bench.store.errors[0])]
    bench.store.errors.clear()
    bench.rest(10)
    assert bench.store.written == 1
    assert bench.due() is None


def test_what_was_not_tried_does_not_end_a_full_disk(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    """While a container is not inspected yet nothing is stored, and nothing says that it can be."""
    bench = make_bench(connected(docker))
    full = "/var/lib/quaywall/inventory.json cannot be written (no space left)."
    bench.store.errors.append(FirewallError(full))
    bench.first()
    docker.containers[B] = container(B, "new", running=False)
    bench.follower.reload()
    bench.happens(event("create", B, "new"))
    bench.rest(10)
    bench.happens(Inspection(docker.containers[B], (), False))
    bench.rest(10)
    assert bench.journal.lines == [full]
    bench.store.errors.clear()
    bench.rest(10)
    assert bench.journal.lines == [full, "What Docker has can be stored again."]


def test_what_waits_and_what_warns_is_said_when_it_is_new(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    bench = make_bench(connected(docker))
    waits = "There is no container admin; there is web."
    others = "There is no container admin; there is web, db."
    bench.reconciler.outcomes = [
        Outcome(True, ("wrote x",), {"admin-ui": waits}, ("a gap",)),
        Outcome(False, (), {"admin-ui": others}, ("a gap",)),
        Outcome(False, (), {}, ()),
        Outcome(False, (), {"admin-ui": waits}, ("a gap",)),
    ]
    bench.first()
    while bench.reconciler.outcomes:
        bench.follower.reload()
        bench.happens()
        bench.rest()
    lines = ["wrote x", "policy admin-ui waits: " + waits, "a gap", "policy admin-ui waits: " + waits]
    assert bench.journal.lines == lines
    bench.rest(3600)
    bench.reconciler.outcomes = [Outcome(False, (), {"admin-ui": waits}, ("a gap",))]
    bench.follower.reload()
    bench.happens()
    assert bench.journal.lines == [*lines, "a gap"]


def test_a_docker_that_is_about_to_stop_is_not_asked(make_bench: t.Callable[..., Bench], docker: Docker) -> None:
    """Its containers end, and a look at what is left would have systemd start it again."""
    bench = make_bench(connected(docker))
    bench.first()
    may = [False]
    bench.follower._may_ask = lambda: may[0]
    docker.asked.clear()
    bench.happens(event("die", A))
    bench.rest()
    assert docker.asked == []
    bench.happens(Lost("Docker is stopped, and asking its socket would start it."))
    bench.rest()
    assert bench.due() is None
    may[0] = True
    bench.happens(connected(docker))
    assert docker.asked == ["all"]


def test_events_that_never_pause_do_not_keep_it_from_looking(
    make_bench: t.Callable[..., Bench], docker: Docker
) -> None:
    bench = make_bench(connected(docker))
    bench.first()
    docker.asked.clear()
    for _time in range(70):
        bench.happens(event("start", A))
        bench.rest(0.1)
    assert "all" in docker.asked


# The process ---------------------------------------------------------------------------------------------------------


def wait_for(condition: t.Callable[[], t.Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run_process(
    monkeypatch: pytest.MonkeyPatch, reconciler: Reconciler, script: t.Callable[[], None], docker: Docker
) -> t.Tuple[int, Lines]:
    """C(main(["follow"])) in this thread, and a script in another."""
    journal = Lines()
    watchers: t.List[t.Any] = []

    class Made(Watcher):
        def __init__(self, _connect: t.Any, mailbox: Mailbox, _may: t.Any) -> None:
            super().__init__()
            self.mailbox = mailbox
            self.first = [connected(docker)]
            watchers.append(self)

    monkeypatch.setattr(_follower, "Journal", lambda: journal)
    monkeypatch.setattr(_follower, "Watcher", Made)
    monkeypatch.setattr(_follower, "make_store", Store)
    monkeypatch.setattr(_follower, "make_reconciler", lambda processes, store: reconciler)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    thread = threading.Thread(target=script)
    thread.start()
    try:
        code = main(["follow"])
    finally:
        thread.join()
    assert watchers[0].stopped
    return code, journal


def signalled(number: int) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_ends_it_at_once(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> None:
    reconciler = Reconciler()
    reconciler.is_legacy = True
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)]
    ended: t.List[float] = []

    def script() -> None:
        reconciler.ran.wait(10)
        time.sleep(0.1)
        ended.append(time.monotonic())
        signalled(signal.SIGTERM)

    code, journal = run_process(monkeypatch, reconciler, script, docker)
    assert code == 0
    assert time.monotonic() - ended[0] < 1
    assert journal.lines == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)] == handlers


def test_sigterm_lets_a_run_finish(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> None:
    reconciler = Reconciler()
    reconciler.is_legacy = True
    finished: t.List[bool] = []

    def slow() -> Outcome:
        time.sleep(0.3)
        finished.append(True)
        return Outcome(True, ("written",))

    reconciler.outcomes = [slow]

    def script() -> None:
        reconciler.ran.wait(10)
        signalled(signal.SIGTERM)

    code, journal = run_process(monkeypatch, reconciler, script, docker)
    assert (code, finished, journal.lines) == (0, [True], ["written"])


def test_sigterm_does_not_wait_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> None:
    monkeypatch.setattr(_follower, "GRACE", 0.2)
    reconciler = Reconciler()

    def hang() -> Outcome:
        Processes().run(["sleep", "60"], None, {}, ())
        raise AssertionError

    reconciler.outcomes = [hang]

    def script() -> None:
        reconciler.ran.wait(10)
        signalled(signal.SIGTERM)

    began = time.monotonic()
    assert run_process(monkeypatch, reconciler, script, docker)[0] == 0
    assert time.monotonic() - began < 20


def test_sighup_looks_again(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> None:
    reconciler = Reconciler()
    reconciler.is_legacy = True
    monkeypatch.setattr(_follower, "POLL", 60.0)

    def script() -> None:
        wait_for(lambda: len(reconciler.runs) >= 1)
        runs, looks = len(reconciler.runs), docker.asked.count("all")
        signalled(signal.SIGHUP)
        wait_for(lambda: len(reconciler.runs) > runs and docker.asked.count("all") > looks)
        signalled(signal.SIGTERM)

    assert run_process(monkeypatch, reconciler, script, docker)[0] == 0


def test_it_tells_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, docker: Docker) -> None:
    reconciler = Reconciler()
    reconciler.is_legacy = True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told: t.List[t.Tuple[bytes, int]] = []

        def script() -> None:
            told.append((server.recv(1000), len(reconciler.runs)))
            signalled(signal.SIGTERM)
            told.append((server.recv(1000), 0))

        run_process(monkeypatch, reconciler, script, docker)
    assert told[0][0].startswith(b"READY=1\n")
    assert told[0][1] >= 1
    assert told[1][0] == b"STOPPING=1"


@pytest.mark.parametrize("name", ["", "@quaywall-test-%d", "/nowhere/at/all"])
def test_a_systemd_that_does_not_listen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    name = name % os.getpid() if "%" in name else name
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")
    if name.startswith("@"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind("\0" + name[1:])
            server.settimeout(10)
            notify("READY=1")
            assert server.recv(100) == b"READY=1"


# Commands ------------------------------------------------------------------------------------------------------------


class Command(t.NamedTuple):
    code: int
    lines: t.List[str]
    reconciler: Reconciler
    store: Store


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., Command]:
    def run(
        words: str, docker: t.Any, outcome: t.Any = None, store: t.Optional[Store] = None, root: bool = True
    ) -> Command:
        journal, reconciler, kept = Lines(), Reconciler(), store or Store()
        reconciler.outcomes = [outcome or Outcome()]
        monkeypatch.setattr(_follower, "Journal", lambda: journal)
        monkeypatch.setattr(_follower, "make_store", lambda: kept)
        monkeypatch.setattr(_follower, "make_reconciler", lambda processes, made: reconciler)
        monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)

        def connect() -> t.Any:
            if isinstance(docker, Exception):
                raise docker
            return docker

        return Command(main(words.split(), connect), journal.lines, reconciler, kept)

    return run


SILENT = DockerError("Docker does not answer.")


def test_once(command: t.Callable[..., Command], docker: Docker) -> None:
    done = command("follow --once", docker, Outcome(True, ("wrote x",), {"p": "waiting"}, ("a gap",)))
    assert (done.code, done.lines) == (0, ["wrote x", "policy p waits: waiting", "a gap"])
    assert done.store.written == 1
    assert not done.reconciler.dry


def test_once_without_docker(command: t.Callable[..., Command]) -> None:
    done = command("follow --once", SILENT, Outcome(True, ("wrote x",)))
    assert (done.code, done.lines) == (1, ["Docker does not answer.", "wrote x"])
    assert done.reconciler.runs[0][1] is None
    assert done.store.written == 0


@pytest.mark.parametrize("changed", [False, True])
def test_check_changes_nothing(command: t.Callable[..., Command], docker: Docker, changed: bool) -> None:
    done = command("follow --check", docker, Outcome(changed, ("wrote x",) if changed else ()))
    assert (done.code, done.lines) == ((3, ["would change: wrote x"]) if changed else (0, []))
    assert done.reconciler.dry
    assert done.store.written == 0


def test_restore_asks_nobody(command: t.Callable[..., Command]) -> None:
    inventory = Inventory((container(A, "web", "172.17.0.2"),), {"bridge": BRIDGE})
    document = {**to_stored(inventory, lambda item: (BINDING,)), "ip6_dnat": False}
    done = command("restore", AssertionError(), store=Store(document))
    assert (done.code, done.lines) == (0, [])
    found = done.reconciler.runs[0][1]
    assert found is not None
    assert found.containers[0].networks == {"bridge": ()}
    assert done.reconciler.dnat == [False]
    assert command("restore", AssertionError()).reconciler.runs[0][1] is None


def test_save(command: t.Callable[..., Command], docker: Docker) -> None:
    done = command("save", docker)
    assert (done.code, done.lines, done.store.written) == (0, [], 1)
    assert not done.reconciler.runs
    later = command("save", SILENT, store=done.store)
    assert (later.code, later.store.written) == (0, 1)
    assert later.lines == ["Docker does not answer. What was remembered before stays."]
    assert command("save", SILENT).code == 1


def test_what_goes_wrong_is_one_line(command: t.Callable[..., Command], docker: Docker) -> None:
    done = command("restore", docker, FirewallError("iptables is not installed."))
    assert (done.code, done.lines) == (1, ["iptables is not installed."])
    done = command("follow --once", docker, KeyError("x"))
    assert done.code == 1
    assert "KeyError('x')" in done.lines[0]
    done = command("restore", docker, root=False)
    assert done.code == 1
    assert "root" in done.lines[0]


@pytest.mark.parametrize("words", ["", "nothing", "follow --never", "restore now"])
def test_what_is_no_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "usage: quaywall" in capsys.readouterr().err


# Lines, programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("policy caf\u00e9 waits", "policy caf\u00e9 waits"),
        ("web\n<3>Container admin is open", "web\\n<3>Container admin is open"),
        ("a\r\x1b[2Jb\0c", "a\\r\\x1b[2Jb\\x00c"),
        ("left\u202eright\u2028new", "left\\u202eright\\u2028new"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("x" * 5000, "x" * 1997 + "..."),
    ],
)
def test_a_line_is_one_line_whatever_is_in_it(text: str, line: str) -> None:
    assert one_line(text) == line
    reader, writer = os.pipe()
    try:
        Journal(writer, levels=True).say(text, ERROR)
        assert os.read(reader, 10000) == ("<3>%s\n" % line).encode()
        Journal(writer).say(text)
        assert os.read(reader, 10000) == (line + "\n").encode()
    finally:
        os.close(writer)
        os.close(reader)


def test_levels_are_for_the_journal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    try:
        status = os.fstat(writer)
        monkeypatch.setenv("JOURNAL_STREAM", "%d:%d" % (status.st_dev, status.st_ino))
        Journal(writer).say("x")
        assert os.read(reader, 100) == b"<6>x\n"
        monkeypatch.setenv("JOURNAL_STREAM", "%d:%d" % (status.st_dev, status.st_ino + 1))
        Journal(writer).say("x")
        assert os.read(reader, 100) == b"x\n"
    finally:
        os.close(reader)
        os.close(writer)
    Journal(writer).say("to nobody")


def test_a_sentence_of_ours_and_one_of_others() -> None:
    assert sentence(FirewallError("It is so.")) == "It is so."
    assert sentence(ValueError("x\ny")) == "Unexpected error: ValueError('x\\ny'). Please report it."


def test_a_program_is_run_as_iptables_needs_it() -> None:
    processes = Processes()
    reader, writer = os.pipe()
    try:
        script = 'cat; printf %%s "$QUAYWALL" >&2; echo there >/proc/self/fd/%d; exit 3' % writer
        rc, out, err = processes.run(["sh", "-c", script], b"\xff\0in", {"QUAYWALL": "yes"}, [writer])
        assert (rc, out, err) == (3, b"\xff\0in", b"yes")
        assert os.read(reader, 10) == b"there\n"
        # Not handed on: nobody else has it open.
        assert processes.run(["sh", "-c", ": >/proc/self/fd/%d" % writer], None, {}, ())[0] != 0
    finally:
        os.close(reader)
        os.close(writer)
    assert processes.run(["sh", "-c", "echo $$"], None, {}, ())[1] == b"%d\n" % processes.own[-1]
    rc, out, err = processes.run(["/nowhere/iptables"], b"", {}, ())
    assert (rc, out) == (127, b"")
    assert b"No such file" in err
    # It has ended without reading.
    assert processes.run(["true"], b"x" * 1_000_000, {}, ())[0] == 0
    assert Processes.find("sh")
    assert Processes.find("no-such-program") is None


@pytest.mark.parametrize(
    ("states", "may"),
    [
        ("active\nactive\n", True),
        ("active\nactivating\n", True),
        ("active\ninactive\n", False),
        ("active\ndeactivating\n", False),
        ("active\nfailed\n", False),
        ("inactive\ninactive\n", True),  # Docker is another unit, and nobody starts it by its socket
        ("", True),
    ],
)
def test_a_stopped_docker_is_not_asked(monkeypatch: pytest.MonkeyPatch, states: str, may: bool) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)

    class Systemctl(Processes):
        def run(self, args: t.Any, *_rest: t.Any) -> t.Tuple[int, bytes, bytes]:
            assert args[1:] == ["is-active", "docker.socket", "docker.service"]
            return 3, states.encode(), b""

        @staticmethod
        def find(program: str) -> t.Optional[str]:
            return "/bin/" + program

    assert may_ask_docker(Systemctl()) is may
    monkeypatch.setattr(Systemctl, "find", staticmethod(lambda program: None))
    assert may_ask_docker(Systemctl())


def test_the_loop_sleeps_on_what_wakes_it(docker: Docker) -> None:
    """The real loop, in real time: an event, a change by others, and the end."""
    bench = Bench(connected(docker))
    try:
        bench.follower._clock = time.monotonic
        bench.known._clock = time.monotonic
        bench.reconciler.clock = time.monotonic
        thread = threading.Thread(target=bench.follower.follow)
        thread.start()
        wait_for(lambda: bench.due() is None and bench.ready)
        docker.networks[NET] = (BRIDGE, {A: ("172.17.0.3",)})
        runs = len(bench.reconciler.runs)
        told = time.monotonic()
        bench.mailbox.put(join("connect", A))
        wait_for(lambda: len(bench.reconciler.runs) > runs)
        assert bench.reconciler.runs[runs][0] - told < 1
        wait_for(lambda: bench.due() is None)
        runs = len(bench.reconciler.runs)
        bench.listener.tell()
        wait_for(lambda: len(bench.reconciler.runs) > runs)
        bench.follower.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert bench.watcher.stopped
        assert select.select([bench.mailbox], [], [], 0)[0] == [] or bench.mailbox.take() == []
    finally:
        bench.close()
