"""The mark of a deflected request: the gateway's bounds arrive, and nobody else can set it."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.step_times import QUICK

from duet_engine.plugin.deflection_request import MARK, Deflection, mark, take_mark
from duet_engine.plugin.deflection_settings import DeflectionSettings, requests_limit
from duet_engine.plugin.settings import SettingError
from duet_engine.protocol import Dispatch, Knobs


def dispatch(**fields: Any) -> Dispatch:
    return Dispatch(gateway="g", sequence=1, **fields)


def taken(custom: dict[str, Any] | None) -> tuple[Deflection | None, Any]:
    sampling = SimpleNamespace(custom_params=custom)
    return take_mark(sampling, now=lambda: 7.0), sampling.custom_params


@pytest.mark.parametrize("budget", [None, 0, 256])
def test_bounds_arrive_and_the_clients_own_parameters_stay(budget: int | None) -> None:
    sent = dispatch(deflected=True, chunk_schedule_tokens=(512, 128), chunk_budget_tokens=budget)
    deflection, left = taken(mark({"thinking_budget": 9}, sent))
    assert deflection == Deflection(budget, (512, 128), arrived_at=7.0)
    assert left == {"thinking_budget": 9}
    assert taken(mark(None, sent)) == (deflection, None)


def test_a_clients_own_mark_is_dropped() -> None:
    forged = {MARK: [-1, 4096], "other": 1}
    assert mark(forged, None) == {"other": 1}
    assert mark({MARK: [-1]}, dispatch()) is None


def test_each_chunk_is_bound_by_its_place_in_the_schedule_and_by_the_budget() -> None:
    deflection = Deflection(chunk_budget_tokens=300, chunk_schedule_tokens=(512, 128))
    bounds = []
    for done in range(3):
        deflection.chunks_done = done
        bounds.append(deflection.bound_tokens())
    assert bounds == [300, 128, 300]
    deflection.start_again()
    assert not deflection.begun and deflection.bound_tokens() == 300


def test_the_limit_comes_from_the_environment_and_names_what_is_wrong() -> None:
    assert requests_limit({}) == 16
    assert requests_limit({"DUET_DEFLECTED_REQUESTS_LIMIT": "3"}) == 3
    for wrong in ("0", "-1", "many"):
        with pytest.raises(SettingError, match="DUET_DEFLECTED_REQUESTS_LIMIT"):
            requests_limit({"DUET_DEFLECTED_REQUESTS_LIMIT": wrong})


def test_candidate_sizes_become_whole_pages_and_stay_under_the_servers_own_chunk() -> None:
    settings = DeflectionSettings(knobs=Knobs(generation=0, itl_milliseconds=40), steps=QUICK)
    assert settings.step_budget_seconds == pytest.approx(0.034)
    assert settings.limits(page_tokens=300, full_chunk_tokens=4096).candidates_tokens == (1800, 900, 300)
    assert settings.limits(page_tokens=16, full_chunk_tokens=600).candidates_tokens == (592, 512, 256, 128)
