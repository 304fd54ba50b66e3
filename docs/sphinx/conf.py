# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documentation site. `make docs` calls Sphinx with it, after antsibull-docs has written a page for each plugin."""

from __future__ import annotations

import re
import typing as t

from docutils import nodes

if t.TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "quaywall.docker"
copyright = "2026, the quaywall.docker authors"  # noqa: A001
title = html_title = html_short_title = "quaywall.docker"

extensions = ["sphinx_antsibull_ext"]
default_role = "any"
highlight_language = "YAML+Jinja"
pygments_style = "friendly"
pygments_dark_style = "native"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["quaywall.css"]
html_theme_options = {
    "source_repository": "https://github.com/quaywall/quaywall.docker/",
    "source_branch": "main",
    "top_of_page_buttons": [],
}
html_show_sphinx = False
html_use_index = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None

# The same bytes from the same sources: no e-mail obfuscation, no time, no smart guesses.
smartquotes = False
linkcheck_timeout = 30

# Pages of other collections are not fetched to build ours; their addresses follow a rule.
_MANUAL = "https://docs.ansible.com/projects/ansible/latest"
_PLUGIN = re.compile(r"ansible_collections\.(\w+)\.(\w+)\.(\w+_module)\Z")
_PAGES = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def _elsewhere(app: Sphinx, env: t.Any, node: t.Any, contnode: nodes.Element) -> nodes.reference | None:
    target = node.get("reftarget", "")
    plugin = _PLUGIN.match(target)
    if target in _PAGES:
        page = _PAGES[target]
    elif plugin is not None and plugin.group(1) != "quaywall":
        page = "collections/%s/%s/%s.html" % plugin.groups()
    else:
        return None
    return nodes.reference("", "", contnode, refuri="%s/%s" % (_MANUAL, page), internal=False)


def _without_contents(app: Sphinx, doctree: nodes.document) -> None:
    """The theme has a table of contents beside each page. Those in the pages are for who reads the sources."""
    for topic in [topic for topic in doctree.findall(nodes.topic) if "contents" in topic["classes"]]:
        topic.parent.remove(topic)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", _without_contents)
    app.connect("missing-reference", _elsewhere)
