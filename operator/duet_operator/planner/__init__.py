"""How many prefill and decode workers a deployment needs, and why: pure functions of values.

Invariant: nothing here reads a clock, sends a byte or knows Kubernetes. `plan(observation, memory, spec, performance)`
gives the same decision for the same values, live and simulated.
"""
