"""The command line of each component of the control plane.

Invariant: pure, apart from the paths of built binaries; every server listens on loopback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duet_dev import build

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    etcd_client: int
    etcd_peer: int
    api_server: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True, slots=True)
class Files:
    """Where a cluster's files lie under its root."""

    root: Path

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def certificate_authority(self) -> Path:
        # The API server's self-signed certificate comes with the authority that signed it.
        return self.pki / "apiserver.crt"

    @property
    def service_account_key(self) -> Path:
        return self.pki / "sa.key"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes.yaml"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def kubeconfig(self, user: str) -> Path:
        return self.root / f"{user.removeprefix('system:')}.kubeconfig"


def flags(**values: object) -> list[str]:
    """`data_dir="x", profiling=False` as `--data-dir=x --profiling=false`."""
    spelled = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [f"--{name.replace('_', '-')}={value}" for name, value in spelled.items()]


def etcd_url(ports: Ports) -> str:
    return f"http://{HOST}:{ports.etcd_client}"


def api_server_url(ports: Ports) -> str:
    return f"https://{HOST}:{ports.api_server}"


def etcd(files: Files, ports: Ports) -> list[str]:
    client, peer = etcd_url(ports), f"http://{HOST}:{ports.etcd_peer}"
    return [
        str(build.binary_path(build.ETCD)),
        *flags(
            data_dir=files.root / "etcd",
            unsafe_no_fsync=True,
            log_level="warn",
            listen_client_urls=client,
            advertise_client_urls=client,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
        ),
    ]


def api_server(files: Files, ports: Ports, *, service_network: str, controllers: bool) -> list[str]:
    # Without the controller manager nobody makes the service accounts that this plugin demands of pods.
    disabled = [] if controllers else flags(disable_admission_plugins="ServiceAccount")
    return [
        str(build.binary_path(build.API_SERVER)),
        *flags(
            etcd_servers=etcd_url(ports),
            bind_address=HOST,
            secure_port=ports.api_server,
            advertise_address=HOST,
            endpoint_reconciler_type="none",
            # As some distributions have it: who sets an owner reference needs a right for it.
            enable_admission_plugins="OwnerReferencesPermissionEnforcement",
            cert_dir=files.pki,
            token_auth_file=files.pki / "tokens.csv",
            authorization_mode="RBAC",
            allow_privileged=True,
            service_account_issuer="https://kubernetes.default.svc",
            service_account_key_file=files.service_account_key,
            service_account_signing_key_file=files.service_account_key,
            service_cluster_ip_range=service_network,
            profiling=False,
            default_not_ready_toleration_seconds=5,
            default_unreachable_toleration_seconds=5,
        ),
        *disabled,
    ]


def controller_manager(files: Files, ports: Ports, kubeconfig: Path) -> list[str]:
    return [
        str(build.binary_path(build.CONTROLLER_MANAGER)),
        *_client_flags(kubeconfig, ports.controller_manager),
        *flags(
            use_service_account_credentials=True,
            service_account_private_key_file=files.service_account_key,
            root_ca_file=files.certificate_authority,
            node_monitor_period="1s",
            # Longer than the API server takes to come back on a busy machine: its absence looks like the nodes' own.
            node_monitor_grace_period="20s",
            node_startup_grace_period="20s",
            horizontal_pod_autoscaler_sync_period="5s",
        ),
    ]


def scheduler(ports: Ports, kubeconfig: Path) -> list[str]:
    return [str(build.binary_path(build.SCHEDULER)), *_client_flags(kubeconfig, ports.scheduler)]


def _client_flags(kubeconfig: Path, port: int) -> Sequence[str]:
    return flags(
        kubeconfig=kubeconfig,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        bind_address=HOST,
        secure_port=port,
        leader_elect=False,
        profiling=False,
        kube_api_qps=200,
        kube_api_burst=400,
    )
