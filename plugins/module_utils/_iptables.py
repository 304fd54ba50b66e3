# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The only code that runs C(iptables-save) and C(iptables-restore).

Reading never writes: legacy tables are read only if the kernel has them, as asking creates them. Writing is one
transaction per family, under an own lock (nft takes none) and, for legacy, under the xtables lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import time
import typing as t
from contextlib import ExitStack, contextmanager, suppress

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DEFAULT_CHAIN,
    DOCKER_CHAINS,
    DOCKER_USER,
    FORWARD,
    GUARD_CHAIN,
    GUARD_DENY_CHAIN,
    INPUT,
    MANGLE,
    POSTROUTING,
    PROXY_CHAIN,
    Dump,
    Table,
    docker_manages,
    parse_dump,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan

NFT = "nft"
LEGACY = "legacy"

OWN_LOCK = "/run/quaywall.lock"
XTABLES_LOCK = "/run/xtables.lock"
# Children of ours must not wait for the xtables lock that we hold for them; they get a file of their own.
CHILD_XTABLES_LOCK = "/run/quaywall-xtables.lock"

#: Seconds to wait for another run of ours, and for the holder of the xtables lock.
OWN_WAIT = 120.0
XTABLES_WAIT = 10.0
#: How often a change is planned anew when somebody else changes the chain meanwhile.
TRIES = 10

_COMMANDS = {IPV4: "iptables", IPV6: "ip6tables"}
_NAMES_FILES = {IPV4: "/proc/thread-self/net/ip_tables_names", IPV6: "/proc/thread-self/net/ip6_tables_names"}
_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}

#: Runs a command: arguments, standard input, additional environment, file descriptors that the command inherits
#: -> return code, standard output and error.
Runner = t.Callable[
    [t.Sequence[str], t.Optional[bytes], t.Mapping[str, str], t.Sequence[int]], t.Tuple[int, bytes, bytes]
]
#: Finds a program: its absolute path or None.
Finder = t.Callable[[str], t.Optional[str]]


class FirewallError(Exception):
    """What could not be read or written, as one sentence; ``details`` has the command and what it said."""

    def __init__(self, message: str, details: t.Optional[t.Mapping[str, t.Any]] = None) -> None:
        super().__init__(message)
        self.details: t.Dict[str, t.Any] = dict(details or {})


class State(t.NamedTuple):
    """The filter tables as they were read.

    A family without ip(6)tables on the host is absent; ``unreadable`` says why IPv6 is absent if it could not be read.
    ``mangle`` are the tables of the guard; one that iptables cannot show is absent.
    """

    variants: t.Mapping[str, str]
    tables: t.Mapping[str, Table]
    unreadable: t.Mapping[str, str] = {}
    mangle: t.Mapping[str, Table] = {}


class Change(t.NamedTuple):
    """What became of one family: its variant, the chain before and after, and the guard before and after."""

    variant: str
    before: t.Tuple[str, ...]
    after: t.Tuple[str, ...]
    plan: Plan
    guard: t.Tuple[t.Tuple[str, ...], t.Tuple[str, ...]] = ((), ())

    @property
    def changed(self) -> bool:
        return self.before != self.after or not self.plan.empty


class Companion:
    """What is written along with the rules, under the same lock: sets that rules ask, and the stored policies."""

    def testable(self) -> bool:
        """True if the rules can be tried without it: a rule that asks a set which is not there cannot."""
        return True

    def prepare(self) -> None:
        """Before the rules are written; what is needed by the old ones must stay.

        :raises FirewallError: it cannot be done, and nothing was changed.
        """

    def undo(self) -> None:
        """After the rules could not be written."""

    def finish(self) -> None:
        """After the rules were written."""


#: Makes the plans of all families from the tables as they are.
Planner = t.Callable[[State], t.Mapping[str, "Plan"]]


def _decode(output: bytes) -> str:
    # Comments may hold any byte; what cannot be decoded must come back as it was.
    return output.decode("utf-8", "surrogateescape")


