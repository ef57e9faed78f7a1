"""The DuetDeployment API: pydantic models, and the CustomResourceDefinition that is generated from them.

Invariant: every field, default, bound and cross-field rule stands once, in a model; the CRD and the reference are
generated. Nothing here knows Kubernetes clients, reads a clock or sends a byte.
"""
