"""Capacity planning without a cluster: what `duet simulate` and `duet size` do."""
