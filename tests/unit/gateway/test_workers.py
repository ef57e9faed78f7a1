"""Load as a gateway sees it: reported state plus what was sent since, each dispatch counted once."""

from typing import Any

import pytest
from tests.support import documents

from duet_engine.gateway.breaker import FAILURES_TO_EJECT, Breaker
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.workers import STALE_SECONDS, Worker, Workers
from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import (
    RefusalReason,
    Role,
    StepKind,
    Work,
    WorkerInfo,
    WorkerState,
)

PROFILE = documents.profile(kv_capacity_tokens=10_000, max_running_requests=10, chunked_prefill_tokens=1000)
PROMPT_SECONDS = replica_from_document(PROFILE.replica).prompt_seconds(1000, chunk_tokens=1000)


def worker(role: Role = Role.DECODE, *, heard: bool = True, **state: Any) -> Worker:
    member = Member(uid="u", name="w", url="http://127.0.0.1:1", role=role)
    made = Worker(member, gateway_id="g")
    profile = PROFILE.model_copy(update={"role": role})
    made.describe(WorkerInfo(worker="w", role=role, profile=profile))
    if heard:
        made.heard(state_of(role, **state), 100.0)
    return made


def state_of(role: Role = Role.DECODE, **state: Any) -> WorkerState:
    return WorkerState(
        worker="w", role=role, kv_capacity_tokens=10_000, **{"ready": True, "deflection_active": True, **state}
    )


def send(target: Worker, tokens: int = 500, *, local: bool = False) -> Any:
    return target.send(prompt_tokens=tokens, output_reserve_tokens=100, local=local)


def test_a_dispatch_counts_until_the_state_includes_it() -> None:
    decode = worker()
    send(decode)
    assert decode.decode_view().batch.requests == 1
    assert decode.decode_view().kv_free_tokens == 10_000 - 600
    decode.heard(state_of(accepted={"g": 1}, work=Work(decode_transfer=1), kv_used_tokens=500), 100.1)
    view = decode.decode_view()
    assert (view.batch.requests, view.kv_free_tokens, view.free_slots) == (1, 9_500, 9)


def test_requests_that_queue_for_kv_in_the_engine_are_counted_as_if_they_had_it() -> None:
    decode = worker()
    send(decode)
    decode.heard(state_of(accepted={"g": 1}, work=Work(decode_prealloc=2)), 100.1)
    assert decode.decode_view().kv_free_tokens == 10_000 - 2 * 600
    others = worker(work=Work(decode_prealloc=1), decode_requests=2, decode_context_tokens=800)
    assert others.decode_view().kv_free_tokens == 10_000 - 400


def test_a_dispatch_that_ended_counts_no_more() -> None:
    decode = worker()
    work = send(decode)
    decode.ended(work)
    assert decode.decode_view().batch.requests == 0
    assert decode.inflight == 0


def test_other_gateways_confirmations_are_not_ours() -> None:
    decode = worker(accepted={"other": 9})
    send(decode, local=True)
    assert decode.decode_view().local_prefill_tokens == 500


def test_work_ahead_of_a_prefill_worker() -> None:
    prefill = worker(Role.PREFILL, queued_prefill_tokens=2000, work=Work(queued=2))
    reported = 2 * PROMPT_SECONDS
    assert prefill.prefill_view(100.0).ahead_seconds == pytest.approx(reported)
    assert prefill.prefill_view(100.05).ahead_seconds == pytest.approx(reported - 0.05), "it has worked since"
    assert prefill.prefill_view(109.0).ahead_seconds == 0.0
    send(prefill, 1000)
    assert prefill.prefill_view(109.0).ahead_seconds == pytest.approx(PROMPT_SECONDS)


def test_a_step_under_way_is_partly_done() -> None:
    prefill = worker(
        Role.PREFILL,
        queued_prefill_tokens=1000,
        work=Work(queued=1),
        step=StepKind.PREFILL,
        step_started_at_seconds=5000.00,
        written_at_seconds=5000.02,
    )
    assert prefill.prefill_view(100.01).ahead_seconds == pytest.approx(PROMPT_SECONDS - 0.02 - 0.01)


@pytest.mark.parametrize("reason", [RefusalReason.DRAINING, RefusalReason.NOT_READY])
def test_a_worker_that_says_it_leaves_is_out_at_once_and_back_with_its_next_state(reason: RefusalReason) -> None:
    decode = worker()
    assert decode.usable(100.0)
    decode.refused(reason)
    assert not decode.usable(100.0)
    decode.heard(state_of(), 100.1)
    assert decode.usable(100.1)


