# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A bed: Docker hosts and a client on one lab network, all containers of the outer engine.

Everything that belongs to a bed carries the bed's name in a label, so that ``down`` removes exactly that, also after a
crash.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import pathlib
import shlex
import subprocess
import time
import typing as t

from .engine import BedError, Engine, locked, outer_engine
from .images import SUITES, WORKLOAD_TAR, build_images
from .probe import AGENT, Agent, Probe, StormReport, Visits, listening, storm

LABEL = "quaywall.bed"
LABEL_SPEC = "quaywall.bed.spec"
LABEL_NUMBER = "quaywall.bed.number"

CLIENT = "client"
WORKLOAD = "workload"


class Source(t.NamedTuple):
    """A machine that packets come from, by its address of each family."""

    v4: str
    v6: str

    def for_destination(self, address: str) -> str:
        return self.v6 if ":" in address else self.v4


# The client's addresses besides that on the lab network: the same in every bed, so that a playbook can name them.
OFFICE: t.Final = Source("203.0.113.10", "2001:db8:113::10")
STRANGER: t.Final = Source("198.51.100.66", "2001:db8:100::66")


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """What one host shall be."""

    name: str
    """Name within the bed; the container and its host name are ``<bed>-<name>``."""
    suite: str = ""
    """Debian suite, and with it the version of Docker; by default the host's name."""
    iptables: str = "nft"
    """``nft`` or ``legacy``: what the command ``iptables`` is on this host, for Docker too."""
    daemon: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    """Content of ``daemon.json``."""
    docker: bool = True
    """False: Docker is installed and never started."""

    def __post_init__(self) -> None:
        if not self.suite:
            object.__setattr__(self, "suite", self.name)
        if self.suite not in SUITES:
            raise BedError(f"host {self.name}: suite {self.suite!r} is none of {', '.join(SUITES)}")
        if self.iptables not in ("nft", "legacy"):
            raise BedError(f"host {self.name}: iptables is 'nft' or 'legacy', not {self.iptables!r}")
        if self.name == CLIENT:
            raise BedError(f"the name {CLIENT!r} is the client's")

    def to_json(self) -> str:
        """Everything that makes this host what it is, the image included."""
        return json.dumps({**dataclasses.asdict(self), "image": SUITES[self.suite].image}, sort_keys=True)


