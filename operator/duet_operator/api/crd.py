"""The CustomResourceDefinition of DuetDeployment, generated from the models.

Invariant: the same models give the same bytes. The file that is checked in is written by
`python -m duet_operator.api.crd > crds/duetserve.io_duetdeployments.yaml`; a test compares them.
"""

from __future__ import annotations

import sys
from typing import Any

from duet_operator.api.structural import Schema, structural_schema, without_defaults
from duet_operator.api.v1alpha1 import GROUP, KIND, PLURAL, SHORT_NAME, VERSION, DuetDeployment

HEADER = """\
# Generated from operator/duet_operator/api by `python -m duet_operator.api.crd`. Don't edit.
"""

READY = '.status.conditions[?(@.type=="Ready")]'

COLUMNS: tuple[tuple[str, str, str, int, str], ...] = (
    ("Ready", "string", f"{READY}.status", 0, "Whether requests are served"),
    ("Prefill", "string", ".status.summary.prefill", 0, "Prefill workers, ready/desired"),
    ("Decode", "string", ".status.summary.decode", 0, "Decode workers, ready/desired"),
    ("TTFT P95", "integer", ".status.slo.ttftP95Milliseconds", 0, "95th percentile of TTFT, in milliseconds"),
    ("ITL P95", "integer", ".status.slo.itlP95Milliseconds", 0, "95th percentile of ITL, in milliseconds"),
    ("Attainment", "string", ".status.summary.attainment", 0, "Share of requests that met all their objectives"),
    ("Deflected", "string", ".status.summary.deflected", 0, "Share of prompts that decode workers prefilled"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the object was created"),
    ("Reason", "string", f"{READY}.reason", 1, "Why it is ready or not"),
    ("Decision", "string", ".status.decision.message", 1, "The last decision and its reason"),
)
"""Name, type, JSON path, priority (1: only with `-o wide`) and description of each column of `kubectl get`."""


def custom_resource_definition(*, refuse_unsupported: bool = True) -> dict[str, Any]:
    """The whole definition; `refuse_unsupported` as for `structural_schema`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                # `kubectl get all` shows the object beside the Deployments and Services it owns
                "categories": ["all"],
            },
            "versions": [_version(refuse_unsupported)],
        },
    }


def _version(refuse_unsupported: bool) -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        # No scale subresource: it has one replicas path for a version, and there are two pools, which only the planner
        # can size together. A foreign autoscaler scales the pools' Deployments in Recommend mode.
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path, "priority": priority, "description": description}
            for name, type_, path, priority, description in COLUMNS
        ],
        "schema": {"openAPIV3Schema": _schema(refuse_unsupported)},
    }


def _schema(refuse_unsupported: bool) -> Schema:
    schema = structural_schema(DuetDeployment, refuse_unsupported=refuse_unsupported)
    properties = schema["properties"]
    # A CRD may say no more of these three than their types
    generic = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    own = {"spec": properties["spec"], "status": without_defaults(properties["status"])}
    return schema | {"properties": generic | own, "required": ["spec"]}


def to_yaml() -> str:
    """The checked-in file's text."""
    import yaml  # only the command needs it

    body = yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=120, allow_unicode=True)
    return HEADER + body


if __name__ == "__main__":
    sys.stdout.write(to_yaml())
