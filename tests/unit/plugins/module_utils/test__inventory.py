# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Containers and networks, from what real engines answered and from samples made by hand."""

from __future__ import annotations

import json
import re
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Inventory,
    families,
    from_stored,
    parse_bindings,
    parse_container,
    parse_endpoints,
    parse_inspection,
    parse_inventory,
    parse_network,
    to_stored,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, capture, shared_text

CAPTURES = (
    "docker-20.10-iptables-nft",
    "docker-26.1-iptables-nft",
    "docker-28.5-iptables-nft",
    "docker-29.7-iptables-nft",
    "docker-29.7-nftables",
)


def real(name: str) -> Inventory:
    answers = capture(name)
    return parse_inventory(answers["containers"], answers["networks"])


def tcp(port: int, host: int, address: str = "") -> Binding:
    return Binding("tcp", port, host, address, False)


@pytest.mark.parametrize("name", CAPTURES)
def test_the_ten_containers_of_a_real_host(name: str) -> None:
    """captures/README.md and the way they were started: every engine has the same ten."""
    inventory = real(name)
    assert {item.name: dict(item.networks) for item in inventory.containers} == {
        "web-a": {"bridge": ("172.17.0.2",)},
        "web-b": {"bridge": ("172.17.0.3",)},
        "local-only": {"bridge": ("172.17.0.4",)},
        "range": {"bridge": ("172.17.0.5",)},
        "unpublished": {"bridge": ("172.17.0.6",)},
        "admin": {"app-net": ("172.30.0.10",)},
        "dns": {"app-net": ("172.30.0.53",)},
        "dual": {"dual-net": ("172.31.0.2", "fd00:31::2")},
        "twonets": {"app-net": ("172.30.0.2",), "dual-net": ("172.31.0.3", "fd00:31::3")},
        "hostnet": {"host": ()},
    }
    # Docker lists a port that is published on all addresses once for each family.
    found = {
        item.name: {
            port._replace(host_address="") if port.host_address in ("0.0.0.0", "::") else port
            for port in item.current_ports
        }
        for item in inventory.containers
        if item.current_ports
    }
    assert found == {
        "web-a": {tcp(8080, 9000)},
        "web-b": {tcp(8080, 8080)},
        "local-only": {tcp(8080, 8081, "127.0.0.1")},
        "range": {tcp(7000, 7000), tcp(7001, 7001), tcp(7002, 7002)},
        "admin": {tcp(3000, 3000)},
        "dns": {tcp(53, 53), Binding("udp", 53, 53, "", False)},
        "dual": {tcp(8080, 8090)},
        "twonets": {tcp(8080, 8091)},
    }
    assert all(item.running for item in inventory.containers)


@pytest.mark.parametrize("name", CAPTURES)
def test_the_networks_of_a_real_host(name: str) -> None:
    inventory = real(name)
    networks = inventory.networks
    assert {key: (item.driver, item.ipv6, item.subnets) for key, item in networks.items()} == {
        "bridge": ("bridge", False, ("172.17.0.0/16",)),
        "app-net": ("bridge", False, ("172.30.0.0/24",)),
        "dual-net": ("bridge", True, ("172.31.0.0/24", "fd00:31::/64")),
        "host": ("host", False, ()),
        "none": ("null", False, ()),
    }
    assert networks["bridge"].bridge == "docker0"
    assert networks["host"].bridge == networks["none"].bridge == ""


@pytest.mark.parametrize("name", [name for name in CAPTURES if not name.endswith("nftables")])
def test_bridges_are_those_in_dockers_own_rules(name: str) -> None:
    """Docker writes `-d ADDRESS/32 ! -i BRIDGE` for each published container of the same host."""
    inventory = real(name)
    rules = shared_text(SHARED / "captures" / name / "iptables-save.txt")
    checked = 0
    for container in inventory.containers:
        for network, addresses in container.networks.items():
            found = inventory.network_of(container, network)
            assert found is not None
            for address in addresses:
                for bridge in re.findall(r"-d %s/32 ! -i (\S+) " % re.escape(address), rules):
                    assert found.bridge == bridge
                    checked += 1
    assert checked >= 8


