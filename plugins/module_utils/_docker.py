# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The only code that talks to the Docker Engine API, through the Docker SDK for Python.

Two requests list all containers and networks; one more per target container tells its fixed port bindings. A snapshot
takes five for the whole host.
"""

from __future__ import annotations

import os
import sys
import traceback
import typing as t
from contextlib import contextmanager

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    DockerError,
    DockerGone,
    DockerSdkMissing,
    Inspection,
    Inventory,
    Json,
    Network,
    parse_bindings,
    parse_endpoints,
    parse_inspection,
    parse_inventory,
    parse_network,
)

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
TIMEOUT = 30

#: The events that change who has which address or port: others, as those of health checks, never reach us.
EVENT_FILTERS = {
    "type": ["container", "network"],
    "event": ["create", "start", "die", "destroy", "rename", "connect", "disconnect", "remove"],
}


@contextmanager
def _without_ssh() -> t.Iterator[None]:
    """Keep the SDK from importing paramiko, which it does for ssh:// and which takes longer than all the rest."""
    missing = object()
    before = sys.modules.get("paramiko", missing)
    if before is missing:
        sys.modules["paramiko"] = t.cast(t.Any, None)
    try:
        yield
    finally:
        if before is missing:
            sys.modules.pop("paramiko", None)


def _socket() -> str:
    """The engine of this host: DOCKER_HOST if it names a socket, as rules here cannot protect containers elsewhere."""
    configured = os.environ.get("DOCKER_HOST", "")
    return configured if configured.startswith("unix://") else DEFAULT_SOCKET


class DockerSilent(DockerError):
    """The engine does not answer. ``short`` says so to somebody who looks nothing up."""

    def __init__(self, socket: str, reason: str) -> None:
        advice = {
            "permission denied": "add become: true to the task or the play",
            "timed out": "restart it (systemctl restart docker)",
        }.get(reason, "start it (systemctl start docker)")
        self.short = "Docker does not answer at %s (%s): %s." % (socket, reason, advice)
        super().__init__(self.short[:-1] + ", or protect a host port with published_port, which needs no look-up.")


def load_sdk() -> t.Any:
    """The Docker SDK for Python.

    :raises DockerSdkMissing: it cannot be imported.
    """
    try:
        with _without_ssh():
            import docker
    except Exception as error:
        # An SDK that does not fit the host's requests or urllib3 raises all sorts of errors when it is imported.
        raise DockerSdkMissing(traceback.format_exc()) from error
    return docker


class Docker:
    """The engine of this host.

    :param timeout: the longest that an answer may take, in seconds.
    :raises DockerError: the SDK is missing, or the engine does not answer.
    """

    def __init__(self, socket: t.Optional[str] = None, timeout: float = TIMEOUT) -> None:
        self._socket = socket or _socket()
        docker = load_sdk()
        self._errors = docker.errors
        #: Answers about containers by their IDs: in one run each is asked about once.
        self._bindings: t.Dict[str, t.Union[t.Tuple[Binding, ...], DockerError]] = {}
        with self._answers("GET /version"):
            self._client = docker.APIClient(base_url=self._socket, version="auto", timeout=timeout)

    @contextmanager
    def _answers(self, request: str) -> t.Iterator[None]:
        try:
            yield
        except self._errors.APIError as error:
            raise DockerError(
                "Docker refused %s at %s: %s." % (request, self._socket, str(error.explanation or error).rstrip("."))
            ) from error
        except Exception as error:
            # requests, urllib3 and http.client each have their own; the SDK hands all of them through.
            raise DockerSilent(self._socket, _reason(error)) from error

    def inventory(self) -> Inventory:
        """All containers, running or not, and all networks."""
        with self._answers("GET /containers/json"):
            containers = self._client.containers(all=True)
        with self._answers("GET /networks"):
            networks = self._client.networks()
        return parse_inventory(containers, networks)

    def answers(self) -> t.Dict[str, t.Any]:
        """What the engine says of itself, of all containers and all networks, as it says it."""
        found: t.Dict[str, t.Any] = {}
        with self._answers("GET /version"):
            found["version"] = self._client.version()
        with self._answers("GET /info"):
            found["info"] = self._client.info()
        with self._answers("GET /containers/json"):
            found["containers"] = self._client.containers(all=True)
        with self._answers("GET /networks"):
            found["networks"] = self._client.networks()
        return found

    def services(self) -> t.List[Json]:
        """The services of the Swarm that this node is a manager of."""
        client: t.Any = self._client
        with self._answers("GET /services"):
            found: t.List[Json] = client.services()
        return found

    # For the follower

    def events(self) -> t.Iterator[t.Any]:
        """The engine's events as they come, from now on; blocks, and ends without an error when the engine goes.

        :raises DockerError: the engine does not answer.
        """
        with self._answers("GET /events"):
            stream: t.Iterator[t.Any] = self._client.events(decode=True, filters=EVENT_FILTERS)
        return stream

    def network_endpoints(self, identity: str) -> t.Tuple[Network, t.Dict[str, t.Tuple[str, ...]]]:
        """A network, and the addresses of the containers (by ID) on it: known as soon as it is told that one joined.

        :raises DockerGone: there is no such network.
        :raises DockerError: the engine does not answer.
        """
        with self._finds(), self._answers("GET /networks/%s" % identity[:12]):
            answer = self._client.inspect_network(identity)
        return parse_network(answer), parse_endpoints(answer)

    def inspect(self, identity: str) -> Inspection:
        """One container. While it starts, engines up to 26 answer only when that is done.

        :raises DockerGone: there is no such container.
        :raises DockerError: the engine does not answer.
        """
        with self._finds(), self._answers("GET /containers/%s/json" % identity[:12]):
            answer = self._client.inspect_container(identity)
        return parse_inspection(answer)

    def keeps_containers(self) -> bool:
        """True if containers run on while the daemon does not (live-restore)."""
        with self._answers("GET /info"):
            return bool(self._client.info().get("LiveRestoreEnabled"))

    @contextmanager
    def _finds(self) -> t.Iterator[None]:
        try:
            yield
        except DockerError as error:
            if isinstance(error.__cause__, self._errors.NotFound):
                raise DockerGone(str(error)) from error
            raise

    def bindings(self, container: Container) -> t.Tuple[Binding, ...]:
        """The container's fixed port bindings.

        :raises DockerGone: there is no such container (any more).
        :raises DockerError: the engine does not answer.
        """
        known = self._bindings.get(container.id)
        if known is None:
            known = self._bindings[container.id] = self._ask_bindings(container)
        if isinstance(known, DockerError):
            raise known
        return known

    def _ask_bindings(self, container: Container) -> t.Union[t.Tuple[Binding, ...], DockerError]:
        try:
            with self._finds(), self._answers("GET /containers/%s/json" % container.id[:12]):
                return parse_bindings(self._client.inspect_container(container.id))
        except DockerGone:
            return DockerGone("Container %s was removed while it was looked up: run again." % container.name)
        except DockerError as error:
            return error


def _reason(error: BaseException) -> str:
    """The innermost cause of an error in a few words: the outer ones repeat addresses and class names."""
    seen = [error]
    while True:
        inner = seen[-1].__cause__ or seen[-1].__context__
        if inner is None or inner in seen:
            break
        seen.append(inner)
    for cause in reversed(seen):
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror).lower()
        if str(cause) == "timed out":  # a socket's, which has no strerror
            return "timed out"
    text = str(error)
    return text if len(text) <= 200 else text[:197] + "..."
