"""What processes of an engine tell each other through shared memory."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing.synchronize import Event
from pathlib import Path

from duet_engine.plugin.board import (
    BOARD_VARIABLE,
    OWNER,
    PREFIX,
    Numbers,
    cards,
    own_board,
    pin_card,
    remove_abandoned,
)
from duet_engine.plugin.facts import FACT_NAMES, SchedulerFacts, facts_from
from duet_engine.protocol import HookStatus, ProcessInfo

WIDTH = 50


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    facts = SchedulerFacts(running=3, queued_prefill_tokens=1_200, headroom_tokens_per_second=12.5)
    Numbers(tmp_path / "scheduler-0.numbers", FACT_NAMES, create=True).write(facts.values())
    read = Numbers(tmp_path / "scheduler-0.numbers", FACT_NAMES, create=False)
    assert facts_from(read.read()) == facts


def _write_on(path: Path, stop: Event) -> None:
    numbers = Numbers(path, [str(place) for place in range(WIDTH)], create=True)
    value = 0.0
    while not stop.is_set():
        value += 1.0
        numbers.write([value] * WIDTH)


def test_a_reader_never_sees_half_of_a_write(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    names = [str(place) for place in range(WIDTH)]
    numbers = Numbers(path, names, create=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=_write_on, args=(path, stop))
    writer.start()
    try:
        while numbers.version == 0:
            assert writer.is_alive()
        seen = [set(numbers.read()) for _ in range(20_000)]
    finally:
        stop.set()
        writer.join()
    assert all(len(values) == 1 for values in seen)
    assert len({value for values in seen for value in values}) > 1


def test_cards_tell_who_is_there(tmp_path: Path) -> None:
    card = ProcessInfo(name="scheduler", rank=1, pid=7, hooks=(HookStatus(target="a.b", active=True),))
    pin_card(tmp_path, card)
    pin_card(tmp_path, card.model_copy(update={"pid": 8}))
    assert [(found.name, found.rank, found.pid) for found in cards(tmp_path)] == [("scheduler", 1, 8)]


def test_one_engine_has_one_board() -> None:
    before = os.environ.pop(BOARD_VARIABLE, None)
    try:
        first = own_board()
        assert first == own_board() == Path(os.environ[BOARD_VARIABLE])
        shutil.rmtree(first)
    finally:
        os.environ.pop(BOARD_VARIABLE, None)
        if before is not None:
            os.environ[BOARD_VARIABLE] = before


def test_a_killed_engines_board_goes_with_the_next_engine_and_a_living_ones_stays(tmp_path: Path) -> None:
    make = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from duet_engine.plugin import board\n"
        "board.SHARED_MEMORY = Path(sys.argv[1])\n"
        "print(board.own_board(), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != BOARD_VARIABLE}
    command = [sys.executable, "-c", make, str(tmp_path)]
    stranger = tmp_path / f"{PREFIX}strangers"
    stranger.mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert (folder / OWNER).exists()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [stranger]
