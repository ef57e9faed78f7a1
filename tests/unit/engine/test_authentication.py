"""Who may call an engine: every way in which a token can be wrong, and every way in which trust changes."""

import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode
from tests.support.tokens import AUDIENCE, GATEWAY, HOUR, ISSUER, KEY, NOW, SigningKey, mount, trust

from duet_engine.authentication import Denial, DenialReason, Guard, TokenVerifier, ensure_local_token
from duet_engine.protocol import Trust, token_audience

OPERATOR = "system:serviceaccount:duet-system:duet-operator"
OTHER = SigningKey("other", private=rsa.generate_private_key(public_exponent=65537, key_size=2048))
STATE = "/duet/state"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guarded(tmp_path: Path, clock: Clock) -> Callable[[Trust], Guard]:
    """A guard whose trust document is mounted; call again to change it."""
    path = mount(tmp_path, "trust.json", trust().write())
    guard = Guard(trust_file=path, now=clock)

    def change(document: Trust) -> Guard:
        mount(tmp_path, "trust.json", document.write())
        return guard

    return change


def ask(guard: Guard, token: str | None, path: str = STATE) -> Denial | None:
    return guard.denial(path, None if token is None else f"Bearer {token}")


def reason(guard: Guard, token: str | None, path: str = STATE) -> DenialReason | None:
    denial = ask(guard, token, path)
    return None if denial is None else denial.reason


# --- tokens ---


@pytest.mark.parametrize("key", [KEY, SigningKey("curve", algorithm="ES256")], ids=lambda key: key.algorithm)
def test_a_token_as_the_cluster_issues_it_proves_its_account(key: SigningKey) -> None:
    verdict = TokenVerifier(trust(key)).verify(key.token(), now=NOW)
    assert (verdict.caller, verdict.expires_at) == (GATEWAY, NOW + HOUR)


def _unsigned() -> str:
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": GATEWAY, "exp": NOW + HOUR}
    return jwt.encode(claims, None, algorithm="none", headers={"kid": KEY.name})


def _signed_with_the_public_key() -> str:
    """HS256 over the public key's text: accepted by a verifier that lets the token choose the algorithm."""
    head = {"alg": "HS256", "kid": KEY.name}
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": GATEWAY, "exp": NOW + HOUR}
    text = b".".join(base64url_encode(json.dumps(part).encode()) for part in (head, claims))
    public = KEY.own.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return b".".join((text, base64url_encode(hmac.digest(public, text, "sha256")))).decode()


def _tampered() -> str:
    head, _, signature = KEY.token().split(".")
    claims = KEY.token(sub=OPERATOR).split(".")[1]
    return f"{head}.{claims}.{signature}"


