# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bed by hand: ``PYTHONPATH=tests python3 -m testbed --help``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys

from .engine import BedError, OwnEngine, outer_engine, running_engine
from .hosts import LABEL, Bed, HostSpec
from .images import SUITES, build_images, remove_images

DEFAULT_BED = os.environ.get("QUAYWALL_BED", "quaywall")


def host_spec(text: str) -> HostSpec:
    """``NAME``, ``NAME:SUITE``, or a JSON object with the fields of HostSpec."""
    try:
        if text.startswith("{"):
            return HostSpec(**json.loads(text))
        name, _colon, suite = text.partition(":")
        return HostSpec(name, suite=suite)
    except (BedError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def images(arguments: argparse.Namespace) -> None:
    for name in build_images(outer_engine(), arguments.suite or SUITES):
        print(f"built {SUITES[name].image}")


def up(arguments: argparse.Namespace) -> None:
    hosts = arguments.host or [HostSpec(suite) for suite in SUITES]
    for container in Bed(arguments.bed).up(hosts, client=not arguments.no_client):
        print(f"started {container}")


def down(arguments: argparse.Namespace) -> None:
    engine = running_engine()
    if engine:
        for removed in Bed(arguments.bed, engine).down():
            print(f"removed {removed[:12]}")
    if arguments.engine:
        OwnEngine().stop()


def purge(arguments: argparse.Namespace) -> None:
    engine = running_engine()
    if engine and not engine.own:
        for name in sorted(set(engine.docker("ps", "--all", "--format", f'{{{{.Label "{LABEL}"}}}}').stdout.split())):
            Bed(name, engine).down()
        remove_images(engine)
    OwnEngine().purge()


def list_beds(arguments: argparse.Namespace) -> None:
    engine = running_engine()
    if not engine:
        return
    columns = f'table {{{{.Label "{LABEL}"}}}}\t{{{{.Names}}}}\t{{{{.Status}}}}\t{{{{.Image}}}}'
    print(engine.docker("ps", "--all", "--filter", f"label={LABEL}", "--format", columns).stdout, end="")


def shell(arguments: argparse.Namespace) -> int:
    machine = f"{arguments.bed}-{arguments.machine}"
    command = arguments.command or ["bash", "-l"]
    terminal = ["--tty"] if sys.stdin.isatty() else []
    exec_in = ["docker", "exec", "--interactive", *terminal, machine, *command]
    return subprocess.run(exec_in, env=outer_engine().environment, check=False).returncode


def env(arguments: argparse.Namespace) -> None:
    address = outer_engine().address
    print(address if arguments.plain else f"export DOCKER_HOST={shlex.quote(address)}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="testbed", description="Real Docker hosts, and a client that sends packets.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "env", help="print the shell lines that let docker, Molecule and pytest find the engine"
    )
    command.add_argument("--plain", action="store_true", help="print the address only")
    command.set_defaults(run=env)

    command = commands.add_parser("images", help="build the images that are missing")
    command.add_argument("suite", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    command.set_defaults(run=images)

    command = commands.add_parser("up", help="start hosts and client, as far as they do not run")
    command.add_argument("bed", nargs="?", default=DEFAULT_BED)
    command.add_argument(
        "--host",
        action="append",
        type=host_spec,
        help="NAME, NAME:SUITE, or a JSON object as HostSpec; default: each suite",
    )
    command.add_argument("--no-client", action="store_true")
    command.set_defaults(run=up)

    command = commands.add_parser("down", help="remove all that belongs to the bed")
    command.add_argument("bed", nargs="?", default=DEFAULT_BED)
    command.add_argument("--engine", action="store_true", help="and stop the engine, if it is our own")
    command.set_defaults(run=down)

    command = commands.add_parser("list", help="list the machines of all beds")
    command.set_defaults(run=list_beds)

    command = commands.add_parser("shell", help="run a shell, or a command, in a machine")
    command.add_argument("machine", help="a host's name, or client")
    command.add_argument("--bed", default=DEFAULT_BED)
    command.add_argument("command", nargs=argparse.REMAINDER)
    command.set_defaults(run=shell)

    command = commands.add_parser("purge", help="remove all beds, all images and our own engine")
    command.set_defaults(run=purge)
    return top


def main() -> int:
    arguments = parser().parse_args()
    try:
        return arguments.run(arguments) or 0
    except BedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
