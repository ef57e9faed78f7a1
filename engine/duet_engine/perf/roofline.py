"""Step times of any known model on any known GPU: DuetServe's attention-aware roofline (arXiv 2511.04791).

Invariant: every term rises with tokens, requests at equal context and context, and falls with SMs, so a mixed step is
never shorter than either of its parts. The equations, and what of them is measured, are in docs/performance-model.md.

A step is L layers of token-level operators (matrix products over all tokens of the batch, norms, activation),
sequence-level ones (attention, by request) and communication (two all-reduces), and one product with the vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from duet_engine.perf import memory
from duet_engine.perf.efficiencies import Calibrated, efficiencies_for
from duet_engine.perf.interface import Basis, StepBatch, StepTime, weakest
from duet_engine.perf.shape import BYTES_PER_VALUE, ModelShape
from duet_engine.perf.sm_curves import SmCurve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.interface import FloatArray

Quantity = Any
"""A number, or an array with one for each share of the SMs; one formula serves both."""
SUSTAINED_SECONDS = 1e-3
"""Products that last this long feel half of the slowdown by power limits."""
UNSPLIT_BANDWIDTH = 0.7
"""Decode attention that doesn't split contexts reads at this share of what one that does reaches,"""
UNSPLIT_FROM_SHARE = 0.5
"""runs one block for each request and KV head once these fill this share of the SMs,"""
LONG_CONTEXT_TOKENS, LONG_CONTEXT_HEADS, LONG_CONTEXT_BLOCKS = 8192, 16, 66
"""and with long contexts, from so many on, no more than so many blocks (from the A100's kernel table, the last
from its steps: 66 to 72 do equally well)."""
TABLED_TOKENS, TABLED_ROWS = 16_384, 1_024
"""Sizes of a step for which the part that depends on nothing else is worked out once, in a table."""
PROMPTS_KEPT, SHARES_KEPT, CHUNKS_KEPT = 4096, 512, 64


class Terms(NamedTuple):
    """Where the time of a step goes, in seconds."""

    linear: Quantity
    experts: Quantity
    prefill_attention: Quantity
    decode_attention: Quantity
    elementwise: Quantity
    communication: Quantity
    vocabulary: Quantity


class _Product(NamedTuple):
    """A matrix product, so many times: seconds at the efficiencies and the whole GPU."""

    times: float
    compute_seconds_per_token: float
    weight_seconds: float
    seconds_per_token: float