WRONG: dict[str, tuple[Callable[[], str], DenialReason]] = {
    "no JWT": (lambda: "abc", DenialReason.INVALID),
    "unsigned": (_unsigned, DenialReason.INVALID),
    "signed with the public key": (_signed_with_the_public_key, DenialReason.INVALID),
    "tampered with": (_tampered, DenialReason.INVALID),
    "another key of the same name": (SigningKey(KEY.name, private=OTHER.own).token, DenialReason.INVALID),  # type: ignore[arg-type]
    "an unknown key": (OTHER.token, DenialReason.INVALID),
    "no key named": (lambda: KEY.token(named=False), DenialReason.INVALID),
    "another issuer": (lambda: KEY.token(iss="https://other"), DenialReason.INVALID),
    "no issuer": (lambda: KEY.token(iss=None), DenialReason.INVALID),
    "the API server's audience": (lambda: KEY.token(aud=[ISSUER]), DenialReason.INVALID),
    "another object's audience": (lambda: KEY.token(aud=[token_audience("models", "other")]), DenialReason.INVALID),
    "no audience": (lambda: KEY.token(aud=None), DenialReason.INVALID),
    "no subject": (lambda: KEY.token(sub=None), DenialReason.INVALID),
    "no end": (lambda: KEY.token(exp=None), DenialReason.INVALID),
    "an end that is no time": (lambda: KEY.token(exp=True), DenialReason.INVALID),
    "expired": (lambda: KEY.token(exp=NOW - 1), DenialReason.EXPIRED),
    "not yet valid": (lambda: KEY.token(nbf=NOW + 120), DenialReason.INVALID),
    "another account": (lambda: KEY.token(sub="system:serviceaccount:models:default"), DenialReason.FORBIDDEN),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_token_that_is_wrong_in_any_way_is_refused(
    guarded: Callable[[Trust], Guard], make: tuple[Callable[[], str], DenialReason]
) -> None:
    token, expected = make[0](), make[1]
    assert reason(guarded(trust()), token) is expected


def test_a_clock_a_little_behind_the_api_server_s_does_no_harm(guarded: Callable[[Trust], Guard]) -> None:
    assert ask(guarded(trust()), KEY.token(nbf=NOW + 30)) is None


def test_answers_say_what_to_do(guarded: Callable[[Trust], Guard]) -> None:
    guard = guarded(trust())
    missing = ask(guard, None)
    assert missing is not None and (missing.status, missing.reason) == (401, DenialReason.MISSING)
    assert AUDIENCE in json.loads(missing.body())["message"]
    assert missing.headers == {"www-authenticate": 'Bearer realm="duet"'}
    forbidden = ask(guard, KEY.token(sub="system:serviceaccount:models:mallory"))
    assert forbidden is not None and (forbidden.status, forbidden.headers) == (403, {})
    assert json.loads(forbidden.body()) == {
        "object": "error",
        "message": f"system:serviceaccount:models:mallory may not call this engine; {GATEWAY} may",
        "type": "Forbidden",
        "param": None,
        "code": 403,
    }


# --- what is guarded ---


@pytest.mark.parametrize(
    ("path", "guarded_with_a_gateway", "guarded_without"),
    [
        ("/duet/ready", False, False),
        ("/duet/live", False, False),
        ("/metrics", False, False),
        ("/duet/drain", True, True),
        ("/duet/knobs", True, True),
        ("/duet/anything-new", True, True),
        ("/generate", True, False),
        ("/v1/chat/completions", True, False),
        ("/v1/loads", True, False),
        ("/get_server_info", True, False),
        ("/flush_cache", True, True),
        ("/update_weights_from_disk", True, True),
        ("/abort_request", True, True),
        ("/anything-new", True, True),
        ("/v1", True, True),
    ],
)
def test_what_needs_a_token(
    guarded: Callable[[Trust], Guard], path: str, guarded_with_a_gateway: bool, guarded_without: bool
) -> None:
    assert (ask(guarded(trust()), None, path) is not None) is guarded_with_a_gateway
    assert (ask(guarded(trust(open_requests=True)), None, path) is not None) is guarded_without


def test_without_any_file_nothing_is_asked() -> None:
    guard = Guard()
    assert not guard.enforcing
    assert ask(guard, None) is None


# --- trust that changes ---


def test_a_rotated_key_counts_without_a_restart_and_a_withdrawn_one_no_more(
    guarded: Callable[[Trust], Guard],
) -> None:
    guard = guarded(trust(KEY))
    assert ask(guard, KEY.token()) is None
    assert reason(guard, OTHER.token()) is DenialReason.INVALID
    guarded(trust(KEY, OTHER))
    assert ask(guard, OTHER.token()) is None
    assert ask(guard, KEY.token()) is None
    guarded(trust(OTHER))
    assert reason(guard, KEY.token()) is DenialReason.INVALID, "a remembered verdict outlived its key"


def test_a_caller_that_is_struck_off_is_refused_at_once(guarded: Callable[[Trust], Guard]) -> None:
    guard = guarded(trust(callers=(GATEWAY, OPERATOR)))
    token = KEY.token(sub=OPERATOR)
    assert ask(guard, token) is None
    guarded(trust())
    assert reason(guard, token) is DenialReason.FORBIDDEN


def test_a_bad_document_leaves_the_last_good_one_in_force(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = mount(tmp_path, "trust.json", trust().write())
    guard = Guard(trust_file=path, now=clock)
    assert ask(guard, KEY.token()) is None
    mount(tmp_path, "trust.json", b'{"audience": "x"}')
    assert ask(guard, KEY.token()) is None
    assert ask(guard, KEY.token()) is None
    told = [record.message for record in caplog.records if "can't be used" in record.message]
    assert len(told) == 1 and "Trust: issuer" in told[0] and "stays in force" in told[0]


def test_without_a_document_nobody_is_let_in_until_it_comes(tmp_path: Path, clock: Clock) -> None:
    guard = Guard(trust_file=tmp_path / "trust.json", now=clock)
    denial = ask(guard, KEY.token())
    assert denial is not None and (denial.status, denial.reason) == (503, DenialReason.UNAVAILABLE)
    assert ask(guard, None, "/duet/ready") is None
    mount(tmp_path, "trust.json", trust().write())
    assert ask(guard, KEY.token()) is None


def test_a_key_that_nobody_can_use_does_not_spoil_the_others() -> None:
    strange: dict[str, Any] = {"kty": "new", "kid": "strange"}
    shared = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"}
    document = trust().model_copy(update={"keys": (strange, shared, KEY.public())})
    assert TokenVerifier(document).verify(KEY.token(), now=NOW).caller == GATEWAY


# --- verdicts that are remembered ---


def verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokens that are really verified from now on."""
    seen: list[str] = []
    verify = TokenVerifier.verify

    def noted(self: TokenVerifier, token: str, *, now: float) -> Any:
        seen.append(token)
        return verify(self, token, now=now)

    monkeypatch.setattr(TokenVerifier, "verify", noted)
    return seen


def test_a_verdict_is_remembered_for_ten_minutes(
    guarded: Callable[[Trust], Guard], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, token, seen = guarded(trust()), KEY.token(), verifications(monkeypatch)
    for at, verified in ((0, 1), (1, 1), (599, 1), (601, 2), (1199, 2)):
        clock.now = NOW + at
        assert ask(guard, token) is None
        assert len(seen) == verified, at


def test_no_verdict_outlives_its_token(guarded: Callable[[Trust], Guard], clock: Clock) -> None:
    guard, token = guarded(trust()), KEY.token(exp=NOW + 100)
    assert ask(guard, token) is None
    clock.now = NOW + 101
    assert reason(guard, token) is DenialReason.EXPIRED


# --- tokens in files ---


def test_a_shared_token_is_enough_and_follows_its_file(tmp_path: Path) -> None:
    path = mount(tmp_path, "token", b"first\n")
    guard = Guard(shared_token_file=path)
    assert ask(guard, "first") is None
    assert reason(guard, "second") is DenialReason.INVALID
    assert reason(guard, None) is DenialReason.MISSING
    mount(tmp_path, "token", b"second\n")
    assert ask(guard, "second") is None
    assert reason(guard, "first") is DenialReason.INVALID


@pytest.mark.parametrize("content", [b"", b"\n", b"two words"])
def test_a_file_without_a_token_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    guard = Guard(shared_token_file=mount(tmp_path, "token", content))
    assert reason(guard, "") is DenialReason.MISSING
    assert reason(guard, content.decode().strip() or "x") is DenialReason.INVALID


def test_the_container_s_own_token_is_let_in_beside_the_trust_document(tmp_path: Path, clock: Clock) -> None:
    local = tmp_path / "own" / "token"
    ensure_local_token(local)
    first = local.read_text()
    ensure_local_token(local)
    assert local.read_text() == first, "another process of the engine took the token away"
    assert (local.stat().st_mode & 0o777, list(local.parent.iterdir())) == (0o600, [local])
    guard = Guard(trust_file=mount(tmp_path, "trust.json", trust().write()), local_token_file=local, now=clock)
    assert ask(guard, first) is None
    assert reason(guard, first + "x") is DenialReason.INVALID


# --- telling of refusals ---


def test_refusals_are_counted_and_told_without_flooding(
    guarded: Callable[[Trust], Guard], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    guard = guarded(trust())
    with caplog.at_level(logging.WARNING):
        for second in range(61):
            clock.now = NOW + second
            ask(guard, None)
            ask(guard, None, "/generate")
        ask(guard, KEY.token(sub=OPERATOR))
    assert guard.refusals.counts == {DenialReason.MISSING: 122, DenialReason.FORBIDDEN: 1}
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert told[0].endswith("(0 more since the last line)")
    assert told[1].endswith("(119 more since the last line)")
    assert OPERATOR in told[2]