@pytest.mark.parametrize("name", CAPTURES)
def test_a_container_is_found_by_name_and_id(name: str) -> None:
    inventory = real(name)
    admin = inventory.container("admin")
    assert admin is not None
    assert inventory.container(admin.id) == admin
    assert inventory.container(admin.id[:12]) == admin
    for wanted in ("", "adm", "Admin", "/admin", admin.id[:11], "9" * 12):
        assert inventory.container(wanted) is None


# By hand -------------------------------------------------------------------------------------------------------------

ID = "0123456789abcdef" * 4


def item(**changes: t.Any) -> t.Dict[str, t.Any]:
    return {"Id": ID, "Names": ["/web"], "State": "running", **changes}


def test_an_id_that_begins_like_another_is_no_answer() -> None:
    inventory = parse_inventory([item(Names=["/a"]), item(Names=["/b"], Id=ID[:20] + "f" * 44)], [])
    assert inventory.container(ID[:12]) is None
    found = inventory.container(ID)
    assert found is not None
    assert found.name == "a"


def test_a_name_wins_over_an_id() -> None:
    inventory = parse_inventory([item(Names=["/a"]), item(Names=["/" + ID[:12]], Id="f" * 64)], [])
    found = inventory.container(ID[:12])
    assert found is not None
    assert found.id == "f" * 64


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/web"], "web"),
        (["/app/db", "/db"], "db"),
        (["/db", "/app/db"], "db"),
        ([], ID[:12]),
        (None, ID[:12]),
    ],
)
def test_names(names: t.Optional[t.List[str]], expected: str) -> None:
    """A linked container is listed under its links too."""
    assert parse_container(item(Names=names)).name == expected


@pytest.mark.parametrize(
    ("state", "running"),
    [("running", True), ("paused", True), ("restarting", True), ("exited", False), ("created", False), ("dead", False)],
)
def test_states(state: str, running: bool) -> None:
    assert parse_container(item(State=state)).running is running


@pytest.mark.parametrize("missing", [{}, {"NetworkSettings": None}, {"NetworkSettings": {"Networks": None}}])
def test_what_an_engine_may_leave_out(missing: t.Dict[str, t.Any]) -> None:
    found = parse_container(item(Ports=None, Labels=None, HostConfig=None, **missing))
    assert found.networks == {}
    assert found.current_ports == ()
    assert found.labels == {}
    assert found.network_mode == ""
    assert parse_container(item(NetworkSettings={"Networks": {"a": None}})).networks == {"a": ()}


def test_a_stopped_container_keeps_its_static_addresses() -> None:
    endpoint = {
        "IPAMConfig": {"IPv4Address": "172.30.0.10", "IPv6Address": "fd00::10"},
        "NetworkID": "n1",
        "IPAddress": "",
        "GlobalIPv6Address": "",
    }
    found = parse_container(item(State="exited", NetworkSettings={"Networks": {"app": endpoint}}))
    assert found.networks == {"app": ("172.30.0.10", "fd00::10")}
    assert found.network_ids == {"app": "n1"}


def test_ports_that_are_not_published_are_none() -> None:
    ports = [
        {"PrivatePort": 80, "Type": "tcp"},
        {"IP": "0.0.0.0", "PrivatePort": 81, "PublicPort": 8081, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 81, "PublicPort": 8081, "Type": "tcp"},
        {"IP": "2001:db8::1", "PrivatePort": 81, "PublicPort": 8082, "Type": "sctp"},
    ]
    assert parse_container(item(Ports=ports)).current_ports == (
        tcp(81, 8081, "0.0.0.0"),
        tcp(81, 8081, "::"),
        Binding("sctp", 81, 8082, "2001:db8::1", False),
    )