class Roofline:
    """One replica: a model on `ranks` tensor-parallel GPUs or slices. Implements `interface.StepTimes`."""

    def __init__(
        self,
        shape: ModelShape,
        gpu: Gpu,
        *,
        ranks: int = 1,
        calibrated: Calibrated | None = None,
        curve: SmCurve | None = None,
    ) -> None:
        shape.check_ranks(ranks)
        self.shape, self.gpu, self.ranks = shape, gpu, ranks
        self.calibrated = calibrated or efficiencies_for(gpu)
        self.curve = curve or SmCurve.assumed(gpu)
        self._compile()
        self._own_share = self.curve.at(gpu.sm_share)
        self._shares: dict[float, tuple[float, float]] = {}
        self._tables: tuple[list[float], list[float]] | None = None
        self._prompts: dict[tuple[int, int, int], float] = {}
        self._chunks: dict[int, list[float]] = {}
        """By their size: what so many of them take from a prompt's beginning on."""

    # --- what the replica is made of ---

    @property
    def sms(self) -> int:
        return self.gpu.sms

    @property
    def sm_granularity(self) -> int:
        return self.gpu.sms_per_tpc

    def _compile(self) -> None:
        """Everything that doesn't depend on the batch."""
        e, gpu, shape, ranks = self.calibrated.efficiencies, self.gpu, self.shape, self.ranks
        self._power, self._root = e.overlap, 1.0 / e.overlap
        self._slowdown = e.sustained_slowdown - 1.0
        layers, sparse = shape.layers, shape.expert_layers
        products = [self._product(layers, *sizes) for sizes in shape.attention_linears(ranks)]
        dense, hidden = layers - sparse, shape.hidden_size
        elementwise_bytes = layers * 4.0 * hidden
        if dense:
            products += self._feed_forward(dense, shape.intermediate_size / ranks)
            elementwise_bytes += dense * 3.0 * shape.intermediate_size / ranks
        if shape.experts:
            products.append(self._product(sparse, hidden, shape.experts.count))
            if shape.experts.shared_intermediate_size:
                products += self._feed_forward(sparse, shape.experts.shared_intermediate_size / ranks)
        self._products = tuple(products)
        self._launch_seconds = e.linear_launch_seconds * sum(product.times for product in products)
        self._head = (self._product(1, hidden, shape.vocabulary / ranks),)
        self._head_launch_seconds = e.linear_launch_seconds
        bandwidth = gpu.memory_bytes_per_second
        self._elementwise_seconds_per_token = (
            elementwise_bytes * BYTES_PER_VALUE / (bandwidth * e.elementwise_bandwidth)
        )
        self._elementwise_launch_seconds = e.elementwise_launch_seconds * (2 * layers + dense)
        self._compile_attention()
        self._link = gpu.link_bytes_per_second * e.link_bandwidth
        self._allreduces = 2.0 * layers if ranks > 1 else 0.0
        self._kv_token_bytes = shape.kv_bytes_per_token(ranks)

    def _compile_attention(self) -> None:
        e, gpu, shape, ranks = self.calibrated.efficiencies, self.gpu, self.shape, self.ranks
        compute = gpu.flops_per_second * e.attention_compute
        bandwidth = gpu.memory_bytes_per_second * e.attention_bandwidth
        if not gpu.attention_splits_contexts:
            bandwidth *= UNSPLIT_BANDWIDTH
        layers = shape.layers
        self._attention_launch_seconds = layers * e.attention_launch_seconds
        self._pair_seconds = layers * shape.flops_per_pair(absorbed=False) / ranks / compute
        self._decode_pair_seconds = layers * shape.flops_per_pair(absorbed=True) / ranks / compute
        self._kv_seconds = layers * shape.layer_kv_bytes_per_token(ranks) / bandwidth
        query_bytes = 2.0 * shape.query_heads / ranks * shape.head_size * BYTES_PER_VALUE
        self._query_seconds = layers * query_bytes / bandwidth
        self._blocks_per_request = 1.0 if shape.latent else shape.key_value_heads_on(ranks)

    def _product(self, count: float, inputs: float, outputs: float) -> _Product:
        e, gpu = self.calibrated.efficiencies, self.gpu
        bandwidth = gpu.memory_bytes_per_second * e.linear_bandwidth / BYTES_PER_VALUE
        return _Product(
            count,
            2.0 * inputs * outputs / (gpu.flops_per_second * e.linear_compute),
            inputs * outputs / bandwidth,
            (inputs + outputs) / bandwidth,
        )

    def _feed_forward(self, count: float, width: float) -> list[_Product]:
        hidden = self.shape.hidden_size
        return [self._product(count, hidden, 2 * width), self._product(count, width, hidden)]

    # --- steps ---

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        """How long this batch takes on `sm_share` of the SMs; 0 for an empty one."""
        if batch.decode_requests + batch.prefill_tokens <= 0:
            return 0.0
        if sm_share == 1.0:
            return self._own_step_seconds(batch)
        share = sm_share * self.gpu.sm_share
        compute, bandwidth = self._shares.get(share) or self._share(share)
        tokens, rows = batch[0] + batch[3], batch[0] + batch[2]
        seconds = sum(self._token_level(tokens, compute, bandwidth))
        seconds += self._vocabulary_seconds(rows, compute, bandwidth)
        return float(seconds + self._attention_seconds(batch, compute, bandwidth, share * self.gpu.whole_sms))

    def _share(self, share: float) -> tuple[float, float]:
        """What a share of the SMs reaches; splits are of whole TPCs, so there are few shares."""
        if len(self._shares) >= SHARES_KEPT:
            self._shares.clear()
        found = self._shares[share] = self.curve.at(share)
        return found

    def _own_step_seconds(self, batch: StepBatch) -> float:
        """On all SMs there are: what only depends on numbers of tokens comes from tables."""
        decoding, _, prompts, chunk_tokens, *_ = batch
        compute, bandwidth = self._own_share
        by_tokens, by_rows = self._tables or self._tabulate()
        tokens, rows = decoding + chunk_tokens, decoding + prompts
        if tokens < TABLED_TOKENS and rows < TABLED_ROWS and tokens == (whole := int(tokens)) and rows == int(rows):
            seconds = by_tokens[whole] + by_rows[int(rows)]
        else:
            seconds = float(sum(self._token_level(tokens, compute, bandwidth)))
            seconds += float(self._vocabulary_seconds(rows, compute, bandwidth))
        return seconds + self._attention_seconds(batch, compute, bandwidth, self.gpu.sms)

    def _attention_seconds(self, batch: StepBatch, compute: float, bandwidth: float, active_sms: float) -> float:
        decoding, context, _, chunk_tokens, *_ = batch
        seconds = 0.0
        if chunk_tokens > 0:
            seconds += self._prefill_attention(batch, compute, bandwidth)
        if decoding > 0:
            seconds += self._decode_attention(decoding, context, compute, bandwidth, active_sms, max, math.ceil)
        return seconds

    def _tabulate(self) -> tuple[list[float], list[float]]:
        """A few milliseconds, once."""
        by_tokens = np.asarray(sum(self._token_level(np.arange(float(TABLED_TOKENS)), *self._own_share)))
        by_rows = self._vocabulary_seconds(np.arange(float(TABLED_ROWS)), *self._own_share)
        self._tables = by_tokens.tolist(), by_rows.tolist()
        return self._tables

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        """The same batch at each of many shares."""
        if batch.tokens <= 0:
            return np.zeros_like(sm_shares)
        shares = sm_shares * self.gpu.sm_share
        compute, bandwidth = self.curve.at_each(shares)
        terms = self._terms(batch, compute, bandwidth, shares * self.gpu.whole_sms, np.maximum, np.ceil)
        return np.asarray(sum(terms) + np.zeros_like(shares))

    def step_seconds_by_request(self, requests: Sequence[StepBatch], *, sm_share: float = 1.0) -> float:
        """The step that `requests` make together, with each one's own maximum in attention, as the paper sums it.

        It is never shorter than by the moments of all, and the same where requests are alike.
        """
        whole = StepBatch.of(requests)
        share = sm_share * self.gpu.sm_share
        compute, bandwidth = self.curve.at(share)
        prefilling = [request for request in requests if request.prefill_tokens > 0]
        apart = sum(self._prefill_attention(request, compute, bandwidth) for request in prefilling)
        launched_once = apart - (len(prefilling) - 1) * self._attention_launch_seconds if prefilling else 0.0
        together = self.terms(whole, sm_share=sm_share).prefill_attention
        return float(self.step_seconds(whole, sm_share=sm_share) - together + launched_once)

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        """The step with what it rests on."""
        return StepTime(self.step_seconds(batch, sm_share=sm_share), self.basis(batch, sm_share=sm_share))

    def terms(self, batch: StepBatch, *, sm_share: float = 1.0) -> Terms:
        """Where the time of the step goes."""
        share = sm_share * self.gpu.sm_share
        compute, bandwidth = self.curve.at(share)
        return self._terms(batch, compute, bandwidth, share * self.gpu.whole_sms, max, math.ceil)

    def basis(self, batch: StepBatch, *, sm_share: float = 1.0) -> Basis:
        """What the time of this step rests on."""
        bases, found = self.calibrated.bases, []
        if batch.prefill_tokens > 0:
            found.append(bases.prefix if batch.prefill_context_tokens > 0 else bases.prefill)
        if batch.decode_requests > 0:
            found.append(bases.decode)
        if len(found) == 2:
            found.append(bases.mixed)
        if self.shape.experts:
            found.append(bases.experts)
        if self.shape.latent:
            found.append(bases.latent)
        if self.ranks > 1:
            found.append(bases.communication)
        if self.gpu.mig:
            found.append(Basis.DATA_SHEET)
        if sm_share * self.gpu.sm_share < 1.0:
            found.append(self.curve.basis)
        return weakest(*found)

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        """All steps of one prompt, alone on all SMs, in chunks of at most `chunk_tokens`.

        One decision asks for the same prompt several times, and each chunk of it is a step.
        """
        asked = prompt_tokens, cached_tokens, chunk_tokens
        known = self._prompts.get(asked)
        if known is None:
            if len(self._prompts) >= PROMPTS_KEPT:
                self._prompts.clear()
            known = self._prompts[asked] = self._steps_of_prompt(*asked)
        return known

    def _steps_of_prompt(self, prompt_tokens: int, cached_tokens: int, chunk_tokens: int) -> float:
        done, total = min(cached_tokens, prompt_tokens - 1), 0.0
        if not done:
            whole = prompt_tokens // chunk_tokens
            done, total = whole * chunk_tokens, self._whole_chunks(chunk_tokens, whole)
        while done < prompt_tokens:
            chunk = min(chunk_tokens, prompt_tokens - done)
            total += self.step_seconds(StepBatch.prefill(chunk, done))
            done += chunk
        return total

    def _whole_chunks(self, chunk_tokens: int, count: int) -> float:
        """The first so many chunks of any prompt that is cut so."""
        if chunk_tokens not in self._chunks and len(self._chunks) >= CHUNKS_KEPT:
            self._chunks.clear()
        totals = self._chunks.setdefault(chunk_tokens, [0.0])
        while len(totals) <= count:
            done = (len(totals) - 1) * chunk_tokens
            totals.append(totals[-1] + self.step_seconds(StepBatch.prefill(chunk_tokens, done)))
        return totals[count]

    # --- memory ---

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose KV fits beside the weights; 0 when the weights alone don't fit."""
        return memory.kv_capacity_tokens(self.shape, self.gpu, ranks=self.ranks)

    def transfer_seconds(self, tokens: float) -> float:
        """KV of so many tokens from a prefill to a decode worker."""
        return memory.sending_seconds(self._kv_token_bytes * tokens, self.gpu)

    # --- operators ---

    def _terms(
        self,
        batch: StepBatch,
        compute: Quantity,
        bandwidth: Quantity,
        active_sms: Quantity,
        larger: Callable[[Quantity, Quantity], Quantity],
        ceiling: Callable[[Quantity], Quantity],
    ) -> Terms:
        """The roofline, for one share of the SMs or for many: `compute` and `bandwidth` are shares of the GPU's."""
        tokens = batch.decode_requests + batch.prefill_tokens
        rows = batch.decode_requests + batch.prefill_requests
        linear, experts, elementwise, communication = self._token_level(tokens, compute, bandwidth)
        decode: Quantity = 0.0
        if batch.decode_requests > 0:
            decode = self._decode_attention(
                batch.decode_requests,
                batch.decode_context_tokens,
                compute,
                bandwidth,
                active_sms,
                larger,
                ceiling,
            )
        return Terms(
            linear,
            experts,
            self._prefill_attention(batch, compute, bandwidth) if batch.prefill_tokens > 0 else 0.0,
            decode,
            elementwise,
            communication,
            self._vocabulary_seconds(rows, compute, bandwidth),
        )

    def _token_level(self, tokens: Quantity, compute: Quantity, bandwidth: Quantity) -> tuple[Quantity, ...]:
        """What only depends on the number of tokens: matrix products, experts, norms and activation, all-reduces."""
        return (
            self._launch_seconds + self._products_seconds(self._products, tokens, compute, bandwidth),
            self._experts_seconds(tokens, compute, bandwidth) if self.shape.experts else 0.0,
            self._elementwise_launch_seconds + self._elementwise_seconds_per_token * tokens / bandwidth,
            self._allreduces * self._allreduce_seconds(tokens) if self._allreduces else 0.0,
        )

    def _vocabulary_seconds(self, rows: Quantity, compute: Quantity, bandwidth: Quantity) -> Quantity:
        return self._head_launch_seconds + self._products_seconds(self._head, rows, compute, bandwidth)

    def _products_seconds(
        self, products: tuple[_Product, ...], tokens: Quantity, compute: Quantity, bandwidth: Quantity
    ) -> Quantity:
        power, root, slowdown = self._power, self._root, self._slowdown
        total: Quantity = 0.0
        for times, compute_seconds, weight_seconds, token_seconds in products:
            work = compute_seconds * tokens / compute
            work = work * (1.0 + slowdown * work / (work + SUSTAINED_SECONDS))
            traffic = (weight_seconds + token_seconds * tokens) / bandwidth
            total = total + times * (work**power + traffic**power) ** root
        return total

    def _prefill_attention(self, batch: StepBatch, compute: Quantity, bandwidth: Quantity) -> Quantity:
        """Maxima by request: chunks of one step are near each other, so the moments' maximum is that of each."""
        layers = self.shape.layers
        work = self._pair_seconds * batch.prefill_pairs / compute
        read = self._kv_seconds * (batch.prefill_context_tokens + batch.prefill_tokens)
        traffic = (read + self._query_seconds * batch.prefill_tokens) / bandwidth
        hidden = ((work / layers) ** self._power + (traffic / layers) ** self._power) ** self._root
        return self._attention_launch_seconds + layers * hidden

    def _decode_attention(
        self,
        requests: float,
        context_tokens: float,
        compute: Quantity,
        bandwidth: Quantity,
        active_sms: Quantity,
        larger: Callable[[Quantity, Quantity], Quantity],
        ceiling: Callable[[Quantity], Quantity],
    ) -> Quantity:
        """Each request's own maximum: all have the same work and traffic for each token of context."""
        read = self._kv_seconds * context_tokens
        seconds = larger(self._decode_pair_seconds * context_tokens / compute, read / bandwidth)
        if not self.gpu.attention_splits_contexts:
            blocks = self._unsplit_blocks(requests, context_tokens)
            if blocks:
                seconds = larger(seconds, read * self.gpu.whole_sms * ceiling(blocks / active_sms) / blocks)
        return self._attention_launch_seconds + seconds

    def _unsplit_blocks(self, requests: float, context_tokens: float) -> float:
        """Blocks that decode attention runs where it doesn't split contexts enough to fill the SMs; 0 where it does."""
        blocks = requests * self._blocks_per_request
        if blocks >= UNSPLIT_FROM_SHARE * self.gpu.whole_sms:
            return blocks
        if blocks >= LONG_CONTEXT_HEADS and context_tokens > LONG_CONTEXT_TOKENS * requests:
            return LONG_CONTEXT_BLOCKS
        return 0.0

    def _experts_seconds(self, tokens: Quantity, compute: Quantity, bandwidth: Quantity) -> Quantity:
        """The grouped products of the experts that this many tokens are expected to reach."""
        e, gpu, shape, experts = self.calibrated.efficiencies, self.gpu, self.shape, self.shape.experts
        assert experts is not None
        width, hidden = experts.intermediate_size / self.ranks, shape.hidden_size
        reached = experts.count * (1.0 - (1.0 - experts.per_token / experts.count) ** tokens)
        rows = tokens * experts.per_token
        values = reached * 3.0 * hidden * width + rows * (2.0 * hidden + 3.0 * width)
        work = 6.0 * rows * hidden * width / (gpu.flops_per_second * e.expert_compute) / compute
        traffic = values * BYTES_PER_VALUE / (gpu.memory_bytes_per_second * e.expert_bandwidth) / bandwidth
        seconds = (work**self._power + traffic**self._power) ** self._root
        return shape.expert_layers * (e.expert_launch_seconds + seconds)

    def _allreduce_seconds(self, tokens: Quantity) -> Quantity:
        """The quicker of one exchange of whole messages and a reduce-scatter with an all-gather."""
        e, peers = self.calibrated.efficiencies, self.ranks - 1
        message = tokens * self.shape.hidden_size * BYTES_PER_VALUE / self._link
        whole = e.allreduce_launch_seconds + peers * message
        scattered = e.allreduce_launch_seconds + peers * e.allreduce_hop_seconds + 2.0 * peers / self.ranks * message
        return np.minimum(whole, scattered)
