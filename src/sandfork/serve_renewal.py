"""A running service takes the images that are there now: those built, replaced, pulled or removed since its start.

New programs run on them, and those under way end on what they began with. That the images changed is told by whoever
changed them here, or seen by a look at the store once a second: others change it, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sandfork.config import Config
from sandfork.dialects.base import LanguageState
from sandfork.engine.engine import Engine
from sandfork.errors import SandforkError
from sandfork.languages.catalogue import Catalogue
from sandfork.serve_engine import choose_languages, language_states, made_on_demand, pool_targets
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
        self._store = open_store(config)
        self._every = load_catalogue(config)
        self._catalogue = catalogue
        # Warm caches are held, and seen by sandboxes, from the start on or not at all.
        self._warm = {each.warm_path for each in catalogue.languages()}
        self._stamp: object = None
        self._states = language_states(catalogue, self._every, image_sizes(config))
        self._renewing = asyncio.Lock()

    def languages(self) -> tuple[LanguageState, ...]:
        """Return all languages as they are now."""
        return self._states

    async def watch(self) -> None:
        """Look at the store until cancelled."""
        while True:
            await self.look()
            await self._collect_released()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Take the images that are there now, if they are others. What cannot be used is logged, and all stays."""
        async with self._renewing:
            stamp = self._store.stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                await self._renew()
            except (SandforkError, Refused) as error:
                log.warning("the images that are there now cannot be used: %s", error)

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
        there = await asyncio.to_thread(choose_languages, config, self._every)
        catalogue = there.warmed(lambda language: language.warm_path if language.warm_path in self._warm else "")
        if catalogue.templates() == self._catalogue.templates() and catalogue.names() == self._catalogue.names():
            return
        targets = pool_targets(config, catalogue)
        images = hold_images(config, catalogue)
        if isinstance(self._tier, ProcessTier):
            self._tier.adopt(catalogue, images)
        else:
            for lease in images.values():
                lease.close()
        self._catalogue = catalogue
        self._states = language_states(catalogue, self._every, image_sizes(config))
        await self._engine.adopt(catalogue, targets, made_on_demand(config, catalogue))
        on = sorted({spec.image for spec in catalogue.templates()} - {""})
        log.info("the images changed: programs run on %s", ", ".join(on) or "the host's own files")
