"""Warm caches: what a language's file says with and without one, which cache fits, and that a bad one is never kept."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sandfork.config.schema import Config, Process
from sandfork.errors import ArchiveRefused, BuildFailed, ImageError, ImageNotFound
from sandfork.images.archive import Bounds
from sandfork.images.making import import_stream
from sandfork.images.manifest import Manifest
from sandfork.languages.catalogue import Catalogue, CatalogueError, Language
from sandfork.serve_caches import (
    WARM_DIR,
    cache_key,
    cache_store,
    cold_languages,
    find_cache,
    hold_caches,
    with_caches,
)
from sandfork.serve_refusal import Refused
from sandfork.serve_warm import filling_language
from sandfork.tiers.process.plan import WARM_INSIDE, plan_root
from tests.support.warm import TEXT, cache_tar, store_in, warm_language


def fine() -> None:
    """The child has ended well."""


def failed() -> None:
    raise BuildFailed("the toolchain broke")


def keep(config: Config, language: Language, content: bytes = b"kept") -> Manifest:
    """Publish a cache of the language, as `sandfork lang warm` does."""
    stream, key = io.BytesIO(cache_tar(content)), cache_key(config, language)
    return import_stream(cache_store(config), language.name, stream, fine, key, Bounds())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return store_in(tmp_path / "images")


# --- a language's file ---


def test_what_names_the_cache_is_left_out_where_there_is_none() -> None:
    cold = warm_language()
    assert cold.compile is not None
    assert cold.compile.argv == ("/bin/sh", "{name}", "{out}")
    assert (cold.env, cold.warm_path) == ((("PLAIN", "x"),), "")


def test_what_names_the_cache_has_its_path_where_there_is_one_and_forgets_it_again() -> None:
    warm = warm_language().warmed("/somewhere")
    assert warm.compile is not None
    assert warm.compile.argv[-1] == "--from=/somewhere/kept"
    assert (warm.env, warm.warm_path) == ((("CACHE", "/somewhere"), ("PLAIN", "x")), "/somewhere")
    assert warm.warmed("") == warm_language()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[warm]\n", "[warm]\nfile = 1\n"),
        ('argv = ["/bin/sh", "-ec"', 'argv = ["sh", "-ec"'),
        ('CACHE = "{warm}"', 'CACHE = "x"'),
        ("[checks]", '[[template]]\nkey = "made"\nkind = "park"\ninterpreter = "/bin/sh"\npool_weight = 1\n[checks]'),
    ],
)
def test_a_file_that_makes_no_sense_of_its_cache_is_refused(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "CACHE" in old:
        text = text.replace(', "--from={warm}/kept"', "")  # now nothing uses what is filled
    with pytest.raises(CatalogueError, match=r"file|argv|warm"):
        warm_language(text=text)


def test_a_file_that_names_a_cache_which_nothing_fills_is_refused() -> None:
    head, _, rest = TEXT.partition("[warm]")
    with pytest.raises(CatalogueError, match="warm: is there if, and only if"):
        warm_language(text=head + rest[rest.index("[without]") :])


def test_every_cache_that_is_shipped_is_used_and_filled() -> None:
    warm = {each.name: each for each in Catalogue.load().languages() if each.warm}
    assert {"go", "java", "kotlin", "scala", "groovy", "clojure"} <= warm.keys()
    for language in warm.values():
        filled = filling_language(language)
        assert any(f"/sandbox/{WARM_DIR}" in text for text in (*filled.argv, *dict(filled.env).values()))
        assert language.warmed("/w") != language


def test_a_cache_is_filled_by_the_toolchain_alone_beside_a_program_of_its_file() -> None:
    language = warm_language()
    filling = filling_language(language)
    assert language.warm is not None
    assert language.warm.code == "a program"
    assert filling.argv[-1] == f"cat {{name}} > /sandbox/{WARM_DIR}/kept; :"
    assert (filling.compile, filling.warm) == (None, None)
    assert dict(filling.env)["CACHE"] == f"/sandbox/{WARM_DIR}"


# --- which one fits ---


def test_a_cache_fits_the_toolchain_that_filled_it_and_no_other(config: Config, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("first")
    language = warm_language(tool=f"{tmp_path}/too*")  # a pattern, as for a path with a version in it
    assert find_cache(config, language) == (None, "none was made")
    made = keep(config, language)
    assert find_cache(config, language) == (made, "")
    shutil.copy2(tool, tmp_path / "copy")
    os.replace(tmp_path / "copy", tool)  # the same toolchain, installed elsewhere
    assert find_cache(config, language) == (made, "")
    tool.write_text("second one")
    assert find_cache(config, language) == (None, "the one there is was made by another toolchain")


def test_a_cache_does_not_fit_a_file_that_fills_it_otherwise(config: Config) -> None:
    keep(config, warm_language())
    assert find_cache(config, warm_language("true"))[0] is None


def test_a_damaged_manifest_is_told_and_not_used(config: Config) -> None:
    keep(config, warm_language())
    (cache_store(config).root / "manifests/made.json").write_text("{")
    found, reason = find_cache(config, warm_language())
    assert (found, "no manifest" in reason) == (None, True)


def test_a_catalogue_uses_what_fits_and_tells_what_is_cold(config: Config) -> None:
    catalogue = Catalogue([warm_language()])
    cold = with_caches(config, catalogue)
    assert (cold.languages(), cold_languages(cold)) == (catalogue.languages(), ["made"])
    made = keep(config, warm_language())
    warm = with_caches(config, catalogue)
    digest = made.digest.removeprefix("sha256:")
    assert warm.languages()[0].warm_path == f"{WARM_INSIDE}/{digest}/{WARM_DIR}"
    assert cold_languages(warm) == []


def test_without_namespaces_a_cache_is_seen_where_it_is(config: Config) -> None:
    made = keep(config, warm_language())
    reduced = replace(config, process=Process(reduced=True))
    (language,) = with_caches(reduced, Catalogue([warm_language()])).languages()
    assert language.warm_path == f"{cache_store(config).tree(made)}/{WARM_DIR}"


# --- keeping them ---


def test_a_cache_that_its_maker_does_not_vouch_for_is_not_published(config: Config) -> None:
    store = cache_store(config)
    whole = cache_tar()
    for content in (whole, whole[:700], b""):
        with pytest.raises(BuildFailed, match="the toolchain broke"):
            import_stream(store, "made", io.BytesIO(content), failed, "key", Bounds())
    with pytest.raises(ArchiveRefused, match="truncated"):
        import_stream(store, "made", io.BytesIO(whole[:700]), fine, "key", Bounds())
    assert (store.list(), list((store.root / "trees").iterdir()), list((store.root / "work").iterdir())) == ((), [], [])


def test_a_cache_in_use_is_not_collected_and_an_old_one_is(config: Config) -> None:
    language = warm_language()
    keep(config, language, b"first")
    catalogue = with_caches(config, Catalogue([language]))
    (held,) = hold_caches(config, catalogue)
    keep(config, language, b"second")
    store = cache_store(config)
    assert store.collect().digests == ()
    assert (held.tree / WARM_DIR / "kept").read_bytes() == b"first"
    held.close()
    assert store.collect().digests == (held.manifest.digest,)
    assert not held.tree.exists()


def test_a_cache_that_is_replaced_while_a_service_starts_is_told(config: Config) -> None:
    language = warm_language()
    keep(config, language, b"first")
    catalogue = with_caches(config, Catalogue([language]))
    keep(config, language, b"second")
    with pytest.raises(Refused, match="start again"):
        hold_caches(config, catalogue)
    cache_store(config).remove("made")
    with pytest.raises(ImageNotFound):
        hold_caches(config, catalogue)
    assert issubclass(ImageNotFound, ImageError)


def test_sandboxes_see_the_directory_of_caches_only_where_there_is_one(tmp_path: Path) -> None:
    assert WARM_INSIDE not in plan_root(None, {}).entries
    plan = plan_root(None, {}, warm=tmp_path)
    assert WARM_INSIDE in plan.entries
    assert f"{WARM_INSIDE}\0{tmp_path}\0".encode() in plan.plan
