# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
.ONESHELL:

# The quick ones first. What comes after -- runs beside the rest: it waits for hosts more than it computes.
STEPS ?= lint publish-quick sanity sanity-quick unit unit-quick report kernel -- hosts fleet molecule

COLLECTION := .build/ansible_collections/quaywall/docker
BED := PYTHONPATH=tests python -m testbed

export PATH := $(CURDIR)/.build/venv/bin:$(PATH):/usr/sbin:/sbin
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build
# What Ansible's tools keep goes here, not into the home directory.
export ANSIBLE_HOME := $(CURDIR)/.build/ansible
export ANSIBLE_NOCOWS := 1

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name what; do printf 'make %-14s %s\n' "$$name" "$$what"; done

.PHONY: setup
setup: ## what the tests need: a Python environment in .build, and the packet filter's tools (as root, on Debian)
	@tests/setup kernel

.PHONY: setup-python
setup-python:
	@tests/setup python

.PHONY: test
test: setup ## every check and test there is
	@tests/all $(STEPS)

.PHONY: lint
lint: setup-python ## style, types and documentation
	@echo "lint: style, types and documentation of everything in the repository"
	tests/lint

.PHONY: sanity
sanity: setup-python ## ansible-test's checks, for every Python that the machine has
	@echo "sanity: ansible-test's checks, without any exception to them (whole output: .build/sanity.log)"
	@pythons=$$(tests/pythons | while read -r python; do printf ':%s' "$${python%/*}"; done)
	HOME="$$PWD/.build/home" ANSIBLE_TEST_CONTENT_ROOT="$$PWD/$(COLLECTION)" PATH="$$PATH$$pythons" \
	  ansible-test sanity --requirements --color no 2>&1 </dev/null | tee .build/sanity.log | grep -E '^(Running|ERROR|FATAL|See)'

.PHONY: sanity-quick
sanity-quick: setup-python ## the same with the oldest and the newest ansible-core, without pylint and other Pythons
	@echo "sanity-quick: ansible-test's checks with the oldest and the newest ansible-core (whole output: .build/sanity-VERSION.log)"
	@tests/sanity-versions --quick

.PHONY: sanity-versions
sanity-versions: setup-python ## ansible-test's checks with every ansible-core from 2.16 on
	@echo "sanity-versions: ansible-test's checks with every ansible-core (whole output: .build/sanity-VERSION.log)"
	@tests/sanity-versions

.PHONY: publish-quick
publish-quick: setup-python
	@echo "publish-quick: what is published: documentation, Galaxy's importer, workflows"
	@tests/publish quick

.PHONY: publish-check
publish-check: setup-python ## whether Galaxy takes the collection, and documentation and guides are current
	@tests/publish check

.PHONY: docs
docs: setup-python ## what is made of other files: docs/site, what the guides quote, the role's table of variables
	@tests/publish docs

.PHONY: unit
unit: setup-python ## unit tests
	@echo "unit: what needs neither a kernel nor Docker"
	pytest tests/unit

.PHONY: unit-quick
unit-quick: setup-python ## the same on the oldest and the newest Python that the machine has, from 3.8 on
	@echo "unit-quick: the unit tests on the oldest and the newest Python of this machine"
	tests/unit-versions --quick

.PHONY: unit-versions
unit-versions: setup-python ## the same on every other Python that the machine has
	@echo "unit-versions: the unit tests on the other Pythons of this machine"
	tests/unit-versions

.PHONY: report
report: ## reports of fleets: the page in a real Chromium, and readers of each other format
	@tests/setup report
	echo "report: the page in a browser, and what others read in the other formats"
	pytest tests/report

.PHONY: kernel
kernel: setup ## rules in the kernel's own hands: network namespaces (root)
	@echo "kernel: packets against the real iptables, in network namespaces of the tests' own"
	pytest tests/kernel

.PHONY: hosts
hosts: setup ## real Docker hosts: engines 20.10, 26.1 and 28.5, restarts and reboots (root)
	@echo "hosts: packets against real Docker hosts in the test bed, which is set up where it is not"
	tests/hosts/run

.PHONY: fleet
fleet: setup ## the playbooks on a fleet of twelve Docker hosts, some of them in a bad way (root)
	@echo "fleet: each playbook by its name, on twelve hosts of the test bed; one bad host never spoils the rest"
	pytest tests/fleet

.PHONY: molecule
molecule: setup ## the role and the playbooks on real Docker hosts (root)
	@echo "molecule: every scenario on the hosts of the test bed"
	# eval would hide it if the bed could not be asked.
	engine=$$($(BED) env)
	eval "$$engine"
	# Molecule leaves the first destroy out where scenarios share their hosts.
	molecule destroy --all
	molecule test --all

.PHONY: demo
demo: setup ## the story of the README, told on real Docker hosts (root)
	@tests/demo/run

.PHONY: bench
bench: setup ## how long things take
	@tests/bench/run

.PHONY: bench-walk
bench-walk: setup ## the walk against the kernel, with many more rules and packets than the tests take (root)
	@echo "bench-walk: $${QUAYWALL_WALK_PAIRS:=10000} packets against rules by chance, and as many through every table"
	QUAYWALL_WALK_PAIRS=$${QUAYWALL_WALK_PAIRS:-10000} QUAYWALL_TRACE_PAIRS=$${QUAYWALL_TRACE_PAIRS:-10000} \
	  pytest tests/kernel/test_walk.py tests/kernel/test_trace.py -k test_the_kernel_does -rP

.PHONY: changelog
changelog: setup-python ## the fragments go into the changelog of galaxy.yml's version
	cd $(COLLECTION) && antsibull-changelog release --update-existing --reload-plugins

.PHONY: build
build: setup-python ## the archive that ansible-galaxy installs
	ansible-galaxy collection build --force

.PHONY: clean
clean: ## removes what tools left behind; the environment and the test bed stay
	rm -rf .build/{ansible,home,mypy,pytest*,ruff,sanity.log} tests/output .hypothesis .ansible quaywall-docker-*.tar.gz
	find . -name __pycache__ -not -path './.build/*' -prune -exec rm -rf {} +

.PHONY: purge
purge: clean ## takes the test bed down and removes all of .build
	if [[ -e .build/bed || -n $${QUAYWALL_BED_STATE-} ]]; then PYTHONPATH=tests python3 -m testbed purge; fi
	rm -rf .build
