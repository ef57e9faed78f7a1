"""What gateways say, made into what a planner reads.

Invariant: a number here was measured or is absent. Silence, an old document or a number that isn't one is a reason to
hold, never a zero.
"""