def _last_line(text: str) -> str:
    """The line of an error output that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Try `", "# Warning", "Error occurred"))]
    return lines[0] if lines else "it gave no reason"


class Firewall:
    """The filter tables of both families, in the variant of iptables that Docker uses on this host.

    :param run: runs a command.
    :param find: finds a program.
    """

    def __init__(
        self,
        run: Runner,
        find: Finder,
        own_wait: float = OWN_WAIT,
        xtables_wait: float = XTABLES_WAIT,
        lock_directory: str = "",
    ) -> None:
        self._run = run
        self._find = find
        self._own_wait = own_wait
        self._xtables_wait = xtables_wait
        self._own_lock = os.path.join(lock_directory, os.path.basename(OWN_LOCK)) if lock_directory else OWN_LOCK
        self._programs: t.Dict[str, t.Optional[str]] = {}
        self._default_variants: t.Dict[str, str] = {}
        self._versions: t.Dict[str, str] = {}
        self._locks: t.Dict[str, int] = {}
        #: The tables as they were last read.
        self.state = State({}, {})

    # Reading

    def _program(self, name: str) -> t.Optional[str]:
        if name not in self._programs:
            self._programs[name] = self._find(name)
        return self._programs[name]

    def _tool(self, family: str, variant: str, action: str) -> t.Optional[str]:
        """The save or restore program of a variant; distributions with one variant have no suffix in its name."""
        command = _COMMANDS[family]
        found = self._program("%s-%s-%s" % (command, variant, action))
        if found is not None:
            return found
        plain = self._program("%s-%s" % (command, action))
        return plain if plain is not None and self._default_variant(family, plain) == variant else None

    def _default_variant(self, family: str, program: str) -> str:
        if family not in self._default_variants:
            _rc, out, _err = self._run([program, "--version"], None, {"LC_ALL": "C"}, ())
            version = re.search(r" v([0-9][0-9.]*)", _decode(out))
            self._versions[family] = version.group(1) if version else ""
            # Versions before 1.8 have one variant and do not name it.
            self._default_variants[family] = NFT if b"nf_tables" in out else LEGACY
        return self._default_variants[family]

    def _save(self, family: str, variant: str, table: str = "filter") -> t.Optional[Dump]:
        if variant == LEGACY and table not in legacy_tables(family):
            return None
        program = self._tool(family, variant, "save")
        return None if program is None else parse_dump(_decode(self._run_save(program, table)), family)

    def _mangle(self, family: str, variant: str) -> t.Optional[Table]:
        """The table of the guard, empty if there is none yet; None if it cannot be read."""
        try:
            dump = self._save(family, variant, "mangle")
        except FirewallError:
            return None
        if dump is None:
            return Table("mangle", {})
        return None if dump.incompatible else dump.tables.get("mangle") or Table("mangle", {})

    def _run_save(self, program: str, table: str) -> bytes:
        command = [program] + (["-t", table] if table else [])
        rc, out, err = self._run(command, None, {"LC_ALL": "C"}, ())
        if rc != 0:
            text = _decode(err)
            raise FirewallError(
                "%s cannot read the %s: %s."
                % (os.path.basename(program), table + " table" if table else "rules", _last_line(text).rstrip(".")),
                {"rc": rc, "cmd": command, "stdout": _decode(out), "stderr": text},
            )
        return out

    def defaults(self) -> t.Tuple[str, t.Dict[str, str]]:
        """The version of iptables, and the variant of each family's plain command; empty where there is none."""
        for family, command in _COMMANDS.items():
            plain = self._program(command + "-save")
            if plain is not None:
                self._default_variant(family, plain)
        return next(iter(self._versions.values()), ""), dict(self._default_variants)

    def can_read(self, family: str, variant: str) -> bool:
        """True if there is a program that reads the variant."""
        return self._tool(family, variant, "save") is not None

    def save_all(self, family: str, variant: str, table: str = "") -> bytes:
        """What C(iptables-save) prints for all tables of a variant (or one of them), empty if there are none.

        Of nftables it must be known that it is loaded: asking would load it.

        :raises FirewallError: the program is missing or cannot read them.
        """
        if variant == LEGACY and not legacy_tables(family):
            return b""
        program = self._tool(family, variant, "save")
        if program is None:
            raise FirewallError(
                "No %s-%s-save was found to read the rules of that variant: install the package iptables."
                % (_COMMANDS[family], variant)
            )
        return self._run_save(program, table)

    def _family_table(self, family: str, preferred: str) -> t.Optional[t.Tuple[str, Table]]:
        """Variant and filter table that hold Docker's chains; the preferred (or only) one if none does."""
        found: t.Dict[str, Table] = {}
        for variant in (NFT, LEGACY):
            dump = self._save(family, variant)
            if dump is None:
                continue
            if "filter" in dump.incompatible:
                raise FirewallError(
                    "%s cannot read the filter table, as it holds rules that were written with nft and not with "
                    "iptables: move them to a table of their own (nft list table %s filter shows them), then run again."
                    % (_COMMANDS[family], "ip" if family == IPV4 else "ip6")
                )
            table = dump.tables.get("filter")
            if table is not None:
                found[variant] = table
        docker = {variant: sorted(DOCKER_CHAINS & set(table.chains)) for variant, table in found.items()}
        holders = [variant for variant, chains in docker.items() if chains]
        if len(holders) > 1:
            raise FirewallError(
                "Docker's %s chains are in both variants of iptables (nft has %s; legacy has %s), so it cannot be told "
                "which one Docker uses: reboot, or remove the chains of the variant that `iptables --version` does not "
                "name, then restart Docker."
                % (_FAMILY_TEXTS[family], ", ".join(docker[NFT]), ", ".join(docker[LEGACY]))
            )
        if holders:
            return holders[0], found[holders[0]]
        for variant in (preferred or self.defaults()[1].get(family, ""), NFT, LEGACY):
            if variant and self._tool(family, variant, "restore") is not None:
                return variant, found.get(variant) or Table("filter", {})
        return None

    def read(self, chain_needed: bool = True, creates: bool = False) -> State:
        """The filter tables of the host.

        :param chain_needed: it is an error if DOCKER-USER is missing or nobody reads it.
        :param creates: DOCKER-USER is made where it is missing; it is an error if no engine would read it.
        :raises FirewallError: iptables is missing or cannot read the tables.
        """
        if self._program("iptables-save") is None and self._program("iptables-nft-save") is None:
            raise FirewallError("iptables is not installed (no iptables-save was found): install the package iptables.")
        four = self._family_table(IPV4, "")
        if four is None:
            raise FirewallError("iptables is not installed whole (no iptables-restore was found): install iptables.")
        variants, tables = {IPV4: four[0]}, {IPV4: four[1]}
        if chain_needed and DOCKER_USER not in tables[IPV4].chains:
            raise FirewallError(self._why_missing(tables[IPV4]))
        if (chain_needed or creates) and not docker_manages(tables[IPV4]) and self._docker_uses_nftables():
            raise FirewallError(_NFTABLES_BACKEND)
        unreadable: t.Dict[str, str] = {}
        try:
            six = self._family_table(IPV6, four[0])
        except FirewallError as error:
            # A host without IPv6, or one whose ip6tables somebody spoilt, still has IPv4 containers to guard.
            six = None
            unreadable[IPV6] = str(error)
        if six is not None:
            variants[IPV6], tables[IPV6] = six
        mangle = {family: self._mangle(family, variant) for family, variant in variants.items()}
        self.state = State(variants, tables, unreadable, {family: found for family, found in mangle.items() if found})
        return self.state

    def _docker_uses_nftables(self) -> bool:
        """True if Docker's own nftables tables are there: with that backend no engine reads DOCKER-USER."""
        program = self._program("nft")
        if program is None:
            return False
        rc, out, _err = self._run([program, "list", "tables"], None, {"LC_ALL": "C"}, ())
        return rc == 0 and b"docker-bridges" in out

    def _why_missing(self, table: Table) -> str:
        if self._docker_uses_nftables():
            return _NFTABLES_BACKEND
        if set(table.chains) & DOCKER_CHAINS:
            return (
                "There is no chain DOCKER-USER in the filter table, though Docker's other chains are there: somebody "
                "removed it. Restart Docker, which makes it anew."
            )
        return (
            "There is no chain DOCKER-USER in the filter table, so Docker does not manage this host's firewall now: "
            'start Docker; if it runs, take "iptables": false out of /etc/docker/daemon.json and restart it.'
        )

    # Writing

    def change(
        self,
        planner: Planner,
        dry: bool,
        chain_needed: bool = True,
        creates: bool = False,
        companion: t.Optional[Companion] = None,
    ) -> t.Mapping[str, Change]:
        """Bring the tables to what the planner wants, in one transaction per family.

        :param planner: is asked again whenever somebody else changed the tables meanwhile.
        :param dry: only say what would be done.
        :param chain_needed: as in :meth:`read`; taking rules away needs no chain.
        :param creates: as in :meth:`read`.
        :param companion: what is written along with the rules.
        :raises FirewallError: it cannot be done; then no chain is half done.
        """
        companion = companion or Companion()

        def read() -> State:
            return self.read(chain_needed, creates)

        if dry:
            state = read()
            plans = planner(state)
            if companion.testable():
                self._commit(state, plans, test=True)
            return {
                family: Change(
                    state.variants[family], plan.before, plan.after, plan, _guard(state, family, plan.guard_after())
                )
                for family, plan in plans.items()
            }
        with ExitStack() as stack:
            self._lock(stack, self._own_lock, self._own_wait, "another run of quaywall.docker")
            state = read()
            if LEGACY in state.variants.values():
                self._lock(stack, XTABLES_LOCK, self._xtables_wait, "another program that uses iptables")
                state = read()
            plans = planner(state)
            companion.prepare()
            try:
                changes = self._converge(state, plans, planner, read)
            except BaseException:
                companion.undo()
                raise
            companion.finish()
            return changes

    def descriptors(self) -> t.Sequence[int]:
        """The locks held now. A child that writes holds them too: if we are killed, the next run waits for it."""
        return list(self._locks.values())

    def _lock(self, stack: ExitStack, path: str, wait: float, who: str) -> None:
        """Hold a lock for as long as the stack lasts."""
        self._locks[path] = stack.enter_context(_locked(path, wait, who))
        stack.callback(self._locks.pop, path, None)

    def _converge(
        self, state: State, plans: t.Mapping[str, Plan], planner: Planner, read: t.Callable[[], State]
    ) -> t.Mapping[str, Change]:
        first, begun_state = plans, state
        attempt = 0
        while not all(plan.empty for plan in plans.values()):
            if attempt == TRIES:
                raise FirewallError(
                    "DOCKER-USER was changed by somebody else each of the %d times that this policy was written: find "
                    "out who keeps editing it, then run again. Rules of other tools were not touched." % TRIES
                )
            if attempt > 1:
                time.sleep(random.uniform(0.005, 0.05) * attempt)
                state = read()
                plans = planner(state)
            attempt += 1
            failure: t.Optional[FirewallError] = None
            try:
                # One family needs no trial run: its rules are written whole or not at all, and its guard only denies.
                if sum(not plan.empty for plan in plans.values()) > 1:
                    self._commit(state, plans, test=True)
                self._commit(state, plans, test=False)
            except FirewallError as error:
                failure = error
            # nft lets others write between our reading and our commit without a word: only a second look can tell.
            previous, state = state, read()
            plans = planner(state)
            if failure is not None and _written_by_us(previous) == _written_by_us(state):
                raise failure
        begun = {family: first.get(family, plan) for family, plan in plans.items()}
        return {
            family: Change(
                state.variants[family],
                begun[family].before,
                plan.after,
                begun[family],
                (_guard_lines(begun_state, family), _guard_lines(state, family)),
            )
            for family, plan in plans.items()
        }

    def _commit(self, state: State, plans: t.Mapping[str, Plan], test: bool) -> None:
        """Carry out (or try) the plans of all families; if one fails, those before it are undone."""
        done: t.List[t.Tuple[str, Plan]] = []
        for family, plan in plans.items():
            if plan.empty or (test and not self._can_test(family, state.variants[family], plan)):
                continue
            try:
                self._restore(family, state.variants[family], plan.transaction(), test)
            except FirewallError as error:
                if not test:
                    self._take_back_guard(family, state.variants[family], plan)
                for other, undone in reversed(done):
                    try:
                        self._restore(other, state.variants[other], undone.undo(), False)
                    except FirewallError as second:
                        raise FirewallError(
                            "%s Undoing the %s rules failed too: %s" % (error, _FAMILY_TEXTS[other], second),
                            error.details,
                        ) from error
                raise
            if not test:
                done.append((family, plan))

    def _take_back_guard(self, family: str, variant: str, plan: Plan) -> None:
        """After a failure: what the plan did to mangle, a transaction of its own, may have been carried out."""
        undo = plan.undo_guard()
        if undo and _guard_is(self._mangle(family, variant), plan):
            # If this fails too: what went wrong first says more, and the next run makes it right.
            with suppress(FirewallError):
                self._restore(family, variant, undo, False)

    def _can_test(self, family: str, variant: str, plan: Plan) -> bool:
        """False if a trial run would make a table that is not there: check mode must not."""
        if variant == NFT:
            return True
        there = set(legacy_tables(family))
        return "filter" in there and ("mangle" in there or not any(chain.table == MANGLE for chain in plan.own))

    def _restore(self, family: str, variant: str, transaction: str, test: bool) -> None:
        program = self._tool(family, variant, "restore")
        if program is None:
            raise FirewallError(
                "%s is not installed, and the target has %s addresses: install it, or write ip_version: ipv4."
                % (_COMMANDS[family], _FAMILY_TEXTS[family])
            )
        # Without a number --wait would wait for ever. Nobody else holds the file that a child of ours gets.
        own_file = variant == LEGACY and XTABLES_LOCK in self._locks
        wait = 1 if own_file else max(1, self._xtables_wait)
        command = [program, "--noflush", "--wait", "%d" % wait]
        if test:
            command.append("--test")
        environment = {"LC_ALL": "C"}
        if own_file:
            environment["XTABLES_LOCKFILE"] = CHILD_XTABLES_LOCK
        data = transaction.encode("utf-8", "surrogateescape")
        rc, out, err = self._run(command, data, environment, self.descriptors())
        if rc == 0:
            return
        if rc == 4 and own_file:
            # This iptables does not know XTABLES_LOCKFILE and waits for us. It takes the lock itself from here on; that
            # somebody wrote in between, the second look tells, as with nft.
            fcntl.flock(self._locks.pop(XTABLES_LOCK), fcntl.LOCK_UN)
            self._restore(family, variant, transaction, test)
            return
        text = _decode(err)
        details = {"rc": rc, "cmd": command, "stdout": _decode(out), "stderr": text}
        if rc == 4:
            raise FirewallError(
                _lock_text(XTABLES_LOCK, self._xtables_wait, "another program that uses iptables"), details
            )
        raise FirewallError(
            "%s refused the rules: %s. Nothing was changed."
            % (os.path.basename(program), _last_line(text).rstrip(".")),
            details,
        )


