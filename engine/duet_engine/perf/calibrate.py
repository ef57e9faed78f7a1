"""Fitting a GPU's efficiencies to steps that were timed on it.

Invariant: a parameter is only changed when the rows tell it: where they can't (all of them wait for memory, say, so
nothing shows the compute rate) the fit is refused and names what is missing. Pure: rows in, efficiencies and the
errors before and after out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares

from duet_engine.perf.efficiencies import NAMES, STEP_NAMES, Bases, Calibrated
from duet_engine.perf.interface import Basis, StepBatch
from duet_engine.perf.roofline import Roofline

if TYPE_CHECKING:
    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.interface import FloatArray
    from duet_engine.perf.shape import ModelShape

NOISE = 0.03
"""Relative scatter of a measured step, for judging what the rows tell."""
LARGEST_STANDARD_ERROR = 0.25
"""A parameter whose relative standard error would be greater isn't identified."""
START_SPREAD = 1.0
"""How far (in logarithms) a fitted value may easily be from the one that it starts from."""
AT_LEAST_ONE = frozenset({"overlap", "sustained_slowdown"})
AT_MOST_ONE = frozenset(name for name in NAMES if name.endswith(("_compute", "_bandwidth")))
"""Nothing is faster than its data sheet."""
OUTLIER = 0.05
"""Relative error from which on a row pulls with its size, not with its square."""
FEWEST_ROWS, LARGEST_MEAN_ERROR = 8, 0.10
"""Of a use of the model (mixed steps, say) before it counts as measured."""


class UnidentifiedError(ValueError):
    """The rows don't tell some of the parameters; `names` says which."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"the rows can't identify {', '.join(names)}: add rows where they matter (long prompts for compute, small "
            "batches for the bandwidth of weights, long contexts for attention), or leave them out of the fit"
        )


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One timed step."""

    shape: ModelShape
    ranks: int
    batch: StepBatch
    seconds: float

    @property
    def prefill(self) -> bool:
        return self.batch.prefill_tokens > 0


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute relative errors over some rows."""

    rows: int
    mean: float
    p95: float
    bias: float

    @classmethod
    def of(cls, relative: FloatArray) -> Errors:
        """Of predicted / observed - 1."""
        absolute = np.abs(relative)
        return cls(len(relative), float(absolute.mean()), float(np.percentile(absolute, 95)), float(np.mean(relative)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a fit found."""

    calibrated: Calibrated
    fitted: tuple[str, ...]
    before: Errors
    after: Errors


def relative_errors(rows: Sequence[CalibrationRow], gpu: Gpu, calibrated: Calibrated) -> FloatArray:
    """Predicted / observed - 1 of each row."""
    rooflines: dict[tuple[ModelShape, int], Roofline] = {}
    errors = np.empty(len(rows))
    for index, row in enumerate(rows):
        key = row.shape, row.ranks
        if key not in rooflines:
            rooflines[key] = Roofline(row.shape, gpu, ranks=row.ranks, calibrated=calibrated)
        errors[index] = rooflines[key].step_seconds(row.batch) / row.seconds - 1.0
    return errors


