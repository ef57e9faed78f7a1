"""One worker's half of an attempt: what it answers, told to the attempt as soon as it means something.

Invariant: each half ends once: with what it was asked for, or with one failure that says whose fault it is.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from duet_engine.gateway.events import EventScanner, EventTooLarge
from duet_engine.gateway.failures import WorkerFailed, answer_failure, broken, content_failure
from duet_engine.gateway.silence import SilenceWatch
from duet_engine.gateway.wire.messages import Headers
from duet_engine.gateway.wire.pool import Call
from duet_engine.gateway.workers import Worker

LONGEST_WHOLE_ANSWER_BYTES = 64 * 2**20
_OK = 200


class Owner(Protocol):
    """Who sent the request."""

    def side_failed(self, side: Side, error: Exception) -> None: ...

    def side_ended(self, side: Side) -> None: ...


class Side:
    """Gathers an answer whole: the prefill worker's, a refusal, or one that isn't streamed."""

    def __init__(
        self, owner: Owner, worker: Worker, *, watch: SilenceWatch, silence_seconds: float, streamed: bool
    ) -> None:
        self.worker = worker
        self.failure: Exception | None = None
        self.ended = False
        self.content = bytearray()
        self.last_heard_at = monotonic()
        self.call: Call | None = None
        self._owner = owner
        self._streamed = streamed
        self._silence_seconds = silence_seconds
        self._status = 0
        self._headers: Headers = {}
        self._watch = watch
        watch.add(self)

    @property
    def over(self) -> bool:
        """Nothing more comes of it."""
        return self.ended or self.failure is not None

    @property
    def succeeded(self) -> bool:
        return self.ended and self.failure is None

    def stop(self) -> None:
        """Nobody wants the rest."""
        self._watch.discard(self)
        if self.call is not None:
            self.call.cancel()

    def fail(self, error: Exception) -> None:
        if self.over:
            return
        self.failure = error
        self.stop()
        self._owner.side_failed(self, error)

    # --- AnswerSink ---

    def answer_began(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers
        self.last_heard_at = monotonic()

    def answer_data(self, data: bytes) -> None:
        self.last_heard_at = monotonic()
        self._gather(data)

    def answer_ended(self) -> None:
        if self.over:
            return
        content = bytes(self.content)
        error = answer_failure(self.worker, self._status, self._headers, content) or content_failure(
            self.worker, content, streamed=self._streamed
        )
        if error is not None:
            self.fail(error)
        else:
            self._end()

    def answer_broke(self, error: Exception) -> None:
        self.fail(broken(self.worker, error))

    def _end(self) -> None:
        self.ended = True
        self._watch.discard(self)
        self._owner.side_ended(self)

    def _gather(self, data: bytes) -> None:
        self.content += data
        if len(self.content) > LONGEST_WHOLE_ANSWER_BYTES:
            self.fail(WorkerFailed(self.worker, f"answered more than {LONGEST_WHOLE_ANSWER_BYTES} bytes"))

    def check_silence(self, now: float) -> None:
        """Fail when nothing has been heard for too long."""
        if now - self.last_heard_at > self._silence_seconds:
            self.fail(WorkerFailed(self.worker, f"silent for {self._silence_seconds:g} s", timed_out=True))


class StreamReceiver(Protocol):
    """Who gets a stream after its first token."""

    def begin(self, first: bytes, tokens: int) -> None:
        """The first events, and how many of them carry tokens."""
        ...

    def events(self, whole: bytes, tokens: int, now: float) -> None:
        """Whole events, how many of them carry tokens, and when they came."""
        ...

    def token(self, chunk: bytes, now: float) -> None:
        """One event with one token, framed as a chunk; only to who `takes_chunks`."""
        ...

    @property
    def takes_chunks(self) -> bool:
        """Whether what it gets goes on in chunks."""
        ...


class StreamSide(Side):
    """The decode worker's half of a streamed answer: events, the first ones looked at before anything goes on."""

    def __init__(
        self,
        owner: StreamOwner,
        worker: Worker,
        *,
        watch: SilenceWatch,
        silence_seconds: float,
        scanner: EventScanner,
    ) -> None:
        super().__init__(owner, worker, watch=watch, silence_seconds=silence_seconds, streamed=True)
        self.tokens = 0
        """Events with tokens in `content`: what came before there was a receiver."""
        self.receiver: StreamReceiver | None = None
        self.scanner = scanner
        self._stream_owner = owner
        self._begun = False

    def answer_data(self, data: bytes) -> None:
        if self._status != _OK:
            super().answer_data(data)
            return
        self.last_heard_at = now = monotonic()
        try:
            whole, tokens = self.scanner.feed(data)
        except EventTooLarge as error:
            self.fail(broken(self.worker, error))
            return
        if not whole:
            return
        if self.receiver is not None:
            self.receiver.events(whole, tokens, now)
        elif not self.over:
            self._gather_events(whole, tokens, now)

    def give_to(self, receiver: StreamReceiver) -> None:
        """From now on, what came before first."""
        self.receiver = receiver
        receiver.begin(bytes(self.content), self.tokens)
        if receiver.takes_chunks and self.call is not None:
            self.call.tap(self._chunk)

    def _chunk(self, chunk: bytes, start: int) -> bool:
        """What nearly every read is: the event of one token. It goes on in the framing in which it came."""
        receiver = self.receiver
        if receiver is None or not self.scanner.is_token(chunk, start):
            return False
        self.last_heard_at = now = monotonic()
        receiver.token(chunk, now)
        return True

    def _gather_events(self, whole: bytes, tokens: int, now: float) -> None:
        self.content += whole
        self.tokens += tokens
        if not self._begun and (self.tokens or self.scanner.done):
            self._begin(now)

    def answer_ended(self) -> None:
        if self._status != _OK:
            super().answer_ended()
        elif self.scanner.done and self._begun:
            self._end()
        else:
            self.fail(WorkerFailed(self.worker, "stream ended without [DONE]", lost=True))

    def _begin(self, now: float) -> None:
        error = content_failure(self.worker, bytes(self.content), streamed=True)
        if error is not None:
            self.fail(error)
        else:
            self._begun = True
            self._stream_owner.stream_began(now)


class StreamOwner(Owner, Protocol):
    """Who sent a request whose answer is streamed."""

    def stream_began(self, now: float) -> None: ...
