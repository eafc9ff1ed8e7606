"""From settings to an engine: the languages of this host, limits, admission, pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType

from sandfork.config import Config
from sandfork.config.schema import DefaultLimits, MaximumLimits
from sandfork.dialects.base import LanguageState
from sandfork.engine.admission import AdmissionSettings
from sandfork.engine.compilation import raise_defaults
from sandfork.engine.compiler import CompilerSettings
from sandfork.engine.engine import Engine, EngineSettings, Observe, observe_nothing
from sandfork.engine.policy import LimitPolicy
from sandfork.engine.pool import PoolSettings
from sandfork.engine.sessions import SessionSettings
from sandfork.engine.tasks import TaskSettings
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import Limits
from sandfork.serve_caches import with_caches
from sandfork.serve_images import chosen_images, exists_on, reference
from sandfork.serve_languages import find_language, load_catalogue
from sandfork.serve_refusal import Refused
from sandfork.tiers.base import Tier

#: Changes whenever a package is installed, removed or upgraded; without it compilers are told by their own files alone.
PACKAGE_LISTS = ("/var/lib/dpkg/status",)
#: What changes when languages are installed on the host; the second with those of npm and PyPI.
HOST_STAMPS = (*PACKAGE_LISTS, "/usr/lib/sandfork")


def choose_languages(config: Config, known: Catalogue | None = None) -> Catalogue:
    """Return the catalogue of what is enabled and there, on an image or on this host, of all languages `known`.

    *Raises* Refused, ImageError.
    """
    chosen = chosen_images(config)
    every = (known or load_catalogue(config)).on_images({name: reference(each) for name, each in chosen.items()})
    exists = exists_on(config, chosen)
    enabled = config.languages.enable
    wanted = {_enabled(every, name, exists).name for name in enabled}
    ones = every.only(lambda each: each.name in wanted if enabled else each.installed(exists(each.name)))
    return equip(config, ones)


def equip(config: Config, catalogue: Catalogue) -> Catalogue:
    """Return languages with what this host adds: warm caches that fit, and the memory that programs usually have."""
    policy = limit_policy(config)
    warmed = with_caches(config, catalogue)
    return warmed.sized(lambda language: raise_defaults(policy, language.limits).default.memory_bytes)


def language_states(
    offered: Catalogue, every: Catalogue | None = None, sizes: Mapping[str, int] = MappingProxyType({})
) -> tuple[LanguageState, ...]:
    """Return every language, those shipped if no others are given, runnable if it is one of those on offer.

    `sizes` has what is stored of images, in bytes.
    """
    return tuple(
        LanguageState(
            language.name,
            language.aliases,
            language.extension,
            language.argv,
            language.templates[0].key,
            offered.find(language.name) is not None,
            compile=language.compile.argv if language.compile else (),
            version_argv=language.version_argv,
            image=language.image,
            image_bytes=sizes.get(language.image, 0),
            commands=language.commands.key,
        )
        for known in (every or Catalogue.load()).languages()
        for language in [offered.find(known.name) or known]
    )


def _enabled(every: Catalogue, name: str, exists: Callable[[str], Callable[[str], bool]]) -> Language:
    try:
        language = find_language(every, name)
    except Refused as error:
        raise Refused(f"languages.enable: {error}") from None
    if missing := language.missing(exists(language.name)):
        raise Refused(
            f"languages.enable: {language.name} needs {missing[0]}, which is not installed: "
            f"`sandfork lang install {language.name}`"
        )
    return language


def default_limits(config: Config) -> Limits:
    """Return what a program may use when its request does not say."""
    default, most = _limits(config.limits.default), maximum_limits(config)
    return replace(default, cpus=min(default.cpus, most.cpus))


def maximum_limits(config: Config) -> Limits:
    """Return the most that a request may ask for."""
    return _limits(config.limits.maximum)


def _limits(section: DefaultLimits | MaximumLimits) -> Limits:
    return Limits(**{**asdict(section), "cpus": section.cpus or math.inf})


def limit_policy(config: Config) -> LimitPolicy:
    """Return what requests may ask for."""
    return LimitPolicy(
        default=default_limits(config),
        maximum=maximum_limits(config),
        max_code_bytes=config.server.max_code_bytes,
    )


def engine_settings(config: Config) -> EngineSettings:
    """Return the engine's settings."""
    admission, pool, templates, sessions = config.admission, config.pool, config.templates, config.sessions
    return EngineSettings(
        policy=limit_policy(config),
        admission=AdmissionSettings(
            max_running=admission.max_running,
            max_queued=admission.max_queued,
            max_wait_s=admission.max_wait_s,
            max_dying=2 * admission.max_running,
        ),
        pool=PoolSettings(
            refill_delay_s=pool.refill_delay_s,
            max_forking=pool.max_forking,
            retire_after_s=templates.recycle_s,
            idle_s=pool.idle_s,
        ),
        sessions=session_settings(config),
        tasks=TaskSettings(
            most_running=sessions.max_tasks,
            most_kept=max(sessions.max_task_results, sessions.max_tasks),
            keep_s=sessions.task_result_s,
            keep_bytes=sessions.task_results_bytes,
        ),
        compiler=CompilerSettings(cache_bytes=config.languages.compile_cache_bytes, stamped=PACKAGE_LISTS),
    )


def session_settings(config: Config) -> SessionSettings:
    """Return the bounds of sessions."""
    sessions = config.sessions
    return SessionSettings(
        most=sessions.max,
        most_of_one=sessions.max_per_caller,
        most_waiting=sessions.max_waiting,
        idle_s=sessions.idle_s,
        lifetime_s=sessions.lifetime_s,
        terminals=sessions.max_terminals,
        file_bytes=config.server.max_upload_bytes,
    )


def pool_targets(config: Config, catalogue: Catalogue) -> Mapping[str, int]:
    """Return how many sandboxes of each template to keep parked. *Raises* Refused for an unknown template."""
    targets = {spec.key: spec.pool_target(config.pool.size) for spec in catalogue.templates()}
    for key, count in config.pool.sizes.items():
        if key not in targets:
            raise Refused(f"pool.sizes: no template {key!r} on this host: there are {', '.join(targets)}")
        targets[key] = count
    return targets


def build_engine(config: Config, catalogue: Catalogue, tier: Tier, observe: Observe = observe_nothing) -> Engine:
    """Return an engine over `tier`, not started."""
    targets, on_demand = pool_targets(config, catalogue), made_on_demand(config, catalogue)
    return Engine(tier, catalogue, targets, engine_settings(config), observe=observe, on_demand=on_demand)


def made_on_demand(config: Config, catalogue: Catalogue) -> set[str]:
    """Return the keys of the templates that are made when they are first used."""
    return {spec.key for spec in catalogue.templates() if spec.replaceable or spec.displaced} - set(config.pool.sizes)
