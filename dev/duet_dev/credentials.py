"""Keys, tokens and kubeconfig files of one cluster.

Invariant: secrets are made per cluster, lie in its folder readable by its owner only, and are never reused.
"""

import base64
import json
import secrets
import subprocess
from pathlib import Path

ADMIN, KUBELET, SERVICES = "admin", "kubelet", "services"
CONTROLLER_MANAGER_USER, SCHEDULER_USER = "system:kube-controller-manager", "system:kube-scheduler"

# Both `system:` users get their rights from the API server's bootstrap policy.
GROUP_OF_USER = {
    ADMIN: "system:masters",
    KUBELET: "system:masters",
    SERVICES: "system:masters",
    CONTROLLER_MANAGER_USER: "",
    SCHEDULER_USER: "",
}


def write_secrets(folder: Path) -> dict[str, str]:
    """Make the service-account key and the token file; returns each user's token."""
    folder.mkdir(mode=0o700)
    tokens = {user: secrets.token_hex(16) for user in GROUP_OF_USER}
    lines = [f'{tokens[user]},{user},{user},"{group}"\n' for user, group in GROUP_OF_USER.items()]
    (folder / "tokens.csv").write_text("".join(lines))
    key = folder / "sa.key"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return tokens


def write_kubeconfig(path: Path, *, url: str, certificate_authority: bytes, user: str, token: str) -> Path:
    """One user's way in; self-contained, so that it can be copied."""
    authority = base64.b64encode(certificate_authority).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "duet-local",
        "clusters": [{"name": "duet-local", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "duet-local", "context": {"cluster": "duet-local", "user": user}}],
    }
    partial = path.with_name(f".{path.name}")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(document, indent=1))
    return partial.replace(path)
