"""The operator's settings: from the environment, or a clear error."""

from pathlib import Path

import pytest

from duet_operator import settings_reference
from duet_operator.settings import Settings, SettingsError, from_environment


def test_nothing_set_gives_the_defaults() -> None:
    assert from_environment({"PATH": "/bin"}) == Settings()


def test_every_kind_of_setting_is_read() -> None:
    settings = from_environment(
        {
            "DUET_OPERATOR_ENGINE_IMAGE": " engine:1 ",
            "DUET_OPERATOR_NAMESPACES": "a, b,,a",
            "DUET_OPERATOR_IMAGE_PULL_SECRETS": "pull,pull.2",
            "DUET_OPERATOR_IMAGE_PULL_POLICY": "Always",
            "DUET_OPERATOR_LEASE_ENABLED": "False",
            "DUET_OPERATOR_DRAIN_LEASE_FLOOR_SECONDS": "7.5",
            "DUET_OPERATOR_HTTP_PORT": "0",
            "DUET_OPERATOR_LOG_FORMAT": "JSON",
            "DUET_OPERATOR_LOG_LEVEL": "debug",
        }
    )
    assert settings.engine_image == "engine:1"
    assert settings.namespaces == ("a", "b")
    assert (settings.image_pull_secrets, settings.image_pull_policy) == (("pull", "pull.2"), "Always")
    assert settings.lease_enabled is False
    assert settings.drain_lease_floor_seconds == 7.5
    assert settings.http_port == 0
    assert (settings.log_format, settings.log_level) == ("json", "DEBUG")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HTTP_PORT", "80.5", "must be a whole number of 0 or more"),
        ("LEASE_SECONDS", "-1", "must be a number above 0"),
        ("LEASE_SECONDS", "0", "must be a number above 0"),
        ("LEASE_SECONDS", "nan", "must be a number above 0"),
        ("LEASE_SECONDS", "inf", "must be a number above 0"),
        ("CONCURRENT_PASSES", "0", "must be a whole number above 0"),
        ("DEBOUNCE_SECONDS", "-0.1", "must be a number of 0 or more"),
        ("LEASE_ENABLED", "yes", "must be true or false"),
        ("LOG_FORMAT", "xml", "must be text or json"),
        ("NAMESPACES", "a;b", "separate names by commas"),
        ("IMAGE_PULL_SECRETS", "Pull", "can't be a Secret; separate names by commas"),
        ("IMAGE_PULL_POLICY", "always", "must be Always or IfNotPresent or Never"),
        ("LEASE_SECOND", "1", "isn't a setting of the operator; known are"),
    ],
)
def test_a_bad_value_names_the_variable_and_the_fix(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^DUET_OPERATOR_{name} .*{said}"):
        from_environment({f"DUET_OPERATOR_{name}": value})


def test_variables_of_a_service_of_the_same_name_are_no_settings() -> None:
    links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR")
    assert from_environment({f"DUET_OPERATOR_{link}": "x" for link in links}) == Settings()


def test_leases_and_windows_grow_with_the_interval() -> None:
    settings = Settings()
    assert [settings.drain_lease_seconds(interval) for interval in (1, 5, 60)] == [30, 30, 360]
    assert [settings.demand_window_for(interval) for interval in (1, 5, 60)] == [10, 15, 180]
    assert [settings.document_stale_seconds(interval) for interval in (1, 5, 60)] == [15, 15, 180]


def test_the_page_of_settings_is_the_generated_one() -> None:
    """`make crds` makes it anew."""
    path = Path(__file__).parents[3] / "docs" / "operator-settings.md"
    assert path.read_text(encoding="utf-8") == settings_reference.page()
