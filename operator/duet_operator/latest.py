"""A pure function that remembers its last result, for as long as it gets the same inputs.

Invariant: what comes back equals what the function would return, and is never changed by who gets it. At rest an
object's inputs stay the same pass after pass, and most of what a pass costs would be to make the same things again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


class Latest(Generic[Inputs, Result]):
    """Of one object; an input is the same where it's the very one, or equal to it."""

    def __init__(self, function: Callable[Inputs, Result]) -> None:
        self._function = function
        self._known: tuple[tuple[object, ...], Result] | None = None

    def __call__(self, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        """What the function returns of these; an error isn't remembered."""
        # Tuples compare their items by identity first, which is what makes this cheap.
        inputs = (*args, *kwargs.items())
        if self._known is None or self._known[0] != inputs:
            self._known = inputs, self._function(*args, **kwargs)
        return self._known[1]