_NFTABLES_BACKEND = (
    "Docker's firewall backend on this host is nftables, which does not read DOCKER-USER, so a rule there would "
    'protect nothing: set "firewall-backend": "iptables" in /etc/docker/daemon.json and restart Docker, or filter in '
    "an nftables table of your own (hook forward, priority filter)."
)


def _written_by_us(state: State) -> t.Dict[str, t.List[t.List[str]]]:
    """The rules of the chains that we write to: what a dump also holds (counters of policies) changes all the time."""
    ours = (DOCKER_USER, FORWARD, INPUT, POSTROUTING, DEFAULT_CHAIN, GUARD_CHAIN, GUARD_DENY_CHAIN, PROXY_CHAIN)
    return {
        "%s %s" % (family, table.name): [chain.render() for name, chain in table.chains.items() if name in ours]
        for tables in (state.tables, state.mangle)
        for family, table in tables.items()
    }


def legacy_tables(family: str) -> t.List[str]:
    """The legacy tables that the kernel has; asking for another would make it."""
    try:
        with open(_NAMES_FILES[family]) as names:
            return names.read().split()
    except OSError:
        return []


def _guard_lines(state: State, family: str) -> t.Tuple[str, ...]:
    """The guard's rules, as lines of C(iptables -S)."""
    return tuple(line for lines in _guard_chains(state, family).values() for line in lines)


