# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machines that the other tests stand on: separate, empty, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from .lab import FAMILIES, IPV4, Host, docker_table, listed, load, save


def test_a_machine_has_nothing_of_the_real_one(host: Host) -> None:
    assert host.call(os.listdir, "/run") == []
    assert host.run("nft", "list", "ruleset") == b""
    assert host.read("/proc/thread-self/net/ip_tables_names") == ""
    assert [line.split(":")[1].strip() for line in host.run("ip", "-o", "link").decode().splitlines()] == ["lo"]
    assert host.call(os.listdir, "/sys/class/net") == ["lo"]


def test_machines_do_not_see_each_other(host: Host, variant: str) -> None:
    with Host() as other:
        for family in FAMILIES:
            load(host, variant, family, docker_table(["-j DROP"]))
            assert listed(host, variant, family) == b"-A DOCKER-USER -j DROP\n"
            assert b"DOCKER" not in save(other, variant, family)
        host.call(Path("/run/mine").touch)
        assert host.call(os.listdir, "/run") != other.call(os.listdir, "/run")


def test_the_calling_thread_stays_where_it_is(host: Host) -> None:
    before = [os.readlink("/proc/thread-self/ns/" + name) for name in ("net", "mnt")]
    inside = host.call(lambda: [os.readlink("/proc/thread-self/ns/" + name) for name in ("net", "mnt")])
    load(host, "nft", IPV4, docker_table([]))
    assert [os.readlink("/proc/thread-self/ns/" + name) for name in ("net", "mnt")] == before
    assert all(one != two for one, two in zip(before, inside, strict=True))


def test_no_file_of_a_machine_is_left_behind() -> None:
    before = {os.readlink(path) for path in _descriptors()}
    with Host() as made:
        made.run("true")
    assert {os.readlink(path) for path in _descriptors()} <= before


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        path = "/proc/self/fd/" + name
        if os.path.exists(path):
            found.append(path)
    return found
