"""A verdict on each number of the measuring path."""

from __future__ import annotations

from llem_airflow.protocol.gpu_profile import Finding, MeasuringPath

_CERTAIN = 0.05
"""Share of the energy of a token that its interval may be, from windows of seconds."""
_CHEAP, _AGREE, _SHOWN = 0.02, 0.03, 0.1
_PEER_AGREES = {"nvidia-smi": _SHOWN, "zeus": _AGREE, "codecarbon": _AGREE}
"""How far another tool's joules may be from ours; what nvidia-smi shows is a mean of the last second on many boards."""
_WHAT = "measuring path on a model with random weights"


def path_findings(path: MeasuringPath | None) -> list[Finding]:
    """The lines of the page; one that says why, where the path was not walked."""
    if path is None:
        return [
            Finding(
                _WHAT, "", "", "unknown", "it was not walked: --minutes or --model-seconds left it no time"
            )
        ]
    if path.n_parameters is None:
        return [Finding(_WHAT, "", "", "unknown", path.problem)]
    where = f"{path.n_parameters / 1e9:.2g} B, {path.dtype}, on {path.device}"
    return [
        Finding(
            _WHAT,
            f"{where}; {path.windows} windows",
            "",
            "unknown" if path.problem else "expected",
            path.problem,
        ),
        _energy(path),
        _harness(path),
        _ratio(
            "counter / integral of power while the model runs",
            path.counter_to_integral_ratio,
            _AGREE,
            path.problem,
        ),
        *(_peer(path, tool, most) for tool, most in _PEER_AGREES.items()),
    ]


def _energy(path: MeasuringPath) -> Finding:
    what, says = "energy of a token of that model", f"known within {_CERTAIN:.0%}"
    energy_j, off_j = path.energy_per_token_j, path.energy_per_token_uncertainty_j
    if energy_j is None or off_j is None:
        return Finding(
            what, "", says, "unknown", path.problem or "the meter does not tell how certain its energies are"
        )
    certain = off_j <= _CERTAIN * energy_j
    why = "" if certain else "the windows were short or other work ran: use more --minutes"
    value = f"{energy_j:.4g} +- {off_j:.2g} J"
    if path.device == "cpu":
        return Finding(
            what, value, says, "unknown", "not real: its work ran on the CPU, its power is a script's"
        )
    return Finding(what, value, says, "expected" if certain else "differs", why)


def _harness(path: MeasuringPath) -> Finding:
    what, says = "tokens per second, harness / bare loop", f"at least {1 - _CHEAP:.0%}"
    ratio, off = path.harness_to_bare_ratio, path.harness_to_bare_uncertainty_ratio
    if ratio is None or off is None:
        return Finding(what, "", says, "unknown", path.problem)
    value = f"{ratio:.2%} +- {off:.2%}"
    if path.device == "cpu":
        return Finding(
            what, value, says, "unknown", "not real: on the CPU model, harness and meter share the cores"
        )
    verdict = (
        "expected" if ratio - off >= 1 - _CHEAP else "differs" if ratio + off < 1 - _CHEAP else "unknown"
    )
    why = {
        "expected": "",
        "differs": "the harness slows this model down: use larger batches",
        "unknown": "other work on this machine hides it",
    }[verdict]
    return Finding(what, value, says, verdict, why)


def _peer(path: MeasuringPath, tool: str, most: float) -> Finding:
    return _ratio(
        f"{tool} / this meter, in the same windows",
        path.peer_ratios.get(tool),
        most,
        path.peer_problems.get(tool) or path.problem or "the meter told no energy of its windows",
    )


def _ratio(what: str, ratio: float | None, most: float, unknown: str) -> Finding:
    says = f"1 +- {most:g}"
    if ratio is None:
        return Finding(what, "", says, "unknown", unknown or "one of them told nothing")
    fine = abs(ratio - 1) <= most
    return Finding(
        what,
        f"{ratio:.4f}",
        says,
        "expected" if fine else "differs",
        "" if fine else "they disagree: a wall meter tells which is right",
    )
