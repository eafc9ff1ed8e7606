"""What sandboxes have as `/`: the host's own files, root 0, and a root an image, made when it is first asked for.

An image that no template names any more is held, and its root is there, until the last sandbox on it is gone.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfork.errors import TemplateFailed, TierError
from sandfork.images.rooted import Rooted
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.plan import RootPolicy, plan_root
from sandfork.tiers.process.warden import Warden

if TYPE_CHECKING:
    from sandfork.images.store import Lease  # what packs images is not needed to run on them

_INSIDE = "/run/sandfork"


@dataclass(frozen=True, slots=True)
class RootParts:
    """What every root has of ours: `files` in /run/sandfork, a directory of Python packages, one of warm caches."""

    files: tuple[Path, ...]
    packages: Path | None
    warm: Path | None = None


class Roots:
    """The roots of one warden, and the leases of the images that they are of."""

    def __init__(self, warden: Warden, parts: RootParts, images: Mapping[str, Lease]) -> None:
        self._warden = warden
        self._parts = parts
        self._images = dict(images)
        self._leaving: dict[str, Lease] = {}
        self._numbers: dict[str, int] = {}
        self._making = asyncio.Lock()
        self.released = 0  # counts the images that were let go of

    @property
    def leaving(self) -> bool:
        """Whether there is an image to let go of as soon as nothing is on it."""
        return bool(self._leaving)

    async def make_host(self) -> RootPolicy:
        """Make root 0. *Raises* TierError."""
        return await self._make(0, Rooted())

    async def number_of(self, image: str) -> int:
        """Return the number of an image's root. *Raises* TemplateFailed."""
        if not image:
            return 0
        async with self._making:
            if image not in self._numbers:
                lease = self._images.get(image)
                if lease is None:
                    raise TemplateFailed(f"there is no image {image!r} here")
                number = self._free_number()
                try:
                    await self._make(number, Rooted(str(lease.tree)))
                except (TierError, OSError) as error:
                    raise TemplateFailed(f"image {image!r} cannot be used: {error}") from error
                self._numbers[image] = number
            return self._numbers[image]

    def adopt(self, images: Mapping[str, Lease]) -> None:
        """Take the images that there are from now on; the others are let go of once nothing is on them (`release`)."""
        for image in self._images.keys() - images.keys():
            self._leaving[image] = self._images.pop(image)
        for image, lease in images.items():
            kept = self._images.get(image) or self._leaving.pop(image, None)
            self._images[image] = kept or lease
            if kept is not None:
                lease.close()

    def release(self, used: Collection[int]) -> tuple[int, ...]:
        """Let go of the images that are leaving and whose roots are not in `used`; return those roots."""
        dropped = []
        for image in [each for each in self._leaving if self._numbers.get(each) not in used]:
            self._leaving.pop(image).close()
            self.released += 1
            number = self._numbers.pop(image, None)
            if number is not None:
                self._warden.send(m.request(m.Request.ROOT, number))
                dropped.append(number)
        return tuple(dropped)

    def close(self) -> None:
        """Let go of all images."""
        for lease in (*self._images.values(), *self._leaving.values()):
            lease.close()

    def _free_number(self) -> int:
        taken = set(self._numbers.values())
        number = next((each for each in range(1, m.ROOTS_MAX) if each not in taken), None)
        if number is None:
            raise TemplateFailed(f"{m.ROOTS_MAX - 1} images are in use, the most there may be at one time")
        return number

    async def _make(self, number: int, source: Rooted) -> RootPolicy:
        inside = {f"{_INSIDE}/{path.name}": path.read_bytes() for path in self._parts.files}
        root = plan_root(self._parts.packages, inside, source, self._parts.warm)
        with tempfile.TemporaryFile() as plan:
            plan.write(root.plan)
            plan.flush()
            event = await self._warden.ask(m.request(m.Request.ROOT, number), m.Event.ROOT, number, (plan.fileno(),))
        if event.err:
            step = m.step_name(event.step)
            where = f" of {root.entries[event.flags]}" if step == "plan" else ""
            raise TierError(
                f"building the sandbox root failed at {step}{where}: {os.strerror(event.err)}",
                step=step,
                errno=event.err,
            )
        return root
