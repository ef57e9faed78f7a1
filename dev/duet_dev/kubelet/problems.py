"""Why a container can't start, in the words that a real kubelet puts into its status."""


class CannotStart(Exception):
    """The container waits for something outside it; `reason` is shown as its waiting reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class StartError(Exception):
    """The container's process could not be started; counts as an exit with code 128."""
