"""Charts as SVG text: axes, lines, steps and bands over a common scale.

Invariant: a chart holds no colour of its own, only classes, so that the page's style decides for light and for dark;
all text is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960.0, 58.0, 14.0, 10.0, 26.0
X_TICKS, Y_TICKS = 8, 4

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to a place on the page."""

    low: float
    high: float
    start: float
    end: float
    unit: float = 1.0
    """Ticks are round in this unit."""
    whole: bool = False
    """Ticks are whole numbers: counts."""

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = Y_TICKS) -> list[float]:
        """About so many round values inside."""
        step = self.unit * _round_step((self.high - self.low) / self.unit / about, whole=self.whole)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(slots=True)
class Chart:
    """One chart under construction. `colour` is the index of a class, c0 to c7."""

    x_high: float
    y_high: float
    label: str
    """What it shows, for readers who don't see it."""
    x_words: Callable[[float], str]
    y_words: Callable[[float], str]
    x_low: float = 0.0
    y_low: float = 0.0
    height: float = 230.0
    x_unit: float = 1.0
    counts: bool = False
    """Whether y counts something."""
    _marks: list[str] = field(default_factory=list)
    _hover: list[dict[str, object]] = field(default_factory=list)

    @property
    def x(self) -> Scale:
        return Scale(self.x_low, max(self.x_high, self.x_low + 1e-9), LEFT, WIDTH - RIGHT, self.x_unit)

    @property
    def y(self) -> Scale:
        high = max(self.y_high, self.y_low + 1e-9)
        return Scale(self.y_low, high, self.height - BOTTOM, TOP, whole=self.counts)

    def line(self, xs: Sequence[float], ys: Values, *, name: str, colour: int, thin: bool = False) -> None:
        """Straight between the points, broken where there is no value."""
        parts: list[str] = []
        pen_down = False
        for x, y in zip(xs, ys, strict=True):
            if y is None:
                pen_down = False
                continue
            parts.append(f"{'L' if pen_down else 'M'}{self._place(x, y)}")
            pen_down = True
        kind = "line thin" if thin else "line"
        self._marks.append(f'<path class="{kind} c{colour}" d="{"".join(parts)}"/>')
        self._follow(name, colour, xs, ys, step=False)

    def steps(self, xs: Sequence[float], ys: Sequence[float], *, name: str, colour: int) -> None:
        """Each value until the next, the last to the end."""
        path = self._stairs(xs, ys)
        self._marks.append(f'<path class="line c{colour}" d="M{path}"/>')
        self._follow(name, colour, xs, ys, step=True)

    def band(
        self,
        xs: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
        *,
        name: str,
        colour: int,
        style: str,
        words: Sequence[str] | None = None,
    ) -> None:
        """Between two stairs; `style` is a class beside the colour's, `words` what heights mean if not themselves."""
        back = self._stairs(xs, lower).split("L")
        path = f"M{self._stairs(xs, upper)}L{'L'.join(reversed(back))}Z"
        self._marks.append(f'<path class="band {style} c{colour}" d="{path}"/>')
        heights = [high - low for low, high in zip(lower, upper, strict=True)]
        self._follow(name, colour, xs, heights, step=True, words=words)

    def level(self, y: float, words: str) -> None:
        """A dashed line across, such as an objective."""
        height = self.y.at(min(y, self.y_high))
        self._marks.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="level-words" x="{WIDTH - RIGHT - 4}" y="{height - 5:.1f}">{escape(words)}</text>'
        )

    def mark(self, x: float, *, title: str, colour: int, up: bool) -> None:
        """A decision: a triangle on the axis that points the way."""
        left, base = self.x.at(x), self.height - BOTTOM
        tip = f"{left:.1f},{base - 8:.1f}" if up else f"{left:.1f},{base:.1f}"
        foot = base if up else base - 8
        points = f"{tip} {left - 4:.1f},{foot:.1f} {left + 4:.1f},{foot:.1f}"
        self._marks.append(
            f'<polygon class="mark c{colour}" points="{points}"><title>{escape(title)}</title></polygon>'
        )

    def dot(self, x: float, y: float, *, name: str, colour: int, before: bool) -> None:
        """A point with its name behind or before it."""
        left, height = self.x.at(x), self.y.at(y)
        self._marks.append(
            f'<circle class="dot c{colour}" cx="{left:.1f}" cy="{height:.1f}" r="6"/>'
            f'<text class="dot-words" x="{left + (-10 if before else 10):.1f}" y="{height + 4:.1f}"'
            f' text-anchor="{"end" if before else "start"}">{escape(name)}</text>'
        )

    def render(self) -> str:
        """The SVG element, with what the page's script needs to follow the pointer."""
        hover = escape(json.dumps(self._hover, separators=(",", ":")), quote=True)
        axis = f"{self.x_low:.6g} {self.x_high:.6g} {LEFT} {WIDTH - RIGHT} {TOP} {self.height - BOTTOM}"
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {self.height:.0f}" role="img"'
            f' aria-label="{escape(self.label, quote=True)}" data-axis="{axis}" data-series="{hover}">'
            f"{self._axes()}{''.join(self._marks)}"
            f'<line class="pointer" y1="{TOP}" y2="{self.height - BOTTOM}" visibility="hidden"/></svg>'
        )

    def _axes(self) -> str:
        base = self.height - BOTTOM
        parts = []
        for tick in self.y.ticks():
            height = self.y.at(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
            parts.append(f'<text class="y" x="{LEFT - 8}" y="{height + 4:.1f}">{escape(self.y_words(tick))}</text>')
        for tick in self.x.ticks(X_TICKS):
            left = self.x.at(tick)
            parts.append(f'<line class="tick" x1="{left:.1f}" x2="{left:.1f}" y1="{base}" y2="{base + 4}"/>')
            parts.append(f'<text class="x" x="{left:.1f}" y="{base + 18}">{escape(self.x_words(tick))}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        return "".join(parts)

    def _stairs(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        ends = [*xs[1:], self.x_high]
        return "L".join(
            f"{self._place(start, y)}L{self._place(end, y)}" for start, end, y in zip(xs, ends, ys, strict=True)
        )

    def _place(self, x: float, y: float) -> str:
        inside = min(max(y, self.y_low), self.y_high)
        return f"{self.x.at(min(x, self.x_high)):.1f} {self.y.at(inside):.1f}"

    def _follow(
        self, name: str, colour: int, xs: Sequence[float], ys: Values, *, step: bool, words: Sequence[str] | None = None
    ) -> None:
        """What the pointer is told of a series."""
        told: Sequence[str | None] = words or [None if y is None else self.y_words(y) for y in ys]
        self._hover.append({"name": name, "colour": colour, "x": [round(x, 2) for x in xs], "y": told, "step": step})


def _round_step(step: float, *, whole: bool) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    step = max(step, 1.0) if whole else step
    size = 10.0 ** math.floor(math.log10(max(step, 1e-12)))
    return next(factor * size for factor in (1, 2, 5, 10) if factor * size >= step * (1 - 1e-9))
