"""Discrete events: a fleet under a workload, with the policies and the performance model of the live system."""
