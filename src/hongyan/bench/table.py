"""A result in words, for a terminal."""

from __future__ import annotations

from hongyan.bench.result import Result, compared


def table(of: Result) -> str:
    """The figures, then what went wrong, then whether the promises held."""
    plan = of.settings
    load = f"{plan['rate']:g} a second" if plan["rate"] else f"{plan['in_flight']} in flight"
    lines = [
        f"{of.scenario}: {plan['connections']:,} connections, {load}, {of.seconds:g} s measured"
        + (" (interrupted)" if of.interrupted else "")
    ]
    if of.unit:
        lines.append(_row(of.unit, f"{of.rate:,.0f} a second"))
    for name, values in (("ack", of.ack_ms), ("push", of.push_ms)):
        label = "login" if of.scenario == "connect" else name
        if values:
            lines.append(_row(f"{label} ms", "  ".join(f"{key} {value:g}" for key, value in values.items())))
    if of.late and plan["rate"]:
        lines.append(_row("late", f"{of.late:,} answered after the measured seconds; their latency counts"))
    server = of.server
    if "cpu_percent" in server:
        each = f", {server['cpu_us']:g} µs each" if "cpu_us" in server else ""
        lines.append(_row("server CPU", f"{server['cpu_percent']:g} % of a core{each}"))
    if "memory_mb" in server:
        each = (
            f", {server['connection_bytes'] / 1000:.1f} KB a connection"
            if "connection_bytes" in server
            else ""
        )
        lines.append(_row("server memory", f"{server['memory_mb']:,.0f} MB{each}"))
    lines.append(_row("load generator", f"{of.own_cpu_percent:g} % of a core, {plan['processes']} processes"))
    lines.append(
        _row("errors", ", ".join(f"{count:,} {name}" for name, count in of.errors.items()) or "none")
    )
    if "rate_limited" in of.errors:
        lines.append("    the server limits the rate of a connection: start it with --rate-limit 0")
    lines.append(_row("check", _verdict(of)))
    lines += [f"    {text}" for text in of.failures]
    return "\n".join(lines)


def _verdict(of: Result) -> str:
    if of.failures:
        return "FAILED: what was acknowledged did not come once and in order"
    if of.interrupted:
        return "not finished"
    if of.scenario in ("connect", "idle"):
        return "every connection logged in and stayed"
    return "every acknowledged message came once and in order"


def comparison(old: Result, new: Result) -> str:
    rows = compared(old, new)
    if not rows:
        return "nothing to compare: the two have no figure in common"
    lines = [f"{'':28}{'before':>14}{'now':>14}{'ratio':>9}"]
    for name, before, now, ratio, worse in rows:
        lines.append(f"{name:28}{before:>14,.6g}{now:>14,.6g}{ratio:>9.2f}{'  worse' if worse else ''}")
    if old.scenario != new.scenario or old.settings != new.settings:
        lines.append("note: the two were not run with the same settings")
    return "\n".join(lines)


def _row(name: str, value: str) -> str:
    return f"  {name:16}{value}"
