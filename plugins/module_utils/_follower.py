# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The follower: a small service that keeps rules on the right addresses while containers come and go.

One loop, which sleeps until Docker (C(_events)), the kernel (C(_netlink)), a signal or a time that was set wakes it. It
needs no Ansible: C(main) is the entry of the program that the role installs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _programs
from ansible_collections.quaywall.docker.plugins.module_utils._events import (
    CONTAINER,
    Connected,
    Event,
    Gone,
    Lost,
    Mailbox,
    Message,
    NotInspected,
    Watcher,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    DockerError,
    DockerGone,
    Inspection,
    Inventory,
    from_stored,
    to_stored,
)
from ansible_collections.quaywall.docker.plugins.module_utils._netlink import Listener

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker
    from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Outcome, Reconciler
    from ansible_collections.quaywall.docker.plugins.module_utils._store import Store

# Levels of syslog, as the journal knows them.
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

#: All times are in seconds. How long Docker is waited for before the first run goes without it.
FIRST_WAIT = 1.0
#: What others change is looked at when they have been quiet for so long, or after so long in any case: Docker itself
#: takes its jump out of FORWARD and puts it back, and must not find ours there in between.
QUIET, LONGEST = 0.15, 0.5
#: After the last event, Docker is asked for everything once: what patching got wrong is put right then.
SETTLE = 1.0
#: The same while events never pause, and where a container could not be inspected.
UNSETTLED = 5.0
#: A container that joined a network has its addresses before the list of containers knows; it starts within this time.
JOINING = 60.0
#: A container that was removed is expected back under its name for so long, and its published ports stay guarded:
#: re-created, it may accept connections before Docker tells which ports it has.
EXPECTED = 60.0
#: A burst: more containers than that in a second, and so many runs that changed something.
BURST_CONTAINERS, BURST_RUNS = 5, 3
BURST_STEP, BURST_WAIT = 0.05, 0.25
#: How often a host is looked at whose kernel does not tell of changes.
POLL = 1.0
#: A fight: so many changes by others undone within a minute. Then a look now and then must do for a minute.
FIGHT_RUNS, FIGHT_WINDOW, FIGHT_POLL = 20, 60.0, 5.0
#: After an error.
RETRY_FIRST, RETRY_LAST = 0.2, 5.0
#: When a warning that was said is said again.
WARN_AGAIN = 3600.0
#: How long a run that is under way may last after SIGTERM.
GRACE = 2.0
#: The longest that one answer of Docker may keep the loop waiting.
DOCKER_TIMEOUT = 5.0

_LONGEST_LINE = 2000
_SENTENCES = __name__.rpartition(".")[0]


def one_line(text: str) -> str:
    """Text that is one line of a log, whatever names are in it: what cannot be printed is escaped."""
    if not text.isprintable():
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."


def sentence(error: BaseException) -> str:
    """What went wrong: errors of ours are sentences, of others it is said where they happened."""
    if type(error).__module__.startswith(_SENTENCES):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = " at %s:%s" % (os.path.basename(frames[-1].filename), frames[-1].lineno) if frames else ""
    return "Unexpected error%s: %r. Please report it." % (where, error)


class Journal:
    """Lines for systemd's journal, which knows their level; plain lines for anybody else."""

    def __init__(self, descriptor: int = 1, levels: t.Optional[bool] = None) -> None:
        self._descriptor = descriptor
        self._levels = _is_journal(descriptor) if levels is None else levels

    def say(self, text: str, level: int = INFO) -> None:
        line = one_line(text)
        if self._levels:
            line = "<%d>%s" % (level, line)
        with contextlib.suppress(OSError):  # nobody reads it, which is no reason to stop guarding
            os.write(self._descriptor, (line + "\n").encode("utf-8", "backslashreplace"))


def _is_journal(descriptor: int) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == "%d:%d" % (status.st_dev, status.st_ino)


