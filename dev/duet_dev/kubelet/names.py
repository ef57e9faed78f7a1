"""The files through which a pod's programs resolve names: the cluster's DNS server first and alone."""

import re
from pathlib import Path

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet.config import Config

MOUNTED = {
    "resolv.conf": "/etc/resolv.conf",
    "hosts": "/etc/hosts",
    # The host's resolver service would answer for the host's network, through a socket that namespaces share.
    "nsswitch.conf": "/etc/nsswitch.conf",
}
NSSWITCH = Path("/etc/nsswitch.conf")


def resolver(namespace: str, config: Config, dns_config: JsonObject) -> str:
    domain = config.cluster_domain
    searches = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain, *dns_config.get("searches", [])]
    servers = [str(config.cluster_dns), *dns_config.get("nameservers", [])]
    options = ["ndots:5", *(":".join(filter(None, o.values())) for o in dns_config.get("options", []))]
    return (
        "\n".join(
            [
                *(f"nameserver {server}" for server in servers),
                f"search {' '.join(searches)}",
                f"options {' '.join(options)}",
            ]
        )
        + "\n"
    )


def hosts(pod: JsonObject, address: str) -> str:
    spec, name = pod["spec"], pod["spec"].get("hostname") or pod["metadata"]["name"]
    lines = ["127.0.0.1 localhost", f"{address} {name}"]
    lines += [f"{alias['ip']} {' '.join(alias.get('hostnames', []))}" for alias in spec.get("hostAliases", [])]
    return "\n".join(lines) + "\n"


def switch(original: str) -> str:
    """The name service configuration with host names looked up in the hosts file and by DNS only."""
    without = re.sub(r"(?m)^hosts:.*\n?", "", original)
    return without.rstrip("\n") + "\nhosts: files dns\n"


def write(folder: Path, *, pod: JsonObject, address: str, config: Config) -> None:
    namespace, dns_config = pod["metadata"]["namespace"], pod["spec"].get("dnsConfig", {})
    (folder / "resolv.conf").write_text(resolver(namespace, config, dns_config))
    (folder / "hosts").write_text(hosts(pod, address))
    original = NSSWITCH.read_text() if NSSWITCH.exists() else ""
    (folder / "nsswitch.conf").write_text(switch(original))
