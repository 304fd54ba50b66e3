# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Runs the packet filter's programs, for modules and for the follower."""

from __future__ import annotations

import os
import subprocess
import typing as t


def run(
    args: t.Sequence[str],
    data: t.Optional[bytes],
    environment: t.Mapping[str, str],
    descriptors: t.Sequence[int],
    started: t.Callable[[int], None] = lambda _pid: None,
) -> t.Tuple[int, bytes, bytes]:
    """A Runner of C(_iptables).

    C(AnsibleModule.run_command) is not used, as it asks for a fork with Python code in the child: that copies the page
    tables of the module's process, 4 ms for each of an audit's seven programs, which take 2 ms themselves.

    :param started: is told the process ID.
    """
    try:
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            list(args),
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            pass_fds=tuple(descriptors),
        )
    except OSError as error:
        # What a shell returns for a program that cannot be run.
        return 127, b"", str(error).encode("utf-8", "surrogateescape")
    started(process.pid)
    try:
        out, err = process.communicate(data)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err
