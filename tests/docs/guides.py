# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guides quote, made by the modules themselves over the snapshots in docs/examples.

A comment above a block of text in a guide says what made it:

    .. example: trace blocked {source: 203.0.113.10, port: 9000}
    .. example: audit by-hand {lines: [0, 1]}

`PYTHONPATH=.build:tests .build/venv/bin/python -m docs.guides` writes the blocks, and with --check only says which are
older than the code. The first line of a block is the module's `msg`, the others are its `report`; `lines` chooses some.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import typing as t
from pathlib import Path

import yaml

from docs import examples

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "docsite" / "rst"
_WIDTH = 92
_MARKER = re.compile(r"^\.\. example: (?P<module>audit|trace) (?P<host>[\w-]+)(?: (?P<options>\{.*\}))?$")
_MODULES = {"audit": "quaywall.docker.docker_fw_audit", "trace": "quaywall.docker.docker_fw_trace"}


class Example(t.NamedTuple):
    """A block of a guide that a module made."""

    module: str
    host: str
    options: dict[str, t.Any]
    lines: list[int] | None


def example(line: str) -> Example | None:
    found = _MARKER.match(line)
    if found is None:
        return None
    options = yaml.safe_load(found["options"] or "{}")
    lines = options.pop("lines", None)
    return Example(found["module"], found["host"], options, lines)


def guides() -> list[Path]:
    return sorted(GUIDES.glob("*.rst"))


def run(
    arguments: t.Sequence[str], folder: Path = ROOT, program: str = "ansible-playbook"
) -> subprocess.CompletedProcess[str]:
    """ansible-playbook on this machine, without a host."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
    }
    command = [str(Path(sys.executable).parent / program), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def results(wanted: t.Sequence[Example]) -> list[dict[str, t.Any]]:
    """What the modules return, all in one play."""
    tasks: list[dict[str, t.Any]] = []
    for index, item in enumerate(wanted):
        tasks.append(
            {
                _MODULES[item.module]: {**item.options, "snapshot": examples.EXAMPLES[item.host]()},
                "register": f"answer_{index}",
                "ignore_errors": True,
            }
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "answers.json"
        names = [f"answer_{index}" for index in range(len(wanted))]
        tasks.append(
            {
                "ansible.builtin.copy": {
                    "dest": str(made),
                    "content": "{{ [%s] | to_json }}" % ", ".join(names),
                    "mode": "0600",
                }
            }
        )
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        path = Path(folder) / "play.yml"
        path.write_text(yaml.safe_dump([play]), encoding="utf-8")
        done = run([str(path), "-i", "localhost,"])
        if not made.exists():
            raise RuntimeError(done.stdout + done.stderr)
        found: list[dict[str, t.Any]] = json.loads(made.read_text(encoding="utf-8"))
    return found


def answers(wanted: t.Sequence[Example]) -> list[list[str]]:
    """The lines that the modules say."""
    lines = []
    for item, result in zip(wanted, results(wanted), strict=True):
        said = [result["msg"], *result.get("report", [])]
        lines.append(said if item.lines is None else [said[index] for index in item.lines])
    return lines


def _wrapped(lines: t.Iterable[str]) -> list[str]:
    result = []
    for line in lines:
        # A table is as wide as it is: its columns would be lost.
        if "  " in line:
            result.append("   " + line)
            continue
        result += textwrap.wrap(
            line,
            _WIDTH,
            initial_indent="   ",
            subsequent_indent="     ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return result


def renewed() -> dict[Path, str]:
    """Every guide, with its blocks as they are made now."""
    texts = {path: path.read_text(encoding="utf-8").split("\n") for path in guides()}
    wanted = [found for lines in texts.values() for found in map(example, lines) if found]
    made = iter(answers(wanted))
    result = {}
    for path, lines in texts.items():
        new: list[str] = []
        rest = iter(lines)
        for line in rest:
            new.append(line)
            if example(line) is None:
                continue
            for head in rest:  # an empty line, the directive, an empty line
                new.append(head)
                if head.startswith(".. code-block::"):
                    break
            new += ["", *_wrapped(next(made)), ""]
            behind = next((item for item in rest if item and not item.startswith(" ")), None)
            if behind is not None:
                new.append(behind)
        result[path] = "\n".join(new)
    return result


def main(check: bool) -> int:
    old = []
    for path, text in renewed().items():
        if path.read_text(encoding="utf-8") == text:
            continue
        old.append(path)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and old:
        names = ", ".join(path.name for path in old)
        print(f"What these guides quote is older than the code: {names}: make docs", file=sys.stderr)
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
