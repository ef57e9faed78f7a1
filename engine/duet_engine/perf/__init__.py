"""Step times and memory of a worker: the one performance model of engine, gateway, planner and simulator."""
