"""From settings to the languages there are, whether they are on this host or not."""

from __future__ import annotations

import difflib
from pathlib import Path

from sandfork.config import Config
from sandfork.languages.catalogue import BUILT_IN, Catalogue, CatalogueError, Language
from sandfork.serve_refusal import Refused


def load_catalogue(config: Config) -> Catalogue:
    """Return every language there is: those shipped, and those of the configured directory. *Raises* Refused."""
    directory = config.languages.directory
    try:
        if directory and not Path(directory).is_dir():
            raise Refused(f"languages.directory: there is no directory {directory}")
        return Catalogue.load(BUILT_IN, *([Path(directory)] if directory else []))
    except (CatalogueError, OSError) as error:
        raise Refused(f"languages.directory: {error}") from None


def find_language(every: Catalogue, name: str) -> Language:
    """Return the language of a name or an alias. *Raises* Refused with a name that is close."""
    language = every.find(name)
    if language is None:
        close = difflib.get_close_matches(name, every.names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(every.names())}"
        raise Refused(f"no language {name!r}: {hint}")
    return language
