"""Figures that are added up right, kept, compared and drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hongyan.bench import result as results
from hongyan.bench.meter import figures_ms, histogram, record, rounded
from hongyan.bench.plan import Plan
from hongyan.bench.report import plot, report
from hongyan.bench.table import comparison, table

PLAN = Plan("direct", "ws://127.0.0.1:1/ws", 100, 2.0, 1.0, "b-", 1)


def summary(acked: int, *latencies_us: int) -> dict[str, dict[Any, int]]:
    return {"counts": {"acked": acked, "sent": acked}, "ack_us": rounded(list(latencies_us)), "push_us": {}}


def made(*seconds: dict[str, dict[Any, int]], **changes: Any) -> results.Result:
    given: dict[str, Any] = {
        "server": {"cpu_s": 1.0, "memory_mb": 50.0}, "own_cpu_s": 0.5, "failures": [], "interrupted": False,
    } | changes  # fmt: skip
    return results.result(PLAN, list(seconds), 2.0, **given)


def test_latencies_to_three_digits() -> None:
    assert rounded([1, 1, 1999, 123456]) == {1: 2, 1999: 1, 123400: 1}
    of = histogram()
    record(of, rounded([1000 * n for n in range(1, 1001)]))
    found = figures_ms(of)
    for name, value in (("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)):
        assert found[name] == pytest.approx(value, rel=0.002)
    record(of, {0: 1, 10**12: 1})  # past the ends
    assert figures_ms(of)["max"] == pytest.approx(3_600_000, rel=0.001)
    assert figures_ms(histogram()) == {}


def test_seconds_and_processes_add_up() -> None:
    second = results.summed([summary(10, 1000), summary(5, 3000)])
    found = made(second, summary(25, 2000))
    assert found.rate == 20
    assert found.counts["acked"] == 40
    assert found.ack_ms["max"] == pytest.approx(3, rel=0.001)
    assert [point["rate"] for point in found.series] == [15, 25]
    assert found.server == {"memory_mb": 50, "cpu_percent": 50, "cpu_us": 25_000}
    assert found.own_cpu_percent == 25
    assert found.errors == {}


def test_the_parts_of_a_plan_are_the_whole() -> None:
    plan = replace(PLAN, rate=1000.0, connections=10)
    parts = plan.parts(3, [f"t{n}" for n in range(10)])
    assert [(part.first, part.count) for part in parts] == [(0, 3), (3, 3), (6, 4)]
    assert [token for part in parts for token in part.tokens] == [f"t{n}" for n in range(10)]
    assert sum(part.rate for part in parts) == pytest.approx(1000)
    assert len({part.source for part in parts}) == 3
    assert replace(plan, url="ws://chat.example.org/ws").source is None


def test_kept_and_read_again(tmp_path: Path) -> None:
    found = made(summary(10, 1000))
    results.save(found, tmp_path / "a.json")
    assert results.load(tmp_path / "a.json") == found
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="no result of hongyan bench"):
        results.load(tmp_path / "b.json")


def test_a_comparison_says_what_got_worse() -> None:
    old, new = made(summary(100, 1000)), made(summary(50, 1500))
    rows = {name: (ratio, worse) for name, _, _, ratio, worse in results.compared(old, new)}
    assert rows["messages a second"] == (0.5, True)
    assert rows["ack p50 ms"][1]
    assert rows["server CPU % of a core"] == (1, False)
    assert "worse" in comparison(old, new)
    better = {name: worse for name, _, _, _, worse in results.compared(new, old)}
    assert not any(better.values())


def test_the_table_says_when_the_check_failed() -> None:
    assert "every acknowledged message came once and in order" in table(made(summary(1, 1)))
    failed = table(made(summary(1, 1), failures=["alice got seq 3 of @bob after a gap: 2 was next"]))
    assert "FAILED" in failed
    assert "alice got seq 3" in failed
    assert "not finished" in table(made(summary(1, 1), interrupted=True))
    assert "7 busy" in table(made({"counts": {"acked": 1, "busy": 7}, "ack_us": {}, "push_us": {}}))


def test_the_report_is_one_file_without_a_network() -> None:
    text = report(made(summary(10, 1000), summary(20, 2000), failures=["<script>alert(1)</script>"]))
    assert "<script" not in text
    assert "http" not in text.replace("ws://", "")
    assert text.count("<svg") == text.count("</svg>") == 2


def test_a_plot_is_well_formed_whatever_it_shows() -> None:
    for lines in ({"a<b": [1.0, 5.0, 2.0]}, {"one": [3.0]}, {"none": []}, {"zero": [0.0, 0.0]}, {}):
        root = ET.fromstring(plot(lines))
        for line in root.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= 760
                assert 0 <= y <= 220
