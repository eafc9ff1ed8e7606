"""Settings: read from a file, the environment and options, and refused when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandfork.config import Config, ConfigError, Loaded, Machine, document, effective, load, size
from sandfork.config.loading import entries, env_name

TWO_CORES = Machine(cores=2, memory_bytes=24 << 30)


@pytest.fixture(autouse=True)
def an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start every test where no sandfork.toml lies about."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(text: str, path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(path / "some.toml", text), environ={})
    return str(caught.value)


def test_without_any_source_every_value_is_the_default() -> None:
    loaded = load(environ={})
    assert loaded.config == Config()
    assert set(loaded.sources.values()) == {"default"}


def test_a_value_of_the_file_replaces_a_default(tmp_path: Path) -> None:
    path = write(tmp_path / "some.toml", "[server]\nport = 9000\n[limits.default]\nwall_s = 5\n")
    loaded = load(path, environ={})
    assert loaded.config.port == 9000
    assert loaded.config.limits.default.wall_s == 5.0
    assert loaded.sources["server.port"] == str(path)
    assert loaded.sources["server.host"] == "default"


def test_the_environment_replaces_the_file_and_an_option_replaces_both(tmp_path: Path) -> None:
    path = write(tmp_path / "some.toml", "[server]\nport = 9000\nhost = '::1'\nlog_level = 'error'\n")
    environ = {"SANDFORK_SERVER_PORT": "9001", "SANDFORK_SERVER_HOST": "127.0.0.2"}
    loaded = load(path, environ=environ, options={"server.port": 9002, "server.dialect": None})
    assert (loaded.config.server.log_level, loaded.config.server.host, loaded.config.port) == (
        "error",
        "127.0.0.2",
        9002,
    )
    assert loaded.sources["server.port"] == "command line"
    assert loaded.sources["server.host"] == "SANDFORK_SERVER_HOST"


def test_the_file_in_the_current_directory_is_read(tmp_path: Path) -> None:
    write(tmp_path / "sandfork.toml", "[server]\nport = 9000\n")
    assert load(environ={}).config.port == 9000


def test_the_file_named_by_the_environment_goes_before_the_one_in_the_current_directory(tmp_path: Path) -> None:
    write(tmp_path / "sandfork.toml", "[server]\nport = 9000\n")
    other = write(tmp_path / "other.toml", "[server]\nport = 9001\n")
    assert load(environ={"SANDFORK_CONFIG": str(other)}).config.port == 9001


def test_sizes_are_numbers_or_texts_with_a_unit(tmp_path: Path) -> None:
    text = '[server]\nmax_body_bytes = "2m"\nmax_code_bytes = "1 KiB"\n[limits.default]\ndisk_bytes = 65536\n'
    config = load(write(tmp_path / "some.toml", text), environ={}).config
    assert (config.server.max_body_bytes, config.server.max_code_bytes) == (2 << 20, 1024)
    assert config.limits.default.disk_bytes == 65536


def test_lists_and_tables_have_a_text_form_for_the_environment() -> None:
    environ = {
        "SANDFORK_SERVER_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1",
        "SANDFORK_POOL_SIZES": '{"python": 3}',
        "SANDFORK_ACCESS_OPEN": "yes",
        "SANDFORK_SERVER_DRAIN_S": "1.5",
    }
    config = load(environ=environ).config
    assert config.server.trusted_proxies == ("10.0.0.0/8", "192.0.2.1")
    assert config.pool.sizes == {"python": 3}
    assert config.access.open is True
    assert config.server.drain_s == 1.5


def test_the_variable_of_another_system_names_the_keys_file_and_ours_wins() -> None:
    theirs = {"ZEROBOOT_API_KEYS_FILE": "/etc/keys.json"}
    loaded = load(environ=theirs)
    assert loaded.config.access.keys_file == "/etc/keys.json"
    assert loaded.is_explicit("access.keys_file")
    assert load(environ=theirs | {"SANDFORK_ACCESS_KEYS_FILE": "/other"}).config.access.keys_file == "/other"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\nprot = 1", "unknown key server.prot: did you mean server.port?"),
        ("[sever]\nport = 1", "unknown key sever: did you mean server?"),
        ("port = 1", "unknown key port: did you mean server.port?"),
        ("[limits]\nwall_s = 1", "unknown key limits.wall_s: did you mean limits.default.wall_s?"),
        ("[zzzzzz]", "unknown key zzzzzz"),
        ("server = 1", "server: expected a section [server], got 1"),
        ("[server]\nport = '80'", 'server.port: expected an integer, got "80"'),
        ("[server]\nport = true", "server.port: expected an integer, got true"),
        ("[server]\nport = 70000", "server.port: expected a value between 0 and 65535, got 70000"),
        ("[server]\nhost = 1", "server.host: expected a text, got 1"),
        ('[server]\nhost = "a\\u0000"', "server.host: expected a text without NUL"),
        ("[server]\nlog_level = 'loud'", 'server.log_level: expected one of debug, info, warning, error, got "loud"'),
        (
            "[server]\nmax_body_bytes = '5x'",
            'server.max_body_bytes: expected a size such as 1048576 or "512m", got "5x"',
        ),
        ("[server]\nmax_body_bytes = -1", "server.max_body_bytes: expected a value between"),
        ("[server]\ntrusted_proxies = 'a'", "server.trusted_proxies: expected a list of texts"),
        ("[server]\ntrusted_proxies = [1]", "server.trusted_proxies: expected a text, got 1"),
        ("[access]\nopen = 1", "access.open: expected true or false, got 1"),
        ("[access]\nrate_per_s = nan", "access.rate_per_s: expected a value at least 0.001, got nan"),
        ("[access]\nrate_per_s = inf", "access.rate_per_s: expected a value at least 0.001, got inf"),
        (
            "[admission]\nmax_running = -1",
            "admission.max_running: expected a value between 1 and 100000, or 0 for automatic",
        ),
        ("[pool]\nsizes = { python = 'x' }", 'pool.sizes: expected an integer, got "x"'),
        ("[pool]\nsizes = 5", "pool.sizes: expected a table of integers, got 5"),
        ("[limits.default]\nwall_s = 500", "limits.default.wall_s (500.0) is above limits.maximum.wall_s (300.0)"),
        (
            "[limits]\ndefault.cpus = 2\nmaximum.cpus = 1",
            "limits.default.cpus (2.0) is above limits.maximum.cpus (1.0)",
        ),
        ("[limits.default]\ncpus = 0.001", "expected a value between 0.01 and 1024, or 0 for no quota"),
        ("[server\n", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_file_and_the_key(text: str, told: str, tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    assert message.startswith(f"{tmp_path}/some.toml: ")
    assert told in message


@pytest.mark.parametrize("value", ["eighty", "8.5", ""])
def test_a_variable_that_is_no_number_is_refused_by_its_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^SANDFORK_SERVER_PORT: server\.port: expected an integer"):
        load(environ={"SANDFORK_SERVER_PORT": value})


def test_an_unknown_variable_with_our_prefix_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting SANDFORK_SERVER_PROT: did you mean SANDFORK_SERVER_PORT\?"):
        load(environ={"SANDFORK_SERVER_PROT": "1"})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert load(environ={"SANDFORK_HOME": "/x", "SANDFORK_URL": "http://y", "HOME": "/z"}).config == Config()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", environ={})


def test_the_port_is_the_dialects_own_unless_one_is_set() -> None:
    def port(**options: object) -> int:
        return load(environ={}, options={f"server.{key}": value for key, value in options.items()}).config.port

    assert (port(), port(dialect="isol8"), port(dialect="isol8", port=99)) == (8080, 3000, 99)


def test_automatic_values_follow_cores_and_memory() -> None:
    def sized(cores: int, gib: float) -> Config:
        return size(load(environ={}), Machine(cores, int(gib * (1 << 30)))).config

    small, usual, wide = sized(1, 0.5), sized(2, 24), sized(64, 24)
    assert (usual.admission.max_running, usual.admission.max_queued, usual.pool.size) == (32, 512, 32)
    # Memory bounds what cores would allow, in either direction something still runs.
    assert small.admission.max_running == 4
    assert wide.admission.max_running == 144
    assert small.pool.size == 5


def test_automatic_values_say_so_and_explicit_ones_stay() -> None:
    loaded = size(load(environ={}, options={"admission.max_running": 7}), TWO_CORES)
    assert loaded.config.admission.max_running == 7
    assert loaded.sources["admission.max_running"] == "command line"
    assert loaded.sources["pool.size"] == "automatic (2 cores, 24.0 GiB)"


def test_the_machine_is_read_from_this_machine() -> None:
    machine = Machine.probe()
    assert machine.cores >= 1
    assert machine.memory_bytes > 1 << 20


def test_every_setting_is_documented_with_its_variable() -> None:
    text = document()
    for key, entry, _ in entries(Config()):
        assert len(entry.metadata["text"]) > 10, key
        assert f"### {entry.name}\n\n{entry.metadata['text']}" in text, key
        assert f"`{env_name(key)}`" in text, key


def test_every_value_in_force_is_shown_with_its_source() -> None:
    rows = effective(Loaded(Config(), dict.fromkeys((key for key, _, _ in entries(Config())), "default")))
    assert len(rows) == len(list(entries(Config())))
    assert ("server.max_body_bytes", '"10m"', "default") in rows
    assert ("server.trusted_proxies", "[]", "default") in rows


def test_a_secret_is_not_shown() -> None:
    given = {"SANDFORK_REMOTE_SECRET_KEY": "hush", "SANDFORK_REMOTE_ACCESS_KEY": "known"}
    shown = {key: value for key, value, _ in effective(load(environ=given))}
    assert (shown["remote.secret_key"], shown["remote.access_key"]) == ('"***"', '"known"')


def test_every_default_fits_its_own_range() -> None:
    shown = {key: value for key, value, _ in effective(load(environ={}))}
    for key, value in shown.items():
        if not value.startswith(("[", "{")):
            load(environ={env_name(key): value.strip('"')})
