from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from llem_airflow.analysis import contrast
from llem_airflow.analysis.contrast import (
    ENERGY,
    HIGHER,
    LOWER,
    SAME,
    SPEED,
    UNDECIDED,
    Contrast,
    Measured,
    answer,
    contrasts,
)
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.study.plan.order import ordered


def _cycles(
    id_: str,
    energies: Sequence[float | None],
    positions: Sequence[int],
    kind: str = "measured",
    gpu: str = "GPU-1",
) -> tuple[Cycle, ...]:
    return tuple(
        Cycle(
            id_,
            k,
            "valid" if joules is not None else "invalid_energy",
            position=at,
            engine="transformers",
            model="tiny",
            gpus=(gpu,),
            energy_kind=kind,
            energy_boundary="board",
            measures={ENERGY: joules, SPEED: 10.0 * k},
        )
        for k, (joules, at) in enumerate(zip(energies, positions, strict=True), 1)
    )


def _run(
    *energies: Sequence[float | None], kind: str = "measured", sequential: bool = False
) -> list[Measured]:
    """Experiments of batch size 1, 2, 4, … in interleaved order."""
    count = len(energies)
    found = []
    for index, values in enumerate(energies):
        n = len(values)
        positions = [index * n + k if sequential else k * count + index for k in range(n)]
        size = 2**index
        factors = {"transformers.batch_size": size}
        rows = _cycles(f"b{size}", values, positions, kind)
        found.append(Measured(f"b{size}", f"batch_size {size}", factors, rows))
    return found


def _told(run: list[Measured], planned: int | None = None) -> str:
    """The sentence, with hyphens for minus signs."""
    cycles = [row for one in run for row in one.rows]
    valid = sum(row.status == "valid" for row in cycles)
    return answer(run, planned or len(cycles), valid).sentence.replace("\N{MINUS SIGN}", "-")


def test_pairs_cancel_a_drift_that_hits_both_alike() -> None:
    # Energies double from pass to pass; in each pass the second is 20 % lower.
    run = _run([10.0, 20.0, 40.0], [8.01, 15.98, 32.0])
    (found,) = contrasts(run, ENERGY, 2)
    assert (found.method, found.verdict, found.n_candidate) == ("paired", LOWER, 3)
    assert found.difference_ratio == pytest.approx(-0.2, abs=1e-3)
    (welch,) = contrasts(_run([10.0, 20.0, 40.0], [8.01, 15.98, 32.0], sequential=True), ENERGY, 2)
    assert (welch.method, welch.verdict) == ("welch", UNDECIDED)


def test_the_interval_is_that_of_the_comparison_of_pairs_on_logarithms() -> None:
    a, b = np.array([10.0, 11.0, 10.5]), np.array([5.0, 5.2, 5.6])
    (found,) = contrasts(_run([*a], [*b]), ENERGY, 2)
    d = b / b.mean() - a / a.mean()
    half = 4.302652729911275 * d.std(ddof=1) / math.sqrt(3)  # t(0.975, 2), delta method
    ratio = b.mean() / a.mean()
    assert found.difference_ratio == pytest.approx(ratio - 1)
    assert found.low_ratio == pytest.approx(ratio * math.exp(-half) - 1)
    assert found.high_ratio == pytest.approx(ratio * math.exp(half) - 1)


def test_an_interval_of_a_ratio_never_reaches_minus_one() -> None:
    (found,) = contrasts(_run([10.0, 1.0], [1.0, 10.0]), ENERGY, 2)
    assert found.low_ratio is not None
    assert found.low_ratio > -1.0
    assert found.verdict == UNDECIDED


@pytest.mark.parametrize("order", ["interleave", "shuffle", "reverse", "latin_square"])
def test_every_order_in_passes_gives_pairs_and_the_sequential_one_does_not(order: str) -> None:
    def method(name: str) -> set[str]:
        indices = [one for one, _ in ordered(4, 3, name, 7)]
        run = []
        for index in range(4):
            at = [k for k, one in enumerate(indices) if one == index]
            rows = _cycles(str(index), [1.0, 1.1, 1.2], at)
            run.append(Measured(str(index), str(index), {"x": index}, rows))
        return {one.method for one in contrasts(run, ENERGY, 4)}

    assert method(order) == {"paired"}
    assert method("sequential") == {"welch"}


