"""What /metrics says of the counters."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hongyan.metrics import Counters, Histogram, Tally, exposition, figures


def samples(counters: Counters) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(exposition(counters).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_every_attribute_is_a_sample_with_a_help_text():
    counters = Counters()
    names = Counters.__dataclass_fields__
    plain = [name for name in names if isinstance(getattr(counters, name), int)]
    for number, name in enumerate(plain, 1):
        setattr(counters, name, number)
    said = samples(counters)
    for number, name in enumerate(plain, 1):
        values = {said.get((f"hongyan_{name}{end}", ())) for end in ("", "_total")}
        assert number in values, name
    families = list(text_string_to_metric_families(exposition(counters).decode()))
    ours = [family for family in families if family.name.startswith("hongyan_")]
    assert len(ours) == len(names)
    assert all(family.documentation for family in ours)


def test_labels():
    counters = Counters()
    counters.errors["busy"] = 3
    counters.limit_hits["max_groups"] = 2
    said = samples(counters)
    assert said["hongyan_errors_total", (("code", "busy"),)] == 3
    assert said["hongyan_limit_hits_total", (("limit", "max_groups"),)] == 2


def test_the_process_is_there_too():
    assert any(name.startswith("process_") for name, _ in samples(Counters()))


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5):
        histogram.observe(value)
    histogram.observe(9.0, count=2)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 5.0)]
    assert histogram.sum == 21.0


def test_a_histogram_is_exposed():
    counters = Counters()
    counters.ack_seconds.observe(0.003)
    said = samples(counters)
    assert said["hongyan_ack_seconds_bucket", (("le", "0.002"),)] == 0
    assert said["hongyan_ack_seconds_bucket", (("le", "0.005"),)] == 1
    assert said["hongyan_ack_seconds_count", ()] == 1
    assert said["hongyan_ack_seconds_sum", ()] == 0.003
    assert not any(name.endswith("_created") for name, _ in said if name.startswith("hongyan_"))


def test_what_a_process_has_counted_stays_and_what_it_held_goes():
    own, other = Counters(requests=1), Counters(requests=10, connections=5)
    own.errors["busy"], other.errors["busy"] = 1, 2
    tally = Tally(own)
    tally.report(7, figures(other))
    assert (tally.total().requests, tally.total().connections, tally.total().errors) == (11, 5, {"busy": 3})
    tally.gone(7)
    assert (tally.total().requests, tally.total().connections, tally.total().errors) == (11, 0, {"busy": 3})
    tally.report(8, figures(other))
    assert (tally.total().requests, tally.total().connections, tally.total().errors) == (21, 5, {"busy": 5})
    assert (own.requests, own.errors) == (1, {"busy": 1})
    assert tally.total().ack_seconds is own.ack_seconds
