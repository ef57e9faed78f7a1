"""Service addresses and cluster names on the local cluster, from inside pods and from the host."""

import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest
from tests.support.pods import POD_IP, JsonObject, Namespace, deployment, pod, server, service, shell, until

from duet_dev.cluster import Cluster
from duet_operator.cluster import SERVICE

pytestmark = pytest.mark.cluster

ECHO_SERVER = Path(__file__).parents[1] / "support" / "echo_server.py"
CURL_REFUSED, CURL_UNKNOWN_NAME = 7, 6


def echo(**fields: object) -> JsonObject:
    return {
        "name": "main",
        "image": "python",
        "args": [str(ECHO_SERVER)],
        "env": [POD_IP],
        "ports": [{"name": "echo", "containerPort": 9000}],
        "readinessProbe": {"tcpSocket": {"port": "echo"}, "periodSeconds": 1},
        **fields,
    }


def echo_service(**spec: object) -> JsonObject:
    return service("echo", ports=[{"port": 9000, "targetPort": "echo"}], **spec)


def connected(pods: Namespace) -> tuple[socket.socket, str]:
    """A connection from the host to the Service `echo`, and the name of the pod that answers."""
    port = pods.cluster.forward(f"service/{pods.name}/echo:9000")

    def greeted() -> tuple[socket.socket, str] | None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        greeting = b""
        with contextlib.suppress(ConnectionError):
            while byte := connection.recv(1):
                if byte == b"\n":
                    return connection, greeting.decode()
                greeting += byte
        connection.close()  # the Service has no endpoint yet
        return None

    return until(greeted, "a connection")


def received(connection: socket.socket, count: int) -> bytes:
    """Exactly so many bytes, fewer only at the end."""
    found = b""
    while len(found) < count and (block := connection.recv(count - len(found))):
        found += block
    return found


def caller(pods: Namespace) -> str:
    """The name of a pod from which to call."""
    pods.apply(pod("caller", shell("sleep 600")))
    pods.ready("caller")
    return "caller"


def curl(pods: Namespace, url: str) -> tuple[int, str]:
    """curl's exit code and output, called from the pod `caller`."""
    result = pods.cluster.kubectl(
        "-n", pods.name, "exec", "caller", "--", "sh", "-c", f"curl -s -m 5 {url}; code=$?; echo; echo $code"
    )
    *output, code = result.stdout.splitlines()
    return int(code), "\n".join(output).strip()


def test_connections_go_round_the_ready_pods(pods: Namespace) -> None:
    pods.apply(deployment("web", server(), replicas=3), service("web"))
    names = {p["metadata"]["name"] for p in pods.scaled("web", 3)}
    caller(pods)
    until(lambda: curl(pods, "http://web/")[0] == 0, "the first answer")
    answers = Counter(curl(pods, "http://web/")[1] for _ in range(9))
    assert set(answers) == names
    assert max(answers.values()) <= 4


def test_a_service_without_ready_pods_refuses(pods: Namespace) -> None:
    pods.apply(deployment("web", server(), replicas=1), service("web"))
    (only,) = pods.scaled("web", 1)
    caller(pods)
    until(lambda: curl(pods, "http://web/")[0] == 0, "the first answer")
    pods.exec(only["metadata"]["name"], "curl", "-sf", f"http://{only['status']['podIP']}:8000/unready")
    until(lambda: curl(pods, "http://web/")[0] == CURL_REFUSED, "the refusal")
    pods.exec(only["metadata"]["name"], "curl", "-sf", f"http://{only['status']['podIP']}:8000/ready")
    until(lambda: curl(pods, "http://web/")[0] == 0, "the answer")


def test_every_form_of_a_name_resolves_and_others_do_not(pods: Namespace) -> None:
    pods.apply(deployment("web", server(), replicas=1), service("web"))
    pods.scaled("web", 1)
    caller(pods)
    until(lambda: curl(pods, "http://web/")[0] == 0, "the first answer")
    for host in ("web", f"web.{pods.name}", f"web.{pods.name}.svc", f"web.{pods.name}.svc.cluster.local"):
        assert curl(pods, f"http://{host}/")[0] == 0, host
    for host in ("nobody", f"web.{pods.name}x", "example.com"):
        assert curl(pods, f"http://{host}/")[0] == CURL_UNKNOWN_NAME, host
    assert '"major"' in curl(pods, "-k https://kubernetes.default.svc/version")[1]


