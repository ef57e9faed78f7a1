"""Decisions as pure functions: values in, a decision out. Gateway, simulator and engine call the same ones."""
