# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of variables in a role's README, made from its meta/argument_specs.yml.

role_variables.py ROLE writes the table between the README's two markers. With --check it writes nothing, and returns 1
where the table is another.
"""

from __future__ import annotations

import json
import re
import sys
import typing as t
from pathlib import Path

import yaml

_BEGIN = "<!-- begin variables: made from meta/argument_specs.yml -->"
_END = "<!-- end variables -->"
_OPTION = re.compile(r"O\(([^()=]+)(?:=([^()]*))?\)")
_MODULE = re.compile(r"M\(quaywall\.docker\.(\w+)\)")
_CODE = re.compile(r"[CVM]\(([^()]*(?:\([^()]*\)[^()]*)*)\)")


def _markdown(text: str) -> str:
    """Ansible's markup as Markdown. The characters that would end a table's cell are escaped."""
    text = _OPTION.sub(lambda found: "`%s`" % ": ".join(part for part in found.groups() if part is not None), text)
    text = _CODE.sub(r"`\1`", _MODULE.sub(r"`\1`", text))
    return " ".join(text.split()).replace("|", "\\|")


def _default(option: t.Mapping[str, t.Any]) -> str:
    if option.get("required"):
        return "required"
    value = option.get("default")
    if value is None:
        return ""
    return "`%s`" % (value if isinstance(value, str) else json.dumps(value))


def table(options: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, option in options.items():
        described = option["description"]
        meaning = " ".join([described] if isinstance(described, str) else described)
        lines.append("| `%s` | %s | %s |" % (name, _default(option), _markdown(meaning)))
    return "\n".join(lines)


def main(role: str, check: bool) -> int:
    folder = Path(__file__).resolve().parents[1] / "roles" / role
    spec = yaml.safe_load((folder / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _old, end, after = rest.partition(_END)
    if not begin or not end:
        print("%s has no markers %s and %s" % (path, _BEGIN, _END), file=sys.stderr)
        return 1
    made = "%s%s\n\n%s\n\n%s%s" % (before, begin, table(spec["argument_specs"]["main"]["options"]), end, after)
    if made == text:
        return 0
    if check:
        print(
            "%s is older than meta/argument_specs.yml: make docs" % path.relative_to(folder.parents[1]), file=sys.stderr
        )
        return 1
    path.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--check" in sys.argv))
