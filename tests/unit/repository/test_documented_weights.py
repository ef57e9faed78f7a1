"""What the page about weights shows is what the API takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from duet_operator.api.v1alpha1 import ModelSpec

PAGE = (Path(__file__).parents[3] / "docs" / "weights.md").read_text()
SHOWN: list[dict[str, Any]] = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: "-".join(shown["model"].get("source", {"hub": None})))
def test_each_example_is_read_whole(shown: dict[str, Any]) -> None:
    def within(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(name in whole and within(value, whole[name]) for name, value in part.items())
        return bool(part == whole)

    assert shown.keys() == {"model"}
    assert within(shown["model"], ModelSpec.model_validate(shown["model"]).to_dict())


def test_each_source_is_shown() -> None:
    sources = [shown["model"].get("source", {}) for shown in SHOWN]
    assert {name for source in sources for name in source} == {"huggingFace", "persistentVolumeClaim", "image"}
    assert {} in sources
