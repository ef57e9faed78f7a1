"""What a DuetDeployment's objects look like: pure builders of plain manifests for server-side apply.

Invariant: the same DuetDeployment and images give byte-equal manifests; nothing here reads a clock or knows a client.
"""
