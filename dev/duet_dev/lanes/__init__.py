"""The tests in lanes, side by side: `python -m duet_dev.lanes`."""
