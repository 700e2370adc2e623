"""Range shorthands of a sweep axis: ``{min, max, num}``, ``{log: ...}``, ``{pow2: ...}`` -> its values."""

from __future__ import annotations

import math
from typing import Any

MOST_VALUES = 100_000

SHAPES = "{min, max, num}, {log: {min, max, num}} or {pow2: {min, max}}"

Number = int | float


class RangeError(ValueError):
    """A shorthand is wrong; the text says what is wrong with it."""


def expand_range(shorthand: dict[str, Any]) -> list[Number]:
    """The values that the shorthand stands for, ascending, each once.

    Raises:
        RangeError: It is not one of the shapes, or its numbers make no range.
    """
    keys = set(shorthand)
    if keys == {"min", "max", "num"}:
        return _linear(*_bounds(shorthand), _num(shorthand["num"]))
    if keys == {"log"}:
        inner = _inner("log", shorthand["log"], {"min", "max", "num"})
        return _log(*_bounds(inner), _num(inner["num"]))
    if keys == {"pow2"}:
        return _pow2(*_bounds(_inner("pow2", shorthand["pow2"], {"min", "max"})))
    raise RangeError(
        f"a mapping with the keys {', '.join(sorted(map(str, keys))) or 'none'} is no range; "
        f"the shapes are {SHAPES}"
    )


def _inner(name: str, value: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise RangeError(f"{name} needs exactly the keys {', '.join(sorted(keys))}; the shapes are {SHAPES}")
    return value


def _bounds(shorthand: dict[str, Any]) -> tuple[Number, Number]:
    low, high = (_finite(name, shorthand[name]) for name in ("min", "max"))
    if low > high:
        raise RangeError(f"min {low} is above max {high}")
    return low, high


def _finite(name: str, value: Any) -> Number:
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise RangeError(f"{name} must be a finite number")


def _num(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise RangeError("num must be a whole number, 1 or more")
    if value > MOST_VALUES:
        raise RangeError(f"num is above {MOST_VALUES:,}")
    return value


def _linear(low: Number, high: Number, num: int) -> list[Number]:
    if num == 1:
        return [low]
    if isinstance(low, int) and isinstance(high, int) and (high - low) % (num - 1) == 0:
        step = (high - low) // (num - 1)
        return _once([low + step * index for index in range(num)])
    inside = [_clean(low + (high - low) * index / (num - 1)) for index in range(1, num - 1)]
    return _once([float(low), *inside, float(high)])


def _log(low: Number, high: Number, num: int) -> list[Number]:
    if low <= 0:
        raise RangeError(f"log needs min above 0, found {low}")
    if num == 1:
        return [low]
    # exp of logs, not a power of the ratio: high / low can overflow
    step = (math.log(high) - math.log(low)) / (num - 1)
    values = [
        float(low),
        *(_clean(math.exp(math.log(low) + step * index)) for index in range(1, num - 1)),
        float(high),
    ]
    if isinstance(low, int) and isinstance(high, int) and all(value.is_integer() for value in values):
        return _once([int(value) for value in values])
    return _once(values)


def _pow2(low: Number, high: Number) -> list[Number]:
    if low <= 0:
        raise RangeError(f"pow2 needs min above 0, found {low}")
    first, last = math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 1
    powers: list[Number] = [
        2**exponent if exponent >= 0 else 2.0**exponent for exponent in range(first, last + 1)
    ]
    inside = [power for power in powers if low <= power <= high]
    if not inside:
        raise RangeError(f"no power of two lies between {low} and {high}")
    return inside if all(isinstance(power, int) for power in inside) else [float(power) for power in inside]


def _clean(value: float) -> float:
    """Without binary noise: 0.30000000000000004 is 0.3."""
    return float(f"{value:.10g}")


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
