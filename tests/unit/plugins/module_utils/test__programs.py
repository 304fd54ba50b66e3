# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How programs are run: what they are given, and what comes back."""

from __future__ import annotations

import os
import sys
import typing as t
from pathlib import Path

from ansible_collections.quaywall.docker.plugins.module_utils._programs import run

if t.TYPE_CHECKING:
    import pytest


def python(code: str, data: t.Optional[bytes] = None, *descriptors: int, **environment: str) -> t.Tuple[int, str, str]:
    rc, out, err = run([sys.executable, "-c", "import os, sys\n" + code], data, environment, descriptors)
    return rc, out.decode(), err.decode()


def test_both_outputs_and_the_return_code() -> None:
    assert python("print('out'); print('err', file=sys.stderr); sys.exit(4)") == (4, "out\n", "err\n")


def test_data_on_standard_input_or_nothing() -> None:
    code = "sys.stdout.write(sys.stdin.read().upper())"
    assert python(code, b"rules") == (0, "RULES", "")
    # More than a pipe holds, both ways.
    assert python(code, b"x" * 300000) == (0, "X" * 300000, "")
    assert python(code) == (0, "", "")


def test_the_environment_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    assert python("print(os.environ['KEPT'], os.environ['LC_ALL'])", LC_ALL="C") == (0, "1 C\n", "")


def test_only_the_descriptors_that_are_handed_over(tmp_path: Path) -> None:
    with open(str(tmp_path / "lock"), "w") as lock, open(str(tmp_path / "other"), "w") as other:
        for file in (lock, other):
            os.set_inheritable(file.fileno(), True)
        code = "\n".join(
            """
try:
    os.fstat(%d)
    print("open")
except OSError:
    print("closed")"""
            % file.fileno()
            for file in (lock, other)
        )
        assert python(code, None, lock.fileno()) == (0, "open\nclosed\n", "")


def test_the_process_is_told_before_it_ends() -> None:
    told: t.List[int] = []
    rc, out, _err = run([sys.executable, "-c", "import os; print(os.getpid())"], None, {}, (), told.append)
    assert (rc, [int(out)]) == (0, told)


def test_a_program_that_is_not_there() -> None:
    rc, out, err = run(["/nowhere/iptables-save"], None, {}, ())
    assert (rc, out) == (127, b"")
    assert b"/nowhere/iptables-save" in err