def notify(state: str) -> None:
    """Tell systemd, if it wants to know: as sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode("ascii"))


class Processes:
    """Runs and finds programs, and remembers what was run: the kernel names a change's writer by its process ID."""

    def __init__(self) -> None:
        self.own: t.Deque[int] = collections.deque(maxlen=256)

    def run(
        self,
        args: t.Sequence[str],
        data: t.Optional[bytes],
        environment: t.Mapping[str, str],
        descriptors: t.Sequence[int],
    ) -> t.Tuple[int, bytes, bytes]:
        """A Runner of C(_iptables)."""
        return _programs.run(args, data, environment, descriptors, self.own.append)

    @staticmethod
    def find(program: str) -> t.Optional[str]:
        """A Finder of C(_iptables)."""
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return shutil.which(program, path=path + ":/usr/sbin:/sbin:/usr/local/sbin")


def may_ask_docker(processes: Processes) -> bool:
    """False where Docker is stopped but systemd listens on its socket: asking would start it."""
    if os.environ.get("DOCKER_HOST", "").startswith("unix://"):
        return True
    program = processes.find("systemctl")
    if program is None:
        return True
    _rc, out, _err = processes.run([program, "is-active", "docker.socket", "docker.service"], None, {}, ())
    states = out.decode("ascii", "replace").split()
    return len(states) != 2 or states[0] != "active" or states[1] in ("active", "activating", "reloading")


# What is known of Docker ---------------------------------------------------------------------------------------------


