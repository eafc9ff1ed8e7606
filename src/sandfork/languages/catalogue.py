"""The catalogue of languages: `data/*.toml` read into frozen records, or refused; `parsing` has a file's schema.

Commands (an argv instead of a program text) belong to no language; they run in the template `COMMAND`, which is always
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sandfork.languages.language import COMMAND, FILE_MARK, Language, TemplateKind, TemplateSpec, command_on, on_image
from sandfork.languages.parsing import parse_language, read_language
from sandfork.languages.tables import CatalogueError

__all__ = [
    "BUILT_IN",
    "COMMAND",
    "FILE_MARK",
    "Catalogue",
    "CatalogueError",
    "Language",
    "TemplateKind",
    "TemplateSpec",
    "parse_language",
]

BUILT_IN = Path(__file__).parent / "data"


class Catalogue:
    """The languages this server knows, by name and alias, and their templates by key."""

    def __init__(self, languages: Iterable[Language]) -> None:
        """Index `languages`. *Raises* CatalogueError when a name, an alias or a template key is taken twice."""
        self._languages = tuple(sorted(languages, key=lambda language: language.name))
        self._by_name: dict[str, Language] = {}
        self._templates: dict[str, TemplateSpec] = {COMMAND.key: COMMAND}
        self._by_extension: dict[str, Language] = {}
        for language in self._languages:
            for name in (language.name, *language.aliases):
                if name in self._by_name:
                    raise CatalogueError(f"{language.name}: the name {name!r} already means {self._by_name[name].name}")
                self._by_name[name] = language
            if language.takes_extension:
                taken = self._by_extension.setdefault(language.extension, language)
                if taken is not language:
                    raise CatalogueError(f"{language.name}: {language.extension} is {taken.name}'s already")
            for spec in (*language.templates, language.commands):
                if self._templates.setdefault(spec.key, spec) != spec:
                    raise CatalogueError(f"{language.name}: template {spec.key!r} is described differently elsewhere")

    @classmethod
    def load(cls, *directories: Path) -> Catalogue:
        """Read every `*.toml` of the directories, or of the shipped one. *Raises* CatalogueError, OSError."""
        paths = (path for directory in directories or (BUILT_IN,) for path in sorted(directory.glob("*.toml")))
        return cls(read_language(path) for path in paths)

    def find(self, name: str) -> Language | None:
        """Return the language of that name or alias, spelt exactly, or None."""
        return self._by_name.get(name)

    def with_extension(self, extension: str) -> tuple[Language, ...]:
        """Return the language that a file of that extension is in; where none takes it, all that have it."""
        taken = self._by_extension.get(extension)
        return (taken,) if taken else tuple(each for each in self._languages if each.extension == extension)

    def names(self) -> tuple[str, ...]:
        """Return the names of all languages, sorted, without aliases."""
        return tuple(language.name for language in self._languages)

    def languages(self) -> tuple[Language, ...]:
        """Return all languages, sorted by name."""
        return self._languages

    def templates(self) -> tuple[TemplateSpec, ...]:
        """Return every template once, the command template first."""
        return tuple(self._templates.values())

    def on_images(self, images: Mapping[str, str]) -> Catalogue:
        """Return the catalogue with those languages on images: `images` has images, NAME@DIGEST, by names of languages.

        A template keeps its key where the language is that it is called after. Of languages elsewhere that use it, too,
        "@" and the name of their image is added, "/" for the host's files.
        """
        places: dict[str, str] = {COMMAND.key: ""}
        for language in self._languages:
            for spec in language.templates:
                image = images.get(language.name, "")
                places.setdefault(spec.key, image)
                if spec.key == language.name or spec.key.startswith(f"{language.name}-"):
                    places[spec.key] = image
        return Catalogue(
            replace(each, templates=moved, scans=_scans(each, moved))
            for each in self._languages
            for moved in [tuple(_moved(spec, images.get(each.name, ""), places[spec.key]) for spec in each.templates)]
        )

    def warmed(self, path_of: Callable[[Language], str]) -> Catalogue:
        """Return the catalogue with warm caches: `path_of` tells where sandboxes see a language's, "" for none."""
        return Catalogue(each.warmed(path_of(each)) if each.warm else each for each in self._languages)

    def sized(self, memory_of: Callable[[Language], int]) -> Catalogue:
        """Return the catalogue whose parked processes have the memory that `memory_of` tells of their language."""
        return Catalogue(each.sized(memory_of(each)) for each in self._languages)

    def only(self, keep: Callable[[Language], bool]) -> Catalogue:
        """Return the catalogue of those languages for which `keep` is true."""
        return Catalogue(language for language in self._languages if keep(language))


def _moved(spec: TemplateSpec, image: str, place: str) -> TemplateSpec:
    """Return a template as it is on an image; `place` is the image where it keeps its key."""
    if spec == COMMAND:
        return command_on(image) if image else spec
    return replace(spec, key=spec.key if image == place else on_image(spec.key, image), image=image)


def _scans(
    language: Language, moved: tuple[TemplateSpec, ...]
) -> tuple[tuple[TemplateSpec, Callable[[str], bool]], ...]:
    there = dict(zip(language.templates, moved, strict=True))
    return tuple((there[spec], names) for spec, names in language.scans)
