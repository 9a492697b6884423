"""A result as one HTML file: figures and plots over time, for any browser, without a network."""

from __future__ import annotations

from html import escape

from hongyan.bench.result import Result
from hongyan.bench.table import comparison, table

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 220, 64, 28, 12
_COLOURS = ("#1f6feb", "#d29922", "#cf222e", "#8250df", "#57606a")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2em auto;padding:0 1em;color:#1f2328}"
    "pre{background:#f6f8fa;padding:1em;overflow-x:auto}svg{width:100%;height:auto}"
    "text{font:11px system-ui,sans-serif;fill:#57606a}.fail{color:#cf222e}"
)


def report(of: Result, old: Result | None = None) -> str:
    """The whole document."""
    title = f"hongyan bench {of.scenario}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_where(of))}</p>"]
    if of.failures:
        parts.append('<p class="fail">The check failed.</p>')
    parts.append(f"<pre>{escape(table(of))}</pre>")
    if old is not None:
        parts.append(f"<h2>Compared</h2><pre>{escape(comparison(old, of))}</pre>")
    if of.unit:
        rates = [point["rate"] for point in of.series]
        parts.append(f"<h2>{escape(of.unit)} a second</h2>" + plot({of.unit: rates}))
    for name, label in (("ack", "login" if of.scenario == "connect" else "ack"), ("push", "push")):
        lines = {
            key: [point.get(f"{name}_{key}", 0.0) for point in of.series]
            for key in ("p50", "p99", "p99.9", "max")
        }
        if any(any(values) for values in lines.values()):
            parts.append(f"<h2>{label} latency, ms</h2>" + plot(lines))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _where(of: Result) -> str:
    machine = of.machine
    return (
        f"{of.url}, Hongyan {of.version}; client: {machine['cores']} cores, {machine['processor']}, "
        f"Linux {machine['kernel']}, Python {machine['python']}"
    )


def plot(lines: dict[str, list[float]]) -> str:
    """Lines over the measured seconds, as inline SVG; each with its name and colour."""
    longest = max((len(values) for values in lines.values()), default=0)
    top = _round_up(max((value for values in lines.values() for value in values), default=0.0))
    inner_width, inner_height = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - _TOP

    def x(second: int) -> float:
        return _LEFT + inner_width * (second / max(longest - 1, 1))

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - value / top)

    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for step in range(5):
        value = top * step / 4
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#d0d7de"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.4g}</text>'
        )
    for number, (name, values) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in enumerate(values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(
            f'<text x="{_LEFT + 8 + number * 90}" y="{_HEIGHT - 6}" style="fill:{colour}">{escape(name)}</text>'
        )
    out.append(
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">second 1 to {longest}</text></svg>'
    )
    return "".join(out)


def _round_up(value: float) -> float:
    """1, 2 or 5 times a power of ten, at least `value`."""
    power = 1e-3
    while True:
        for factor in (1, 2, 5):
            if factor * power >= value:
                return factor * power
        power *= 10