class Sender(abc.ABC):
    """A place in the bed that packets are sent from."""

    def __init__(self, place: str) -> None:
        self._agent = Agent(self.popen, place)

    @abc.abstractmethod
    def popen(self, argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[str]:
        """Start a command at this place and leave it running."""

    def connect(
        self,
        address: str,
        port: int,
        *,
        source: Source | str | None = None,
        timeout: float = 0.5,
        source_port: int = 0,
    ) -> Probe:
        """Open one TCP connection, and ask who is there. Keep the time-out below 1 s: then the SYN is sent once."""
        request = {"source": _source(source, address), "timeout": timeout, "source_port": source_port}
        return self._agent.probe("connect", address=address, port=port, **request)

    def connect_all(
        self, targets: t.Iterable[tuple[str, int, Source | str | None]], *, timeout: float = 0.5
    ) -> list[Probe]:
        """Open TCP connections to (address, port, source) all at once: many that time out cost no more than one."""
        wanted = [
            {"address": address, "port": port, "source": _source(source, address), "timeout": timeout}
            for address, port, source in targets
        ]
        return [Probe(**answer) for answer in self._agent.ask("connect-all", targets=wanted)["answers"]]

    def datagram(self, address: str, port: int, *, source: Source | str | None = None, timeout: float = 0.5) -> Probe:
        """Send one UDP datagram, and wait for who answers."""
        source = _source(source, address)
        return self._agent.probe("datagram", address=address, port=port, source=source, timeout=timeout)

    def storm(
        self,
        address: str,
        port: int,
        *,
        source: Source | str | None = None,
        every: float = 0.005,
        timeout: float = 0.5,
        seconds: float = 120,
    ) -> contextlib.AbstractContextManager[StormReport]:
        """Connect at a steady pace in the background while the context lasts, ``seconds`` at most."""
        source = _source(source, address)
        return storm(
            self.popen, address=address, port=port, source=source, every=every, timeout=timeout, seconds=seconds
        )

    def close(self) -> None:
        self._agent.close()


def _source(source: Source | str | None, destination: str) -> str | None:
    return source.for_destination(destination) if isinstance(source, Source) else source


class Machine(Sender):
    """A container of the outer engine: a host, or the client."""

    def __init__(self, bed: Bed, container: str) -> None:
        super().__init__(container)
        self.bed = bed
        self.container = container
        """The container's name in the outer engine; also the inventory's name for Ansible."""
        self._engine = bed.engine

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.container}>"

    def popen(self, argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[str]:
        return self._engine.popen("exec", "--interactive", self.container, *argv, **options)

    def run(
        self, command: str | t.Sequence[str], *, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside: a string goes through ``sh -c``, a sequence does not."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        interactive = [] if stdin is None else ["--interactive"]
        return self._engine.docker(
            "exec", *interactive, self.container, *argv, check=check, stdin=stdin, timeout=timeout
        )

    def address(self, family: int = 4) -> str:
        """The address on the lab network."""
        key = {4: "IPAddress", 6: "GlobalIPv6Address"}[family]
        path = f'{{{{(index .NetworkSettings.Networks "{self.bed.network}").{key}}}}}'
        return self._engine.docker("inspect", "--format", path, self.container).stdout.strip()

    def listen(self, port: int, name: str = CLIENT) -> contextlib.AbstractContextManager[Visits]:
        """Serve a TCP port on all addresses of the machine while the context lasts."""
        return listening(self._agent, port, name)


class Client(Machine):
    """The machine that packets come from. It has three addresses: on the lab network, ``OFFICE`` and ``STRANGER``."""

    @contextlib.contextmanager
    def route(self, subnet: str, via: Host) -> t.Iterator[None]:
        """Reach a subnet inside a host directly, without a published port."""
        network = ipaddress.ip_network(subnet)
        route = ["ip", f"-{network.version}", "route"]
        self.run([*route, "replace", str(network), "via", via.address(network.version)])
        try:
            yield
        finally:
            self.run([*route, "del", str(network)], check=False)


class Workload(Sender):
    """A container inside a host. What it sends comes from its own network namespace."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(f"{host.container}/{name}")
        self.host = host
        self.name = name

    def __repr__(self) -> str:
        return f"<Workload {self.name} on {self.host.container}>"

    def popen(self, argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[str]:
        return self.host.popen(["sh", "-c", f'{self._enter} "$@"', "sh", *argv], **options)

    @property
    def _enter(self) -> str:
        return f"exec nsenter --net --target \"$(docker inspect -f '{{{{.State.Pid}}}}' {shlex.quote(self.name)})\""

    def address(self, family: int = 4, network: str | None = None) -> str:
        """The container's address now, on the named network or its only one."""
        found = json.loads(self.host.docker("inspect", self.name).stdout)[0]["NetworkSettings"]["Networks"]
        endpoint = found[network] if network else next(iter(found.values()))
        address: str = endpoint[{4: "IPAddress", 6: "GlobalIPv6Address"}[family]]
        return address

    def serve_udp(self, port: int) -> None:
        """Answer datagrams on a port with the container's name, until the container stops."""
        script = f'pid=$(docker inspect -f "{{{{.State.Pid}}}}" {shlex.quote(self.name)}); '
        script += 'nsenter --net --target "$pid" "$@" "$pid" >/dev/null 2>&1 & '
        script += f'until grep -qi ":{port:04X} " "/proc/$pid/net/udp6"; do sleep 0.02; done'
        self.host.run(["sh", "-c", script, "sh", "python3", "-c", AGENT, "udp-echo", str(port), self.name])

    def remove(self) -> None:
        self.close()
        self.host.docker("rm", "--force", "--volumes", self.name)


_FLUSH = """
nft flush ruleset
for command in iptables ip6tables; do
    names=/proc/net/ip_tables_names
    [ $command = iptables ] || names=/proc/net/ip6_tables_names
    for table in $(cat $names 2>/dev/null); do
        $command-legacy -t $table -F && $command-legacy -t $table -X
        $command-legacy -t $table -S | sed -n 's/^-P \\([^ ]*\\) DROP/\\1/p' |
            xargs --no-run-if-empty -I CHAIN $command-legacy -t $table -P CHAIN ACCEPT
    done
done
"""

_RESET = f"""
docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes
docker network prune --force
systemctl stop docker.socket docker.service
{_FLUSH}
ipset destroy
conntrack --flush
# Docker makes the policy of FORWARD DROP only if it is itself that switches forwarding on.
sysctl --quiet --write net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
systemctl reset-failed docker.service docker.socket
systemctl start docker
"""

_FINGERPRINT = """
for save in iptables-save ip6tables-save; do $save | sed '/^#/d; s/ \\[.*//'; done
ipset list -name
docker ps --all --quiet
docker network ls --format '{{.Name}}'
"""


class Host(Machine):
    """A Docker host: systemd, its own dockerd, its own iptables."""

    def __init__(self, bed: Bed, container: str) -> None:
        super().__init__(bed, container)
        self._empty: str | None = None
        self._workloads: dict[str, Workload] = {}

    def close(self) -> None:
        """Let go of the host and of its workloads; all of them run on."""
        while self._workloads:
            self._workloads.popitem()[1].close()
        super().close()

    def docker(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI of this host."""
        return self.run(["docker", *arguments], check=check, timeout=timeout)

    def wait_until_up(self, seconds: float = 60) -> None:
        """Wait until the host has booted, its dockerd answers (if it shall start) and has the workload image."""
        script = f"""
            until systemctl is-active --quiet multi-user.target; do sleep 0.05; done 2>/dev/null
            [ "$(systemctl is-enabled docker)" != masked ] || exit 0
            until docker version >/dev/null 2>&1; do
                ! systemctl is-failed --quiet docker || {{ journalctl --no-pager -n 20 -u docker; exit 1; }}
                sleep 0.05
            done
            docker image inspect {WORKLOAD} >/dev/null 2>&1 ||
            docker load --quiet --input {WORKLOAD_TAR}
        """
        try:
            self.run(script, timeout=seconds)
        except (BedError, subprocess.TimeoutExpired) as error:
            seen = self.run("systemctl list-jobs --no-pager; journalctl --no-pager -n 20", check=False, timeout=10)
            raise BedError(
                f"{self.container} does not come up. {_inotify_hint()}\n{seen.stdout}{seen.stderr}"
            ) from error

    def start_docker(self) -> None:
        """Start Docker on a host that came up without (``HostSpec(docker=False)``), from this boot on."""
        self.run("systemctl --quiet unmask docker.service docker.socket && systemctl start docker")
        self.wait_until_up()

    def run_workload(
        self,
        name: str,
        *options: str,
        port: int | t.Sequence[int] = 8080,
        publish: t.Sequence[str] = (),
        network: str | None = None,
        ip: str | None = None,
        ip6: str | None = None,
        restart: str = "always",
    ) -> Workload:
        """Start a container that answers with its own name on its ports, and wait until it listens.

        ``options`` go to ``docker run`` as they are.
        """
        ports = [port] if isinstance(port, int) else list(port)
        run = ["docker", "run", "--detach", f"--name={name}", f"--hostname={name}", f"--restart={restart}"]
        run += [f"--publish={published}" for published in publish]
        run += [f"--network={network}"] if network else []
        run += [f"--ip={ip}"] if ip else []
        run += [f"--ip6={ip6}"] if ip6 else []
        run += [*options, WORKLOAD, "serve", *(str(number) for number in ports)]
        script = f"""
            set -e
            {shlex.join(run)}
            pid=$(docker inspect -f '{{{{.State.Pid}}}}' {shlex.quote(name)})
            for port in {" ".join(f"{number:04X}" for number in ports)}; do
                until grep -qi ":$port 0*:0000 0A" "/proc/$pid/net/tcp" "/proc/$pid/net/tcp6"; do sleep 0.02; done
            done
        """
        self.run(script)
        if name in self._workloads:
            # What it sends would still come from the network namespace of its predecessor.
            self._workloads.pop(name).close()
        return self.workload(name)

    def workload(self, name: str) -> Workload:
        """A container that already runs on this host, whoever started it."""
        if name not in self._workloads:
            self._workloads[name] = Workload(self, name)
        return self._workloads[name]

    def connect_from(self, container: str, address: str, port: int, *, timeout: float = 0.5) -> Probe:
        """Open one TCP connection from inside a container of this host."""
        sender = Workload(self, container)
        try:
            return sender.connect(address, port, timeout=timeout)
        finally:
            sender.close()

    def restart_docker(self) -> None:
        """Restart the daemon, as often as a test likes: systemd's limit on starts does not count these."""
        self.run("systemctl reset-failed docker.service docker.socket; systemctl restart docker")
        self.wait_until_up()

    def reset(self) -> bool:
        """Make it an empty Docker host again: no container, no network, no set, no rule but Docker's own.

        Returns False if it was one already. Files outside of /var/lib/docker stay as they are.
        """
        self.close()
        self.close()
        if self._empty is not None and self._fingerprint() == self._empty:
            return False
        self.run(_RESET)
        self.wait_until_up()
        self._empty = self._fingerprint()
        return True

    def _fingerprint(self) -> str:
        """All that ``reset`` looks after, less counters and dates."""
        return self.run(_FINGERPRINT).stdout

    def reboot(self) -> None:
        """A clean reboot: systemd stops every service, and boots again."""
        self._boot_again(("restart", "--time", "60"))

    def power_cut(self) -> None:
        """The power goes and comes back: nobody has a chance to save anything."""
        self._boot_again(("kill",), ("start",))

    def _boot_again(self, *commands: tuple[str, ...]) -> None:
        self.close()
        always = self._containers_that_come_back()
        for command in commands:
            self._engine.docker(*command, self.container)
        self.wait_until_up()
        deadline = time.monotonic() + 60
        while True:
            waiting = always - set(self.docker("ps", "--format", "{{.Names}}").stdout.split())
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise BedError(f"{self.container}: {', '.join(sorted(waiting))} did not come back after the boot")
            time.sleep(0.1)

    def _containers_that_come_back(self) -> set[str]:
        template = "{{.HostConfig.RestartPolicy.Name}} {{.Name}}"
        script = f"docker ps --quiet | xargs --no-run-if-empty docker inspect --format '{template}'"
        lines = [line.split(" /") for line in self.run(script, check=False).stdout.splitlines()]
        return {name for policy, name in lines if policy in ("always", "unless-stopped")}


class Bed:
    """The hosts and the client under one name. Attaches to what already runs under that name."""

    def __init__(self, name: str, engine: Engine | None = None) -> None:
        self.name = name
        self.engine = engine or outer_engine()
        self.network = name
        self._hosts: dict[str, Host] = {}
        self._client: Client | None = None

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = Host(self, f"{self.name}-{name}")
        return self._hosts[name]

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self, f"{self.name}-{CLIENT}")
        return self._client

    def up(self, hosts: t.Iterable[HostSpec | str] = (), *, client: bool = True) -> list[str]:
        """Bring up these hosts (a string is a suite) and the client, in parallel, and wait until they are ready.

        What runs and is as specified stays as it is. Returns the containers that were created or started.
        """
        specs = [HostSpec(host) if isinstance(host, str) else host for host in hosts]
        build_images(self.engine, [spec.suite for spec in specs] + (["bookworm"] if client else []))
        with locked(f"bed-{self.name}"):
            self._ensure_network()
            present = self._containers()
            numbers = _numbers(present, [f"{self.name}-{spec.name}" for spec in specs])
            with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
                jobs = [pool.submit(self._up_host, spec, present, numbers) for spec in specs]
                if client:
                    jobs.append(pool.submit(self._up_client, present))
                return [container for job in jobs if (container := job.result())]

    def remove(self, name: str) -> None:
        """Remove one host."""
        host = self._hosts.pop(name, None) or Host(self, f"{self.name}-{name}")
        host.close()
        self._remove_containers(self.engine.docker("inspect", "--format", "{{.Id}}", host.container).stdout.split())

    def close(self) -> None:
        """Leave the machines running and let go of them."""
        for sender in (*self._hosts.values(), self.client):
            sender.close()

    def down(self) -> list[str]:
        """Remove everything that carries this bed's label. Returns what was removed."""
        self.close()
        with locked(f"bed-{self.name}"):
            mine = ("--quiet", "--filter", f"label={LABEL}={self.name}")
            containers = self.engine.docker("ps", "--all", "--no-trunc", *mine).stdout.split()
            self._remove_containers(containers)
            networks = self.engine.docker("network", "ls", "--no-trunc", *mine).stdout.split()
            if networks:
                self.engine.docker("network", "rm", *networks)
        return containers + networks

    def _remove_containers(self, ids: list[str]) -> None:
        if not ids:
            return
        inside = _containers_inside(json.loads(self.engine.docker("inspect", *ids).stdout))
        self.engine.docker("rm", "--force", "--volumes", *ids)
        for container in (*ids, *inside):
            _remove_cgroups(container)

    def _containers(self) -> dict[str, dict[str, t.Any]]:
        mine = ("--quiet", "--filter", f"label={LABEL}={self.name}")
        ids = self.engine.docker("ps", "--all", *mine).stdout.split()
        if not ids:
            return {}
        return {c["Name"].lstrip("/"): c for c in json.loads(self.engine.docker("inspect", *ids).stdout)}

    def _subnets(self) -> tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]:
        found = json.loads(self.engine.docker("network", "inspect", self.network).stdout)[0]["IPAM"]["Config"]
        subnets = {(subnet := ipaddress.ip_network(entry["Subnet"])).version: subnet for entry in found}
        return t.cast("tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]", (subnets[4], subnets[6]))

    def _ensure_network(self) -> None:
        mine = ("--quiet", "--filter", f"label={LABEL}={self.name}")
        if self.engine.docker("network", "ls", *mine).stdout.strip():
            return
        complaint = ""
        for attempt in range(16):
            v4, v6 = _lab_subnets(self.name, attempt)
            created = self.engine.docker(
                *("network", "create", f"--label={LABEL}={self.name}", "--ipv6"),
                *(f"--subnet={v4}", f"--subnet={v6}", self.network),
                check=False,
            )
            if created.returncode == 0:
                return
            complaint = created.stderr
            if "overlap" not in complaint:
                break
        raise BedError(f"cannot create the network {self.network}: {complaint}")

    def _addresses(self, number: int) -> list[str]:
        v4, v6 = self._subnets()
        return [f"--network={self.network}", f"--ip={v4[number]}", f"--ip6={v6[number]}"]

    def _up_host(self, spec: HostSpec, present: dict[str, dict[str, t.Any]], numbers: dict[str, int]) -> str | None:
        host = self.host(spec.name)
        changed = self._ensure(
            host,
            present.get(host.container),
            spec.to_json(),
            numbers[host.container],
            self._host_options(spec),
            [SUITES[spec.suite].image, "/usr/local/sbin/bed-init", *_bed_init_arguments(spec)],
        )
        host.wait_until_up()
        return host.container if changed else None

    def _up_client(self, present: dict[str, dict[str, t.Any]]) -> str | None:
        image = SUITES["bookworm"].image
        script = "; ".join(
            [
                "nft flush ruleset",
                *(f"ip addr add {source.v4}/32 dev eth0" for source in (OFFICE, STRANGER)),
                *(f"ip -6 addr add {source.v6}/128 dev eth0 nodad" for source in (OFFICE, STRANGER)),
                "exec sleep infinity",
            ]
        )
        client = self.client
        options = ["--init", "--cap-add=NET_ADMIN", *_NETWORK_SYSCTLS]
        changed = self._ensure(
            client, present.get(client.container), f"{image} {script}", 10, options, [image, "sh", "-c", script]
        )
        return client.container if changed else None

    def _ensure(
        self,
        machine: Machine,
        present: dict[str, t.Any] | None,
        spec: str,
        number: int,
        options: list[str],
        command: list[str],
    ) -> bool:
        """Create or start the container unless it runs as specified. Returns whether there was something to do."""
        if present and present["Config"]["Labels"].get(LABEL_SPEC) == spec:
            if present["State"]["Running"]:
                return False
            self.engine.docker("start", machine.container)
            return True
        if present:
            self._remove_containers([present["Id"]])
        self.engine.docker(
            *("run", "--detach", f"--name={machine.container}", f"--hostname={machine.container}"),
            *(f"--label={LABEL}={self.name}", f"--label={LABEL_SPEC}={spec}", f"--label={LABEL_NUMBER}={number}"),
            *self._addresses(number),
            *options,
            *command,
        )
        return True

    def _host_options(self, spec: HostSpec) -> list[str]:
        return [
            # All that --privileged gives, less SYS_RESOURCE, which a machine in a sandbox may lack itself.
            "--cap-add=ALL",
            "--cap-drop=SYS_RESOURCE",
            *(f"--security-opt={option}=unconfined" for option in ("seccomp", "apparmor", "systempaths")),
            "--device-cgroup-rule=a *:* rwm",
            "--cgroupns=host",
            *_cgroup_volumes(spec.suite),
            "--volume=/var/lib/docker",
            "--volume=/var/lib/containerd",
            *(f"--tmpfs={folder}" for folder in ("/run", "/run/lock", "/tmp")),
            "--env=container=docker",
            "--stop-signal=SIGRTMIN+3",
            # Inherited 1, Docker would leave the policy of FORWARD at ACCEPT; on a bare machine it makes it DROP.
            "--sysctl=net.ipv4.ip_forward=0",
            *_NETWORK_SYSCTLS,
        ]


_NETWORK_SYSCTLS = (
    "--sysctl=net.ipv6.conf.all.disable_ipv6=0",
    # No second of deafness after an address is set.
    "--sysctl=net.ipv6.conf.all.accept_dad=0",
    "--sysctl=net.ipv6.conf.default.accept_dad=0",
    # A REJECT is answered every time, also in a storm.
    "--sysctl=net.ipv4.icmp_ratelimit=0",
    "--sysctl=net.ipv6.icmp.ratelimit=0",
)


def _bed_init_arguments(spec: HostSpec) -> list[str]:
    # Hosts answer OFFICE and STRANGER on the lab network, where the client is.
    routes = [str(ipaddress.ip_network(address)) for source in (OFFICE, STRANGER) for address in source]
    arguments = [*(f"route={route}" for route in routes), f"iptables={spec.iptables}"]
    if spec.daemon:
        arguments.append(f"daemon={json.dumps(spec.daemon)}")
    if not spec.docker:
        arguments.append("docker=off")
    return arguments


def _numbers(present: t.Mapping[str, dict[str, t.Any]], wanted: list[str]) -> dict[str, int]:
    """The last number of each host's addresses: what it has, else the lowest that is free."""
    numbers = {name: int(found["Config"]["Labels"][LABEL_NUMBER]) for name, found in present.items()}
    for name in wanted:
        if name not in numbers:
            numbers[name] = next(n for n in range(21, 250) if n not in numbers.values())
    return numbers


def _lab_subnets(name: str, attempt: int) -> tuple[str, str]:
    """Subnets by the bed's name. Docker inside the hosts takes its own from 172.16/12 and 192.168/16, so not those."""
    digest = hashlib.sha256(f"{name} {attempt}".encode()).hexdigest()
    v4 = f"10.{64 + int(digest[:2], 16) % 128}.{int(digest[2:4], 16)}.0/24"
    v6 = f"fd71:7761:{digest[:4]}:{digest[4:8]}::/64"
    return v4, v6


def _cgroup_volumes(suite: str) -> list[str]:
    """What the host's systemd shall see as /sys/fs/cgroup."""
    if pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists() or not SUITES[suite].wants_cgroup_v2:
        return ["--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"]
    if pathlib.Path("/sys/fs/cgroup/unified/cgroup.controllers").exists():
        return [
            "--volume=/sys/fs/cgroup/unified:/sys/fs/cgroup:rw",
            # A machine may have left a controller to v2 (seen: hugetlb). The host's runc would enable it from the
            # machine's root down to the host's own group; that group then takes no process, and `docker exec` of an
            # engine on v1 fails with EBUSY. What is mounted over a file of this tree, runc does not write, and goes on.
            "--volume=/dev/null:/sys/fs/cgroup/cgroup.subtree_control:ro",
        ]
    raise BedError(f"a {suite} host needs cgroup v2; this machine has neither a pure v2 tree nor one at .../unified")


def _inotify_hint() -> str:
    """What to do if systemd cannot boot for want of inotify instances: each host takes about six."""
    limit = int(pathlib.Path("/proc/sys/fs/inotify/max_user_instances").read_text(encoding="ascii"))
    used = 0
    for descriptor in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            used += descriptor.readlink() == pathlib.Path("anon_inode:inotify")
    if used < limit - 8:
        return ""
    return (
        f"{used} inotify instances are in use on this machine, and a user may have {limit}: remove another bed, "
        "or raise the limit with `sysctl -w fs.inotify.max_user_instances=1024`."
    )


def _containers_inside(hosts: list[dict[str, t.Any]]) -> list[str]:
    """The IDs of the containers inside the hosts, from the disk: a crashed host tells no other way."""
    inside = []
    for mount in (mount for host in hosts for mount in host["Mounts"] if mount["Destination"] == "/var/lib/docker"):
        with contextlib.suppress(OSError):
            inside += [folder.name for folder in pathlib.Path(mount["Source"], "containers").iterdir()]
    return inside


def _remove_cgroups(container: str) -> None:
    """Remove the empty groups that a container left in the machine's cgroup trees because nobody had the time to."""
    root = pathlib.Path("/sys/fs/cgroup")
    groups = (f"docker/{container}", f"system.slice/docker-{container}.scope")
    for top in (tree / group for tree in (root, *root.iterdir()) for group in groups):
        if top.is_dir():
            for folder in (*sorted((f for f in top.rglob("*") if f.is_dir()), reverse=True), top):
                with contextlib.suppress(OSError):
                    folder.rmdir()
