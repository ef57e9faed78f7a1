"""Names for SGLang's objects where hooks take them: SGLang isn't there where types are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Anything = Any
"""Whatever the hooked function takes or returns."""
Original = Callable[..., Any]
Scheduler = Any
"""`managers.scheduler.Scheduler`."""
Batch = Any
"""`managers.schedule_batch.ScheduleBatch`."""
Request = Any
"""`managers.schedule_batch.Req`."""
Tokenized = Any
"""`managers.io_struct.TokenizedGenerateReqInput`."""
Prealloc = Any
"""`disaggregation.decode.DecodePreallocQueue`."""
SamplingParams = Any
"""`sampling.sampling_params.SamplingParams`."""