def test_a_cycle_that_failed_takes_its_pair_away_and_one_pair_is_no_basis() -> None:
    run = _run([10.0, 10.1, 10.2], [5.0, None, 5.1])
    (found,) = contrasts(run, ENERGY, 2)
    assert (found.method, found.n_reference, found.n_candidate) == ("paired", 2, 2)
    (alone,) = contrasts(_run([10.0, 10.1, None], [None, 5.0, 5.1]), ENERGY, 2)
    assert (alone.method, alone.n_reference, alone.n_candidate) == ("welch", 2, 2)


def test_two_experiments_end_in_one_clear_sentence() -> None:
    assert _told(_run([4.0, 4.1, 4.2], [1.6, 1.62, 1.7])) == (
        "batch_size 2 against 1: energy per output token -60 % (95 % interval -61 % to -59 %), n = 3 cycles."
    )


def test_too_few_cycles_are_not_enough_evidence() -> None:
    told = _told(_run([5.4, 5.1], [4.2, 4.9], kind="estimate"))
    assert told.startswith(
        "batch_size 2 against 1: estimated energy per output token -13 %, not enough evidence at n = 2."
    )
    assert "not enough evidence at n = 1." in _told(_run([5.4], [4.2]))


def test_no_difference_is_said_where_the_interval_lies_within_the_threshold() -> None:
    run = _run([10.0, 10.01, 10.02], [10.01, 10.0, 10.02])
    assert contrasts(run, ENERGY, 2)[0].verdict == SAME
    assert "no difference of 2 % or more" in _told(run)


def test_of_many_the_best_is_told_against_the_first_with_the_correction() -> None:
    run = _run([8.0, 8.1, 8.05], [4.0, 4.1, 4.03], [2.0, 2.1, 2.02], [3.0, 3.1, 3.03])
    told = _told(run)
    assert told.startswith(
        "batch_size 4 (the lowest of the other 3) against 1 (the study's first): energy per output token -75 % ("
    )
    assert "corrected for 3 comparisons" in told
    alone = contrasts(run[:1] + run[2:3], ENERGY, 4)[0]
    family = contrasts(run, ENERGY, 4)[1]
    assert family.p_adjusted == pytest.approx(3 * (alone.p or 0.0))
    assert (family.high_ratio or 0) > (alone.high_ratio or 0)


def test_where_nothing_beats_the_reference_it_says_so() -> None:
    run = _run([2.0, 2.1, 2.05], [4.0, 4.1, 4.03], [8.0, 8.1, 8.05])
    assert contrasts(run, ENERGY, 3)[0].verdict == HIGHER
    assert (
        "batch_size 2 (the lowest of the other 2) against 1 (the study's first): energy per output token +9"
        in _told(run)
    )


def test_the_answer_of_many_equal_experiments_is_seldom_a_difference() -> None:
    """Family-wise: the best of eight equal ones is chosen, and a difference told in 5 % of the runs at most."""
    rng = np.random.default_rng(7)
    false = 0
    for _ in range(400):
        run = _run(*np.exp(rng.normal(0, 0.02, (8, 4))).tolist())
        false += any(one.verdict in {LOWER, HIGHER} for one in contrasts(run, ENERGY, 8))
    assert false <= 0.05 * 400 + 2 * math.sqrt(400 * 0.05 * 0.95)


def test_several_keys_are_told_by_name_and_engines_by_theirs() -> None:
    one = Measured("a", "transformers", {"engine": "transformers"}, _cycles("a", [4.0, 4.1], [0, 2]))
    two = Measured("b", "vllm", {"engine": "vllm"}, _cycles("b", [1.0, 1.01], [1, 3]))
    assert _told([one, two]).startswith("vllm against transformers: energy per output token -75 %")
    both = Measured("c", "x 2, y 2", {"x": 2, "y": 2}, _cycles("c", [1.0, 1.01], [1, 3]))
    first = Measured("d", "x 1, y 1", {"x": 1, "y": 1}, _cycles("d", [4.0, 4.1], [0, 2]))
    assert _told([first, both]).startswith("x 2, y 2 against x 1, y 1: ")


