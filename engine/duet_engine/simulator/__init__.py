"""A fleet in virtual time: discrete events, the live policies, and a result that a seed repeats to the last bit.

`simulate(scenario, requests)` in `run` is the way in; `scenario` says what is simulated, `workload` where requests come
from, `result` what comes out. docs/simulator.md says what is modelled and how it is checked.
"""
