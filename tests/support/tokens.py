"""A cluster's signing keys, and service-account tokens as its API server issues them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from duet_engine.protocol import Trust, token_audience

ISSUER = "https://kubernetes.default.svc"
AUDIENCE = token_audience("models", "qwen")
GATEWAY = "system:serviceaccount:models:qwen-gateway"
NOW = 1_800_000_000.0
HOUR = 3600.0

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_PRIVATE = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
}


@dataclass(frozen=True)
class SigningKey:
    """A key pair with its name."""

    name: str
    algorithm: str = "RS256"
    private: PrivateKey | None = field(default=None, repr=False)

    @property
    def own(self) -> PrivateKey:
        return self.private or _PRIVATE[self.algorithm]

    def public(self) -> dict[str, Any]:
        """As `/openid/v1/jwks` shows it."""
        algorithm: Any = jwt.get_algorithm_by_name(self.algorithm)
        document: dict[str, Any] = json.loads(algorithm.to_jwk(self.own.public_key()))
        return {"use": "sig", "kty": document["kty"], "kid": self.name, "alg": self.algorithm} | {
            name: value for name, value in document.items() if name not in ("key_ops", "kty")
        }

    def token(self, *, named: bool = True, **claims: Any) -> str:
        """A token for the gateway that is good for an hour; a claim of None is left out."""
        standard = {"iss": ISSUER, "aud": [AUDIENCE], "sub": GATEWAY, "iat": NOW, "nbf": NOW, "exp": NOW + HOUR}
        chosen = {name: value for name, value in (standard | claims).items() if value is not None}
        return jwt.encode(chosen, self.own, algorithm=self.algorithm, headers={"kid": self.name} if named else None)


KEY = SigningKey("first")


def trust(*keys: SigningKey, callers: tuple[str, ...] = (GATEWAY,), **fields: Any) -> Trust:
    """A trust document with these keys, or the first one."""
    public = tuple(key.public() for key in keys or (KEY,))
    return Trust(audience=AUDIENCE, issuer=ISSUER, keys=public, callers=callers, **fields)


def mount(folder: Path, name: str, content: bytes) -> Path:
    """Show a file as a kubelet does: in a fresh folder to which the link `..data` is moved."""
    number = len(list(folder.glob("..generation*")))
    generation = folder / f"..generation{number}"
    generation.mkdir()
    (generation / name).write_bytes(content)
    draft = folder / "..draft"
    draft.symlink_to(generation.name)
    draft.replace(folder / "..data")
    shown = folder / name
    if not shown.is_symlink():
        shown.symlink_to(Path("..data") / name)
    return shown