def test_one_experiment_is_told_as_a_number() -> None:
    rows = _cycles("a", [4.0, 4.1, 4.2], [0, 1, 2], kind="estimate")
    told = _told([Measured("a", "a", {}, rows)])
    assert told.startswith(
        "tiny on transformers: estimated energy per output token 4.1 J/token (95 % interval "
    )
    assert told.endswith("n = 3 cycles.")


def test_what_failed_what_is_withheld_and_what_is_of_another_kind_is_said() -> None:
    run = _run([4.0, 4.1, None], [2.0, 2.05, 2.1])
    failed = Measured("f", "batch_size 64", {"transformers.batch_size": 64}, ())
    other = Measured(
        "o", "batch_size 9", {"transformers.batch_size": 9}, _cycles("o", [1.0], [3], kind="estimate")
    )
    told = _told([*run, failed, other], planned=12)
    assert "energy is not reported for 1 of 7 cycles" in told
    assert "not measured: batch_size 64" in told
    assert "not compared, as another meter or boundary was read: batch_size 9" in told
    assert "6 of 12 planned cycles are not valid" in told


def test_without_energy_the_speed_is_told_and_why() -> None:
    run = _run([None, None], [None, None], kind="none")
    assert "output tokens per second" in _told(run)
    assert "there is no energy: no meter was read" in _told(run)
    assert "there is no energy: none could be reported" in _told(_run([None, None], [None, None]))


def test_a_run_without_any_result_says_so() -> None:
    assert _told([Measured("a", "a", {}, ())], planned=3).startswith("Nothing was measured")


def test_different_devices_are_said() -> None:
    first, second = _run([4.0, 4.1], [2.0, 2.1])
    moved = Measured(second.id, second.label, second.factors, _cycles("b2", [2.0, 2.1], [1, 3], gpu="GPU-2"))
    assert "they were measured on different devices" in _told([first, moved])


def test_a_value_that_is_not_positive_has_no_ratio() -> None:
    (one,) = _run([0.0, 0.5, None, -1.0])
    assert one.values(ENERGY) == {2: 0.5}
    unnumbered = Measured("a", "a", {}, (Cycle("a", None, "valid", measures={ENERGY: 1.0}),))
    assert unnumbered.values(ENERGY) == {}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (None, 0.1, UNDECIDED),
        (0.1, None, UNDECIDED),
        (-0.019, 0.019, SAME),
        (-0.02, 0.01, UNDECIDED),
        (0.005, 0.02, HIGHER),
        (-0.03, 0.0, UNDECIDED),
        (-0.03, -0.001, LOWER),
        (0.0, 0.03, UNDECIDED),
    ],
)
def test_a_verdict_needs_an_interval_that_leaves_out_no_change(
    low: float | None, high: float | None, verdict: str
) -> None:
    assert contrast._verdict(low, high) == verdict


def _against(low: float | None, high: float | None, verdict: str, n: tuple[int, int]) -> Contrast:
    return Contrast(ENERGY, "a", "b", "welch", *n, 0.5, low, high, 0.01, 0.01, verdict)


