"""How kstatus reads an object of a kind that it doesn't know, which `helm --wait` and many others go by.

After sigs.k8s.io/cli-utils: its generation, then Reconciling and Stalled, then Ready.
"""

from typing import Any


def kstatus(manifest: dict[str, Any]) -> str:
    """Terminating, InProgress, Failed or Current."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready") in ("False", "Unknown") else "Current"
