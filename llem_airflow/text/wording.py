"""How numbers of things are written, wherever people read them."""


def counted(number: int, what: str) -> str:
    """``1 cycle``, ``1,200 cycles``.

    Args:
        number: How many.
        what: The noun in the singular; the plural takes an ``s``.
    """
    return f"{number:,} {what}{'s' * (number != 1)}"
