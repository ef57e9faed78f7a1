"""Deflected prefill on decode workers, as the plugin's frame takes it.

Invariant: the hooks belong together; where one isn't in force the frame says that the worker isn't ready.
"""

from __future__ import annotations

import logging
import time

from duet_engine.plugin import deflection_scheduler, deflection_tokenizer
from duet_engine.plugin import deflection_view as view
from duet_engine.plugin.asgi import Module as ServerModule
from duet_engine.plugin.deflection_intake import watcher
from duet_engine.plugin.deflection_scheduler import open_lane, resolved_arguments
from duet_engine.plugin.deflection_settings import DeflectionSettings, requests_limit
from duet_engine.plugin.deflection_support import TAKE_TURNS, feature_verdicts, lacks
from duet_engine.plugin.facts import SchedulerFacts
from duet_engine.plugin.features import declare_deflected
from duet_engine.plugin.modules import PluginModule
from duet_engine.plugin.scheduler_side import SchedulerSide
from duet_engine.plugin.server_side import ServerSide

log = logging.getLogger(__name__)
HEADROOM_SECONDS = 0.1
"""How old the headroom may get: it asks the performance model several times, and a step has no time for that."""


def scheduler_started(side: SchedulerSide) -> None:
    """Give the scheduler its lane, and let it follow the frame's knobs and model."""
    settings = DeflectionSettings(knobs=side.knobs, steps=side.model, most_deflected_requests=requests_limit())
    lane = open_lane(side.scheduler, settings)
    side.on_knobs.append(lane.apply)
    decode = side.scheduler.disaggregation_mode.value == "decode"
    if decode and (missing := lacks(resolved_arguments(side.scheduler))):
        log.warning("deflected prompts cost more here than on an ordinary server: no %s", "; no ".join(missing))

    headroom_at = 0.0

    def contribute(facts: SchedulerFacts) -> None:
        """What deflection adds to the worker's state."""
        nonlocal headroom_at
        if side.scheduler.disaggregation_mode.value != "decode":
            return
        facts.deflected = float(sum(1 for _ in view.unfinished(side.scheduler)))
        # They wait in SGLang's own queue, and each request is counted in one place.
        facts.queued = max(0.0, facts.queued - facts.deflected)
        facts.queued_deflected_tokens = float(lane.queued_tokens())
        facts.deflection_active = float(lane.not_supported is None and lane.settings.knobs.deflection_enabled)
        if time.monotonic() - headroom_at >= HEADROOM_SECONDS:
            headroom_at = time.monotonic()
            facts.headroom_tokens_per_second = lane.headroom_tokens_per_second()
        facts.deflected_tokens_total = float(lane.tokens_total)
        facts.deflected_requests_total = float(lane.requests_total)

    side.on_refresh.append(contribute)


def server_module(side: ServerSide) -> ServerModule:
    """Watch requests as they come in."""
    declare_deflected(feature_verdicts(), mixed=TAKE_TURNS)
    return watcher(lambda: side.role, count=lambda reason: side.refusals.update((reason,)))


MODULE = PluginModule(
    name="deflection",
    hooks=(*deflection_scheduler.HOOKS, *deflection_tokenizer.HOOKS),
    scheduler_started=scheduler_started,
    server_module=server_module,
)
