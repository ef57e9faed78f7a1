"""The nodes.yaml file: which nodes this machine plays, and which local command stands for which image."""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

DEFAULT_CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "250", "ephemeral-storage": "1Ti"}

Quantity = Annotated[str, BeforeValidator(str)]


class FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(FileModel):
    name: str
    capacity: dict[str, Quantity] = {}
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []

    @property
    def resources(self) -> dict[str, str]:
        return DEFAULT_CAPACITY | self.capacity


class Image(FileModel):
    """What runs where a pod names this image: the stand-in for the image's entry point."""

    command: list[str]
    nice: int = 0
    start_delay_seconds: float = Field(default=0, alias="startDelaySeconds", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _bare_command(cls, value: Any) -> Any:  # noqa: ANN401
        return {"command": value} if isinstance(value, list) else value


class Config(FileModel):
    nodes: list[Node] = Field(min_length=1)
    pod_cidr: ipaddress.IPv4Network = Field(alias="podCIDR")
    mounts: bool
    images: dict[str, Image] = {}
    env: dict[str, Quantity] = {}
    backoff: tuple[float, float] = (1, 30)
    heartbeat_seconds: float = Field(default=2, alias="heartbeatSeconds", gt=0)
    cluster_dns: ipaddress.IPv4Address = Field(default=ipaddress.IPv4Address("10.96.0.10"), alias="clusterDNS")
    cluster_domain: str = Field(default="cluster.local", alias="clusterDomain")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file's content; a SystemExit that names the field where it is wrong."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except (ValidationError, yaml.YAMLError, OSError) as error:
            raise SystemExit(f"{path}: {error}") from None

    @property
    def loopback(self) -> bool:
        """Pods have 127.x addresses: no network namespace, and no EndpointSlices, which refuse those."""
        return self.pod_cidr.is_loopback