class Known:
    """What Docker has, from one look at everything and what its events told since.

    :param store: remembers it for a time when Docker does not answer.
    :param ask: has a container inspected, by its ID; the answer is a message.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        ask: t.Callable[[str], None],
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._journal = journal
        self._ask = ask
        self._clock = clock
        self.docker: t.Optional[Docker] = None
        self._keeps_containers = False
        self.inventory: t.Optional[Inventory] = None
        #: Fixed port bindings by container ID: they never change.
        self._fixed: t.Dict[str, t.Tuple[Binding, ...]] = {}
        self._chosen: t.Set[str] = set()
        self._asked: t.Set[str] = set()
        self._joining: t.Dict[str, float] = {}
        #: Removed containers by name: until when they are expected back, and their fixed port bindings.
        self._left: t.Dict[str, t.Tuple[float, Container, t.Tuple[Binding, ...]]] = {}
        self._troubles: t.Dict[str, str] = {}
        self._dirty = False
        #: True if only a look at everything can tell what Docker has.
        self.unsure = False
        self._stored = store.read_inventory()
        self.ip6_dnat: t.Optional[bool] = None
        self._remember()

    def _remember(self) -> None:
        if self._stored is None:
            return
        try:
            self.inventory, bindings = from_stored(self._stored)
        except ValueError as error:
            self._journal.say(str(error), WARNING)
            return
        self._fixed = {container.id: bindings(container) for container in self.inventory.containers}
        self.ip6_dnat = bool(self._stored["ip6_dnat"]) if "ip6_dnat" in self._stored else None

    def bindings(self, container: Container) -> t.Tuple[Binding, ...]:
        """The fixed port bindings of a container, none while they cannot be told.

        Until it is inspected, those of its predecessor of the same name.
        """
        if container.id not in self._fixed and container.name in self._left:
            return self._left[container.name][2]
        # What failed once is asked again beside the runs, as each of them would wait for it.
        elsewhere = container.id in self._asked or container.id in self._troubles
        if container.id not in self._fixed and not elsewhere and self.docker is not None:
            try:
                self._learn(self.docker.inspect(container.id))
            except DockerError as error:
                # One that cannot be inspected must not keep the others from being guarded.
                self._in_trouble(container.id, str(error))
        return self._fixed.get(container.id, ())

    def guarded(self) -> t.Optional[Inventory]:
        """What Docker has, and what it had a moment ago and is expected back."""
        if self.inventory is None or not self._left:
            return self.inventory
        now, taken = self._clock(), set()
        for container in self.inventory.containers:
            taken |= {(port.protocol, port.host_port) for port in self._fixed.get(container.id, ())}
        self._left = {
            name: left
            for name, left in self._left.items()
            if left[0] > now and not any((port.protocol, port.host_port) in taken for port in left[2])
        }
        names = {container.name for container in self.inventory.containers}
        left = tuple(container for _until, container, _ports in self._left.values() if container.name not in names)
        return self.inventory._replace(containers=(*self.inventory.containers, *left))

    def expected_until(self) -> t.Optional[float]:
        """When the next removed container is not expected back any more."""
        return min((until for until, _container, _ports in self._left.values()), default=None)

    def _expect(self, container: Container) -> None:
        """A container that was removed may come back soon, under its name and with its ports."""
        fixed = self._fixed.get(container.id, ())
        if fixed:
            self._left.setdefault(container.name, (self._clock() + EXPECTED, container.stopped(), fixed))

    def _learn(self, inspection: Inspection) -> None:
        identity = inspection.container.id
        self._left.pop(inspection.container.name, None)
        self._fixed[identity] = inspection.bindings
        self._troubles.pop(identity, None)
        if inspection.chosen:
            self._chosen.add(identity)

    def _in_trouble(self, identity: str, reason: str) -> None:
        self.unsure = True
        if self._troubles.get(identity) != reason:
            self._troubles[identity] = reason
            self._journal.say("Container %s cannot be inspected: %s" % (identity[:12], reason), WARNING)

    def look(self) -> bool:
        """Ask Docker for everything; True if that is something else than what was known.

        :raises DockerError: it does not answer.
        """
        if self.docker is None:
            return False
        self.unsure = False
        before, found = self.inventory, self.docker.inventory()
        self._joining = {key: since for key, since in self._joining.items() if self._clock() - since < JOINING}
        for identity in self._joining:
            # The list has its addresses when it has started.
            self.unsure = True
            listed, known = _by_id(found, identity), _by_id(before, identity)
            if listed is not None and known is not None and not listed.running:
                networks = {**listed.networks, **{name: places for name, places in known.networks.items() if places}}
                ids = {**listed.network_ids, **{key: value for key, value in known.network_ids.items() if value}}
                found = found.with_container(listed._replace(networks=networks, network_ids=ids))
        present = {container.id for container in found.containers}
        for container in before.containers if before is not None else ():
            # Of which nobody told, or which went before this process began.
            if container.id not in present:
                self._expect(container)
        self._fixed = {key: value for key, value in self._fixed.items() if key in present}
        self._chosen &= present
        self._asked &= present
        self.inventory = found
        return before is None or _contents(before) != _contents(found)

    def ask_for_the_rest(self) -> None:
        """Have those inspected whose port bindings are not known and were not needed at once."""
        if self.inventory is None or self.docker is None:
            return
        for container in self.inventory.containers:
            if container.id not in self._fixed and container.id not in self._asked:
                self._asked.add(container.id)
                self._ask(container.id)

    def save(self, ip6_dnat: t.Optional[bool]) -> bool:
        """Remember it on the disk, if it is known whole and not what is there.

        :returns: True if it is there now; False if it is not known whole yet.
        :raises StoreError: it cannot be written.
        """
        if self.docker is None or self.inventory is None:
            return False
        if any(container.id not in self._fixed for container in self.inventory.containers):
            return False
        # What is expected back as well: another process of ours must not take it for a mistake.
        document = to_stored(self.guarded() or self.inventory, self.bindings)
        if ip6_dnat is not None:
            document["ip6_dnat"] = ip6_dnat
        if document != self._stored:
            self._store.write_inventory(document)
            self._stored = document
        return True

    # What messages change

    def hear(self, messages: t.Sequence[Message]) -> bool:
        """Take in what happened; True if rules may have to follow.

        :raises DockerError: a network could not be asked for.
        """
        self._dirty = False
        networks: t.Dict[str, None] = {}
        for message in messages:
            if isinstance(message, Event):
                self._event(message, networks)
            elif isinstance(message, Inspection):
                self._inspected(message)
            elif isinstance(message, Gone):
                self._asked.discard(message.container)
                self._removed(message.container)
            elif isinstance(message, NotInspected):
                self._asked.discard(message.container)
                self._in_trouble(message.container, message.reason)
            elif isinstance(message, Connected):
                self.docker, self._keeps_containers, self.unsure = message.docker, message.keeps_containers, True
                networks.clear()
            else:
                self._lost()
                networks.clear()
        for identity in networks:
            self._ask_network(identity)
        return self._dirty

    def _change(self, change: t.Callable[[Inventory], Inventory], matters: bool = True) -> None:
        """Change what is known; ``matters`` is False for what changes no rule."""
        if self.inventory is not None:
            changed = change(self.inventory)
            if changed != self.inventory:
                self.inventory = changed
                self._dirty = self._dirty or matters

    def _lost(self) -> None:
        self.docker = None
        self._asked.clear()
        self._joining.clear()
        if not self._keeps_containers:
            # They have stopped with it, and may be at other addresses when it is back.
            self._change(Inventory.stopped)

    def _event(self, event: Event, networks: t.Dict[str, None]) -> None:
        if event.kind == CONTAINER:
            self._container_event(event, networks)
        elif not event.kind:
            self.unsure = True
        elif event.action == "disconnect":
            self._change(lambda inventory: inventory.without_endpoint(event.container, event.network))
        elif event.action in ("destroy", "remove"):
            networks.pop(event.network, None)
            self._change(lambda inventory: inventory.without_network(event.network))
        elif event.action in ("connect", "create"):
            networks[event.network] = None
            if event.action == "connect":
                known = _by_id(self.inventory, event.container)
                if known is None or not known.running:
                    self._joining[event.container] = self._clock()
                if known is None:
                    self._new(event.container, event.container[:12], {})
                    self.unsure = True

    def _container_event(self, event: Event, networks: t.Dict[str, None]) -> None:
        identity, known = event.container, _by_id(self.inventory, event.container)
        if event.action in ("start", "die", "destroy"):
            self._joining.pop(identity, None)
        if event.action == "create":
            if known is None:
                # A run now would find nothing to do, and keep those waiting who inspect it before it starts.
                self._new(identity, event.name, event.labels, matters=False)
            if identity not in self._fixed:
                self._asked.add(identity)  # by the thread that heard of it
        elif event.action == "destroy":
            self._removed(identity)
        elif known is None:
            self.unsure = True
        elif event.action == "die":
            stopped = known.stopped()
            moved = stopped._replace(running=known.running) != known
            self._change(lambda inventory: inventory.with_container(stopped), matters=moved)
        elif event.action == "rename":
            renamed = known._replace(name=event.name)
            self._change(lambda inventory: inventory.with_container(renamed))
        elif event.action == "start":
            if not known.running:
                started = known._replace(running=True)
                self._change(lambda inventory: inventory.with_container(started), matters=False)
            if not any(known.networks.values()):
                networks.update(dict.fromkeys(filter(None, known.network_ids.values())))
            if identity in self._chosen and identity not in self._asked:
                # Which host ports Docker chose for it.
                self._asked.add(identity)
                self._ask(identity)

    def _removed(self, identity: str) -> None:
        known = _by_id(self.inventory, identity)
        if known is not None:
            self._expect(known)
        self._fixed.pop(identity, None)
        self._chosen.discard(identity)
        self._change(lambda inventory: inventory.without_container(identity))

    def _new(self, identity: str, name: str, labels: t.Mapping[str, str], matters: bool = True) -> None:
        """A container of which only this is known yet. Nobody else has its name now."""

        def add(inventory: Inventory) -> Inventory:
            others = tuple(item for item in inventory.containers if item.name != name)
            new = Container(name, identity, False, "", labels, {}, {}, ())
            return inventory._replace(containers=others).with_container(new)

        self._change(add, matters)

    def _inspected(self, inspection: Inspection) -> None:
        """Addresses are taken from networks and from the list alone: those in the answer may be old by now."""
        fresh, known = inspection.container, _by_id(self.inventory, inspection.container.id)
        self._asked.discard(fresh.id)
        if known is None:
            return  # destroyed meanwhile
        self._dirty = self._dirty or fresh.id not in self._fixed
        self._learn(inspection)
        networks = {**fresh.stopped().networks, **{name: at for name, at in known.networks.items() if at}}
        ids = {**fresh.network_ids, **{name: key for name, key in known.network_ids.items() if key}}
        merged = fresh._replace(
            running=known.running,
            networks={**dict.fromkeys(known.networks, ()), **networks},
            network_ids=ids,
            current_ports=fresh.current_ports if known.running else (),
        )
        if merged != known:
            self._change(lambda inventory: inventory.with_container(merged))

    def _ask_network(self, identity: str) -> None:
        if self.docker is None:
            return
        try:
            network, addresses = self.docker.network_endpoints(identity)
        except DockerGone:
            self._change(lambda inventory: inventory.without_network(identity))
        except DockerError:
            self.unsure = True
            raise
        else:
            self._change(lambda inventory: inventory.with_endpoints(network, addresses))


def _by_id(inventory: t.Optional[Inventory], identity: str) -> t.Optional[Container]:
    if inventory is not None:
        for container in inventory.containers:
            if container.id == identity:
                return container
    return None


def _contents(inventory: Inventory) -> t.Any:
    return (
        {container.id: container for container in inventory.containers},
        {network.id: network for network in inventory.networks.values()},
    )


# The loop ------------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """SIGTERM came."""


class Follower:
    """Waits for what happens, and brings the rules along.

    :param own: process IDs of ours, whose changes are no news.
    :param ready: called once, after the first run.
    :param listen: opens the listener for changes by others.
    :param may_ask: False while asking would start a Docker that somebody stopped.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        known: Known,
        watcher: Watcher,
        mailbox: Mailbox,
        journal: Journal,
        own: t.Container[int] = (),
        ready: t.Callable[[], None] = lambda: None,
        listen: t.Callable[[], Listener] = Listener,
        clock: t.Callable[[], float] = time.monotonic,
        may_ask: t.Callable[[], bool] = lambda: True,
    ) -> None:
        self._reconciler = reconciler
        self._known = known
        self._watcher = watcher
        self._mailbox = mailbox
        self._journal = journal
        self._own = own
        self._ready = ready
        self._listen = listen
        self._clock = clock
        self._may_ask = may_ask
        self._listener: t.Optional[Listener] = None
        self._deaf = False
        self._stopping = False
        self._reload = False
        #: True while the kernel or the disk is written.
        self._busy = False
        # When to do what, None: not at all.
        self._docker_at: t.Optional[float] = None
        self._others_at: t.Optional[float] = None
        self._retry_at: t.Optional[float] = None
        self._look_at: t.Optional[float] = None
        self._others_since = 0.0
        self._events_since: t.Optional[float] = None
        self._ran_at = float("-inf")
        self._retry_delay = RETRY_FIRST
        self._touched: t.Deque[t.Tuple[float, str]] = collections.deque(maxlen=64)
        self._changed_at: t.Deque[float] = collections.deque(maxlen=64)
        self._undone_at: t.Deque[float] = collections.deque(maxlen=FIGHT_RUNS + 1)
        self._tired_until = float("-inf")
        self._complaints: t.Set[str] = set()
        self._waiting: t.Dict[str, str] = {}
        self._warned: t.Dict[str, float] = {}

    # From outside: these may be called by another thread or by a signal's handler

    def stop(self) -> None:
        """End the loop when it has done what it does."""
        self._stopping = True
        self._mailbox.wake()

    def reload(self) -> None:
        """Look at everything again."""
        self._reload = True
        self._mailbox.wake()

    def terminated(self) -> None:
        """SIGTERM: end at once, but for a run under way, which gets a little time.

        :raises Stop: nothing is under way.
        """
        self._stopping = True
        if not self._busy:
            raise Stop
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    # The loop

    def follow(self) -> None:
        """Follow until somebody stops it."""
        self._watcher.start()
        try:
            self._first()
            while not self._stopping:
                self._sleep()
                self._step()
        finally:
            self._watcher.stop()
            if self._listener is not None:
                self._listener.close()
                self._listener = None

    def _first(self) -> None:
        deadline = self._clock() + FIRST_WAIT
        told = False
        while not told and not self._stopping:
            left = deadline - self._clock()
            if left <= 0:
                break
            select.select([self._mailbox], [], [], left)
            messages = self._mailbox.take()
            told = any(isinstance(message, (Connected, Lost)) for message in messages)
            self._hear(messages)
        self._docker_at = self._clock()
        self._step()
        self._ready()

    def _sleep(self) -> None:
        times = [at for at in (self._docker_at, self._others_at, self._retry_at, self._look_at) if at is not None]
        readers: t.List[t.Any] = [self._mailbox]
        if self._listener is not None:
            readers.append(self._listener)
        if self._stopping:
            return
        select.select(readers, [], [], max(0.0, min(times) - self._clock()) if times else None)

    def _step(self) -> None:
        if self._reload:
            self._reload = False
            self._known.unsure = True
            self._docker_at = self._clock()
        self._hear(self._mailbox.take())
        if self._listener is not None and self._listener.changed(self._own):
            self._others_changed()
        now = self._clock()
        if self._look_at is not None and self._look_at <= now:
            self._settle()
        if any(at is not None and at <= now for at in (self._docker_at, self._others_at, self._retry_at)):
            self._run(by_others=self._docker_at is None and self._retry_at is None)

    def _hear(self, messages: t.Sequence[Message]) -> None:
        if not messages:
            return
        now = self._clock()
        if self._events_since is None:
            self._events_since = now
        for message in messages:
            if isinstance(message, Event) and message.container:
                self._touched.append((now, message.container))
            elif isinstance(message, Connected):
                self._settled("docker")
                self._complaints.discard("docker")
            elif isinstance(message, Lost):
                self._complain("docker", message.reason)
        try:
            changed = self._known.hear(messages)
        except DockerError as error:
            self._complain("network", str(error))
            changed = True
        else:
            self._settled("network")
        if any(isinstance(message, Connected) for message in messages):
            changed = self._look() or changed
        if changed and self._docker_at is None:
            self._docker_at = max(now, self._ran_at + self._burst(now))
        # Not put off for ever where events never pause.
        self._look_at = max(now, min(now + SETTLE, self._events_since + UNSETTLED))

    def _burst(self, now: float) -> float:
        """How long to wait after the last run: many containers at once are better served together."""
        runs = sum(1 for at in self._changed_at if now - at < 1)
        containers = len({container for at, container in self._touched if now - at < 1})
        if runs < BURST_RUNS or containers <= BURST_CONTAINERS:
            return 0.0
        return min(BURST_WAIT, BURST_STEP * (containers - BURST_CONTAINERS))

    def _others_changed(self) -> None:
        now = self._clock()
        if self._others_at is None:
            self._others_since = now
        self._others_at = min(now + QUIET, self._others_since + LONGEST)
        if now < self._tired_until:
            self._others_at = max(self._others_at, self._ran_at + FIGHT_POLL)

    def _look(self) -> bool:
        try:
            changed = self._known.look()
        except DockerError as error:
            self._known.unsure = True
            self._complain("look", str(error))
            return False
        self._settled("look")
        return changed

    def _settle(self) -> None:
        """Some time after the last event."""
        self._look_at = self._events_since = None
        if self._known.docker is not None and not self._may_ask():
            # It is about to stop. What asks it now, systemd takes for a wish to have it started.
            self._look_at = self._clock() + UNSETTLED
            return
        if self._look() and self._docker_at is None:
            self._docker_at = self._clock()
        self._known.ask_for_the_rest()
        self._busy = True
        try:
            if self._known.save(self._reconciler.ip6_dnat):
                self._settled("save")
        except Exception as error:  # noqa: BLE001 -- a full disk must not end what guards
            self._complain("save", sentence(error))
            self._known.unsure = True
        finally:
            self._busy = False
        if self._known.unsure and self._known.docker is not None:
            self._look_at = self._clock() + UNSETTLED
        until = self._known.expected_until()
        if until is not None:
            if until <= self._clock():
                self._docker_at = self._clock()
            self._look_at = min(max(until, self._clock() + SETTLE), self._look_at or until)

    def _run(self, by_others: bool) -> None:
        self._docker_at = self._others_at = self._retry_at = None
        answers = self._known.docker is not None
        self._busy = True
        try:
            outcome = self._reconciler.run(
                self._known.guarded(), self._known.bindings, ip6_dnat=None if answers else self._ip6_dnat()
            )
        except Exception as error:  # noqa: BLE001 -- whatever it is, the next attempt may go better
            self._complain("run", sentence(error))
            self._retry_at = self._clock() + self._retry_delay
            self._retry_delay = min(2 * self._retry_delay, RETRY_LAST)
            return
        finally:
            self._busy = False
            self._ran_at = self._clock()
        self._retry_delay = RETRY_FIRST
        self._settled("run")
        self._tell(outcome)
        if outcome.changed:
            self._changed_at.append(self._ran_at)
            if by_others:
                self._undone()
        self._listen_or_poll()

    def _ip6_dnat(self) -> t.Optional[bool]:
        return self._known.ip6_dnat if self._reconciler.ip6_dnat is None else self._reconciler.ip6_dnat

    def _undone(self) -> None:
        now = self._ran_at
        self._undone_at.append(now)
        if len(self._undone_at) > FIGHT_RUNS and now - self._undone_at[0] < FIGHT_WINDOW and now >= self._tired_until:
            self._tired_until = now + FIGHT_WINDOW
            self._undone_at.clear()
            self._journal.say(
                "Another program undid these rules more than %d times in a minute: find out who keeps editing "
                "DOCKER-USER. For a minute it is looked at every %d seconds only." % (FIGHT_RUNS, FIGHT_POLL),
                WARNING,
            )

    def _listen_or_poll(self) -> None:
        if self._listener is None and not self._deaf and not self._reconciler.legacy():
            try:
                self._listener = self._listen()
            except OSError as error:
                self._deaf = True
                self._journal.say(
                    "The kernel does not tell of changes (%s), so it is asked every second." % error.strerror, WARNING
                )
            else:
                # What was changed before it listened.
                self._others_since = self._others_at = self._ran_at
                return
        if self._listener is None or self._reconciler.legacy():
            self._others_at = self._ran_at + (FIGHT_POLL if self._ran_at < self._tired_until else POLL)
        elif self._ran_at < self._tired_until:
            self._others_at = self._ran_at + FIGHT_POLL

    # What is said

    def _tell(self, outcome: Outcome) -> None:
        for line in outcome.messages:
            self._journal.say(line)
        for name, reason in sorted(outcome.waiting.items()):
            # What comes after a semicolon is advice, and changes with every container that comes or goes.
            if self._waiting.get(name, "").partition(";")[0] != reason.partition(";")[0]:
                self._journal.say("policy %s waits: %s" % (name, reason), NOTICE)
        self._waiting = dict(outcome.waiting)
        now = self._clock()
        self._warned = {warning: at for warning, at in self._warned.items() if now - at < WARN_AGAIN}
        for warning in outcome.warnings:
            # Many come and go with each restart of a container.
            if warning not in self._warned:
                self._warned[warning] = now
                self._journal.say(warning, WARNING)

    def _complain(self, subject: str, text: str) -> None:
        """Say what goes wrong, once for as long as it goes wrong in the same way."""
        line = "%s\0%s" % (subject, text)
        if line not in self._complaints:
            self._settled(subject, say=False)
            self._complaints.add(line)
            self._journal.say(text, WARNING if subject == "docker" else ERROR)

    def _settled(self, subject: str, say: bool = True) -> None:
        past = {line for line in self._complaints if line.partition("\0")[0] == subject}
        self._complaints -= past
        if past and say and subject in _AGAIN:
            self._journal.say(_AGAIN[subject])


