# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role must know of a host before it begins, as JSON: run there once, reads only, starts nothing.

Arguments: the role's own files, of which it says which ones are there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import typing as t

# What needs it -> how it is found
PROGRAMS = {"iptables": "iptables", "ipset": "ipset", "conntrack": "conntrack", "ufw": "ufw"}
PROGRAMS["netfilter-persistent"] = "netfilter-persistent"
STOCK = "/etc/default/netfilter-persistent"
MARK = "quaywall.docker"


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def system() -> t.List[str]:
    """The distribution and those that it descends from, the nearest first."""
    lines = (line.partition("=") for line in read("/etc/os-release").splitlines())
    release = {name: value.strip("\"'") for name, _sign, value in lines}
    return [word for word in (release.get("ID", "") + " " + release.get("ID_LIKE", "")).split() if word]


def runs(program: str) -> bool:
    """Whether a process of this name is there. To connect to Docker's socket would start Docker."""
    return any(read("/proc/%s/comm" % pid).strip() == program for pid in os.listdir("/proc") if pid.isdigit())


def main(paths: t.Sequence[str]) -> None:
    where = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"])
    missing = [name for name, program in PROGRAMS.items() if shutil.which(program, path=where) is None]
    sdk = importlib.util.find_spec("docker")
    if sdk is None or sdk.origin is None:
        missing.append("sdk")
    found = {
        "missing": missing,
        "system": system(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "docker": runs("dockerd"),
        "present": [path for path in paths if os.path.lexists(path)],
        "stock": MARK in read(STOCK),
    }
    sys.stdout.write(json.dumps(found, sort_keys=True))


main(sys.argv[1:])
