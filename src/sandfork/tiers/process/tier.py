"""The process tier: namespaces, seccomp, Landlock and cgroups around a fork of a warm interpreter.

Order of `start`: the warden's first word -> the confinement profile -> the root -> a self-test that tries to break each
primitive from inside a sandbox. A primitive that does not hold refuses to start, unless the configuration accepts its
absence by name; then `unenforced` says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sandfork.errors import TemplateFailed, TierError, TierUnavailable
from sandfork.languages.catalogue import COMMAND, Catalogue, TemplateKind
from sandfork.languages.catalogue import TemplateSpec as LanguageTemplate
from sandfork.linux.landlock import landlock_abi
from sandfork.linux.seccomp import compile_policy
from sandfork.model import Limits
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.launch import Launched
from sandfork.tiers.process.plan import RootPolicy, shared_root
from sandfork.tiers.process.preloaded import BIND_NOW, booted, preloaded
from sandfork.tiers.process.reduced import BY_RLIMITS, WITHOUT_NAMESPACES, WITHOUT_QUOTA, readable_paths
from sandfork.tiers.process.roots import RootParts, Roots
from sandfork.tiers.process.run import Means
from sandfork.tiers.process.selftest import broken, self_test
from sandfork.tiers.process.slots import Slots
from sandfork.tiers.process.template import ProcessTemplate, TemplateSpec
from sandfork.tiers.process.warden import Warden

if TYPE_CHECKING:
    from sandfork.images.store import Lease  # what packs images is not needed to run on them

_LOG = logging.getLogger("sandfork.tier")
_KINDS = {TemplateKind.FORK: m.Kind.FORK, TemplateKind.PARK: m.Kind.PARK, TemplateKind.NONE: m.Kind.NONE}
_INSIDE = "/run/sandfork"
_PARK_SCRIPT = f"{_INSIDE}/park_node.js"
_SCRIPTS = ("park_node.js", "session_node.js", "session.bash")  # seen in there as they are here
_LIBRARIES = ("breaker.so", "park_jvm.so")  # which session_node.js loads, and java
_UNCHECKED = "--no-force-async-hooks-checks"  # what it breaks does not clean up
_PARK_MAIN = "main.js"  # in the work directory; written when the program is known


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How sandboxes of this tier are made.

    `guest_packages` is a directory of Python packages for the sandboxes, `native` holds zygote.so and `guest` the
    files that run inside. `limits` are those a parked sandbox is forked with; `most` is what any program may ask for,
    which matters where there is no cgroup, for a process' own limits can only be lowered. `allow_missing` names
    primitives whose absence is accepted. `images` are those that templates name, `warm` the warm caches that
    languages use, which are all in `warm_trees`; the tier lets go of both.
    """

    native: Path
    guest: Path
    images: Mapping[str, Lease] = field(default_factory=dict)
    warm_trees: Path | None = None
    warm: Sequence[Lease] = ()
    guest_packages: Path | None = None
    limits: Limits = field(default_factory=Limits)
    most: Limits = field(default_factory=Limits)
    most_sandboxes: int = 4096
    cores: int = 1
    shared_netns: bool = False
    recycle_forks: int = 10_000
    recycle_s: float = 3600.0
    allow_missing: frozenset[str] = frozenset()


