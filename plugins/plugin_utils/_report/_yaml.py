# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Tasks as YAML to be pasted into a playbook.

Written here and not by PyYAML: its Python half takes seconds for the fixes of a fleet, its C half is not everywhere,
and neither knows which texts Ansible would take for a template. A text that came from a host must never run on the
controller, so such a text is C(!unsafe).
"""

from __future__ import annotations

import functools
import re
import typing as t

#: What needs no quotes, whoever reads it: no number, no word of YAML 1.1, no indicator at the start.
_PLAIN = re.compile(r"(?![-.])[A-Za-z/_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./(-][A-Za-z0-9_.,'()/-]*)*\Z")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"))
_TEMPLATE = re.compile(r"\{[{%#]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def render(tasks: t.Iterable[t.Any]) -> str:
    """A list of tasks."""
    lines: t.List[str] = []
    for task in tasks:
        _add(lines, "- ", "  ", task)
    return "".join(line + "\n" for line in lines)


def _add(lines: t.List[str], first: str, indent: str, value: t.Any) -> None:
    """Add a value: ``first`` stands before it, ``indent`` before its further lines."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = _scalar(key)
            if isinstance(item, (dict, list, tuple)) and item:
                lines.append("%s%s:" % (first, name))
                _add(lines, indent + "  ", indent + "  ", item)
            else:
                lines.append("%s%s: %s" % (first, name, _scalar(item)))
            first = indent
    elif isinstance(value, (list, tuple)) and value:
        for item in value:
            _add(lines, first + "- ", indent + "  ", item)
            first = indent
    else:
        lines.append(first + _scalar(value))


def _scalar(value: t.Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, (list, tuple)):
        return "[]"
    return _quoted(str(value))


@functools.lru_cache(maxsize=4096)  # the words of commands are there again and again
def _quoted(text: str) -> str:
    if _PLAIN.match(text) and text.lower() not in _WORDS:
        return text
    quoted = '"%s"' % "".join(_ESCAPES.get(char) or (char if char.isprintable() else _number(char)) for char in text)
    return "!unsafe " + quoted if _TEMPLATE.search(text) else quoted


def _number(char: str) -> str:
    code = ord(char)
    return "\\x%02x" % code if code < 0x100 else "\\u%04x" % code if code < 0x10000 else "\\U%08x" % code
