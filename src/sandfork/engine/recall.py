"""A request that names a snapshot, turned into one that says what the snapshot stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sandfork.errors import Forbidden, InvalidRequest, SnapshotConflict
from sandfork.images.snapshots import Pins, Snapshot
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import ExecRequest, LimitsOverride, Snippet


class Recall:
    """Knows the snapshots and what this server has of what they were made of."""

    def __init__(self, catalogue: Catalogue, find: Callable[[str], Snapshot], most_cpus: float) -> None:
        """`find` *Raises* SnapshotNotFound; `most_cpus` is what this server gives, whatever a snapshot says."""
        self._catalogue = catalogue
        self._find = find
        self._most_cpus = most_cpus
        self._pins = Pins()

    def adopt(self, catalogue: Catalogue) -> None:
        """Have these languages from now on."""
        self._catalogue = catalogue

    def apply(self, request: ExecRequest) -> ExecRequest:
        """Return the request under the limits of its snapshot and in the snapshot's template.

        *Raises* SnapshotNotFound, InvalidRequest, Forbidden (the request names more than the snapshot gives),
        SnapshotConflict (what the snapshot was made of has changed).
        """
        assert request.snapshot is not None
        if request.session is not None:
            raise InvalidRequest("snapshot", "a session is not made from a snapshot: its sandbox is there already")
        program = request.program
        if not isinstance(program, Snippet):
            raise InvalidRequest("snapshot", "a command runs in no language's template")
        snapshot = self._find(request.snapshot)
        language = self._catalogue.find(snapshot.language)
        if language is None:
            raise SnapshotConflict(f"snapshot {snapshot.name!r} is of {snapshot.language}, which is not on this server")
        if program.language and self._catalogue.find(program.language) is not language:
            raise InvalidRequest("language", f"snapshot {snapshot.name!r} is of {snapshot.language}")
        template = next((each.key for each in language.templates if _plain(each.key) == snapshot.template), None)
        if template is None:
            raise SnapshotConflict(
                f"snapshot {snapshot.name!r} is of template {snapshot.template}, which {language.name} has no more: "
                "create it again"
            )
        self._refuse_changed(snapshot, language)
        if request.template not in (None, template):
            raise InvalidRequest("template", f"snapshot {snapshot.name!r} is of {snapshot.template}")
        return replace(
            request,
            program=replace(program, language=language.name),
            template=template,
            limits=self._lower(request.limits, snapshot),
        )

    def _refuse_changed(self, snapshot: Snapshot, language: Language) -> None:
        """*Raises* SnapshotConflict where the toolchain is not what the snapshot was made of."""
        if snapshot.image != language.image.partition("@")[2]:
            raise SnapshotConflict(
                f"snapshot {snapshot.name!r} was made on {_place(snapshot.image)}, and {language.name} is on "
                f"{_place(language.image)} now: create it again"
            )
        if not {pin.path for pin in snapshot.pins} <= set(language.programs):
            # Whatever a document names would be read, however large, and whether it is the same would be told.
            raise SnapshotConflict(
                f"snapshot {snapshot.name!r} pins what is no program of {language.name} on this server: create it again"
            )
        if (path := self._pins.changed(snapshot.pins)) is not None:
            raise SnapshotConflict(
                f"snapshot {snapshot.name!r} was made with another {path} than this server has: create it again"
            )

    def _lower(self, asked: LimitsOverride, snapshot: Snapshot) -> LimitsOverride:
        """Return the limits: the snapshot's memory and its processors."""
        memory = asked.memory_bytes
        if isinstance(memory, int) and memory > snapshot.mem_bytes:
            raise Forbidden(
                f"limits.memory_bytes: {memory} is above the {snapshot.mem_bytes} of snapshot {snapshot.name!r}"
            )
        cpus = asked.cpus
        if isinstance(cpus, int | float) and cpus > snapshot.vcpus:
            raise Forbidden(f"limits.cpus: {cpus:g} is above the {snapshot.vcpus} of snapshot {snapshot.name!r}")
        return replace(
            asked, memory_bytes=memory or snapshot.mem_bytes, cpus=cpus or min(snapshot.vcpus, self._most_cpus)
        )


def _place(image: str) -> str:
    return f"image {image}" if image else "the host's own files"


def _plain(key: str) -> str:
    """Return the key that a template has where nothing is on an image: snapshots are made of that."""
    return key.partition("@")[0]
