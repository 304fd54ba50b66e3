# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What every module needs of Ansible and the host: a way to run programs, Docker, and text that can be printed."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Finder, Runner


def make_runner(module: AnsibleModule) -> Runner:
    """The module's way to run a program."""

    def run(
        args: t.Sequence[str],
        data: t.Optional[bytes],
        environment: t.Mapping[str, str],
        descriptors: t.Sequence[int],
    ) -> t.Tuple[int, bytes, bytes]:
        try:
            result: t.Tuple[int, bytes, bytes] = module.run_command(
                list(args),
                data=data,
                binary_data=True,
                encoding=None,
                environ_update=dict(environment),
                pass_fds=tuple(descriptors),
                handle_exceptions=False,
            )
        except OSError as error:
            # What a shell returns for a program that cannot be run; run_command would end the module.
            return 127, b"", str(error).encode("utf-8", "surrogateescape")
        return result

    return run


def make_finder(module: AnsibleModule) -> Finder:
    """The module's way to find a program."""

    def find(program: str) -> t.Optional[str]:
        found: t.Optional[str] = module.get_bin_path(program, opt_dirs=["/usr/sbin", "/sbin", "/usr/local/sbin"])
        return found

    return find


def make_docker() -> Docker:
    """The engine of this host."""
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

    return Docker()


def printable(value: t.Any) -> t.Any:
    """Text that JSON and a terminal can hold: bytes that are no UTF-8 and control characters are escaped."""
    if isinstance(value, str):
        if value.isprintable():  # no lone surrogate is
            return value
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    if isinstance(value, list):
        return [printable(item) for item in value]
    return value
