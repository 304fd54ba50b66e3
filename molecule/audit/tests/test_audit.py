# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is left on each host of all that was done to it: nothing."""

from __future__ import annotations

import typing as t

testinfra_hosts = ["ansible://dockers"]


def test_rules_are_as_before(host: t.Any) -> None:
    # The last situation wrote this after it was undone.
    assert host.file("/run/now").content == host.file("/run/healthy").content


def test_containers_run_as_before(host: t.Any) -> None:
    names = host.check_output("docker ps --format '{{.Names}}'").split()
    assert sorted(names) == ["admin", "dual", "neighbour", "shop"]
