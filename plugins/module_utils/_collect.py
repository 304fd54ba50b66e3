# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Takes the snapshot of the host that this runs on: the document that C(_snapshot.from_json) reads.

Reading never writes: no table, set or module comes into being because somebody asked for it. What cannot be read is a
hole with a sentence, and the rest of the snapshot is as good as without it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _host, _nftables
from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerSdkMissing
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import (
    Finder,
    Firewall,
    FirewallError,
    Runner,
    legacy_tables,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import (
    FAMILIES,
    LEGACY,
    PARTS,
    STORED_POLICIES,
    VARIANTS,
    VERSION,
    SnapshotError,
    check_part,
    dump_fault,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

Document = t.Dict[str, t.Any]

SAVED_FILES = ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6")
DAEMON_FILE = "/etc/docker/daemon.json"

#: How often, and after how many seconds, FORWARD is read again when its jump to DOCKER-USER is missing.
_LOOKS = 3
_LOOK_AGAIN = 0.2

_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}
_NEEDS_ROOT = "Reading %s needs root: add become: true to the task or the play."


class _Unreadable(Exception):
    """A part cannot be read; the sentence says why and what to do."""


# Text and values ------------------------------------------------------------------------------------------------------


def _decode(output: bytes) -> str:
    """Text that any JSON file can hold, so that what is judged live is what is judged from the file."""
    return output.decode("utf-8", "backslashreplace")


def _jump_is_away(text: str) -> bool:
    """True if Docker's chains are there, and no jump to DOCKER-USER.

    Engines up to 27 take it away and put it back at each network create, some 10 ms later (docker-firewall-facts 1.1).
    """
    return "\n:DOCKER-USER " in text and "\n:DOCKER " in text and "\n-A FORWARD -j DOCKER-USER\n" not in text


def _clean(value: t.Any) -> t.Any:
    """The value with texts that are no UTF-8 written as :func:`_decode` writes them."""
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")
    if isinstance(value, t.Mapping):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _one_line(text: str) -> str:
    """A sentence, whatever a program's error had in it."""
    words = " ".join(_clean(text).split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in words)


def _load(output: bytes) -> t.Any:
    """JSON that a program printed, whatever bytes are in its texts."""
    found = json.loads(output.decode("utf-8", "surrogateescape"), strict=False)
    # Of ten thousand rules the listing has half a million values; nearly always none needs it.
    return found if output.isascii() and b"\\u" not in output else _clean(found)


def _address(value: t.Any) -> str:
    """An address without its zone, or empty: engines write C(invalid IP) and the like for none."""
    text = str(value or "").partition("%")[0]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return ""
    return text


def _cut(value: t.Any, *keys: str) -> Document:
    """Of a mapping only these keys, as far as they are set."""
    return {key: value[key] for key in keys if (value or {}).get(key) is not None}


# Docker ---------------------------------------------------------------------------------------------------------------


def _container(item: t.Mapping[str, t.Any]) -> Document:
    """What is judged of a container: labels and command lines of people may hold secrets."""
    networks = (item.get("NetworkSettings") or {}).get("Networks") or {}
    labels = item.get("Labels") or {}
    return {
        **_cut(item, "Id", "Names", "Image", "State"),
        "Ports": [
            {**_cut(port, "PrivatePort", "PublicPort", "Type"), "IP": _address(port.get("IP"))}
            for port in item.get("Ports") or ()
        ],
        "Labels": {key: value for key, value in labels.items() if key.startswith("com.docker.")},
        "HostConfig": _cut(item.get("HostConfig"), "NetworkMode"),
        "NetworkSettings": {
            "Networks": {
                name: {
                    **_cut(endpoint, "NetworkID"),
                    "IPAddress": _address((endpoint or {}).get("IPAddress")),
                    "GlobalIPv6Address": _address((endpoint or {}).get("GlobalIPv6Address")),
                    "IPAMConfig": {
                        key: _address(value)
                        for key, value in _cut((endpoint or {}).get("IPAMConfig"), "IPv4Address", "IPv6Address").items()
                    },
                }
                for name, endpoint in networks.items()
            }
        },
    }


def _network(item: t.Mapping[str, t.Any]) -> Document:
    config = (item.get("IPAM") or {}).get("Config") or ()
    return {
        **_cut(item, "Name", "Id", "Driver", "Scope", "EnableIPv4", "EnableIPv6", "Internal", "Ingress", "Options"),
        "IPAM": {"Config": [_cut(entry, "Subnet") for entry in config if entry.get("Subnet")]},
    }


def _service(item: t.Mapping[str, t.Any]) -> Document:
    ports = (item.get("Endpoint") or {}).get("Ports") or ()
    return {
        "name": (item.get("Spec") or {}).get("Name") or "",
        "ports": [
            {
                "protocol": port.get("Protocol") or "tcp",
                "published_port": port["PublishedPort"],
                "target_port": port.get("TargetPort") or 0,
                "mode": port.get("PublishMode") or "ingress",
            }
            for port in ports
            if port.get("PublishedPort")
        ],
    }


#: dockerd's options that decide about the firewall. Flags take no word of their own, but C(=false).
_DAEMON_FLAGS = (
    "iptables",
    "ip6tables",
    "userland-proxy",
    "live-restore",
    "allow-direct-routing",
    "ip-forward-no-drop",
)
_DAEMON_TEXTS = ("firewall-backend", "bridge")
_TRUTHS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True)
_TRUTHS.update(dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False))


