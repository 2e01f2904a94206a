import math
import re

import numpy as np
import pytest
from test_reading import write_files

from hyperiqa.runs import differences, measures, reading, standards_table
from hyperiqa.stats import intervals, standards


def settings(folder, seeds=3):
    """Two settings of some seeds each, as the entries of a comparison."""
    for seed in range(1, seeds + 1):
        noise = 0.3 + 0.01 * seed**2
        write_files(folder, f"one_{seed}", seed, epochs=(noise,))
        # Of one seed the errors would be the same.
        write_files(folder, f"other_{seed}", 10 + seed, epochs=(noise,), ranking_loss_alpha=0.5)
    runs, problems = reading.find([folder])
    assert not problems
    measure = measures.Measure(resamples=1000)
    entries, _ = measures.choose_entries(runs, measure, True)
    return measure, entries


def planned(measure, entries):
    """What `power` says for 1 to 10 seeds."""
    line = list(differences.power(entries[0], entries, measure))[1]
    return [float(cell) for cell in re.findall(r": (\d\.\d{4})", line)]


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_plan_says_what_the_comparison_says(tmp_path, seeds):
    measure, entries = settings(tmp_path, seeds)
    (comparison,) = differences.compare_all(measure, [entries])
    visible = planned(measure, entries)
    assert len(visible) == 10
    # The plan takes another setting's runs for granted, the comparison has them.
    assert visible[seeds - 1] == pytest.approx(comparison.difference.visible, rel=0.25)
    single = [measures.Entry(entry.name, entry.runs[:1]) for entry in entries]
    (comparison,) = differences.compare_all(measure, [single])
    assert visible[0] == pytest.approx(comparison.difference.visible, rel=0.25)


def test_seeds_that_disagree_leave_a_correlation_its_range(tmp_path):
    write_files(tmp_path, "good", 1, epochs=(0.1,))
    write_files(tmp_path, "bad", 2, epochs=(5.0,))
    runs, _ = reading.find([tmp_path])
    for metric in ("srcc", "plcc", "rmse"):
        measure = measures.Measure(metric, resamples=300)
        (entry,), _ = measures.choose_entries(runs, measure, True)
        found = measure.estimate(entry)
        assert found.low < found.value < found.high
        assert found.low > (0 if metric == "rmse" else -1)
        if metric != "rmse":
            assert found.high < 1


def test_a_difference_without_an_interval_is_shown_without_one():
    nan = math.nan
    text = differences.difference_text(intervals.Difference(0.0, nan, nan, 1.0), None)
    assert text == "+0.0000, p = 1.00"


def test_a_figure_that_one_run_lacks_is_not_tested():
    a, b = (measures.Entry(name, ()) for name in "ab")
    known = standards.Measured(0.9, np.linspace(-1, 1, 20))
    lacking = standards.Measured(math.nan, np.full(20, math.nan))
    unsure = standards.Measured(0.8, np.full(20, math.nan))
    sets = {
        a: {"test": {"auc_ds": known, "auc_bw": known, "accuracy": known}},
        b: {"test": {"auc_ds": lacking, "auc_bw": unsure, "accuracy": known}},
    }
    tested = standards_table.differences(a, b, sets)
    assert [name for _, name, _, _ in tested] == ["accuracy"]
