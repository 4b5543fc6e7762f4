"""What goes to exporter and devices next, by value."""

from mpinas.coordination.pipeline import EXPORTS_EACH, MEASUREMENTS_MAX, Pipeline


def alike(candidate):
    return (0.0,)


def test_a_few_at_a_time_the_most_urgent_first_the_oldest_of_equals():
    pipeline = Pipeline(exporters=4)
    for candidate in range(4 * EXPORTS_EACH + 4):
        pipeline.want_export(candidate)
    urgent = {3: (0.0,), 5: None}
    due = pipeline.exports_due(lambda candidate: urgent.get(candidate, (1.0,)))
    assert due == [3, 0, 1, 2, 4, 6, 7, 8]
    assert pipeline.exports_due(alike) == [], "the exporter has enough"
    pipeline.exported(3)
    pipeline.want_export(0)  # it is under way
    assert pipeline.exports_due(alike) == [9]
    pipeline.exported(0)
    assert pipeline.exports_due(alike) == [10]


def test_measurements_by_device_once_each():
    pipeline = Pipeline(exporters=4)
    for candidate in range(MEASUREMENTS_MAX + 1):
        pipeline.want((candidate, "a", 0))
        pipeline.want((candidate, "a", 0))
    pipeline.want((0, "b", 0))
    due = pipeline.measurements_due(alike)
    assert due == [*((candidate, "a", 0) for candidate in range(MEASUREMENTS_MAX)), (0, "b", 0)]
    pipeline.want((1, "a", 0))
    assert pipeline.measurements_due(alike) == []
    pipeline.answered((1, "a", 0))
    assert pipeline.measurements_due(alike) == [(MEASUREMENTS_MAX, "a", 0)]
    pipeline.want((1, "a", 1))
    pipeline.answered((0, "a", 0))
    assert pipeline.measurements_due(alike) == [(1, "a", 1)]


def test_what_is_dropped_takes_no_place():
    pipeline = Pipeline(exporters=4)
    for candidate in range(MEASUREMENTS_MAX + 2):
        pipeline.want((candidate, "a", 0))
    assert len(pipeline.measurements_due(alike)) == MEASUREMENTS_MAX
    pipeline.drop(0)
    pipeline.drop(MEASUREMENTS_MAX)
    assert pipeline.measurements_due(alike) == [(MEASUREMENTS_MAX + 1, "a", 0)]
    pipeline.want_export(7)
    pipeline.drop(7)
    assert pipeline.exports_due(alike) == []
