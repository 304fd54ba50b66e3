# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of the hosts: one per Debian suite, built once per content.

Where the engine can pull ``debian:<suite>``, a Dockerfile on it is built. Where it cannot (no registry is reachable, or
the engine is our own, which has no network), ``mmdebstrap`` makes the file system from the machine's package mirror and
``docker import`` makes an image of it. Both install the same packages and run the same ``image-setup``.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import tempfile
import time
import typing as t

from .engine import BedError, Engine, ensure_command, locked, say

REPOSITORY = "quaywall-bed/host"
LABEL = "quaywall.bed.image"
WORKLOAD_TAR = "/usr/local/share/bed/workload.tar"

_HERE = pathlib.Path(__file__).resolve().parent
_FILES = ("bed-init", "image-setup")

_PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "dbus",
    "docker.io",
    "iproute2",
    "ipset",
    "iptables",
    "kmod",
    "nftables",
    "procps",
    "python3",
    "python3-docker",
    "systemd",
    "systemd-sysv",
)

_DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)

# A suite in development may carry a Release file past its date; so does a snapshot of any suite.
_APT_OPTIONS = ('Acquire::Check-Valid-Until "false"', 'Acquire::Languages "none"')


@dataclasses.dataclass(frozen=True)
class Suite:
    """A Debian suite, chosen for the Docker engine in it."""

    name: str
    engine: str
    """The engine's version, as far as it never changes within the suite."""
    extra_packages: tuple[str, ...] = ()
    wants_cgroup_v2: bool = True

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(sorted(_PACKAGES + self.extra_packages))

    @property
    def image(self) -> str:
        """The image's name. Its tag tells the content: another recipe, another image."""
        files = [(_HERE / file).read_text(encoding="utf-8") for file in _FILES]
        recipe = [self.name, *self.packages, *_DPKG_OPTIONS, *_APT_OPTIONS, *files]
        return f"{REPOSITORY}:{self.name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"


SUITES: t.Final[dict[str, Suite]] = {
    suite.name: suite
    for suite in (
        # Each has one of the tools that reload all rules; together they do not install.
        Suite("bookworm", "20.10", ("iptables-persistent",), wants_cgroup_v2=False),
        Suite("trixie", "26.1", ("docker-cli", "ufw")),
        Suite("forky", "28.5", ("docker-cli", "firewalld")),
    )
}


def build_images(engine: Engine, names: t.Iterable[str] = tuple(SUITES)) -> list[str]:
    """Build what is missing, two at a time. Returns the suites that were built."""
    wanted = [SUITES[name] for name in dict.fromkeys(names)]
    if not _missing(engine, wanted):
        return []
    with locked("images"):
        missing = _missing(engine, wanted)
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda suite: _build(engine, suite), missing))
        if engine.own:
            _remove_superseded(engine, missing)
    return [suite.name for suite in missing]


def _missing(engine: Engine, suites: list[Suite]) -> list[Suite]:
    present = engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).stdout.split()
    return [suite for suite in suites if suite.image not in present]


def _remove_superseded(engine: Engine, suites: list[Suite]) -> None:
    """Remove what an older recipe made, unless a container still uses it."""
    present = engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).stdout.split()
    for suite in suites:
        for image in present:
            if image.startswith(f"{REPOSITORY}:{suite.name}-") and image != suite.image:
                engine.docker("image", "rm", image, check=False)


def _build(engine: Engine, suite: Suite) -> None:
    start = time.monotonic()
    if can_pull(engine, suite):
        way = "Dockerfile"
        build_from_dockerfile(engine, suite)
    else:
        way = "mmdebstrap"
        ensure_command("mmdebstrap", "mmdebstrap")
        build_with_mmdebstrap(engine, suite)
    say(f"image {suite.image} built with {way} in {time.monotonic() - start:.0f} s")


def can_pull(engine: Engine, suite: Suite) -> bool:
    """Whether the engine has ``debian:<suite>`` or gets it within reasonable time."""
    base = f"debian:{suite.name}"
    if engine.docker("image", "inspect", base, check=False).returncode == 0:
        return True
    if engine.own:
        return False
    try:
        return engine.docker("pull", "--quiet", base, check=False, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def dockerfile(suite: Suite) -> str:
    dpkg = "".join(f"{option}\\n" for option in _DPKG_OPTIONS)
    apt = "".join(f"{option};\\n" for option in _APT_OPTIONS)
    return f"""\
FROM debian:{suite.name}
RUN printf '{dpkg}' >/etc/dpkg/dpkg.cfg.d/bed && printf '{apt}' >/etc/apt/apt.conf.d/99bed
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {" ".join(suite.packages)} \\
    && rm -rf /var/lib/apt/lists/*
COPY bed-init /usr/local/sbin/bed-init
COPY image-setup /tmp/image-setup
RUN sh /tmp/image-setup && rm /tmp/image-setup
LABEL {LABEL}={suite.name}
CMD ["/sbin/init"]
"""


def build_from_dockerfile(engine: Engine, suite: Suite, *options: str) -> None:
    """Build on ``debian:<suite>``."""
    with tempfile.TemporaryDirectory(prefix="testbed-") as folder:
        context = pathlib.Path(folder)
        (context / "Dockerfile").write_text(dockerfile(suite), encoding="utf-8")
        for file in _FILES:
            shutil.copy(_HERE / file, context)
        engine.docker("build", *options, "--tag", suite.image, str(context), timeout=1200)


def build_with_mmdebstrap(engine: Engine, suite: Suite) -> None:
    """Build the file system here and import it."""
    mirror = _mirror()
    with tempfile.TemporaryDirectory(prefix="testbed-") as folder:
        tar = pathlib.Path(folder) / "root.tar"
        for file in _FILES:
            shutil.copy(_HERE / file, folder)  # a hook's words are split at spaces: no path of the repository's
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(suite.packages)}",
            *(f"--aptopt={option}" for option in _APT_OPTIONS),
            *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
            f"--customize-hook=upload {folder}/bed-init /usr/local/sbin/bed-init",
            f'--customize-hook=chroot "$1" sh <{folder}/image-setup',
            suite.name,
            str(tar),
            *([mirror] if mirror else []),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"mmdebstrap {suite.name}: rc {done.returncode}\n{done.stderr[-3000:]}")
        changes = ['CMD ["/sbin/init"]', f"LABEL {LABEL}={suite.name}"]
        engine.docker("import", *(f"--change={change}" for change in changes), str(tar), suite.image, timeout=600)


def _mirror() -> str | None:
    """The mirror that this machine installs Debian's packages from, if it is a Debian machine."""
    only = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    try:
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", *only], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return next(iter(targets.stdout.split()), None)


def remove_images(engine: Engine) -> None:
    """Remove every image that this module ever built in the engine."""
    images = engine.docker("image", "ls", "--quiet", REPOSITORY).stdout.split()
    if images:
        engine.docker("image", "rm", "--force", *dict.fromkeys(images))