def test_labels_must_all_be_there() -> None:
    inventory = parse_inventory(
        [
            item(Names=["/b"], Id="b" * 64, Labels={"app": "shop", "tier": "web"}),
            item(Names=["/a"], Id="a" * 64, Labels={"app": "shop", "tier": "web", "x": "1"}),
            item(Names=["/c"], Id="c" * 64, Labels={"app": "shop"}),
            item(Names=["/d"], Id="d" * 64, Labels={"app": "shop", "tier": "webb"}),
        ],
        [],
    )
    assert [found.name for found in inventory.labelled({"app": "shop", "tier": "web"})] == ["a", "b"]
    assert inventory.labelled({"app": "blog"}) == []


@pytest.mark.parametrize(
    ("network", "bridge"),
    [
        ({"Driver": "bridge", "Id": ID}, "br-0123456789ab"),
        ({"Driver": "bridge", "Id": ID, "Options": {"com.docker.network.bridge.name": "lan0"}}, "lan0"),
        ({"Driver": "bridge", "Id": ID, "Options": {"com.docker.network.bridge.name": ""}}, "br-0123456789ab"),
        ({"Driver": "overlay", "Id": ID}, ""),
        ({"Driver": "macvlan", "Id": ID, "Options": {"com.docker.network.bridge.name": "x"}}, ""),
        ({}, ""),
    ],
)
def test_a_bridges_name(network: t.Dict[str, t.Any], bridge: str) -> None:
    assert parse_network(network).bridge == bridge


@pytest.mark.parametrize("ipam", [None, {}, {"Config": None}, {"Config": [{}]}, {"Config": [{"Subnet": ""}]}])
def test_a_network_without_subnets(ipam: t.Any) -> None:
    assert parse_network({"Name": "x", "IPAM": ipam}).subnets == ()


def test_two_networks_of_one_name_are_told_apart_by_id() -> None:
    """Swarm may have a network of the name that a container knows another one by."""
    networks = [
        {"Name": "app", "Id": "1" * 64, "Driver": "bridge"},
        {"Name": "app-old", "Id": "2" * 64, "Driver": "bridge"},
    ]
    endpoint = {"NetworkID": "2" * 64, "IPAddress": "10.0.0.2"}
    inventory = parse_inventory([item(NetworkSettings={"Networks": {"app": endpoint}})], networks)
    found = inventory.network_of(inventory.containers[0], "app")
    assert found is not None
    assert found.name == "app-old"
    assert inventory.network_of(inventory.containers[0], "gone") is None


def test_of_two_networks_with_the_same_name_none_is_lost() -> None:
    """Engine 20.10 lets one make them through the API."""
    networks = [{"Name": "dup", "Id": digit * 64, "Driver": "bridge"} for digit in "12"]
    for digit in "12":
        endpoint = {"NetworkID": digit * 64, "IPAddress": "10.0.0.2"}
        inventory = parse_inventory([item(NetworkSettings={"Networks": {"dup": endpoint}})], networks)
        found = inventory.network_of(inventory.containers[0], "dup")
        assert found is not None
        assert found.bridge == "br-" + digit * 12


@pytest.mark.parametrize(
    ("port_bindings", "expected"),
    [
        ({"8080/tcp": [{"HostIp": "", "HostPort": "9000"}]}, [("tcp", 8080, 9000, "")]),
        ({"8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9000"}]}, [("tcp", 8080, 9000, "0.0.0.0")]),
        ({"53/udp": [{"HostIp": "192.0.2.1", "HostPort": "53"}]}, [("udp", 53, 53, "192.0.2.1")]),
        ({"53": [{"HostIp": "", "HostPort": "53"}]}, [("tcp", 53, 53, "")]),
        (
            {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}, {"HostIp": "::", "HostPort": "80"}]},
            [("tcp", 80, 80, "0.0.0.0"), ("tcp", 80, 80, "::")],
        ),
        ({"80/tcp": [{"HostIp": "", "HostPort": ""}]}, []),
        ({"80/tcp": [{"HostIp": "", "HostPort": "0"}]}, []),
        ({"80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]}, []),
        ({"80/tcp": None}, []),
        ({"80/tcp": []}, []),
        ({}, []),
        (None, []),
    ],
)
def test_fixed_bindings(port_bindings: t.Any, expected: t.List[t.Tuple[str, int, int, str]]) -> None:
    found = parse_bindings({"HostConfig": {"PortBindings": port_bindings}})
    assert found == tuple(Binding(*values, True) for values in expected)


