# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host, in a network namespace of its own: reading a big dump, beside iptables-save that prints it.

<folder> <nft|legacy> <rules> <repetitions>     prints {"save": [s, …], "parse": …, "render": …}
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

HEAD = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
:f2b-sshd - [0:0]
:ufw-user-forward - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT
"""

# Every address and port is another one, as on a host that has so many rules. A row each of ours, Docker's and others'.
DNAT = "-m conntrack --ctstate DNAT --ctorigdstport {port} --ctdir ORIGINAL"
OURS = '-m comment --comment "quaywall:policy-{n}"'
KINDS = (
    f"-A DOCKER-USER -s {{source}}/32 -d {{inner}}/32 ! -i {{bridge}} -p tcp -m tcp --dport 80 {DNAT} {OURS} -j ACCEPT",
    f"-A DOCKER-USER -p tcp {DNAT} {OURS} -j DROP",
    f"-A DOCKER-USER -d {{inner}}/32 ! -i {{bridge}} -p tcp -m tcp --dport 8080 {OURS} -j DROP",
    "-A FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A DOCKER -d {inner}/32 ! -i {bridge} -o {bridge} -p tcp -m tcp --dport {port} -j ACCEPT",
    "-A DOCKER -d {inner}/32 ! -i {bridge} -o {bridge} -p udp -m udp --dport {port} -j ACCEPT",
    "-A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2",
    "-A f2b-sshd -s {source}/32 -j REJECT --reject-with icmp-port-unreachable",
    '-A ufw-user-forward -s {source}/32 -p tcp -m multiport --dports 80,{port} -m comment --comment "no {n}" -j ACCEPT',
    '-A ufw-user-forward -d {inner}/32 -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK {n}] "',
    "-A INPUT -s {source}/32 -p tcp -m tcp --dport {port} --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
    "-A INPUT -s {source}/32 -m ttl --ttl-lt 5 -m length --length 0:{port} -j DROP",  # not known to the collection
)


def rules(count: int) -> str:
    """Input of iptables-restore with this many rules."""
    lines = []
    for n in range(count - HEAD.count("\n-A")):
        values = {
            "n": n,
            "source": f"{11 + n // 65536}.{n // 256 % 256}.{n % 256}.{n % 253 + 1}",
            "inner": f"172.{17 + n // 65536}.{n // 256 % 256}.{n % 256}",
            "bridge": "br-%012x" % (n // 20 * 7919),
            "port": 1024 + n % 60000,
        }
        lines.append(KINDS[n % len(KINDS)].format(**values))
    return HEAD + "\n".join(lines) + "\nCOMMIT\n"


def main() -> None:
    folder, variant, count, repetitions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    sys.path.insert(0, str(pathlib.Path(folder).resolve()))
    from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump, render_dump

    subprocess.run([f"iptables-{variant}-restore"], input=rules(count), text=True, check=True)
    save = [f"iptables-{variant}-save", "-t", "filter"]
    times: dict[str, list[float]] = {"save": [], "parse": [], "render": []}
    for repetition in range(repetitions + 1):
        start = time.perf_counter()
        text = subprocess.run(save, capture_output=True, check=True).stdout.decode()
        saved = time.perf_counter()
        dump = parse_dump(text)
        parsed = time.perf_counter()
        rendered = render_dump(dump)
        end = time.perf_counter()
        if text.count("\n-A ") != count:
            sys.exit(f"{text.count('-A ')} rules were printed, and not {count}")
        if rendered != "".join(line + "\n" for line in text.splitlines() if not line.startswith("#")):
            sys.exit("what was rendered is not what iptables-save printed")
        del dump
        if repetition:  # the first one warms up
            for name, seconds in (("save", saved - start), ("parse", parsed - saved), ("render", end - parsed)):
                times[name].append(seconds)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