@pytest.mark.parametrize(
    ("found", "family", "said"),
    [
        (_against(None, None, UNDECIDED, (1, 1)), 1, ", not enough evidence at n = 1"),
        (_against(-0.1, 0.1, UNDECIDED, (2, 3)), 1, ", not enough evidence at n = 2 and 3"),
        (
            _against(-0.1, 0.1, UNDECIDED, (3, 3)),
            1,
            ", not enough evidence at n = 3 (95 % interval -10 % to +10 %)",
        ),
        (
            _against(-0.5, 1.0, UNDECIDED, (3, 3)),
            1,
            ", not enough evidence at n = 3 (half and double are both possible)",
        ),
        (
            _against(-0.49, 1.0, UNDECIDED, (3, 3)),
            2,
            ", not enough evidence at n = 3 (95 % interval -49 % to +100 %, corrected for 2 comparisons)",
        ),
        (
            _against(-0.5, 0.99, UNDECIDED, (3, 3)),
            1,
            ", not enough evidence at n = 3 (95 % interval -50 % to +99 %)",
        ),
        (_against(0.2, 0.3, HIGHER, (2, 2)), 1, " (95 % interval +20 % to +30 %), n = 2 cycles"),
        (_against(-0.6, 1.1, HIGHER, (3, 3)), 1, " (95 % interval -60 % to +110 %), n = 3 cycles"),
        (
            _against(-0.01, 0.01, SAME, (3, 4)),
            1,
            ", no difference of 2 % or more (95 % interval -1.0 % to +1.0 %), n = 3 and 4 cycles",
        ),
    ],
)
def test_the_evidence_is_told_as_far_as_it_goes(found: Contrast, family: int, said: str) -> None:
    assert contrast._evidence(found, family).replace("\N{MINUS SIGN}", "-") == said


def test_a_corrected_p_is_one_at_most() -> None:
    run = _run([1.0, 1.1, 0.9], [1.01, 1.1, 0.9], [0.99, 1.1, 0.9], [1.0, 1.1, 0.9])
    assert max(one.p_adjusted or 0.0 for one in contrasts(run, ENERGY, 4)) == 1.0


def test_one_cycle_of_one_experiment_is_a_number_without_an_interval() -> None:
    (one,) = _run([4.0])
    assert _told([one]) == (
        "tiny on transformers: energy per output token 4 J/token (no interval), n = 1 cycle."
    )
    failed = Measured("f", "batch_size 64", {}, ())
    assert _told([one, failed], planned=2) == (
        "batch_size 1: energy per output token 4 J/token (no interval), n = 1 cycle; not measured: batch_size 64; "
        "1 of 2 planned cycles are not valid."
    )
    (none,) = _run([None])
    assert _told([none]).endswith("1 of 1 planned cycle is not valid.")


def test_the_fastest_is_the_best_where_there_is_no_energy_and_many_names_are_counted() -> None:
    def at(size: int, speed: float) -> Measured:
        rows = tuple(
            Cycle(str(size), k, "valid", measures={SPEED: speed * (1 + k / 1000)}, energy_kind="none")
            for k in (1, 2, 3)
        )
        return Measured(str(size), f"size {size}", {"size": size}, rows)

    failed = [Measured(f"f{k}", f"size {k}", {"size": k}, ()) for k in (91, 92, 93, 94)]
    told = _told([at(1, 10.0), at(2, 30.0), at(4, 20.0), *failed[:3]])
    assert told.startswith(
        "size 2 (the highest of the other 2) against 1 (the study's first): output tokens per second +200 % ("
    )
    assert told.endswith("; there is no energy: no meter was read; not measured: size 91, size 92, size 93.")
    assert "not measured: size 91, size 92, size 93 and 1 more." in _told([at(1, 10.0), *failed])


def test_cycles_without_a_token_tell_nothing() -> None:
    rows = (Cycle("a", 1, "valid", measures={SPEED: 0.0}),)
    assert answer([Measured("a", "a", {}, rows)], 1, 1).sentence == (
        "Nothing can be told: no cycle generated a token."
    )


@pytest.mark.parametrize(("gpu", "compared"), [("A100", True), ("H100", False)])
def test_an_experiment_on_another_kind_of_gpu_is_named_and_not_compared(gpu: str, compared: bool) -> None:
    run = [
        replace(one, rows=tuple(replace(row, fingerprint={"gpus": [{"name": name}]}) for row in one.rows))
        for one, name in zip(_run([1.0, 1.01, 0.99], [0.5, 0.505, 0.495]), ("A100", gpu), strict=True)
    ]
    aside = "not compared, as another kind of hardware was used: batch_size 2"
    assert (aside in _told(run)) != compared
    assert len(answer(run, 6, 6).contrasts) == compared
