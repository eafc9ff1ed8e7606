"""A running service sees that the host's toolchains changed, and goes on with what they are now."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandfork import serve_renewal
from sandfork.config.schema import Config, Images
from sandfork.config.schema import Languages as LanguageSettings
from sandfork.engine.engine import Engine
from sandfork.images.archive import Bounds
from sandfork.images.making import import_stream
from sandfork.languages.catalogue import Language
from sandfork.serve_caches import cache_key, cache_store
from sandfork.serve_engine import build_engine, choose_languages
from sandfork.serve_renewal import Renewal
from sandfork.tiers.fake import FakeTier
from tests.support.warm import TEXT, cache_tar


@dataclass
class Host:
    """A language whose toolchain is a file, and what changes when packages do."""

    config: Config
    tool: Path
    packages: Path

    def language(self) -> Language:
        found = choose_languages(self.config).find("made")
        assert found is not None
        return found

    def upgrade(self, content: str | None) -> None:
        """Have another toolchain, or none, as a package manager would."""
        if content is None:
            self.tool.unlink()
        else:
            self.tool.write_text(content)
        os.utime(self.packages, ns=(0, self.packages.stat().st_mtime_ns + 1))

    def damage_the_images(self) -> None:
        """Leave an image that is none."""
        manifests = Path(self.config.images.directory, "manifests")
        manifests.mkdir()
        (manifests / "damaged.json").write_text("{")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "languages").mkdir()
    (tmp_path / "tool").write_text("first")
    (tmp_path / "packages").touch()
    monkeypatch.setattr(serve_renewal, "HOST_STAMPS", (str(tmp_path / "packages"), str(tmp_path / "nothing")))
    text = TEXT.replace("FILL", ":").replace("TOOL", f"{tmp_path}/tool")
    (tmp_path / "languages/made.toml").write_text(text)
    config = Config(
        images=Images(directory=str(tmp_path / "images")), languages=LanguageSettings(directory=f"{tmp_path}/languages")
    )
    made = Host(config, tmp_path / "tool", tmp_path / "packages")
    stream, key = io.BytesIO(cache_tar()), cache_key(config, made.language())
    import_stream(cache_store(config), "made", stream, lambda: None, key, Bounds())
    return made


async def collect() -> None:
    """Nothing is let go of here."""


def renewal_of(host: Host) -> tuple[Renewal, Engine]:
    catalogue, tier = choose_languages(host.config), FakeTier()
    engine = build_engine(host.config, catalogue, tier)
    return Renewal(host.config, catalogue, tier, engine, collect), engine


def state(renewal: Renewal) -> tuple[bool, bool]:
    """Return whether the language can be run, and whether with its warm cache."""
    (found,) = (each for each in renewal.languages() if each.name == "made")
    return found.runnable, any(word.startswith("--from=") for word in found.compile)


async def test_a_warm_cache_is_left_when_its_toolchain_is_upgraded_and_that_is_told(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    renewal, engine = renewal_of(host)
    await renewal.look()
    assert state(renewal) == (True, True)
    host.tool.write_text("changed, and no package did")
    await renewal.look()
    assert state(renewal) == (True, True), "it looks when packages change"
    host.upgrade("second one")
    await renewal.look()
    assert state(renewal) == (True, False)
    assert "no warm cache fits made, which start slower" in caplog.text
    host.upgrade("third and last one")
    caplog.clear()
    await renewal.look()
    assert caplog.text == "", "it is told once"
    await engine.close()


async def test_a_language_comes_and_goes_with_its_packages(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    renewal, engine = renewal_of(host)
    await renewal.look()
    host.upgrade(None)
    await renewal.look()
    assert state(renewal)[0] is False
    assert "languages that are gone: made" in caplog.text
    host.upgrade("back again")
    await renewal.look()
    assert state(renewal) == (True, False)
    assert "languages that came: made" in caplog.text
    await engine.close()


async def test_what_cannot_be_used_is_told_and_all_stays(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    renewal, engine = renewal_of(host)
    await renewal.look()
    host.damage_the_images()
    await renewal.look()
    assert state(renewal) == (True, True)
    assert "cannot be used" in caplog.text
    await engine.close()