_AGAIN = {
    "docker": "Docker answers again.",
    "run": "Rules can be written again.",
    "save": "What Docker has can be stored again.",
}


# The program ---------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quaywall",
        description="Keeps the rules of this host's policies on the addresses that its containers have.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    follow = commands.add_parser(
        "follow",
        help="bring the rules along whenever Docker or somebody else changes something",
        description="Brings the rules along whenever Docker or somebody else changes something, until SIGTERM. "
        "SIGHUP: look at everything again.",
    )
    follow.add_argument("--once", action="store_true", help="look once, bring the rules along, and end")
    follow.add_argument(
        "--check",
        action="store_true",
        help="look once, say what would be changed, change nothing, and end: with 3 if something would be changed",
    )
    commands.add_parser(
        "restore",
        help="write the rules before Docker starts",
        description="Writes the rules without asking Docker: what it had when it was last asked is known, but for the "
        "addresses that it gives.",
    )
    commands.add_parser(
        "save",
        help="remember what Docker has",
        description="Remembers what Docker has, for a boot. The policies are stored already.",
    )
    return parser


def _connect() -> Docker:
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

    return Docker(timeout=DOCKER_TIMEOUT)


def make_reconciler(processes: Processes, store: Store) -> Reconciler:
    """The reconciler of this host."""
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall
    from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Reconciler

    firewall = Firewall(processes.run, processes.find)
    return Reconciler(firewall, Ipset(processes.run, processes.find, firewall.descriptors), store)


