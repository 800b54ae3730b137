"""Settings come from options, environment and one file; a misspelt one is an error, never ignored."""

from pathlib import Path

import pytest

from swapmeet.errors import SettingsError
from swapmeet.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path))
    for name in ("SWAPMEET_URL", "SWAPMEET_API_KEY", "SWAPMEET_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_options_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "swapmeet.toml").write_text('base = "file"\nport = 1001\nmax_batch = 7\n')
    monkeypatch.setenv("SWAPMEET_PORT", "1002")
    monkeypatch.setenv("SWAPMEET_BASE", "environment")
    settings = load_settings(base="option", host=None)
    assert (settings.base, settings.port, settings.max_batch) == ("option", 1002, 7)
    assert settings.host == Settings.model_fields["host"].default


def test_defaults_live_in_the_home(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.registry_url == f"file://{tmp_path}/registry"
    assert settings.database_url == f"sqlite:///{tmp_path}/swapmeet.db"


def test_all_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "swapmeet.toml").write_text("bases = 3\nmax_batch = 0\n")
    monkeypatch.setenv("SWAPMEET_PROT", "1")
    monkeypatch.setenv("SWAPMEET_PORT", "http")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert all(word in str(caught.value) for word in ("SWAPMEET_PROT", "bases", "max_batch", "port"))


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "swapmeet.toml").write_text("base = ")
    with pytest.raises(SettingsError, match=r"swapmeet\.toml is not TOML"):
        load_settings()


def test_the_file_of_a_given_home_counts(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "swapmeet.toml").write_text("port = 1003")
    assert load_settings(home=tmp_path / "other").port == 1003


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWAPMEET_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings()


def test_the_key_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPMEET_API_KEY", "sm-secret")
    assert "sm-secret" not in repr(load_settings())
