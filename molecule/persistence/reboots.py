# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to the hosts while clients connect to them; who got in goes into a file that the verifier reads.

reboots.py REPORT BED HAPPENING...
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import pathlib
import re
import sys
import time
import typing as t

from testbed.hosts import OFFICE, STRANGER, Bed, Client, Host

HOSTS = ("bookworm", "trixie", "forky")
GUARDED = {9000: "admin", 9101: "tier-1", 9102: "tier-2", 9200: "store", 9300: "console"}
OPEN = {8080: "shop"}
EVERY = 0.02
PATIENCE = 30.0

Report = dict[str, t.Any]


def until(what: t.Callable[[], bool], seconds: float = PATIENCE) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def started(host: Host, name: str) -> float:
    """When the container was started, on the clock of time.monotonic()."""
    text = host.docker("inspect", "--format", "{{.State.StartedAt}}", name).stdout.strip()
    whole, fraction = re.fullmatch(r"(.*?)(\.\d+)?Z", text).groups()  # type: ignore[union-attr]
    moment = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(fraction or 0)
    return moment - time.time() + time.monotonic()


def under_storm(client: Client, host: Host, happen: t.Callable[[Host], None], allowed: bool = True) -> Report:
    """Let it happen while a stranger connects to what is guarded, and the office to what it may reach.

    :param allowed: wait until the office gets in again.
    """
    address = host.address()
    with contextlib.ExitStack() as stack:
        forbidden = {
            port: stack.enter_context(client.storm(address, port, source=STRANGER, every=EVERY, seconds=250))
            for port in GUARDED
        }
        office = stack.enter_context(client.storm(address, 9000, source=OFFICE, every=EVERY, seconds=250))
        anyone = stack.enter_context(client.storm(address, 8080, source=STRANGER, every=EVERY, seconds=250))
        time.sleep(0.5)
        happen(host)
        finished = time.monotonic()
        reached = [
            port for port in GUARDED if allowed and until(lambda p=port: client.connect(address, p, source=OFFICE).open)
        ]
        time.sleep(0.5)
    report: Report = {
        "forbidden": {
            port: {
                "attempts": seen.attempts,
                "accepted": seen.accepted,
                # Who answered, and how long before the end of what happened; docker-proxy opens with nobody behind it.
                "opened": [[who, round(moment - finished, 3)] for moment, who in seen.opened],
            }
            for port, seen in forbidden.items()
        },
        "reached": reached,
        "open_again": bool(anyone.opened and anyone.opened[-1][0] > finished - 1),
    }
    if allowed:
        running = started(host, "admin")
        after = [moment for moment, _who in office.opened if moment > running - 0.05]
        report["allowed_after"] = round(after[0] - running, 3) if after else None
        # Five seconds were promised for a machine with a processor to spare.
        report["load"] = round(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 2)
    return report


# What happens ----------------------------------------------------------------------------------------------------


def without_follower(host: Host) -> None:
    # A follower that crashes as it starts; the unit is there and fails.
    folder = "/etc/systemd/system/quaywall-follower.service.d"
    host.run(
        f"mkdir -p {folder}; printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{folder}/broken.conf; sync"
    )


def with_follower(host: Host) -> None:
    host.run("rm -r /etc/systemd/system/quaywall-follower.service.d")
    host.run("systemctl daemon-reload; systemctl restart quaywall-follower")


def reboot(client: Client, host: Host) -> Report:
    return under_storm(client, host, Host.reboot)


def power_cut(client: Client, host: Host) -> Report:
    return under_storm(client, host, Host.power_cut)


def reboot_without_follower(client: Client, host: Host) -> Report:
    without_follower(host)
    report = under_storm(client, host, Host.reboot, allowed=False)
    # What needs no address is allowed without anybody who looks it up.
    report["reached"] = [p for p in (9200, 9300) if client.connect(host.address(), p, source=OFFICE).open]
    with_follower(host)
    report["back"] = until(lambda: client.connect(host.address(), 9000, source=OFFICE).open)
    return report


def daemon_restart(client: Client, host: Host) -> Report:
    return under_storm(client, host, Host.restart_docker)


def fail_closed_broken(client: Client, host: Host) -> Report:
    """Docker must not run on a host whose rules cannot be restored."""
    host.run("mv /usr/lib/quaywall/quaywall.pyz /usr/lib/quaywall/away; sync")
    address = host.address()
    engine = host.bed.engine
    with client.storm(address, 9000, source=STRANGER, every=EVERY, seconds=250) as seen:
        engine.docker("restart", "--time", "60", host.container)
        until(lambda: host.run("systemctl is-active multi-user.target", check=False).returncode == 0)
        time.sleep(2)
        state = host.run("systemctl is-active docker.service", check=False).stdout.strip()
    host.run("mv /usr/lib/quaywall/away /usr/lib/quaywall/quaywall.pyz")
    host.run("systemctl reset-failed; systemctl start docker quaywall-follower")
    host.wait_until_up()
    back = until(lambda: client.connect(address, 9000, source=OFFICE).open)
    return {"docker": state, "accepted": seen.accepted, "back": back}


def netfilter_persistent(client: Client, host: Host) -> Report:
    if host.run("command -v netfilter-persistent", check=False).returncode:
        return {"installed": False}
    sums = "md5sum /etc/iptables/rules.v4 /etc/iptables/rules.v6"
    nat = "iptables-save -t nat | sed '/^#/d; s/ \\[.*//'"
    before = host.run(sums).stdout
    report = under_storm(client, host, Host.reboot)
    docker_before = host.run(nat).stdout
    report["commands"] = {
        command: under_storm(client, host, lambda h, c=command: h.run(["netfilter-persistent", c]))
        for command in ("save", "reload")
    }
    return {
        **report,
        "installed": True,
        "state": host.run("systemctl is-active netfilter-persistent", check=False).stdout.strip(),
        "own_rule": host.run("iptables -C INPUT -s 192.0.2.99/32 -j DROP", check=False).returncode == 0,
        "rules_files_untouched": host.run(sums).stdout == before,
        "nat_untouched": host.run(nat).stdout == docker_before,
    }


HAPPENINGS: dict[str, t.Callable[[Client, Host], Report]] = {
    "reboot": reboot,
    "power-cut": power_cut,
    "reboot-without-follower": reboot_without_follower,
    "daemon-restart": daemon_restart,
    "fail-closed-reboot": reboot,
    "fail-closed-broken": fail_closed_broken,
    "netfilter-persistent": netfilter_persistent,
}


def main(path: pathlib.Path, name: str, happenings: list[str]) -> None:
    reports: dict[str, Report] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    bed = Bed(name)
    try:
        for happening in happenings:
            for host in map(bed.host, HOSTS):
                # One host after the other: two cores, and clients that shall not be late.
                print(happening, host.container, flush=True)
                found = HAPPENINGS[happening](bed.client, host)
                reports.setdefault(host.container, {})[happening] = found
                print(json.dumps(found), flush=True)
    finally:
        bed.close()
        path.write_text(json.dumps(reports), encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
