"""When each of a pod's conditions last changed; survives the kubelet through the pod's own status."""

from duet_dev.kubeapi import JsonObject, timestamp
from duet_dev.kubelet.status import Condition


class Transitions:
    def __init__(self, previous: list[JsonObject]) -> None:
        self._last = {c["type"]: (c["status"] == "True", c.get("lastTransitionTime")) for c in previous}

    def dated(self, condition: Condition) -> JsonObject:
        """The condition as the API has it, with the time of its last change."""
        value, since = self._last.get(condition.kind, (None, None))
        if value != condition.value or since is None:
            since = timestamp()
            self._last[condition.kind] = condition.value, since
        return {
            "type": condition.kind,
            "status": str(condition.value),
            "reason": condition.reason or None,
            "message": condition.message or None,
            "lastTransitionTime": since,
        }