def calibrate(
    rows: Sequence[CalibrationRow],
    gpu: Gpu,
    start: Calibrated,
    *,
    names: Sequence[str] = STEP_NAMES,
    basis: Basis = Basis.MEASURED,
    source: str = "measured steps",
) -> Calibration:
    """The efficiencies under which these rows are predicted best; parameters not in `names` stay as in `start`.

    Raises:
        UnidentifiedError: when the rows don't tell some of `names`.
        ValueError: for no rows, a row that took no time, or an unknown name.
    """
    _check(rows, names)
    weights = _weights(rows)
    origin = np.log([getattr(start.efficiencies, name) for name in names])

    def at(logarithms: FloatArray) -> Calibrated:
        values = {name: float(value) for name, value in zip(names, np.exp(logarithms), strict=True)}
        return replace(start, efficiencies=start.efficiencies.with_values(values))

    def deviations(logarithms: FloatArray) -> FloatArray:
        return np.log1p(relative_errors(rows, gpu, at(logarithms)))

    if missing := _unidentified(deviations, origin, names):
        raise UnidentifiedError(missing)
    held = OUTLIER / START_SPREAD / np.sqrt(len(rows))

    def residuals(logarithms: FloatArray) -> FloatArray:
        return np.concatenate([deviations(logarithms) * weights, held * (logarithms - origin)])

    lowest = [0.0 if name in AT_LEAST_ONE else -np.inf for name in names]
    highest = [0.0 if name in AT_MOST_ONE else np.inf for name in names]
    best = least_squares(residuals, origin, bounds=(lowest, highest), loss="soft_l1", f_scale=OUTLIER)
    if missing := _unidentified(deviations, best.x, names):
        raise UnidentifiedError(missing)
    values = {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(best.x), strict=True)}
    fitted = start.efficiencies.with_values(values)
    errors = relative_errors(rows, gpu, replace(start, efficiencies=fitted))
    found = Calibrated(fitted, _bases(rows, errors, start.bases, basis), source)
    return Calibration(
        calibrated=found,
        fitted=tuple(names),
        before=Errors.of(relative_errors(rows, gpu, start)),
        after=Errors.of(errors),
    )


def _check(rows: Sequence[CalibrationRow], names: Iterable[str]) -> None:
    if not rows:
        raise ValueError("rows: at least one is needed")
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"names: unknown: {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    for index, row in enumerate(rows):
        if not row.seconds > 0 or row.batch.tokens <= 0:
            raise ValueError(f"rows[{index}]: needs a batch that isn't empty and a time above 0, got {row.seconds} s")


def _weights(rows: Sequence[CalibrationRow]) -> FloatArray:
    """Prefill and decode count alike, however many rows each has; 1 on average."""
    prefill = np.array([row.prefill for row in rows])
    share = np.where(prefill, prefill.mean(), 1.0 - prefill.mean())
    phases = len(set(prefill.tolist()))
    return np.asarray(np.sqrt(1.0 / (phases * share)))


def _unidentified(deviations: object, at: FloatArray, names: Sequence[str]) -> list[str]:
    """Parameters that other values of all the others could make up for, within the noise."""
    assert callable(deviations)
    step = 1e-4
    columns = [
        (deviations(at + step * direction) - deviations(at - step * direction)) / (2 * step)
        for direction in np.eye(len(names))
    ]
    sensitivity = np.stack(columns, axis=1)
    information = sensitivity.T @ sensitivity / NOISE**2
    variance = np.diag(np.linalg.pinv(information + 1e-9 * np.eye(len(names))))
    return [name for name, value in zip(names, np.sqrt(variance), strict=True) if value > LARGEST_STANDARD_ERROR]


def _uses(row: CalibrationRow) -> set[str]:
    """Uses of the model, as in `Bases`, that a row shows."""
    prefill, decode = row.prefill, row.batch.decode_requests > 0
    shown = {
        "prefill": prefill and not decode,
        "decode": decode and not prefill,
        "mixed": prefill and decode,
        "prefix": row.batch.prefill_context_tokens > 0,
        "experts": row.shape.experts is not None,
        "latent": row.shape.latent is not None,
        "communication": row.ranks > 1,
    }
    return {use for use, shows in shown.items() if shows}


def _bases(rows: Sequence[CalibrationRow], errors: FloatArray, start: Bases, basis: Basis) -> Bases:
    """Uses that enough rows show, and that the fit predicts well, rest on them now; others on what they did."""
    found: dict[str, Basis] = {}
    for use in {use for row in rows for use in _uses(row)}:
        shown = np.abs([error for row, error in zip(rows, errors, strict=True) if use in _uses(row)])
        if len(shown) >= FEWEST_ROWS and shown.mean() <= LARGEST_MEAN_ERROR:
            found[use] = basis
    return replace(start, **found)
