"""`pytest --lane NAME`: the tests of one lane."""

import pytest

from duet_dev.lanes.lane import LANES, Lane, lane_of

COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""Everything that was found, of whatever lane."""


def pytest_addoption(parser: pytest.Parser) -> None:
    shown = "; ".join(f"{lane.name}: {lane.holds}" for lane in LANES)
    parser.addoption("--lane", choices=[lane.name for lane in LANES], help=f"only the tests of this lane ({shown})")


def lane_of_item(item: pytest.Item) -> Lane:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return lane_of(markers={marker.name for marker in item.iter_markers()}, fixtures=fixtures, path=item.path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)
    if wanted := config.getoption("lane"):
        config.hook.pytest_deselected(items=[item for item in items if lane_of_item(item).name != wanted])
        items[:] = [item for item in items if lane_of_item(item).name == wanted]