def _guard_chains(state: State, family: str) -> t.Dict[str, t.Tuple[str, ...]]:
    table = state.mangle.get(family)
    chains = {} if table is None else table.chains
    return {name: tuple(chains[name].render()) if name in chains else () for name in (GUARD_CHAIN, PROXY_CHAIN)}


def _guard(
    state: State, family: str, after: t.Mapping[str, t.Tuple[str, ...]]
) -> t.Tuple[t.Tuple[str, ...], t.Tuple[str, ...]]:
    chains = _guard_chains(state, family)
    chains.update({name: tuple("-A %s %s" % (name, rule) for rule in rules) for name, rules in after.items()})
    return _guard_lines(state, family), tuple(line for lines in chains.values() for line in lines)


def _guard_is(table: t.Optional[Table], plan: Plan) -> bool:
    """True if the chains in mangle are what the plan makes of them."""
    if table is None:
        return False
    found = {name: tuple(rule.render() for rule in chain.rules) for name, chain in table.chains.items()}
    return all(found.get(chain.name) == chain.after for chain in plan.own if chain.table == MANGLE)


def _lock_text(path: str, wait: float, who: str) -> str:
    return "%s has held the lock %s for longer than %d seconds: find it with `fuser -v %s`, then run again." % (
        who[0].upper() + who[1:],
        path,
        wait,
        path,
    )


@contextmanager
def _locked(path: str, wait: float, who: str) -> t.Iterator[int]:
    """Hold a lock file, by the descriptor that is given; the death of all that have it open frees it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FirewallError("The lock %s cannot be opened: %s." % (path, error.strerror)) from error
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                    raise
            if time.monotonic() >= deadline:
                raise FirewallError(_lock_text(path, wait, who))
            time.sleep(0.01)
        yield descriptor
    finally:
        os.close(descriptor)