def make_store() -> Store:
    """The store of this host."""
    from ansible_collections.quaywall.docker.plugins.module_utils._store import Store

    return Store()


@contextlib.contextmanager
def _signals(follower: Follower, mailbox: Mailbox) -> t.Iterator[None]:
    """Signals wake the loop; SIGTERM need not wait for it."""

    def stop(_number: int, _frame: t.Any) -> None:
        follower.terminated()

    def late(_number: int, _frame: t.Any) -> None:
        raise Stop

    def reload(_number: int, _frame: t.Any) -> None:
        follower.reload()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGALRM: late, signal.SIGHUP: reload}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakes = signal.set_wakeup_fd(mailbox.writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(wakes)
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(store: Store, reconciler: Reconciler, processes: Processes, journal: Journal) -> int:
    # The loop's thread shares one interpreter with those that listen: what they hear must not wait for long.
    sys.setswitchinterval(0.001)
    with contextlib.suppress(DockerError):
        # It takes longer than an answer of Docker, which is waited for after this.
        from ansible_collections.quaywall.docker.plugins.module_utils._docker import load_sdk

        load_sdk()
    mailbox = Mailbox()
    watcher = Watcher(_connect, mailbox, lambda: may_ask_docker(processes))
    known = Known(store, journal, watcher.inspect)
    follower = Follower(
        reconciler,
        known,
        watcher,
        mailbox,
        journal,
        processes.own,
        lambda: notify("READY=1\nSTATUS=Following Docker"),
        may_ask=lambda: may_ask_docker(processes),
    )
    with _signals(follower, mailbox):
        with contextlib.suppress(Stop):
            follower.follow()
        notify("STOPPING=1")
    return 0


def _once(
    store: Store, reconciler: Reconciler, journal: Journal, dry: bool, connect: t.Optional[t.Callable[[], Docker]]
) -> int:
    """One run. ``connect`` is None where Docker is not to be asked."""
    known = Known(store, journal, lambda _container: None)
    failed = False
    if connect is not None:
        try:
            known.docker = connect()
            known.look()
        except DockerError as error:
            journal.say(str(error), ERROR)
            known.docker, failed = None, True
    outcome = reconciler.run(
        known.guarded(), known.bindings, dry=dry, ip6_dnat=known.ip6_dnat if known.docker is None else None
    )
    for line in outcome.messages:
        journal.say("would change: " + line if dry else line)
    for name, reason in sorted(outcome.waiting.items()):
        journal.say("policy %s waits: %s" % (name, reason), NOTICE)
    for warning in outcome.warnings:
        journal.say(warning, WARNING)
    if known.docker is not None and not dry:
        _save_all(known, reconciler.ip6_dnat)
    if dry and outcome.changed and not failed:
        return 3
    return 1 if failed else 0


def _save_all(known: Known, ip6_dnat: t.Optional[bool]) -> None:
    for container in known.inventory.containers if known.inventory is not None else ():
        known.bindings(container)
    known.save(known.ip6_dnat if ip6_dnat is None else ip6_dnat)


def _save(store: Store, journal: Journal, connect: t.Callable[[], Docker]) -> int:
    known = Known(store, journal, lambda _container: None)
    try:
        known.docker = connect()
        known.look()
    except DockerError as error:
        journal.say("%s What was remembered before stays." % error, WARNING)
        return 0 if known.inventory is not None else 1
    _save_all(known, None)
    return 0


def main(argv: t.Sequence[str], connect: t.Callable[[], Docker] = _connect) -> int:
    """The program.

    :param argv: the arguments, without the program's name.
    :param connect: makes a client of Docker.
    :returns: its exit code: 0, 1 after an error, 3 if C(follow --check) would change something.
    """
    arguments = _parser().parse_args(list(argv))
    journal = Journal()
    if os.geteuid() != 0:
        journal.say("Reading and writing iptables needs root: run it as root, or with sudo.", ERROR)
        return 1
    processes = Processes()
    try:
        store = make_store()
        if arguments.command == "save":
            return _save(store, journal, connect)
        reconciler = make_reconciler(processes, store)
        if arguments.command == "restore":
            return _once(store, reconciler, journal, False, None)
        if arguments.once or arguments.check:
            return _once(store, reconciler, journal, bool(arguments.check), connect)
        return _follow(store, reconciler, processes, journal)
    except Exception as error:  # noqa: BLE001 -- a traceback says nothing to who reads the journal
        journal.say(sentence(error), ERROR)
        return 1
