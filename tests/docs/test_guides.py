# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a reader types from the guides, the README and the role's README works, and what they quote is what is said."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import typing as t

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._plan import established_rule, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, compile_policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit import snapshots
from docs import examples, guides

ROOT = guides.ROOT
_OURS = "quaywall.docker."
_PAGES = [*guides.guides(), ROOT / "README.md", ROOT / "roles" / "firewall_baseline" / "README.md"]


class Block(t.NamedTuple):
    """A block of code on a page."""

    page: str
    language: str
    text: str


def _blocks() -> t.Iterator[Block]:
    for path in _PAGES:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
                yield Block(path.name, found[1], found[2])
            continue
        for found in re.finditer(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", text, re.MULTILINE):
            yield Block(path.name, found[1], textwrap.dedent(found[2]).strip("\n") + "\n")


BLOCKS = list(_blocks())


def _id(block: Block) -> str:
    return "%s: %s" % (block.page, block.text.split("\n", 1)[0].strip()[:60])


def _of(*languages: str) -> list[t.Any]:
    return [pytest.param(block, id=_id(block)) for block in BLOCKS if block.language in languages]


def _tasks(content: t.Any) -> t.Iterator[dict[str, t.Any]]:
    for item in content:
        if "hosts" in item:
            for key in ("pre_tasks", "tasks", "post_tasks", "handlers"):
                yield from _tasks(item.get(key, []))
        elif "block" in item:
            yield from _tasks(item["block"])
        else:
            yield item


@pytest.fixture(scope="session")
def documented() -> dict[str, dict[str, t.Any]]:
    """The options of our modules, and of the role, as ansible-doc shows them."""
    said = {}
    for kind in ("module", "role"):
        done = guides.run(["--type", kind, "--json", "-l", "quaywall.docker"], program="ansible-doc")
        names = list(json.loads(done.stdout))
        done = guides.run(["--type", kind, "--json", *names], program="ansible-doc")
        said.update(json.loads(done.stdout))
    options = {}
    for name, item in said.items():
        options[name] = item["doc"]["options"] if "doc" in item else item["entry_points"]["main"]["options"]
    return options


def _argument_spec(options: dict[str, t.Any]) -> dict[str, t.Any]:
    kept = ("type", "elements", "choices", "required", "default", "aliases")
    spec = {}
    for name, option in options.items():
        spec[name] = {key: option[key] for key in kept if key in option}
        inner = option.get("options") or option.get("suboptions")
        if inner:
            spec[name]["options"] = _argument_spec(inner)
    return spec


def _no_templates(value: t.Any) -> t.Any:
    """What a template will be is not known here: its option is left out."""
    if isinstance(value, dict):
        return {key: _no_templates(item) for key, item in value.items() if not (isinstance(item, str) and "{{" in item)}
    return value


@pytest.mark.parametrize("block", _of("yaml"))
def test_tasks_are_understood(block: Block, documented: dict[str, dict[str, t.Any]]) -> None:
    content = yaml.safe_load(block.text)
    assert isinstance(content, list)
    for play in content:
        for entry in play.get("roles", []) if "hosts" in play else []:
            assert entry["role"] in documented
            given = {
                key: value for key, value in {**entry, **entry.get("vars", {})}.items() if key.startswith("firewall_")
            }
            assert given
            result = ArgumentSpecValidator(_argument_spec(documented[entry["role"]])).validate(given)
            assert not result.error_messages
            for policy in given.get("firewall_baseline_policies", []):
                Policy.from_options(policy)
    for task in _tasks(content):
        for module in [key for key in task if key.startswith(_OURS)]:
            arguments = _no_templates(task[module] or {})
            result = ArgumentSpecValidator(_argument_spec(documented[module])).validate(arguments)
            assert not result.error_messages, task["name"]
            for policy in [arguments] if module.endswith("_rule") else arguments.get("rules", []):
                Policy.from_options({key: value for key, value in policy.items() if value is not None})


def test_plays_are_plays(tmp_path: t.Any) -> None:
    """Ansible takes every one; all at once, as it takes a while to start."""
    paths = []
    for number, item in enumerate(_of("yaml")):
        content = yaml.safe_load(item.values[0].text)
        if "hosts" not in content[0]:
            content = [{"name": "A play", "hosts": "localhost", "tasks": content}]
        path = tmp_path / ("%d-%s.yml" % (number, re.sub(r"\W+", "-", item.id)))
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        paths.append(str(path))
    assert paths
    done = guides.run(["--syntax-check", "-i", "localhost,", *paths])
    assert done.returncode == 0, done.stdout + done.stderr


def _commands() -> list[t.Any]:
    """Each once: a translation has the commands of its original."""
    found = {}
    for block in BLOCKS:
        for line in re.sub(r" \\\n *", " ", block.text).splitlines():
            command = line.removeprefix("$ ").split("  #")[0].strip()
            if block.language in {"console", "sh", "bash"} and command.startswith("ansible-playbook "):
                found[command] = pytest.param(shlex.split(command)[1:], id=command[17:])
    return list(found.values())


@pytest.mark.parametrize("words", _commands())
def test_commands_name_what_is_there(words: list[str]) -> None:
    """A playbook of ours, and variables that the head of the playbook tells of."""
    if not words[0].startswith(_OURS):
        assert words[0].endswith(".yml")
        return
    path = ROOT / "playbooks" / (words[0].removeprefix(_OURS) + ".yml")
    head = path.read_text(encoding="utf-8")
    given = [words[index + 1] for index, word in enumerate(words) if word == "-e"]
    for text in given:
        names = yaml.safe_load(text) if text.startswith("{") else [text.partition("=")[0]]
        for name in names:
            assert re.search(r"^#.*\b%s\b" % name, head, re.MULTILINE), "%s does not tell of %s" % (path.name, name)


@pytest.mark.parametrize(
    "words", [item for item in _commands() if any("from_snapshots=" in word for word in item.values[0])]
)
def test_commands_over_snapshots_work(words: list[str], tmp_path: t.Any) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    done = guides.run(words, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ids_of_fixes_are_there() -> None:
    """The ids that a command confirms are those of the example's findings."""
    (said,) = guides.results([guides.Example("audit", "by-hand", {}, None)])
    there = {finding["id"] for finding in said["findings"] if finding["fix"]}
    named = [word for item in _commands() for word in item.values[0] if word.startswith("quaywall_fix=")]
    wanted = {name for word in named for name in word.partition("=")[2].split(",") if not re.search("[^0-9a-f]", name)}
    assert wanted
    assert wanted <= there


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_examples_are_current(name: str) -> None:
    assert (examples.FOLDER / (name + ".json")).read_text(encoding="utf-8") == examples.text(name)


# The hosts with policies -----------------------------------------------------------------------------------------


def _shown(page: str, module: str) -> list[dict[str, t.Any]]:
    """The policies that a guide asks for: those of the role, or of all tasks with the module."""
    found: list[dict[str, t.Any]] = []
    for block in BLOCKS:
        if block.page != page or block.language != "yaml":
            continue
        content = yaml.safe_load(block.text)
        for play in content:
            for entry in play.get("roles", []) if "hosts" in play else []:
                found = entry.get("vars", {}).get(module, found)
        for task in _tasks(content):
            if "name" in (task.get(module) or {}):
                found.append(task[module])
    return found


def _fixed(container: t.Any) -> t.Any:
    """The host ports of the examples are those of `docker run -p HOST:CONTAINER`."""
    return tuple(binding._replace(fixed=True) for binding in container.current_ports)


@pytest.mark.parametrize(
    ("host", "page", "where"),
    [
        ("answered", "guide_blocked.rst", "quaywall.docker.docker_user_rule"),
        ("answered", "guide_blocked_ja.rst", "quaywall.docker.docker_user_rule"),
        ("by-policy", "guide_docker_user.rst", "firewall_baseline_policies"),
    ],
)
def test_the_repaired_host_has_what_its_policies_make(host: str, page: str, where: str) -> None:
    """The examples' rules are written by hand; these are the collection's own for the policies that the guide shows."""
    document = examples.EXAMPLES[host]()
    inventory = from_json(document).inventory
    block: t.Sequence[t.Any] = ()
    for options in _shown(page, where):
        policy = Policy.from_options(options)
        made = compile_policy(policy, inventory, _fixed)
        block = with_policy(Chain(DOCKER_USER, None, tuple(block)), policy.name, made.rules[IPV4])
    rules = [established_rule().render(), *(rule.render() for rule in block), "-j RETURN"]
    assert rules == snapshots.rules_of(document, IPV4, "filter", "DOCKER-USER")


@pytest.mark.parametrize("page", ["guide_blocked.rst", "guide_blocked_ja.rst"])
def test_the_chain_that_is_shown_is_the_hosts(page: str) -> None:
    rules = [
        "-A DOCKER-USER " + rule for rule in snapshots.rules_of(examples.answered(), IPV4, "filter", "DOCKER-USER")
    ]
    assert any(block.text.splitlines() == rules for block in BLOCKS if block.page == page)
