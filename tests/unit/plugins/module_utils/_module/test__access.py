# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The result access_changes of both modules that write: when it is there, and when the host is looked at for it."""

from __future__ import annotations

import json
import os
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.module_utils import _iptables
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall
from ansible_collections.quaywall.docker.plugins.module_utils._module import (
    _access,
    docker_user_chain,
    docker_user_rule,
)
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import Host as ModuleHost
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store
from ansible_collections.quaywall.docker.tests.unit.memory import INVENTORY, FakeDocker, Host
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, Document
from ansible_collections.quaywall.docker.tests.unit.snapshots import host as snapshot_of

POLICY = {"container": "admin", "destination_port": ["8080"], "source": ["203.0.113.10"], "action": "accept"}
TEXT = "Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4"


def document() -> Document:
    return snapshot_of("28.5", [Box("admin", "9000:8080", address="172.17.0.10"), Box("shop", "8080:8080")])


class Site:
    """A host in memory, with how often somebody looked at it, and what had been written by then."""

    def __init__(self, tmp_path: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.host = Host()
        self.looks: t.List[t.Tuple[str, ...]] = []
        self.answer: t.Any = document()
        self.warnings: t.List[str] = []
        self._path = str(tmp_path)
        self._capsys = capsys

    def _collect(self, module: AnsibleModule) -> t.Mapping[str, t.Any]:
        self.looks.append(self.host.tables["iptables", "nft"].texts("DOCKER-USER"))
        if isinstance(self.answer, Exception):
            raise self.answer
        return t.cast("t.Mapping[str, t.Any]", self.answer)

    def run(self, code: t.Any, check: bool = False, asked: t.Optional[bool] = None) -> t.Dict[str, t.Any]:
        host = ModuleHost(
            Firewall(self.host.run, self.host.find, 0.1, 0.1, self._path),
            Ipset(self.host.run, self.host.find, is_loaded=lambda: False),
            lambda: t.cast(t.Any, FakeDocker(INVENTORY)),
            lambda: pytest.fail("connections were asked for"),
        )
        rule = {"name": "admin-ui", **POLICY}
        options: t.Dict[str, t.Any] = dict(rule) if code is docker_user_rule else {"rules": [rule]}
        options["_ansible_check_mode"] = check
        if asked is not None:
            options["show_access_changes"] = asked
        self.looks.clear()
        self.warnings.clear()
        with patch_module_args(options):
            module = AnsibleModule(argument_spec=code.argument_spec(), supports_check_mode=True)
            module.warn = self.warnings.append
            with pytest.raises(SystemExit):
                code.run_module(module, lambda module: host, Store(self._path, self._path), self._collect)
        result: t.Dict[str, t.Any] = json.loads(self._capsys.readouterr().out)
        assert not result.get("failed"), result
        return result


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any, capsys: pytest.CaptureFixture[str]) -> Site:
    """Nothing of this machine."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for family, name in ((IPV4, "ip_tables_names"), (IPV6, "ip6_tables_names")):
        (tmp_path / name).write_text("")
        monkeypatch.setitem(_iptables._NAMES_FILES, family, str(tmp_path / name))
    return Site(tmp_path, capsys)


MODULES = pytest.mark.parametrize(
    "code", [docker_user_rule, docker_user_chain], ids=lambda code: code.__name__.rpartition(".")[2]
)


@MODULES
def test_in_check_mode_it_is_there_and_outside_nobody_looks(site: Site, code: t.Any) -> None:
    foretold = site.run(code, check=True)
    assert [item["text"] for item in foretold["access_changes"]] == [TEXT]
    assert foretold["access_changes"][0] == {
        "becomes": "blocked",
        "source": "anyone but 203.0.113.10",
        "in_interface": None,
        "container": "admin",
        "address": "172.17.0.10",
        "port": 9000,
        "protocol": "tcp",
        "published": "9000->8080/tcp",
        "family": "ipv4",
        "certainty": "definite",
        "reasons": [],
        "text": TEXT,
    }
    assert len(site.looks) == 1
    assert "access_changes" not in site.run(code)
    assert site.looks == []


@MODULES
def test_on_request_the_host_is_looked_at_before_it_is_changed(site: Site, code: t.Any) -> None:
    done = site.run(code, asked=True)
    assert done["changed"]
    assert [item["text"] for item in done["access_changes"]] == [TEXT]
    assert site.looks == [()]


@MODULES
def test_what_changes_nothing_needs_no_look(site: Site, code: t.Any) -> None:
    site.run(code)
    again = site.run(code, check=True)
    assert not again["changed"]
    assert again["access_changes"] == []
    assert site.looks == []


@MODULES
def test_it_can_be_left_out_of_check_mode(site: Site, code: t.Any) -> None:
    assert "access_changes" not in site.run(code, check=True, asked=False)
    assert site.looks == []


def hole(part: str) -> Document:
    found = document()
    return {**found, part: None, "holes": [{"part": part, "reason": "Docker does not answer."}]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OSError("no such thing"), "OSError: no such thing"),
        ({}, "quaywall_snapshot"),
        (hole("docker"), "Docker does not answer"),
    ],
    ids=["error", "no snapshot", "no Docker"],
)
@MODULES
@pytest.mark.parametrize("check", [True, False])
def test_a_host_that_cannot_be_looked_at_is_a_warning(
    site: Site, code: t.Any, check: bool, answer: t.Any, words: str
) -> None:
    site.answer = answer
    result = site.run(code, check, asked=True)
    assert result["changed"]
    assert result["access_changes"] is None
    (warning,) = site.warnings
    assert words in warning
    assert warning.isprintable()


@MODULES
def test_a_part_that_was_not_read_makes_it_possible(site: Site, code: t.Any) -> None:
    site.answer = {**document(), "holes": [{"part": "iptables_ipv4_legacy", "reason": "It was not read."}]}
    (item,) = site.run(code, check=True)["access_changes"]
    assert item["certainty"] == "possible"
    assert "not read" in item["text"]


@MODULES
def test_what_would_take_too_long_is_said(site: Site, code: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_access, "_MOST_SECONDS", 0)
    assert site.run(code, check=True)["access_changes"] == []
    (warning,) = site.warnings
    assert "some of the ways into containers only" in warning