class ProcessTier:
    """See `tiers.base.Tier`. Constructed with what `launch` started; owns it from then on."""

    def __init__(self, settings: ProcessSettings, launched: Launched, catalogue: Catalogue) -> None:
        self._settings = settings
        self._launched = launched
        self._catalogue = catalogue
        self._templates: dict[str, ProcessTemplate] = {}
        self._warden: Warden | None = None
        self._slots: Slots | None = None
        self._root: RootPolicy | None = None
        self._roots: Roots | None = None
        self._former: dict[tuple[str, int], ProcessTemplate] = {}
        self._warm = {lease.tree: lease for lease in settings.warm}
        self._lost = asyncio.Event()
        self.unenforced: tuple[str, ...] = ()
        self.primitives: dict[str, str] = {}

    @property
    def isolation(self) -> str:
        """The name replies and health use."""
        return "reduced" if self._launched.reduced else "process"

    @property
    def rates_cpus(self) -> bool:
        """Whether there is a cpu controller that takes a quota."""
        return "cpu" not in self._launched.missing_controllers

    async def start(self) -> None:
        """Make ready. *Raises* TierUnavailable with what is missing and what would give it."""
        settings, launched = self._settings, self._launched
        self._refuse_missing(self._missing_cgroups)
        self._warden = Warden(launched.warden, self._slot_event, self._warden_lost)
        most = min(settings.most_sandboxes, m.SLOTS_MAX)
        self._slots = Slots(self._warden, launched.cgroups, launched.unified, most, settings.cores, self._means())
        try:
            await self._warden.up()
            self._warden.send(m.request(m.Request.PROFILE, 0, payload=self._profile()))
            await self._build_root()
            await self._self_test()
        except TierUnavailable:
            raise
        except TierError as error:
            raise TierUnavailable(
                f"the process tier cannot start: {error.message}", step=error.step, errno=error.errno
            ) from error
        if self.unenforced:
            _LOG.warning("cannot be enforced here: %s", "; ".join(self.unenforced))

    def _means(self) -> Means:
        launched = self._launched
        return Means(
            rlimits=not launched.cgroups, extra_pids=int(launched.single_uid), work_root=str(launched.work_root or "")
        )

    @property
    def _missing_cgroups(self) -> list[str]:
        return [f"cgroup {name}" for name in self._launched.missing_controllers]

    @property
    def _accepted(self) -> frozenset[str]:
        """What may be missing: what the configuration names, and cgroups for a plain user or a reduced service.

        Such a start is the acceptance of having no cgroups, and of nothing else.
        """
        launched = self._launched
        by_start = set(self._missing_cgroups) if launched.single_uid or launched.reduced else set()
        return self._settings.allow_missing | by_start

    def _refuse_missing(self, missing: list[str]) -> None:
        refused = [name for name in missing if name not in self._accepted]
        if refused:
            raise TierUnavailable(
                f"this host cannot enforce: {', '.join(refused)}; provide it, or accept its absence in [process] "
                "allow_missing"
            )
        self.unenforced = tuple(missing)
        if not self._launched.cgroups:
            self.unenforced = (*BY_RLIMITS, *(name for name in missing if not name.startswith("cgroup ")))
        if not self.rates_cpus:
            self.unenforced += WITHOUT_QUOTA
        if self._launched.reduced:
            self.unenforced += WITHOUT_NAMESPACES

    async def _self_test(self) -> None:
        """Try to break every primitive. *Raises* TierUnavailable for what does not hold and is not accepted by name."""
        template = await self.template(COMMAND.key)
        program = self._settings.guest / "self_test.py"
        self.primitives = await self_test(
            template.fork, program, cgroups=bool(self._launched.cgroups), reduced=self._launched.reduced
        )
        faults = {name: problem for name, problem in broken(self.primitives).items() if name not in self.unenforced}
        refused = {n: p for n, p in faults.items() if n not in self._settings.allow_missing}
        if refused:
            told = "; ".join(f"{name}: {problem}" for name, problem in refused.items())
            raise TierUnavailable(
                f"sandboxes on this host do not hold: {told}. Accept a fault by its name in [process] allow_missing, "
                "if you must"
            )
        self.unenforced = (*self.unenforced, *faults)

    def _profile(self) -> bytes:
        reduced, abi = self._launched.reduced, landlock_abi()
        if not abi.version and reduced:
            raise TierUnavailable("this kernel has no Landlock, without which a reduced service would confine no files")
        if not abi.version:
            self._refuse_missing([*self._missing_cgroups, "landlock"])
        policy = compile_policy(reduced=reduced)
        last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        flags = m.PROFILE_KEEP_GROUPS if self._launched.single_uid else 0
        paths = readable_paths(self._readable()) if reduced else b""
        net_rights = abi.net_rights if reduced else 0  # elsewhere a network namespace
        head = m.PROFILE.pack(
            abi.fs_rights, net_rights, abi.scoped, len(policy.allow) // 8, last_capability + 1, flags,
            len(policy.seal) // 8, len(paths), 0,
        )  # fmt: skip
        return head + policy.allow + policy.seal + paths

    def _readable(self) -> list[Path]:
        """Return what of ours a reduced sandbox must be able to read."""
        packages = self._settings.guest_packages
        scripts = [self._settings.guest / name for name in _SCRIPTS]
        warm = [lease.tree for lease in self._settings.warm]
        libraries = [self._settings.native / name for name in _LIBRARIES]
        return [*scripts, *warm, *libraries, *([packages] if packages is not None else [])]

    async def _build_root(self) -> None:
        settings = self._settings
        assert self._warden is not None
        files = (*(settings.guest / name for name in _SCRIPTS), *(settings.native / name for name in _LIBRARIES))
        parts = RootParts(files, settings.guest_packages, settings.warm_trees)
        self._roots = Roots(self._warden, parts, settings.images)
        if self._launched.reduced:
            self._root = shared_root(settings.guest_packages)
        else:
            self._root = await self._roots.make_host()

    async def template(self, key: str) -> ProcessTemplate:
        """Return the warm template of that key. *Raises* TemplateFailed."""
        template = self._templates.get(key)
        while template is None:
            catalogue = self._catalogue
            spec = next((t for t in catalogue.templates() if t.key == key), None)
            if spec is None:
                raise TemplateFailed(f"no language has a template {key!r}")
            root = await self._root_of(spec.image)
            template = self._templates.get(key)  # others may have asked meanwhile
            if template is None and catalogue is self._catalogue:
                former = self._former.pop((key, root), None)
                template = self._templates[key] = self._make(spec, root) if former is None else former
        await template.warm()
        return template

    async def _root_of(self, image: str) -> int:
        assert self._roots is not None
        if image and self._launched.reduced:
            raise TemplateFailed("there are no images in a reduced service")
        return await self._roots.number_of(image)

    def _make(self, spec: LanguageTemplate, root: int) -> ProcessTemplate:
        assert self._warden is not None
        assert self._slots is not None
        elsewhere = partial(self._in_root, spec.key)
        return ProcessTemplate(self._spec(spec, root), self._warden, self._slots, elsewhere)

    def _in_root(self, key: str, root: int) -> ProcessTemplate | None:
        """Return the template that had the key when sandboxes with that root were made, which may be there still."""
        return self._former.get((key, root))

    @property
    def takes_caches(self) -> bool:
        """Whether sandboxes see warm caches that are kept from now on; where there are no namespaces, they do not."""
        return self._settings.warm_trees is not None and not self._launched.reduced

    def adopt(self, catalogue: Catalogue, images: Mapping[str, Lease], warm: Sequence[Lease] = ()) -> None:
        """Make sandboxes of this catalogue and on these images from now on; those that are there keep what they have.

        The tier lets go of an image once no template and no sandbox is on it, and of a warm cache when it closes: a
        compiler may be reading it.
        """
        assert self._roots is not None
        now = {spec.key: spec for spec in catalogue.templates()}
        before = {spec.key: spec for spec in self._catalogue.templates()}
        self._catalogue = catalogue
        for key in [key for key in self._templates if now.get(key) != before[key]]:
            template = self._templates.pop(key)
            template.rest()
            self._former[key, template.root] = template
        self._roots.adopt(images)
        self._release_roots()
        for lease in warm:
            if self._warm.setdefault(lease.tree, lease) is not lease:
                lease.close()

    @property
    def images_released(self) -> int:
        """How many images it let go of so far."""
        return self._roots.released if self._roots is not None else 0

    def _release_roots(self) -> None:
        """Let go of images that nothing is on any more, and of the templates that were."""
        assert self._roots is not None
        assert self._slots is not None
        dropped = self._roots.release({*self._slots.roots(), *(each.root for each in self._templates.values())})
        for key, root in [place for place in self._former if place[1] in dropped]:
            self._slots.tasks.spawn(self._former.pop((key, root)).end())

    def _spec(self, language: LanguageTemplate, root: int) -> TemplateSpec:
        settings, kind = self._settings, _KINDS[language.kind]
        assert self._root is not None
        argv: tuple[str, ...] = ()
        files: tuple[Path, ...] = ()
        variables: tuple[tuple[str, str], ...] = ()
        if language.replaceable and self._launched.reduced:
            kind = m.Kind.NONE  # every program works somewhere else, which an interpreter has to know at its start
        elif language.fork_at:
            argv, variables = preloaded(language)
            files = (settings.native / "preload.so", *((settings.guest / language.driver,) if language.driver else ()))
        elif language.park_at:
            argv, variables = booted(language)
        elif kind is m.Kind.FORK:
            variables = BIND_NOW
            argv = (language.interpreter, "/proc/self/fd/6", *language.preload)
            inside = (settings.guest / name for name in ("plain.py", "session.py", "displays.py"))
            files = (settings.guest / "zygote.py", settings.native / "zygote.so", *inside)
        elif kind is m.Kind.PARK:
            script = settings.guest / "park_node.js" if self._launched.reduced else _PARK_SCRIPT
            argv = (language.interpreter, _UNCHECKED, "--require", str(script), _PARK_MAIN)
        return TemplateSpec(
            key=language.key,
            kind=kind,
            argv=argv,
            environment=self._root.environment,
            files=files,
            root=root,
            profile=0,
            limits=_at_birth(settings, rlimits_only=not self._launched.cgroups, rates_cpus=self.rates_cpus),
            shared_netns=settings.shared_netns,
            recycle_forks=settings.recycle_forks,
            recycle_s=settings.recycle_s,
            variables=variables,
            execs=not language.driven,
            image=language.image,
        )

    def _slot_event(self, event: m.WardenEvent) -> None:
        if self._slots is None:
            return
        self._slots.event(event)
        if self._roots is not None and self._roots.leaving and event.op == m.Event.CLOSED:
            self._release_roots()

    def _warden_lost(self) -> None:
        if self._slots is not None:
            self._slots.lost()
        self._lost.set()

    async def lost(self) -> None:
        """Wait until the warden is gone: the tier can fork nothing more and the service must end."""
        await self._lost.wait()

    @property
    def live(self) -> int:
        """How many sandboxes exist, parked ones included."""
        return self._slots.live if self._slots is not None else 0

    async def close(self) -> None:
        """End everything: closing the socket ends the warden, and with it every process it made."""
        for template in (*self._templates.values(), *self._former.values()):
            await template.close()
        if self._warden is not None:
            self._warden.close()
        if self._slots is not None:
            await self._slots.close()
        self._launched.warden.close()
        for lease in self._warm.values():
            lease.close()
        for lease in self._settings.images.values() if self._roots is None else ():
            lease.close()
        if self._roots is not None:
            self._roots.close()
        await asyncio.to_thread(self._launched.wait)


def _at_birth(settings: ProcessSettings, *, rlimits_only: bool, rates_cpus: bool) -> Limits:
    """Return what a process is born with: of what its own rlimits bound, the most, for they can only be lowered."""
    usual, most = settings.limits, settings.most
    usual = replace(usual, open_files=max(usual.open_files, most.open_files))
    if not rates_cpus:
        usual = replace(usual, cpus=math.inf)
    if not rlimits_only:
        return usual
    return replace(usual, memory_bytes=max(usual.memory_bytes, most.memory_bytes), pids=max(usual.pids, most.pids))
