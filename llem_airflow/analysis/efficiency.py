"""Throughput, and energy per unit of work. Each metric is one function with its formula."""

from __future__ import annotations


class UndefinedMetricError(ValueError):
    """The metric has no value for this input; it is not zero."""


def output_tokens_per_s(output_tokens: int, window_s: float) -> float:
    """Output token throughput, in tokens per second.

    Formula: generated tokens of the window / length of the window. Prompt tokens do not count.
    """
    return output_tokens / _positive(window_s, "output tokens per second: the window has no length")


def total_tokens_per_s(input_tokens: int, output_tokens: int, window_s: float) -> float:
    """Prompt and generated tokens per second.

    Formula: (input tokens + output tokens) / length of the window.
    """
    return (input_tokens + output_tokens) / _positive(window_s, "tokens per second: the window has no length")


def requests_per_s(requests: int, window_s: float) -> float:
    """Request throughput, in requests per second.

    Formula: requests completed in the window / length of the window.
    """
    return requests / _positive(window_s, "requests per second: the window has no length")


def energy_per_output_token_j(energy_j: float, output_tokens: int) -> float:
    """Energy per output token, in joules per token.

    Formula: energy of the window / tokens generated in it.

    Raises:
        UndefinedMetricError: The window produced no output tokens.
    """
    return energy_j / _positive(
        output_tokens, "energy per output token: the window produced no output tokens"
    )


def energy_per_total_token_j(energy_j: float, input_tokens: int, output_tokens: int) -> float:
    """Energy per token of prompt or answer, in joules per token.

    Formula: energy of the window / (input tokens + output tokens).

    Raises:
        UndefinedMetricError: The window saw no tokens.
    """
    return energy_j / _positive(input_tokens + output_tokens, "energy per token: the window saw no tokens")


def energy_per_request_j(energy_j: float, requests: int) -> float:
    """Energy per request, in joules.

    Formula: energy of the window / requests completed in it.

    Raises:
        UndefinedMetricError: The window completed no request.
    """
    return energy_j / _positive(requests, "energy per request: the window completed no request")


def output_tokens_per_j(energy_j: float, output_tokens: int) -> float:
    """Output tokens per joule.

    Formula: tokens generated in the window / energy of the window.

    Raises:
        UndefinedMetricError: The energy is not positive.
    """
    return output_tokens / _positive(energy_j, "output tokens per joule: the energy is not positive")


def energy_delay_product_j_s(energy_per_request: float, e2el_s: float) -> float:
    """Energy-delay product, in joule seconds: lower is better in energy and in latency together.

    Formula: energy per request, in joules, x mean end-to-end latency, in seconds.
    """
    return energy_per_request * e2el_s


def co2e_g(energy_j: float, intensity_g_per_kwh: float) -> float:
    """Greenhouse gas of an energy, in grams of CO2 equivalent: an estimate.

    Formula: energy in kWh x stated carbon intensity of the electricity, in g per kWh.
    """
    return energy_j / 3.6e6 * intensity_g_per_kwh


def cost(energy_j: float, price_per_kwh: float) -> float:
    """Cost of an energy in the currency of the price: an estimate.

    Formula: energy in kWh x stated price per kWh.
    """
    return energy_j / 3.6e6 * price_per_kwh


def _positive(value: float, message: str) -> float:
    if value <= 0:
        raise UndefinedMetricError(message)
    return value
