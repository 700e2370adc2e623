"""How numbers of things are written, wherever people read them."""


def counted(number: int, what: str) -> str:
    """``1 cycle``, ``1,200 cycles``.

    Args:
        number: How many.
        what: The noun in the singular; the plural takes an ``s``.
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


def span(seconds: float) -> str:
    """A time that has gone by, in its two largest units."""
    minutes, left_s = divmod(max(0, round(seconds)), 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    if days:
        return f"{days} d {left_h} h"
    if hours:
        return f"{hours} h {left_min} min"
    return f"{minutes} min {left_s} s" if minutes else f"{left_s} s"