def parse_dockerd(words: t.Sequence[str]) -> Document:
    """The options of dockerd's command line that decide about the firewall, and C(config-file) if it is there."""
    found: Document = {}
    texts = (*_DAEMON_TEXTS, "config-file")
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[index + 1] if index + 1 < len(words) else ""
        name = "bridge" if name == "-b" else name[2:] if name.startswith("--") else ""
        if name in texts:
            found[name] = value if equals else following
        elif name in _DAEMON_FLAGS:
            found[name] = _TRUTHS.get(value, True) if equals else _TRUTHS.get(following, True)
    return found


def parse_proxy(words: t.Sequence[str]) -> t.Optional[Document]:
    """One docker-proxy's ports, from its command line (C(-proto tcp -host-ip :: ...)); None if it has none."""
    options: t.Dict[str, str] = {}
    for index, word in enumerate(words):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            options[name] = value if equals else words[index + 1] if index + 1 < len(words) else ""
    ports = [options.get(name, "") for name in ("host-port", "container-port")]
    if not all(port.isdigit() and len(port) <= 5 for port in ports):
        return None
    return {
        "protocol": options.get("proto", "tcp"),
        "host_address": _address(options.get("host-ip")),
        "host_port": int(ports[0]),
        "container_address": _address(options.get("container-ip")),
        "container_port": int(ports[1]),
    }


# Interfaces and routes ------------------------------------------------------------------------------------------------


def parse_interfaces(items: t.Iterable[t.Mapping[str, t.Any]]) -> t.List[Document]:
    """What C(ip -j -d address) printed; old versions print empty objects for what they leave out."""
    return [
        {
            "name": item["ifname"],
            "kind": (item.get("linkinfo") or {}).get("info_kind") or "",
            "up": "UP" in (item.get("flags") or ()),
            "master": item.get("master") or "",
            "addresses": [
                "%s/%d" % (address["local"], address["prefixlen"])
                for address in item.get("addr_info") or ()
                if _address(address.get("local"))
            ],
        }
        for item in items
        if item.get("ifname")
    ]


def parse_routes(items: t.Iterable[t.Mapping[str, t.Any]], family: str) -> t.List[Document]:
    """What C(ip -j route show table all) printed; one route for each of several next hops.

    IPv6's link-local and multicast routes are left out: each interface has four, and no container's packet takes them.
    """
    found: t.List[Document] = []
    for item in items:
        destination = {"default": "0.0.0.0/0" if family == IPV4 else "::/0"}.get(
            item.get("dst", ""), item.get("dst", "")
        )
        try:
            network = ipaddress.ip_network(destination, strict=False)
        except ValueError:
            continue
        if network.version == 6 and network.prefixlen and (network.is_link_local or network.is_multicast):
            continue
        for hop in item.get("nexthops") or [item]:
            found.append(
                {
                    "family": family,
                    "destination": str(network),
                    "gateway": _address(hop.get("gateway") or (hop.get("via") or {}).get("host")),
                    "interface": hop.get("dev") or "",
                    "table": str(item.get("table") or "main"),
                    "type": item.get("type") or "unicast",
                    "metric": item.get("metric") or 0,
                }
            )
    return found


