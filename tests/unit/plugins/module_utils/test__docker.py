# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a snapshot asks the engine: a few requests for all, and what becomes of an engine that does not answer."""

from __future__ import annotations

import sys
import types
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker, DockerSilent
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container, DockerError, DockerGone


class ApiError(Exception):
    explanation = "This node is not a swarm manager."


class NotFound(ApiError):
    explanation = "No such thing"


class Client:
    """Counts the requests; ``error`` is raised by each."""

    def __init__(self, error: t.Optional[Exception] = None) -> None:
        self.error = error
        self.requests: t.List[str] = []

    def _answer(self, request: str) -> t.List[str]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return [request]

    def version(self) -> t.Any:
        return self._answer("version")

    def info(self) -> t.Any:
        return self._answer("info")

    def containers(self, **options: t.Any) -> t.Any:
        assert options == {"all": True}
        return self._answer("containers")

    def networks(self) -> t.Any:
        return self._answer("networks")

    def services(self) -> t.Any:
        return self._answer("services")

    def inspect_network(self, identity: str) -> t.Any:
        self._answer("network " + identity)
        return {
            "Id": identity,
            "Name": "app",
            "Driver": "bridge",
            "Containers": {"c": {"IPv4Address": "172.18.0.2/16"}},
        }

    def inspect_container(self, identity: str) -> t.Any:
        self._answer("inspect " + identity)
        return {"Id": identity, "Name": "/web"}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[t.Any], Docker]:
    def make(client: t.Any) -> Docker:
        module = types.ModuleType("docker")
        module.errors = types.SimpleNamespace(APIError=ApiError, NotFound=NotFound)  # type: ignore[attr-defined]
        module.APIClient = client if callable(client) else lambda **options: client  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "docker", module)
        return Docker("unix:///var/run/docker.sock")

    return make


def test_four_requests_for_all(engine: t.Callable[[t.Any], Docker]) -> None:
    client = Client()
    docker = engine(client)
    asked = ["version", "info", "containers", "networks"]
    assert docker.answers() == {request: [request] for request in asked}
    assert client.requests == asked
    assert docker.services() == ["services"]


def test_a_refusal(engine: t.Callable[[t.Any], Docker]) -> None:
    with pytest.raises(DockerError) as caught:
        engine(Client(ApiError())).services()
    assert "GET /services" in str(caught.value) and "This node is not a swarm manager." in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "(connection refused): start it (systemctl start docker)"),
        (PermissionError(13, "Permission denied"), "(permission denied): add become: true to the task or the play"),
        (TimeoutError("timed out"), "(timed out): restart it (systemctl restart docker)"),
    ],
)
def test_no_answer(engine: t.Callable[[t.Any], Docker], cause: Exception, words: str) -> None:
    """As requests and urllib3 wrap what the socket says."""

    def refuse(**options: t.Any) -> None:
        try:
            raise cause
        except OSError as error:
            raise RuntimeError("Error while fetching server API version: %s" % error) from error

    with pytest.raises(DockerSilent) as caught:
        engine(refuse)
    assert caught.value.short == "Docker does not answer at unix:///var/run/docker.sock %s." % words
    assert str(caught.value).startswith(caught.value.short[:-1] + ", or protect a host port with published_port")


def test_what_the_follower_asks(engine: t.Callable[[t.Any], Docker]) -> None:
    client = Client()
    docker = engine(client)
    network, addresses = docker.network_endpoints("n1")
    assert (network.name, addresses) == ("app", {"c": ("172.18.0.2",)})
    assert docker.inspect("c1").container.name == "web"
    assert client.requests == ["network n1", "inspect c1"]
    client.error = NotFound()
    for ask in (docker.network_endpoints, docker.inspect):
        with pytest.raises(DockerGone):
            ask("x" * 64)
    removed = Container("web", "x" * 64, True, "app", {}, {}, {}, ())
    with pytest.raises(DockerGone, match=r"^Container web was removed while it was looked up: run again\.$"):
        docker.bindings(removed)
    client.requests.clear()
    with pytest.raises(DockerGone):
        docker.bindings(removed)
    assert client.requests == []
    client.error = ApiError()
    for ask in (docker.network_endpoints, docker.inspect):
        with pytest.raises(DockerError) as caught:
            ask("x" * 64)
        assert not isinstance(caught.value, DockerGone)