def test_fixed_bindings_come_sorted() -> None:
    ports = {"%d/tcp" % port: [{"HostIp": "", "HostPort": str(port)}] for port in (9, 80, 443, 8080)}
    turned = dict(reversed(list(ports.items())))
    found = parse_bindings({"HostConfig": {"PortBindings": ports}})
    assert found == parse_bindings({"HostConfig": {"PortBindings": turned}})
    assert [binding.container_port for binding in found] == [9, 80, 443, 8080]
    assert parse_bindings({}) == ()


def test_families() -> None:
    assert families([]) == set()
    assert families(["10.0.0.1", "fd00::1"]) == {IPV4, IPV6}
    assert tcp(80, 80).serves(IPV4)
    assert tcp(80, 80).serves(IPV6)
    assert tcp(80, 80, "192.0.2.1").serves(IPV4)
    assert not tcp(80, 80, "192.0.2.1").serves(IPV6)
    assert not tcp(80, 80, "2001:db8::1").serves(IPV4)
    assert [tcp(80, 80, "0.0.0.0").serves(family) for family in (IPV4, IPV6)] == [True, False]
    assert [tcp(80, 80, "::").serves(family) for family in (IPV4, IPV6)] == [False, True]


# What one event changes ----------------------------------------------------------------------------------------------

NET, OTHER = "1" * 64, "2" * 64


def endpoint(network: str, address: str = "", static: str = "") -> t.Dict[str, t.Any]:
    config = {"IPv4Address": static} if static else None
    return {"NetworkID": network, "IPAddress": address, "GlobalIPv6Address": "", "IPAMConfig": config}


def two_containers() -> Inventory:
    containers = [
        item(NetworkSettings={"Networks": {"app": endpoint(NET, "172.18.0.2")}}),
        item(
            Id="f" * 64,
            Names=["/db"],
            NetworkSettings={"Networks": {"app": endpoint(NET, "172.18.0.9", "172.18.0.9")}},
        ),
    ]
    networks = [{"Name": "app", "Id": NET, "Driver": "bridge"}, {"Name": "lone", "Id": OTHER, "Driver": "bridge"}]
    return parse_inventory(containers, networks)


def at(inventory: Inventory) -> t.Dict[str, t.Mapping[str, t.Tuple[str, ...]]]:
    return {container.name: container.networks for container in inventory.containers}


def test_static_addresses_are_known() -> None:
    web, db = two_containers().containers
    assert (web.static, db.static) == ({}, {"app": ("172.18.0.9",)})
    assert (web.stopped().networks, db.stopped().networks) == ({"app": ()}, {"app": ("172.18.0.9",)})
    assert not db.stopped().running
    assert at(two_containers().stopped()) == {"web": {"app": ()}, "db": {"app": ("172.18.0.9",)}}


def test_the_members_of_a_network() -> None:
    inventory = two_containers()
    lone = inventory.networks["lone"]
    joined = inventory.with_endpoints(lone, {ID: ("172.19.0.2",), "9" * 64: ("172.19.0.3",)})
    assert at(joined)["web"] == {"app": ("172.18.0.2",), "lone": ("172.19.0.2",)}
    assert joined.network_of(joined.containers[0], "lone") == lone
    # Who is not among them has no address there, but for one that it was given for good.
    assert at(inventory.with_endpoints(inventory.networks["app"], {})) == {
        "web": {"app": ()},
        "db": {"app": ("172.18.0.9",)},
    }
    assert at(joined.without_endpoint(ID, NET))["web"] == {"app": (), "lone": ("172.19.0.2",)}
    assert joined.without_endpoint(ID, "3" * 64) == joined


