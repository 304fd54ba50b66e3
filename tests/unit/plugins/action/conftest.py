# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Actions run on a controller only. The Pythons of managed hosts, which have none of it, do not collect their tests."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ansible.plugins") is None:
    collect_ignore_glob = ["test_*.py"]
