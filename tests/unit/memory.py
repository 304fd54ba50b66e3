# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host in memory: programs that answer as kernel-facts 1, 2 and 7 tell, and an engine.

Nothing of it is the code under test.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _iptables
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    Inventory,
    Network,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.tests.unit.support import Kernel, Refused

if t.TYPE_CHECKING:
    import pytest

DOCKER_29 = {
    "INPUT": [],
    "FORWARD": ["-j DOCKER-USER", "-j DOCKER-FORWARD"],
    "OUTPUT": [],
    "DOCKER": [],
    "DOCKER-FORWARD": [],
    DOCKER_USER: [],
}
MANGLE: t.Dict[str, t.List[str]] = {name: [] for name in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")}
INCOMPATIBLE = "# Table `filter' is incompatible, use 'nft' tool.\n"


class MemorySet:
    """A set in the kernel. Its elements keep what was added as it was: C(ipset) would print most of it the same."""

    def __init__(self, kind: str, family: str, most: int) -> None:
        self.kind = kind
        self.family = family
        self.most = most
        self.elements: t.List[str] = []


class Host:
    """Programs, tables and what they answer. ``read_only`` fails the test that writes."""

    def __init__(self, *chains: t.Mapping[str, t.Sequence[str]]) -> None:
        four = chains[0] if chains else DOCKER_29
        six = chains[1] if len(chains) > 1 else DOCKER_29
        self.tables: t.Dict[t.Tuple[str, str], Kernel] = {
            ("iptables", "nft"): Kernel(four),
            ("ip6tables", "nft"): Kernel(six),
        }
        self.mangle = {command: Kernel(MANGLE, "mangle") for command in ("iptables", "ip6tables")}
        self.programs = {
            "%s%s-%s" % (command, variant, action)
            for command in ("iptables", "ip6tables")
            for variant in ("", "-nft", "-legacy")
            for action in ("save", "restore")
        } | {"nft", "ipset"}
        self.sets: t.Dict[str, MemorySet] = {}
        self.before_sets: t.List[t.Callable[[], None]] = []
        self.refuse_sets = ""
        self.incompatible: t.Set[str] = set()
        self.native_mangle: t.Set[str] = set()
        self.broken: t.Dict[str, str] = {}
        self.nft_tables = "table ip filter\ntable ip6 filter\n"
        self.read_only = False
        self.commands: t.List[t.List[str]] = []
        self.held: t.List[t.Tuple[str, int]] = []
        self.environments: t.List[t.Mapping[str, str]] = []
        self.before_commit: t.List[t.Callable[[], None]] = []
        self.after_commit: t.List[t.Callable[[], None]] = []
        self.refuse_commit = ""

    @property
    def four(self) -> Kernel:
        return self.tables["iptables", "nft"]

    @property
    def six(self) -> Kernel:
        return self.tables["ip6tables", "nft"]

    def saved(self) -> t.Dict[t.Tuple[str, str], str]:
        return {key: kernel.save() for key, kernel in self.tables.items()}

    def everything(self) -> t.Dict[str, t.Any]:
        """All that the kernel holds."""
        found: t.Dict[str, t.Any] = {"%s %s" % key: text for key, text in self.saved().items()}
        found.update({"mangle " + command: kernel.save() for command, kernel in self.mangle.items()})
        return {**found, "sets": self.members()}

    def find(self, program: str) -> t.Optional[str]:
        return "/usr/sbin/" + program if program in self.programs else None

    def run(
        self,
        args: t.Sequence[str],
        data: t.Optional[bytes],
        environment: t.Mapping[str, str],
        descriptors: t.Sequence[int] = (),
    ) -> t.Tuple[int, bytes, bytes]:
        assert environment["LC_ALL"] == "C"
        self.commands.append(list(args))
        if "restore" in args[0] or "restore" in args[1:]:
            self.held.append((os.path.basename(args[0]), len(descriptors)))
        self.environments.append(environment)
        rc, out, err = self._answer(args, (data or b"").decode("utf-8", "surrogateescape"))
        return rc, out.encode("utf-8", "surrogateescape"), err.encode()

    def _answer(self, args: t.Sequence[str], data: str) -> t.Tuple[int, str, str]:
        name = os.path.basename(args[0])
        assert args[0] == "/usr/sbin/" + name
        assert name in self.programs
        if name == "nft":
            assert args[1:] == ["list", "tables"]
            return 0, self.nft_tables, ""
        if name == "ipset":
            return self._ipset(list(args[1:]), data)
        words = name.split("-")
        command, action = words[0], words[-1]
        variant = words[1] if len(words) == 3 else "nft"
        if args[1:] == ["--version"]:
            return 0, "%s v1.8.9 (nf_tables)\n" % name, ""
        kernel = self.tables.get((command, variant))
        if action == "save":
            assert args[1] == "-t"
            assert args[2] in ("filter", "mangle")
            if command in self.broken:
                return 1, "", self.broken[command]
            if args[2] == "mangle":
                if command in self.native_mangle:
                    return 0, INCOMPATIBLE.replace("filter", "mangle"), ""
                return 0, self.mangle[command].save(), ""
            if command in self.incompatible:
                return 0, INCOMPATIBLE, ""
            assert kernel is not None, "reading a legacy table that is not there creates it"
            return 0, kernel.save(), ""
        return self._restore(command, kernel, list(args[1:]), data)

    def _restore(
        self, command: str, kernel: t.Optional[Kernel], args: t.List[str], data: str
    ) -> t.Tuple[int, str, str]:
        test = args[-1] == "--test"
        assert args[:2] == ["--noflush", "--wait"]
        assert int(args[2]) > 0
        assert args[3:] == (["--test"] if test else [])
        assert kernel is not None
        assert test or not self.read_only, "check mode wrote"
        for asked in re.findall(r"--match-set (\S+) ", data):
            if asked not in self.sets:
                return 2, "", "iptables-nft-restore v1.8.9 (nf_tables): Set %s doesn't exist.\n" % asked
        if not test and self.before_commit:
            self.before_commit.pop(0)()
        if not test and self.refuse_commit == command:
            return 1, "", "%s-restore: line 2 failed: Operation not permitted.\n" % command
        try:
            for part in data.split("COMMIT\n")[:-1]:
                table = self.mangle[command] if part.startswith("*mangle\n") else kernel
                table.restore(part + "COMMIT\n", test)
        except Refused as error:
            return 1, "", "%s\n" % error
        if not test and self.after_commit:
            self.after_commit.pop(0)()
        return 0, "", ""

    # Sets (kernel-facts 7)

    def members(self) -> t.Dict[str, t.List[str]]:
        return {name: sorted(found.elements) for name, found in self.sets.items()}

    def _ipset(self, args: t.List[str], data: str) -> t.Tuple[int, str, str]:
        if args == ["list", "-t"]:
            return 0, "\n".join(map(self._header, self.sets)), ""
        if args[:1] == ["save"]:
            if args[1] not in self.sets:
                return 1, "", "ipset v7.17: The set with the given name does not exist\n"
            lines = ["create %s hash:net" % args[1], *["add %s %s" % (args[1], e) for e in self.sets[args[1]].elements]]
            return 0, "".join(line + "\n" for line in lines), ""
        assert args == ["restore"]
        assert not self.read_only, "check mode wrote sets"
        if self.before_sets:
            self.before_sets.pop(0)()
        # Not atomic: the lines before the one in error have been carried out.
        for number, line in enumerate(data.splitlines(), 1):
            error = self.refuse_sets if self.refuse_sets and line.startswith("add") else self._set_line(line.split(" "))
            if error:
                return 1, "", "ipset v7.17: Error in line %d: %s\n" % (number, error)
        return 0, "", ""

    def _header(self, name: str) -> str:
        found = self.sets[name]
        return (
            "Name: %s\nType: %s\nRevision: 7\n"
            "Header: family %s hashsize 64 maxelem %d bucketsize 12 initval 0x60cc629b\n"
            "Size in memory: 3630576\nReferences: %d\nNumber of entries: %d\n"
            % (name, found.kind, found.family, found.most, self.references(name), len(found.elements))
        )

    def references(self, name: str) -> int:
        kernels = [*self.tables.values(), *self.mangle.values()]
        rules = [rule.text for kernel in kernels for chain in kernel.chains.values() for rule in chain]
        return sum("--match-set %s " % name in text for text in rules)

    def _set_line(self, words: t.List[str]) -> str:
        command, name = words[:2]
        assert len(name) <= 31
        if command == "create":
            options = dict(zip(words[3::2], words[4::2]))
            if name in self.sets:
                return "Set cannot be created: set with the same name already exists"
            self.sets[name] = MemorySet(words[2], options.get("family", "inet"), int(options.get("maxelem", "65536")))
            return ""
        if name not in self.sets:
            return "The set with the given name does not exist"
        found = self.sets[name]
        if command == "add":
            if words[2].endswith("/0"):
                return "The value of the CIDR parameter of the IP address is invalid"
            if (":" in words[2]) != (found.family == "inet6"):
                return "Syntax error: cannot parse %s: resolving failed" % words[2]
            if words[2] in found.elements:
                return "Element cannot be added to the set: it's already added"
            if len(found.elements) >= found.most:
                return "Hash is full, cannot add more elements"
            found.elements.append(words[2])
        elif command == "swap":
            if words[2] not in self.sets:
                return "Sets cannot be swapped: the second set does not exist"
            if (self.sets[words[2]].kind, self.sets[words[2]].family) != (found.kind, found.family):
                return "The sets cannot be swapped: their type does not match"
            self.sets[name], self.sets[words[2]] = self.sets[words[2]], found
        elif command == "destroy":
            if self.references(name):
                return "Set cannot be destroyed: it is in use by a kernel component"
            del self.sets[name]
        else:
            raise AssertionError(command)
        return ""


class FakeDocker:
    def __init__(self, inventory: Inventory, fixed: t.Tuple[Binding, ...] = ()) -> None:
        self._inventory = inventory
        self._fixed = fixed

    def inventory(self) -> Inventory:
        return self._inventory

    def bindings(self, container: Container) -> t.Tuple[Binding, ...]:
        return self._fixed


BRIDGE = Network("bridge", "b" * 64, "bridge", "docker0", False, ("172.17.0.0/16",))
DUAL = Network("dual", "d" * 64, "bridge", "br-dddddddddddd", True, ("172.31.0.0/24", "fd00:31::/64"))


def one(name: str, network: Network, *addresses: str) -> Container:
    return Container(
        name, name.ljust(64, "0"), True, network.name, {}, {network.name: addresses}, {network.name: network.id}, ()
    )


INVENTORY = Inventory(
    (one("admin", BRIDGE, "172.17.0.10"), one("dual", DUAL, "172.31.0.2", "fd00:31::2")),
    {"bridge": BRIDGE, "dual": DUAL},
)


ADMIN = {
    "name": "admin-ui",
    "container": "admin",
    "destination_port": ["8080"],
    "source": ["203.0.113.10/32"],
    "action": "accept",
}
ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'


def isolate(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    """Have a test see nothing of this machine: neither its user, its legacy tables, its locks nor its clock."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for family, name in ((IPV4, "ip_tables_names"), (IPV6, "ip6_tables_names")):
        (tmp_path / name).write_text("")
        monkeypatch.setitem(_iptables._NAMES_FILES, family, str(tmp_path / name))
    monkeypatch.setattr(_iptables, "XTABLES_LOCK", str(tmp_path / "xtables.lock"))
    monkeypatch.setattr(_iptables.time, "sleep", lambda seconds: None)