def test_networks_come_and_go() -> None:
    inventory = two_containers()
    renewed = inventory.networks["app"]._replace(id="3" * 64)
    assert set(inventory.with_network(renewed).networks) == {"app", "lone", "3" * 64}
    assert set(inventory.without_network(NET).networks) == {"lone"}
    assert inventory.with_network(inventory.networks["app"]).networks == inventory.networks
    assert inventory.without_network("3" * 64) == inventory


def test_the_members_that_a_network_tells() -> None:
    """As Engine 20.10 answers; an endpoint that nobody has joined yet is "ep-" and its own ID."""
    answer = {
        "Containers": {
            ID: {"Name": "web", "IPv4Address": "172.18.0.2/16", "IPv6Address": "fd00::2/64"},
            "f" * 64: {"Name": "host", "IPv4Address": "", "IPv6Address": ""},
            "ep-" + "a" * 64: {"Name": "new", "IPv4Address": "172.18.0.3/16", "IPv6Address": ""},
        }
    }
    assert parse_endpoints(answer) == {ID: ("172.18.0.2", "fd00::2"), "f" * 64: ()}
    assert parse_endpoints({}) == parse_endpoints({"Containers": None}) == {}


@pytest.mark.parametrize(
    ("host", "chosen"),
    [
        ({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, False),
        ({"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "", "HostPort": ""}]}, True),
        ({"80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]}, True),
        ({}, False),
        (None, False),
    ],
)
def test_an_inspection(host: t.Any, chosen: bool) -> None:
    answer = {
        "Id": ID,
        "Name": "/web",
        "State": {"Status": "running"},
        "Config": {"Labels": {"tier": "front"}},
        "HostConfig": {"NetworkMode": "app", "PortBindings": host},
        "NetworkSettings": {
            "Networks": {"app": endpoint(NET, "172.18.0.2")},
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}], "53/udp": None},
        },
    }
    found = parse_inspection(answer)
    listed = item(
        Labels={"tier": "front"},
        HostConfig={"NetworkMode": "app"},
        NetworkSettings={"Networks": {"app": endpoint(NET, "172.18.0.2")}},
        Ports=[{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp"}],
    )
    assert found.container == parse_container(listed)
    assert found.chosen is chosen
    assert found.bindings == parse_bindings(answer)
    assert parse_inspection({**answer, "HostConfig": {"PublishAllPorts": True}}).chosen


@pytest.mark.parametrize("name", CAPTURES)
def test_what_is_stored_comes_back_without_addresses(name: str) -> None:
    inventory = real(name)
    binding = (Binding("tcp", 8080, 9000, "", True),)
    document = to_stored(inventory, lambda container: binding if container.name == "web-a" else ())
    text = json.dumps(document)
    assert json.loads(text) == document
    static = {address for item in inventory.containers for found in item.static.values() for address in found}
    for found in inventory.containers:
        for addresses in found.networks.values():
            assert all(address in static or '"%s"' % address not in text for address in addresses)
    again, bindings = from_stored(json.loads(text))
    assert {found.name: bindings(found) for found in again.containers if bindings(found)} == {"web-a": binding}
    assert again.networks == inventory.networks
    assert not any(found.running for found in again.containers)
    before = sorted(inventory.stopped().containers, key=lambda found: found.name)
    assert list(again.containers) == before
    assert to_stored(again, bindings) == document


@pytest.mark.parametrize(
    "document",
    [{}, {"containers": 1, "networks": []}, {"containers": [{}], "networks": []}, {"containers": [], "networks": [7]}],
)
def test_what_somebody_else_stored(document: t.Any) -> None:
    with pytest.raises(ValueError, match="What is stored of Docker's containers cannot be read"):
        from_stored(document)


def test_a_host_address_is_written_as_the_kernel_prints_it() -> None:
    """Older engines take a name too, which stands for every address here: what it is guarded at is never too little."""
    hosts = [{"HostIp": given, "HostPort": "8080"} for given in ("2001:DB8:0::1", "localhost", "", None)]
    found = parse_bindings({"HostConfig": {"PortBindings": {"80/tcp": hosts}}})
    assert {binding.host_address for binding in found} == {"2001:db8::1", ""}
