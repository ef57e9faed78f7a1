"""`make demo`: a local cluster, a DuetDeployment, a trace through its gateway, and a report of what it cost.

Invariant: the demo only uses what any user has (kubectl's API, the gateway's address, the admin ports through the API
server), so a figure in its report is what a user would have seen.
"""