def test_a_headless_service_names_its_ready_pods(pods: Namespace) -> None:
    pods.apply(deployment("web", server(), replicas=2), service("web", clusterIP="None"))
    addresses = {p["status"]["podIP"] for p in pods.scaled("web", 2)}
    caller(pods)

    def resolved() -> set[str]:
        lines = pods.exec("caller", "sh", "-c", "getent ahostsv4 web || true").splitlines()
        return {line.split()[0] for line in lines}

    until(lambda: resolved() == addresses, f"the names of {addresses}")
    pods.kubectl("scale", "deployment/web", "--replicas=1")
    left = {p["status"]["podIP"] for p in pods.scaled("web", 1)}
    until(lambda: resolved() == left, f"the name of {left}")


def test_load_balancers_get_an_address_and_node_ports_answer(pods: Namespace) -> None:
    pods.apply(deployment("web", server(), replicas=1), service("web", type="LoadBalancer"))
    pods.wait("jsonpath={.status.loadBalancer.ingress[0].ip}", "service/web")
    found = pods.get(SERVICE, "web")
    assert found["status"]["loadBalancer"]["ingress"][0]["ip"] == found["spec"]["clusterIP"]
    pods.scaled("web", 1)
    caller(pods)
    node_port = found["spec"]["ports"][0]["nodePort"]
    until(lambda: curl(pods, f"http://127.0.0.1:{node_port}/")[0] == 0, "the node's port")


def test_one_direction_may_end_while_the_other_goes_on(pods: Namespace) -> None:
    pods.apply(deployment("echo", echo(), replicas=1), echo_service())
    pods.scaled("echo", 1)
    connection, _ = connected(pods)
    with connection:
        connection.sendall(b"word\n")
        connection.shutdown(socket.SHUT_WR)
        assert received(connection, 100) == b"word\nended\n"


def test_a_slow_reader_slows_the_sender_and_loses_nothing(pods: Namespace) -> None:
    size = 64 * 2**20
    pods.apply(deployment("echo", echo(), replicas=1), echo_service())
    pods.scaled("echo", 1)
    connection, _ = connected(pods)
    with connection:
        connection.sendall(f"flood {size}\n".encode())
        until(lambda: resident_megabytes(pods.cluster) > 0, "the relay")
        assert resident_megabytes(pods.cluster) < 200  # nothing piles up while we don't read
        count = 0
        while block := connection.recv(2**20):
            count += len(block)
        assert count == size


def resident_megabytes(cluster: Cluster) -> float:
    pid = str(cluster.status()["components"]["services"]["pid"])
    kilobytes = cluster.run(["ps", "-o", "rss=", "-p", pid], capture_output=True).stdout
    return int(kilobytes) / 1024


def test_a_broken_connection_is_broken_to_the_caller_too(pods: Namespace) -> None:
    pods.apply(deployment("echo", echo(), replicas=1), echo_service())
    pods.scaled("echo", 1)
    connection, _ = connected(pods)
    with connection:
        connection.sendall(b"break\n")
        with pytest.raises(ConnectionResetError):
            received(connection, 100)


def test_a_standing_connection_outlives_its_endpoint(pods: Namespace) -> None:
    stays = echo(lifecycle={"preStop": {"exec": {"command": ["sleep", "8"]}}})
    pods.apply(deployment("echo", stays, replicas=1, terminationGracePeriodSeconds=30), echo_service())
    (before,) = pods.scaled("echo", 1)
    connection, name = connected(pods)
    with connection:
        assert name == before["metadata"]["name"]
        connection.sendall(b"one\n")
        assert received(connection, 4) == b"one\n"
        pods.kubectl("delete", "pod", before["metadata"]["name"], "--wait=false")
        until(lambda: new_greeting(pods) != before["metadata"]["name"], "the new endpoint alone")
        connection.sendall(b"two\n")
        assert received(connection, 4) == b"two\n"


def new_greeting(pods: Namespace) -> str:
    """Who answers a new connection to the Service."""
    connection, name = connected(pods)
    connection.close()
    return name
