"""A running service takes what is there now: images built, replaced, pulled or removed since its start, warm caches
that were filled, and languages that were installed or upgraded on the host.

New programs run on them, and those under way end on what they began with. That the images changed is told by whoever
changed them here; that anything did is seen by a look once a second: others change it, too. A look costs two listings
of names and a few `stat`; what is there is found out only when they differ.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

from sandfork.config import Config
from sandfork.dialects.base import LanguageState
from sandfork.engine.artefacts import stamp_of
from sandfork.engine.engine import Engine
from sandfork.errors import SandforkError
from sandfork.languages.catalogue import Catalogue
from sandfork.serve_caches import cache_store, cold_languages, hold_caches, tell_cold
from sandfork.serve_engine import HOST_STAMPS, choose_languages, language_states, made_on_demand, pool_targets
from sandfork.serve_images import hold_images, image_sizes, open_store
from sandfork.serve_languages import load_catalogue
from sandfork.serve_refusal import Refused
from sandfork.tiers.base import Tier
from sandfork.tiers.process import ProcessTier

log = logging.getLogger(__name__)

LOOK_S = 1.0


class Renewal:
    """Knows the languages of a running service, and has all its parts take others."""

    def __init__(
        self, config: Config, catalogue: Catalogue, tier: Tier, engine: Engine, collect: Callable[[], Awaitable[None]]
    ) -> None:
        """`collect` removes the content of images that no name and nobody holds. *Raises* ImageError."""
        self._collect = collect
        self._released = 0
        self._config = config
        self._tier = tier
        self._engine = engine
        self._stores = open_store(config), cache_store(config)
        self._every = load_catalogue(config)
        self._catalogue = catalogue
        # Where the tier takes no others, these alone are held and seen by sandboxes.
        self._warm = {each.warm_path for each in catalogue.languages()}
        self._stamp: object = None
        self._states = language_states(catalogue, self._every, image_sizes(config))
        self._renewing = asyncio.Lock()

    def languages(self) -> tuple[LanguageState, ...]:
        """Return all languages as they are now."""
        return self._states

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await self._collect_released()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Take what is there now, if it is something else. What cannot be used is logged, and all stays."""
        async with self._renewing:
            stamp = *(store.stamp() for store in self._stores), *(stamp_of(path) for path in HOST_STAMPS)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                await self._renew()
            except (SandforkError, Refused) as error:
                log.warning("the images and languages that are there now cannot be used: %s", error)

    async def _collect_released(self) -> None:
        """Have the content of images removed that the tier has let go of since the last time."""
        released = self._tier.images_released if isinstance(self._tier, ProcessTier) else 0
        if released == self._released:
            return
        self._released = released
        try:
            await self._collect()
        except SandforkError as error:
            log.warning("what images left cannot be removed: %s", error)

    async def _renew(self) -> None:
        """*Raises* ImageError, Refused."""
        config = self._config
        catalogue = self._with_seen_caches(await asyncio.to_thread(choose_languages, config, self._every))
        if catalogue.languages() == self._catalogue.languages():
            return
        targets = pool_targets(config, catalogue)
        self._have_tier_adopt(catalogue)
        before, self._catalogue = self._catalogue, catalogue
        self._states = language_states(catalogue, self._every, image_sizes(config))
        await self._engine.adopt(catalogue, targets, made_on_demand(config, catalogue))
        _tell_changes(before, catalogue)

    def _with_seen_caches(self, there: Catalogue) -> Catalogue:
        """Return a catalogue without the warm caches that sandboxes would not see."""
        if isinstance(self._tier, ProcessTier) and self._tier.takes_caches:
            return there
        return there.warmed(lambda language: language.warm_path if language.warm_path in self._warm else "")

    def _have_tier_adopt(self, catalogue: Catalogue) -> None:
        """*Raises* ImageError, Refused; then the tier is as before."""
        with ExitStack() as held:
            images = hold_images(self._config, catalogue)
            for lease in images.values():
                held.enter_context(lease)
            warm = hold_caches(self._config, catalogue)
            if isinstance(self._tier, ProcessTier):
                held.pop_all()  # they are the tier's now
                self._tier.adopt(catalogue, images, warm)
                return
        for lease in warm:
            lease.close()


def _tell_changes(before: Catalogue, now: Catalogue) -> None:
    """Log what programs run on if that is something else, what came and went, and what has become slower."""
    were, are = _images_of(before), _images_of(now)
    if were != are:
        log.info("the images changed: programs run on %s", ", ".join(are) or "the host's own files")
    if came := _more(before.names(), now.names()):
        log.info("languages that came: %s", ", ".join(came))
    if gone := _more(now.names(), before.names()):
        log.info("languages that are gone: %s", ", ".join(gone))
    tell_cold(_more(cold_languages(before), cold_languages(now)))


def _images_of(catalogue: Catalogue) -> Sequence[str]:
    return sorted({spec.image for spec in catalogue.templates()} - {""})


def _more(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    return sorted(set(now) - set(before))
