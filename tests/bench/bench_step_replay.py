"""The simulator against the real SGLang on the CPU: its steps played again, and its latencies predicted.

Run: `make bench-step-replay` where nothing else runs (five minutes). A
prefill and a decode worker answer 505 requests, two of five of them deflected. From the recording:

- each step as long as it was: how many steps come out the same by themselves (kind, rows, chunks, context; KV; queues);
- the first third calibrates the performance model; TTFT and TPOT of the other two thirds are predicted from arrivals.

`--folder F` keeps the recording there or, where F holds one, evaluates that. `--calibration F` writes the efficiencies
as `duet calibrate` does. Writes docs/results/step_replay.*.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import bench_rows, step_comparison, step_prediction, step_recording
from tests.support.bench_rows import Row, row
from tests.support.step_comparison import Recorded
from tests.support.step_prediction import Model
from tests.support.step_recording import Answered

from duet_dev import engine_environment
from duet_engine.perf.efficiencies import to_document
from duet_engine.simulator.replay import replay

SEED, REQUESTS, DECODES = 7, 505, ("decode-0",)
SEEDS_OF_NOISE = 5
FITTED_SHARE = 1 / 3
GOAL_SHARE_PERCENT = 95.0
COMMAND = "make bench-step-replay"
NOTES = """
A prefill and a decode worker of SGLang 0.5.23 with a tiny Llama on the CPU, in bursts of up to ten requests.

- *Replay.* Given to the simulator: when each request came, its route, how long each step took (with what the engine did
  until the next one), and when its KV had a place and was there. Everything else comes out by itself: what is computed
  together, in which order, in which chunks, with how much KV. Decode steps that leave a prompt half computed, chunks
  beside residents and transfers that join between chunks are among them.
- Of the prefill worker's steps, those with other KV or queues differ in prompts that are on their way: the simulated
  worker lets go of one when the decode worker has it, the real one when it has heard of that.
- *Prediction.* From arrivals and routes alone, by the model that the first third calibrates. Steps are off it as they
  were there, in runs of 64, and each request's way between processes takes as long as one that was measured there: more
  than these workers runs on two cores, and it comes and goes. What the later two thirds took isn't looked at.
- Overlap scheduling was off: with it a request that has ended takes part in one more step, which isn't simulated.
"""
WAYS: dict[str, Callable[[Answered], bool]] = {
    "all": lambda _: True,
    "by transfer": lambda answer: answer.prefill is not None,
    "deflected": lambda answer: answer.prefill is None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--calibration", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        if not (folder / "answers.json").exists():
            engine_environment.ensure()
            folder.mkdir(parents=True, exist_ok=True)
            step_recording.record(folder, step_recording.bursts(REQUESTS, seed=SEED, decodes=DECODES), decodes=DECODES)
        recorded = step_comparison.read(folder)
    until = recorded.answers[int(len(recorded.answers) * FITTED_SHARE)].sent_at
    model = step_prediction.fit(recorded, until=until)
    if chosen.calibration:
        chosen.calibration.write_text(json.dumps({"cpu": to_document(model.calibrated)}, indent=2) + "\n")
    late = replace(recorded, answers=tuple(each for each in recorded.answers if each.sent_at >= until))
    rows = [*_replayed(recorded), *_predicted(late, model)]
    bench_rows.write_results(
        rows, name="step_replay", title="The simulator against the real SGLang", command=COMMAND, seed=SEED
    )
    page = bench_rows.RESULTS / "step_replay.md"
    page.write_text(page.read_text() + NOTES)


def _replayed(recorded: Recorded) -> Iterator[Row]:
    """Steps that came out by themselves, given how long each took."""
    found = replay(step_comparison.recording(recorded), step_comparison.scenario(recorded))
    yield row("requests", len(recorded.answers), "requests")
    yield row("of these deflected", sum(each.prefill is None for each in recorded.answers), "requests")
    total = {"same": 0, "most": 0}
    for name, agreement in sorted(found.items()):
        most = max(agreement.logged, agreement.simulated)
        total["same"] += agreement.same_batch
        total["most"] += most
        for what, same in (
            ("same kind, rows, chunks and context", agreement.same_batch),
            ("the same KV too", agreement.same_kv),
            ("the same queues too", agreement.same_queues),
        ):
            yield row(f"{name}, steps with {what}", same, "steps", "all steps", most)
    percent = round(100 * total["same"] / total["most"], 2)
    yield row("steps reproduced", percent, "%", "goal", GOAL_SHARE_PERCENT)


def _predicted(recorded: Recorded, model: Model) -> Iterator[Row]:
    """Predicted latencies beside what clients measured."""
    runs = [step_prediction.predicted(recorded, model, seed=seed) for seed in range(SEEDS_OF_NOISE)]
    for way, belongs in WAYS.items():
        places = [place for place, answer in enumerate(recorded.answers) if belongs(answer)]
        measured = [(recorded.answers[place].ttft_seconds, recorded.answers[place].tpot_seconds) for place in places]
        ours = [run[place] for run in runs for place in places]
        for column, figure in enumerate(("TTFT", "TPOT")):
            for share in (50, 95):
                values = [
                    1e3 * float(np.percentile([each[column] for each in some], share)) for some in (ours, measured)
                ]
                yield row(
                    f"{figure} P{share}, {way}, predicted", round(values[0], 1), "ms", "measured", round(values[1], 1)
                )


if __name__ == "__main__":
    main()
