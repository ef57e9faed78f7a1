"""A replica's document says all that its predictions depend on."""

from __future__ import annotations

import json

import pytest

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.replica import replica_document, replica_from_document
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.sm_curves import SmCurve


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite"])
@pytest.mark.parametrize("gpu", ["h100-3g.40gb", "l40s"])
def test_a_reader_predicts_what_the_writer_does(model: str, gpu: str) -> None:
    measured = SmCurve.measured([(0.5, 0.48, 0.9)])
    written = Roofline(find_shape(model), find_gpu(gpu).with_mps(60), ranks=2, curve=measured)
    read = replica_from_document(json.loads(json.dumps(replica_document(written))))
    batch = StepBatch.decode(16, 16_000).with_chunks(512, 100)
    for share in (0.4, 1.0):
        assert read.step(batch, sm_share=share) == written.step(batch, sm_share=share)
    assert read.kv_capacity_tokens == written.kv_capacity_tokens
    assert read.transfer_seconds(1000) == written.transfer_seconds(1000)


def test_an_incomplete_document_is_refused() -> None:
    document = replica_document(Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100")))
    del document["gpu"]
    with pytest.raises(ValueError, match="a replica's document isn't complete: 'gpu'"):
        replica_from_document(document)
