"""The Kubernetes API over one standing connection: a look costs a millisecond, not a start of kubectl."""

import json
import ssl
from http.client import HTTPException, HTTPSConnection
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from duet_dev.cluster import Cluster
from duet_dev.errors import DevError
from duet_operator.cluster import Kind

Document = dict[str, Any]
JSON = "application/json"


class Rest:
    """A client with the administrator's rights, for one thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._token = cluster.token
        context = ssl.create_default_context(cafile=str(cluster.ca))
        self._connection = HTTPSConnection(urlsplit(cluster.url).netloc, context=context, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def get(self, kind: Kind, namespace: str, name: str) -> Document:
        """One object; DevError with the API server's words where there is none."""
        return self._done("GET", kind.path(namespace, name))

    def list(self, kind: Kind, namespace: str | None = None, *, selector: str = "") -> list[Document]:
        """Objects with their kind, which the API server leaves out of lists."""
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        named = {"apiVersion": kind.api_version, "kind": kind.name}
        return [named | item for item in self._done("GET", kind.path(namespace) + query)["items"]]

    def _done(self, method: str, path: str) -> Document:
        status, answer = self.request(method, path)
        if status >= 400:
            raise DevError(f"{method} {path}: {status}: {answer.get('message', '')}")
        return answer

    def request(
        self, method: str, path: str, body: Document | None = None, *, content_type: str = JSON
    ) -> tuple[int, Document]:
        """HTTP status and answer."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        text = json.dumps(body) if body is not None else None
        try:
            return self._ask(method, path, text, headers)
        except (HTTPException, ConnectionError, ssl.SSLError):
            # An API server that was started again, or saw nothing of us for a while, has dropped the connection; a new
            # one is made by itself.
            self._connection.close()
            try:
                return self._ask(method, path, text, headers)
            except (HTTPException, OSError) as error:
                raise DevError(f"{method} {path}: {error}") from error

    def _ask(self, method: str, path: str, text: str | None, headers: dict[str, str]) -> tuple[int, Document]:
        self._connection.request(method, path, text, headers)
        answer = self._connection.getresponse()
        content = answer.read().decode()
        is_json = answer.headers.get_content_type() == JSON
        return answer.status, json.loads(content) if is_json else {"message": content}
