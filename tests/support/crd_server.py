"""CRDs on a real API server and its verdict on documents, over one connection: a thousand verdicts in seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.rest import Document, Rest

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ESTABLISH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the API server says of a document."""

    accepted: bool
    message: str
    stored: Document


class CrdServer(Rest):
    """Installs definitions and asks for verdicts; nothing is stored but the definitions."""

    def install(self, definition: Document) -> None:
        """Create a definition and wait until it serves."""
        status, answer = self.request("POST", DEFINITIONS, definition)
        assert status in (201, 409), answer
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        deadline = time.monotonic() + ESTABLISH_SECONDS
        while True:
            # right after its creation a definition answers 404, then 429 for a moment
            status, answer = self.request("GET", f"/apis/{group}/v1alpha1/{plural}")
            if status == 200:
                return
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)

    @contextmanager
    def installed(self, definition: Document) -> Iterator[None]:
        """A definition that is there only meanwhile."""
        self.install(definition)
        yield
        status, answer = self.request("DELETE", f"{DEFINITIONS}/{definition['metadata']['name']}")
        assert status == 200, answer

    def verdict(self, document: Document) -> Verdict:
        """Whether the server would create this object, and how it would store it."""
        path = f"/apis/{document['apiVersion']}/namespaces/default/duetdeployments"
        status, answer = self.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", document)
        return Verdict(status == 201, answer.get("message", ""), answer)
