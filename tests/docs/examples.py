# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts that the guides speak of, as snapshots in docs/examples.

They are made up as those of the unit tests are, which are compared with captures of real hosts. To write them:

    PYTHONPATH=.build:tests .build/venv/bin/python -m docs.examples
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible_collections.quaywall.docker.tests.unit import foreign, snapshots

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"
_IPV4 = snapshots.IPV4


_ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'


def _policy(name: str, address: str, host_port: int, port: int, source: str = "") -> list[str]:
    """What docker_user_rule makes: one source is let in and all others are not, or nobody is let in."""
    comment = '-m comment --comment "quaywall:%s"' % (name if source else name + " action")
    published = "-m conntrack --ctstate DNAT --ctorigdstport %d --ctdir ORIGINAL" % host_port
    to = "-d %s/32 ! -i docker0 -p tcp -m tcp --dport %d" % (address, port)
    denied = ["-p tcp %s %s -j DROP" % (published, comment), "%s %s -j DROP" % (to, comment)]
    return ["-s %s/32 %s %s %s -j ACCEPT" % (source, to, published, comment), *denied] if source else denied


_WEB = (snapshots.Box("web-a", "9000:8080"), snapshots.Box("web-b", "8080:8080"))
_INPUT = "-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT"


def blocked() -> snapshots.Document:
    """Two containers with the same inner port, a rule in INPUT, and a rule for a port in DOCKER-USER."""
    document = snapshots.host("28.5", _WEB, docker_user=["-p tcp -m tcp --dport 8080 -j DROP"])
    return snapshots.with_rules(document, _IPV4, "filter", [_INPUT])


def answered() -> snapshots.Document:
    """The same with policies for the containers in place of that rule."""
    office = _policy("web-a", "172.17.0.2", 9000, 8080, "203.0.113.10")
    closed = _policy("web-b", "172.17.0.3", 8080, 8080)
    document = snapshots.host("28.5", _WEB, docker_user=[_ESTABLISHED, office[0], *closed, *office[1:], "-j RETURN"])
    return snapshots.with_rules(document, _IPV4, "filter", [_INPUT])


def ufw_docker() -> snapshots.Document:
    """ufw with the block of ufw-docker, and what `ufw route allow proto tcp from any to any port 80` makes."""
    document = snapshots.host("28.5", [snapshots.Box("shop", "8080:80"), snapshots.Box("admin", "9000:80")])
    return foreign.ufw_docker(document, route=["-p tcp -m tcp --dport 80 -j ACCEPT"])


_SHOP = (
    snapshots.Box("shop", "0.0.0.0:8080:8080"),
    snapshots.Box("admin", "0.0.0.0:9000:8080"),
    snapshots.Box("db", "0.0.0.0:5432:5432"),
)


def by_hand() -> snapshots.Document:
    """Rules as one finds them in wikis."""
    rules = [
        "-i eth0 -p tcp -m tcp --dport 8080 -j DROP",
        "-s 203.0.113.10/32 -i eth0 -p tcp -m tcp --dport 8080 -j ACCEPT",
        "-i eth0 -p tcp -m tcp --dport 9000 -j DROP",
        "-d 172.17.0.4/32 -p tcp -m tcp --dport 5432 -j DROP",
    ]
    return snapshots.host("28.5", _SHOP, docker_user=rules)


def by_policy() -> snapshots.Document:
    """The same containers with the policies of the guide's last step."""
    shop = _policy("shop", "172.17.0.2", 8080, 8080, "203.0.113.10")
    admin = _policy("admin", "172.17.0.3", 9000, 8080)
    db = _policy("db", "172.17.0.4", 5432, 5432)
    return snapshots.host("28.5", _SHOP, docker_user=[_ESTABLISHED, *admin, *db, *shop, "-j RETURN"])


def nftables() -> snapshots.Document:
    """Engine 29.7 with Docker's own nftables tables in place of iptables."""
    return snapshots.host("29.7", _SHOP, backend="nftables")


def moved() -> snapshots.Document:
    """A rule for an address, which another container has by now."""
    rules = [
        "-s 203.0.113.10/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j ACCEPT",
        "-d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j DROP",
    ]
    return snapshots.host("28.5", [_SHOP[1], _SHOP[0], _SHOP[2]], docker_user=rules)


EXAMPLES: dict[str, t.Callable[[], snapshots.Document]] = {
    "blocked": blocked,
    "answered": answered,
    "by-policy": by_policy,
    "nftables": nftables,
    "moved": moved,
    "ufw-docker": ufw_docker,
    "by-hand": by_hand,
}


def text(name: str) -> str:
    return json.dumps(EXAMPLES[name](), indent=1) + "\n"


if __name__ == "__main__":
    for name in EXAMPLES:
        (FOLDER / (name + ".json")).write_text(text(name), encoding="utf-8")
