"""Which languages `sandfork lang test` proves, and on what: their images or the host's own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandfork.config import Loaded
from sandfork.config.schema import Config, Images, Languages
from sandfork.images.store import Store
from sandfork.languages.catalogue import Catalogue
from sandfork.serve_pages import proof_table
from sandfork.serve_proofs import Proof, choose_proven
from sandfork.serve_refusal import Refused
from tests.support.images import adopt_tree, small_tree
from tests.support.warm import TEXT


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    """Settings with a language on the host, one there and on an image, one on an image only, and one nowhere."""
    (tmp_path / "languages").mkdir()
    tools = {"both": "/usr/bin/env", "host": "/usr/bin/env", "there": "/usr/bin/tool", "none": "/nowhere"}
    for name, tool in tools.items():
        text = TEXT.replace('name = "made"', f'name = "{name}"').replace(".made", f".{name}").replace("FILL", ":")
        (tmp_path / f"languages/{name}.toml").write_text(text.replace("TOOL", tool))
    tree = small_tree(tmp_path / "tree")
    for name in ("sh", "env"):
        (tree / "usr/bin" / name).write_text("x")
    adopt_tree(Store(tmp_path / "images"), tree, "small", ("both", "there", "none"))
    directories = Images(directory=str(tmp_path / "images")), Languages(directory=str(tmp_path / "languages"))
    return Loaded(Config(images=directories[0], languages=directories[1]), {})


def places(loaded: Loaded, names: tuple[str, ...], on_image: bool | None) -> dict[str, str]:
    chosen = choose_proven(loaded, names, on_image)[1]
    return {each.name: each.image.partition("@")[0] or "host" for each in chosen.languages()}


def test_a_language_is_proven_where_a_service_would_run_it(loaded: Loaded) -> None:
    assert places(loaded, ("both", "host", "there"), None) == {"both": "small", "host": "host", "there": "small"}


def test_it_can_be_told_to_prove_on_the_host_or_on_images_only(loaded: Loaded) -> None:
    assert places(loaded, ("both", "host"), False) == {"both": "host", "host": "host"}
    assert places(loaded, ("both",), True) == {"both": "small"}
    assert places(loaded, (), True) == {"both": "small", "there": "small"}
    on_host = places(loaded, (), False)
    assert ("there" in on_host, on_host["both"]) == (False, "host")


def test_what_a_service_is_kept_from_offering_is_proven_all_the_same(loaded: Loaded) -> None:
    images, languages = loaded.config.images, loaded.config.languages
    config = replace(
        loaded.config,
        images=replace(images, use=False, host=("both",)),
        languages=replace(languages, enable=("host",)),
    )
    narrow = replace(loaded, config=config)
    assert places(narrow, ("both", "host"), None) == {"both": "host", "host": "host"}
    assert places(narrow, ("both",), True) == {"both": "small"}


@pytest.mark.parametrize(
    ("name", "on_image", "told"),
    [
        ("host", True, "host has no image here: `sandfork rootfs build host` makes one"),
        ("there", False, "there: there is no /usr/bin/tool: try `sandfork lang install there`"),
        ("none", None, "none: there is no /nowhere on image small"),
        ("none", True, "none: there is no /nowhere on image small"),
        ("hoost", None, "no language 'hoost': did you mean host?"),
    ],
)
def test_one_that_is_not_there_is_told(loaded: Loaded, name: str, on_image: bool | None, told: str) -> None:
    with pytest.raises(Refused) as refusal:
        choose_proven(loaded, (name,), on_image)
    assert str(refusal.value) == told


def test_where_no_language_has_an_image_that_is_told(loaded: Loaded, tmp_path: Path) -> None:
    Store(tmp_path / "images").remove("small")
    with pytest.raises(Refused, match="no language has an image here"):
        choose_proven(loaded, (), True)


def test_the_table_says_where_each_was_proven(loaded: Loaded) -> None:
    catalogue: Catalogue = choose_proven(loaded, ("both", "host"), None)[1]
    head, both, host = proof_table([Proof(each, "1.0", ()) for each in catalogue.languages()])
    assert head[:3] == ("language", "version", "on")
    assert both[2].startswith("small sha256:")
    assert host[:3] == ("host", "1.0", "host")