def test_a_refused_deflection_closes_local_prefill_until_the_next_state() -> None:
    decode = worker()
    decode.refused(RefusalReason.DEFLECTION_OFF)
    assert decode.usable(100.0) and not decode.decode_view().prefills
    decode.heard(state_of(), 100.1)
    assert decode.decode_view().prefills


@pytest.mark.parametrize("state", [{"ready": False}, {"draining": True}])
def test_a_worker_that_does_not_serve_gets_nothing(state: dict[str, bool]) -> None:
    assert not worker(**state).usable(100.0)


def test_a_worker_that_is_lost_or_unheard_gets_nothing() -> None:
    assert not worker(heard=False).usable(100.0)
    decode, told = worker(), []
    decode.on_lost.add(told.append)
    decode.lost()
    assert told == [decode]
    assert not decode.usable(100.0)


def test_the_set_of_workers_follows_the_source() -> None:
    workers = Workers("g")
    first = Member(uid="1", name="a", url="http://127.0.0.1:1", role=Role.PREFILL)
    second = Member(uid="2", name="b", url="http://127.0.0.1:2", role=Role.DECODE)
    come, gone = workers.update([first, second])
    assert ([each.name for each in come], gone) == (["a", "b"], [])
    kept = workers["1"]
    unready = Member(uid="1", name="a", url="http://127.0.0.1:1", role=Role.PREFILL, ready=False)
    come, gone = workers.update([unready])
    assert (come, [each.name for each in gone]) == ([], ["b"])
    assert workers["1"] is kept and not kept.member.ready


def ejected_worker() -> Worker:
    target = worker()
    for _ in range(FAILURES_TO_EJECT):
        target.ended(send(target))
        target.failed(10.0)
    return target


def test_failures_in_a_row_eject_and_one_probe_at_a_time_decides() -> None:
    target = ejected_worker()
    breaker = target.breaker
    assert breaker.ejected and not breaker.allows(10.9)
    assert breaker.allows(11.0)
    probe = send(target)
    assert not breaker.allows(11.1), "one probe is enough"
    target.ended(probe)
    target.failed(11.2)
    assert not breaker.allows(13.0) and breaker.allows(13.3), "twice as long"
    send(target)
    breaker.succeeded()
    assert not breaker.ejected and breaker.allows(13.4)
    assert breaker.ejections_total == 2


def test_only_the_probes_own_end_lets_another_follow() -> None:
    target = worker()
    older = send(target)
    for _ in range(FAILURES_TO_EJECT):
        target.failed(10.0)
    probe = send(target)
    target.ended(older)
    assert not target.breaker.allows(11.0), "the older request says nothing about the probe"
    target.ended(probe)
    assert target.breaker.allows(11.0)


def test_a_first_token_lets_others_come_again_but_one_broken_answer_ejects_anew() -> None:
    target = ejected_worker()
    target.breaker.began()
    assert target.breaker.allows(10.1)
    target.failed(10.2)
    assert target.breaker.ejected


def test_a_success_between_failures_keeps_a_worker() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(1.0)
        breaker.failed(1.0)
        breaker.began()
        breaker.succeeded()
    assert not breaker.ejected


def test_a_state_that_nobody_renews_is_not_trusted() -> None:
    assert worker().usable(100.0 + STALE_SECONDS - 0.1)
    assert not worker().usable(100.0 + STALE_SECONDS)


def test_a_fleet_says_that_its_members_are_the_same_until_one_changes() -> None:
    workers = Workers("g")
    members = [Member(uid=uid, name=uid, url="http://127.0.0.1:1", role=Role.DECODE) for uid in ("a", "b")]
    for come in workers.update(members)[0]:
        come.describe(WorkerInfo(worker=come.name, role=Role.DECODE, profile=PROFILE))
        come.heard(state_of(), 100.0)
    first = workers.fleet(100.0)
    workers["a"].heard(state_of(decode_requests=5), 100.1)
    send(workers["b"])
    assert workers.fleet(100.2).members is first.members, "loads are no members"
    other = PROFILE.model_copy(update={"chunked_prefill_tokens": 500})
    workers["a"].describe(WorkerInfo(worker="a", role=Role.DECODE, profile=other))
    described = workers.fleet(100.2).members
    assert described is not first.members
    for _ in range(FAILURES_TO_EJECT):
        workers["b"].failed(100.3)
    alone = workers.fleet(100.3)
    assert [each.key for each in alone.decode] == ["a"] and alone.members is not described
