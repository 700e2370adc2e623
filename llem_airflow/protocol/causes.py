"""What an exception was raised from, as far as it is known."""

from __future__ import annotations


def causes(error: BaseException | None, *, of_handling: bool = True) -> list[BaseException]:
    """An exception and what it was raised from, or (``of_handling``) while handling; a ring of causes ends."""
    found: list[BaseException] = []
    while error is not None and not any(error is one for one in found):
        found.append(error)
        error = error.__cause__ or (error.__context__ if of_handling else None)
    return found
