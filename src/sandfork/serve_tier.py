"""Open the tier: as root its privileged process is started, then this process gives root up for good."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

from sandfork.config import Config
from sandfork.languages.catalogue import Catalogue
from sandfork.linux.privileges import drop_privileges
from sandfork.serve_caches import hold_caches, seen_caches
from sandfork.serve_engine import default_limits, maximum_limits, pool_targets
from sandfork.serve_images import hold_images
from sandfork.serve_languages import load_catalogue
from sandfork.serve_refusal import Refused
from sandfork.tiers.base import Tier
from sandfork.tiers.fake import FakeTier
from sandfork.tiers.process import LaunchSettings, ProcessSettings, ProcessTier, launch

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
#: Descriptors of a service at rest with some templates, and the most that one sandbox takes: five are its own, up to
#: seven those of its figures.
DESCRIPTORS_ALWAYS = 64
DESCRIPTORS_EACH = 12
#: What a host without cgroups lacks, as `process.allow_missing` names it.
CGROUP_PRIMITIVES = {"cgroup memory", "cgroup pids", "cgroup cpu"}


def open_tier(config: Config, catalogue: Catalogue, name: str) -> Tier:
    """Return the tier of that name, not started. *Raises* Refused, TierUnavailable."""
    if name == "fake":
        log.warning("the fake tier runs no programs: it plays scripts, for tests")
        return FakeTier(isolation="reduced")
    if name != "process":
        raise Refused(f"there is no tier {name!r}")
    process = config.process
    settings = LaunchSettings(
        warden=PACKAGE / "native/bin/sandfork-warden",
        uid_base=process.uid_base,
        cgroup_parent=process.cgroup_parent,
        accept_no_cgroups=set(process.allow_missing) >= CGROUP_PRIMITIVES,
        reduced=process.reduced,
    )
    if not settings.warden.exists():
        raise Refused(f"{settings.warden} was not built: start through ./dev, or install the package")
    process_tier = process_settings(config, catalogue)
    try:
        launched = launch(settings)
        if os.geteuid() == 0:
            drop_privileges(launched.server_uid, launched.server_uid)
    except OSError as error:
        raise Refused(f"the process tier cannot start: {error}") from error
    return ProcessTier(process_tier, launched, catalogue)


def process_settings(config: Config, catalogue: Catalogue) -> ProcessSettings:
    """Return how the process tier makes sandboxes."""
    process, templates = config.process, config.templates
    return ProcessSettings(
        native=PACKAGE / "native/bin",
        guest=PACKAGE / "guest",
        guest_packages=guest_packages(config),
        images=hold_images(config, catalogue),
        warm_trees=seen_caches(config),
        warm=hold_caches(config, catalogue),
        limits=default_limits(config),
        most=maximum_limits(config),
        most_sandboxes=min(most_sandboxes(config, catalogue), fitting_sandboxes(open_files())),
        cores=len(os.sched_getaffinity(0)),
        shared_netns=process.network_namespace == "shared",
        recycle_forks=templates.recycle_forks,
        recycle_s=templates.recycle_s,
        allow_missing=frozenset(process.allow_missing),
    )


def most_sandboxes(config: Config, catalogue: Catalogue) -> int:
    """Return how many sandboxes may exist at one time: parked, being forked, running, being destroyed, kept.

    In a sandbox that is kept each further process takes the place of one: an interpreter a language, a program of its
    own, the terminals.
    """
    every = load_catalogue(config)  # images may bring more of it than there are now
    parked = sum(pool_targets(config, catalogue).values())
    forking = config.pool.max_forking * (len(every.templates()) + len(every.languages()))
    kept = config.sessions.max * (len(every.languages()) + 2 + config.sessions.max_terminals)
    return parked + forking + 3 * config.admission.max_running + kept


def open_files() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def fitting_sandboxes(files: int) -> int:
    """Return for how many sandboxes so many open files suffice: a quarter is the connections' (`most_connections`)."""
    return max((files * 3 // 4 - DESCRIPTORS_ALWAYS) // DESCRIPTORS_EACH, 1)


def tell_few_files(config: Config, catalogue: Catalogue) -> None:
    """Warn where open files run out before sandboxes do."""
    fitting = fitting_sandboxes(open_files())
    wanted = sum(pool_targets(config, catalogue).values()) + config.admission.max_running
    if fitting < wanted:
        log.warning(
            "%d open files allow %d sandboxes at a time, and %d may be wanted, parked and running: allow more "
            "(systemd: LimitNOFILE=, containers: --ulimit nofile=), or lower admission.max_running and [pool] size",
            open_files(),
            fitting,
            wanted,
        )


def guest_packages(config: Config) -> Path | None:
    """Return the directory of packages for Python programs: the configured one, or the installed one if it is there."""
    if config.languages.guest_packages:
        return Path(config.languages.guest_packages)
    installed = PACKAGE.parent / "guest"
    return installed.resolve() if installed.is_dir() else None


def unenforced(tier: Tier) -> tuple[str, ...]:
    """Return what a started tier cannot enforce on this host, by the configuration's leave."""
    return tier.unenforced if isinstance(tier, ProcessTier) else ()
