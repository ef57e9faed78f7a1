"""A change of scaling.mode changes no number by itself."""

import pytest
from tests.support.duet_objects import Document
from tests.support.recorder import Recorder
from tests.support.serving import PROMPT_TOKENS, Serving, condition, counts, explained, status

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONG_ANSWERS = (PROMPT_TOKENS, 160)
FEW_A_SECOND = 0.8
"""Long answers that need three decode workers, and too few requests for the planner to take them for a burst: it would
keep room for one after it has gone."""


def at_rest(found: Document) -> bool:
    """Nothing is under way any more, and one worker of each kind is enough."""
    return not any(status(found).get("traffic", {"unknown": 1}).values()) and counts(found, "recommended") == (1, 1)


async def test_recommend_reports_and_changes_nothing_and_auto_takes_up_where_it_was(serving: Serving) -> None:
    await serving.apply_and_wait()
    async with Recorder(serving) as recorder, serving.load(LONG_ANSWERS) as load:
        await serving.change({"scaling": {"mode": "Recommend"}})
        await serving.until("Recommend is on", lambda found: explained(found, "ScalingActive")[0] == "RecommendMode")
        assert recorder.counts == {"prefill": [1], "decode": [1]}

        load.requests_per_second = FEW_A_SECOND
        advised = await serving.until("more is recommended", lambda found: counts(found, "recommended")[1] > 1)
        assert condition(advised, "ScalingActive") == "False"
        assert "decode" in status(advised)["decision"]["message"]
        await load.ended(5, seconds=120)
        assert recorder.counts == {"prefill": [1], "decode": [1]}

        load.requests_per_second = 0.0
        await serving.until("nothing more is recommended", at_rest)
        await serving.change({"scaling": {"mode": "Auto"}})
        await serving.until("Auto is on", lambda found: condition(found, "ScalingActive") == "True")
        await serving.settled()

    assert recorder.counts == {"prefill": [1], "decode": [1]}
    assert load.failures == []


async def test_manual_holds_its_replicas_and_leaving_it_changes_nothing_by_itself(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.scaling.scaleDown.stabilizationSeconds": 60})
    async with Recorder(serving) as recorder, serving.load(LONG_ANSWERS) as load:
        await serving.change({"scaling": {"mode": "Manual"}})
        await serving.until("Manual is on", lambda found: explained(found, "ScalingActive")[0] == "ManualMode")
        assert recorder.counts == {"prefill": [1], "decode": [1]}

        await serving.change({"pools": {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}})
        await serving.until("the numbers are the spec's", lambda found: counts(found, "ready") == (2, 2))
        load.requests_per_second = FEW_A_SECOND
        await serving.until("the planner would have more", lambda found: counts(found, "recommended")[1] > 2)
        assert recorder.counts == {"prefill": [1, 2], "decode": [1, 2]}
        load.requests_per_second = 0.0
        await serving.until("the planner would have fewer", at_rest)

        none = {"prefill": {"replicas": None}, "decode": {"replicas": None}}
        await serving.change({"scaling": {"mode": "Auto"}, "pools": none})
        await serving.until("Auto is on", lambda found: condition(found, "ScalingActive") == "True")
        await serving.settled()

    assert recorder.counts == {"prefill": [1, 2], "decode": [1, 2]}
    assert load.failures == []