# The host -------------------------------------------------------------------------------------------------------------


class _Collector:
    def __init__(self, run: Runner, find: Finder, docker_factory: t.Callable[[], Docker], root: str) -> None:
        self._run = run
        self._find = find
        self._docker_factory = docker_factory
        self._root = root
        self._firewall = Firewall(run, find)
        self._is_root = os.geteuid() == 0
        self._nft_objects: t.Optional[t.List[t.Any]] = None
        self.document: Document = {}
        self.holes: t.List[t.Dict[str, str]] = []

    def hole(self, part: str, reason: str) -> None:
        self.holes.append({"part": part, "reason": _one_line(reason)})

    def part(self, name: str, reader: t.Callable[[], t.Any]) -> None:
        """Read one part, or leave a hole."""
        value = None
        try:
            value = reader()
            if value is not None:
                check_part(name, value)
        except _Unreadable as error:
            value = None
            self.hole(name, str(error))
        except SnapshotError as error:
            value = None
            self.hole(
                name,
                "What the host told has an unknown form, so nothing of it was judged: please report it (%s)."
                % error.reason,
            )
        except Exception as error:  # noqa: BLE001 -- of a host in any state the rest can still be judged
            value = None
            form = isinstance(error, (AttributeError, TypeError, LookupError, ValueError))
            what = "What the host told has an unknown form" if form else "Reading it failed"
            self.hole(
                name,
                "%s, so nothing of it was judged: please report it (%s: %s)." % (what, type(error).__name__, error),
            )
        self.document[name] = value

    def output(self, program: str, *args: str) -> bytes:
        """What a program printed.

        :raises _Unreadable: it is missing or failed.
        """
        path = self._find(program)
        package = {"nft": "nftables", "ip": "iproute2 (iproute)"}.get(program, program)
        if path is None:
            raise _Unreadable("%s is not installed on the host: install the package %s." % (program, package))
        rc, out, err = self._run([path, *args], None, {"LC_ALL": "C"}, ())
        command = " ".join((program, *args))
        if rc < 0:
            raise _Unreadable("`%s` was ended by signal %d: bring it to the version of its kernel." % (command, -rc))
        if rc != 0:
            lines = [line.strip() for line in _decode(err).splitlines() if line.strip()]
            raise _Unreadable(
                "`%s` failed with return code %d: %s." % (command, rc, (lines or ["it gave no reason"])[0].rstrip("."))
            )
        return out

    def json_output(self, program: str, *args: str) -> t.List[t.Any]:
        out = self.output(program, *args)
        try:
            found = _load(out) if out.strip() else []
        except (ValueError, RecursionError) as error:
            raise _Unreadable(
                "`%s` printed no JSON (%s): update the package." % (" ".join((program, *args)), error)
            ) from error
        found = found.get("nftables") if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise _Unreadable("`%s` printed something else than a list." % " ".join((program, *args)))
        return found

    # Firewall

    def nft(self) -> Document:
        if not self._is_root:
            raise _Unreadable(_NEEDS_ROOT % "nftables' rules")
        objects: t.List[t.Any] = []
        if _host.nf_tables_is_loaded(self._root):
            # Terse: sets of a blocklist have a hundred thousand elements, which nobody judges.
            objects = self.json_output("nft", "-j", "-t", "list", "ruleset")
            for family, table in _nftables.wanted_whole(objects):
                whole = self.json_output("nft", "-j", "list", "table", family, table)
                objects = _nftables.replace_table(objects, (family, table), whole)
        self._nft_objects = objects
        return _nftables.summary(objects)

    def iptables(self) -> Document:
        found: Document = {family: dict.fromkeys(VARIANTS) for family in FAMILIES}
        if not self._is_root:
            for family in FAMILIES:
                for variant in VARIANTS:
                    self.hole("iptables_%s_%s" % (family, variant), _NEEDS_ROOT % "iptables")
            return found
        version, default = self._firewall.defaults()
        found.update(version=version, default=default)
        for family in FAMILIES:
            for variant in VARIANTS:
                part = "iptables_%s_%s" % (family, variant)
                try:
                    text = self._dump(family, variant, part) if self._is_there(family, variant) else ""
                    fault = dump_fault(text)
                    if fault:
                        raise _Unreadable("iptables-save printed no whole dump: %s." % fault)
                    self._incompatible(text, family, part)
                    found[family][variant] = text or None
                except (_Unreadable, FirewallError) as error:
                    self.hole(part, str(error))
        return found

    def _is_there(self, family: str, variant: str) -> bool:
        """True if there may be rules to read, and asking for them makes nothing."""
        if variant == LEGACY:
            return bool(legacy_tables(family))
        if not _host.nf_tables_is_loaded(self._root):
            return False
        return self._nft_objects is None or bool(_nftables.iptables_tables(self._nft_objects)[family])

    def _dump(self, family: str, variant: str, part: str) -> str:
        try:
            return self._settled(family, variant)
        except FirewallError:
            if variant == LEGACY or self._nft_objects is None or not self._firewall.can_read(family, variant):
                raise
        # One rule that iptables cannot parse spoils the whole output, but not the tables that do not have it.
        text = ""
        for table in _nftables.iptables_tables(self._nft_objects)[family]:
            try:
                text += _decode(self._firewall.save_all(family, variant, table))
            except FirewallError as error:
                self.hole("%s_%s" % (part, table), str(error))
        return text

    def _settled(self, family: str, variant: str) -> str:
        """All tables; read again where Docker may be about to put the jump back."""
        text = _decode(self._firewall.save_all(family, variant))
        for _turn in range(_LOOKS):
            if not _jump_is_away(text):
                break
            time.sleep(_LOOK_AGAIN)
            text = _decode(self._firewall.save_all(family, variant))
        return text

    def _incompatible(self, text: str, family: str, part: str) -> None:
        if not re.search(r"^# Table .* is incompatible", text, re.MULTILINE):
            return
        for table in parse_dump(text, family).incompatible:
            self.hole(
                "%s_%s" % (part, table),
                "iptables cannot show the %s %s table, as it holds rules that were written with nft: move them to a "
                "table of their own (nft list table %s %s shows them)."
                % (_FAMILY_TEXTS[family], table, "ip" if family == IPV4 else "ip6", table),
            )

    def ipsets(self) -> t.Optional[str]:
        dumps = self.document["iptables"] or {}
        texts = [text for family in FAMILIES for text in (dumps.get(family) or {}).values() if text]
        if not any("--match-set " in text for text in texts):
            return None
        if not _host.ip_set_is_loaded(self._root):
            raise _Unreadable("Rules use sets, but /sys/module/ip_set is not there: mount /sys, then run again.")
        return _decode(self.output("ipset", "save"))

    def saved(self) -> t.Dict[str, str]:
        found: t.Dict[str, str] = {}
        for path in SAVED_FILES:
            try:
                with open(self._root + path, "rb") as file:
                    found[path] = _decode(file.read())
            except FileNotFoundError:
                continue
            except OSError as error:
                self.hole("saved", "%s cannot be read: %s." % (path, error.strerror))
        if os.path.exists(self._root + STORED_POLICIES):
            found[STORED_POLICIES] = ""
        return found

    # Docker

    def docker(self) -> Document:
        self.document["services"] = []
        try:
            engine = self._docker_factory()
            answers = engine.answers()
        except DockerSdkMissing as error:
            reason = (error.trace.strip().splitlines() or ["ImportError"])[-1]
            raise _Unreadable(
                "The Docker SDK for Python cannot be imported on the host (%s): install python3-docker, or docker with "
                "pip for the Python that Ansible uses there." % reason[:200]
            ) from error
        except DockerError as error:
            raise _Unreadable(str(getattr(error, "short", error))) from error
        info = answers["info"]
        swarm = info.get("Swarm") or {}
        if swarm.get("ControlAvailable"):
            self.part("services", lambda: _clean(self._services(engine)))
        elif swarm.get("LocalNodeState") == "active":
            self.hole(
                "services", "This node is a worker of a Swarm, which cannot list services: audit a manager of it too."
            )
        found = {
            "version": _cut(answers["version"], "Version", "ApiVersion"),
            "info": {
                **_cut(info, "ServerVersion", "LiveRestoreEnabled", "SecurityOptions", "IPv4Forwarding"),
                **_cut(info, "OperatingSystem"),
                "FirewallBackend": _cut(info.get("FirewallBackend"), "Driver"),
                "Swarm": _cut(swarm, "LocalNodeState", "ControlAvailable"),
            },
            "daemon": self._daemon(),
            "containers": [_container(item) for item in answers["containers"] or ()],
            "networks": [_network(item) for item in answers["networks"] or ()],
        }
        return t.cast(Document, _clean(found))

    @staticmethod
    def _services(engine: Docker) -> t.List[Document]:
        try:
            return [_service(item) for item in engine.services()]
        except DockerError as error:
            raise _Unreadable(str(getattr(error, "short", error))) from error

    def _daemon(self) -> Document:
        try:
            running = _host.command_lines(("dockerd",), self._root)
        except OSError:
            running = []  # somebody who is not root cannot tell whose network a program has
        options = parse_dockerd(running[0][1]) if running else {}
        path = str(options.pop("config-file", "") or DAEMON_FILE)
        found: Document = {}
        try:
            with open(self._root + path, "rb") as file:
                text = file.read()
            found = _cut(_load(text) if text.strip() else {}, *_DAEMON_FLAGS, *_DAEMON_TEXTS)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.hole("docker", "%s cannot be read, so Docker's options are not known: %s." % (path, error.strerror))
        except (ValueError, AttributeError, RecursionError) as error:
            self.hole("docker", "%s is no JSON object, so Docker's options are not known: %s." % (path, error))
        found.update(options)
        return found

    def proxies(self) -> t.List[Document]:
        try:
            running = _host.command_lines(("docker-proxy",), self._root)
        except PermissionError as error:
            raise _Unreadable(_NEEDS_ROOT % "docker-proxy's processes") from error
        except OSError as error:
            raise _Unreadable("/proc cannot be read: %s." % error.strerror) from error
        return [proxy for proxy in (parse_proxy(words) for _name, words in running) if proxy is not None]

    # The rest

    def listening(self) -> t.List[Document]:
        try:
            return _host.listening(self._root)
        except OSError as error:
            raise _Unreadable("/proc/net cannot be read: %s." % error.strerror) from error

    def sysctls(self) -> t.Dict[str, str]:
        try:
            return _host.sysctls(self._root)
        except OSError as error:
            raise _Unreadable("/proc/sys/net cannot be read: %s." % error.strerror) from error

    def interfaces(self) -> t.List[Document]:
        return parse_interfaces(self.json_output("ip", "-j", "-d", "address"))

    def routes(self) -> t.List[Document]:
        found: t.List[Document] = []
        for family, option in ((IPV4, "-4"), (IPV6, "-6")):
            found += parse_routes(self.json_output("ip", option, "-j", "route", "show", "table", "all"), family)
        return found


def collect(run: Runner, find: Finder, docker_factory: t.Callable[[], Docker], root: str = "") -> Document:
    """The host's snapshot, as a document of JSON. Never fails, and never writes.

    :param docker_factory: makes the engine's client; it may raise what :class:`Docker` raises.
    :param root: where the host's /proc, /sys and /etc are.
    """
    collector = _Collector(run, find, docker_factory, root)
    # nft first: it tells what iptables-save should show. Docker right after them: containers come and go.
    for part in (
        "nft",
        "iptables",
        "ipsets",
        "docker",
        "proxies",
        "listening",
        "sysctls",
        "interfaces",
        "routes",
        "saved",
    ):
        collector.part(part, getattr(collector, part))
    return {
        "quaywall_snapshot": VERSION,
        "collected": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{part: collector.document[part] for part in PARTS},
        "holes": collector.holes,
    }
