import csv

import numpy as np
import pytest

from hyperiqa.runs import differences, measures, reading, runs_table
from hyperiqa.stats import metrics


def make_run(folder, name, srcc, dataset="koniq-10k", images=3, **settings):
    """A run of one epoch whose log alone is left."""
    settings = {"dataset": dataset, "backbone": "swin_nano", **settings}
    epochs = {1: {"test": {"srcc": srcc, "plcc": srcc}}}
    path = folder / f"{name}.jsonl"
    path.write_text("")
    counts = {"test": images}
    return reading.Run(name, path, settings, counts, epochs, 1, "finished", None)


def with_votes(run, mos, score, error):
    """The run with the predictions that it left, and the standard errors of the MOS."""
    predictions = run.path.with_name(f"{run.name}_predictions.csv")
    names = [f"{i}.jpg" for i in range(len(mos))]
    with predictions.open("w", newline="") as file:
        rows = zip(names, mos.tolist(), score.tolist())
        csv.writer(file).writerows([("dataset", "image", "mos", "score")])
        csv.writer(file).writerows((run.settings["dataset"], *row) for row in rows)
    np.savez(run.path.with_name(f"{run.name}_epochs.npz"), test_images=names, test_error=error)
    srcc = metrics.srcc(score, mos)
    return reading.Run(
        run.name,
        run.path,
        run.settings,
        {"test": len(mos)},
        {1: {"test": {"srcc": srcc}}},
        1,
        "finished",
        predictions,
    )


def entry(*runs):
    return measures.Entry(runs[0].name, runs)


def test_a_perfect_model_is_told_of_each_set(tmp_path):
    random = np.random.default_rng(0)
    runs = []
    for name, dataset, error in (("a", "koniq-10k", 3.0), ("b", "livec", 9.0), ("c", "bid", 99.0)):
        mos = random.uniform(0, 100, 40)
        run = make_run(tmp_path, name, 0.0, dataset)
        runs.append(with_votes(run, mos, mos + random.normal(size=40), np.full(40, error)))
    entries = [entry(run) for run in runs]
    notes = list(runs_table.footnotes(entries, measures.Measure(resamples=100)))
    told = [note for note in notes if "perfect" in note]
    # The votes on the third set explain all of its spread: nothing can be said of it.
    assert [note.split(" SRCC ")[0] for note in told] == [
        "koniq-10k: a perfect model would reach",
        "livec: a perfect model would reach",
    ]
    assert all(note.endswith(", given the votes of 40 images") for note in told)


def test_a_comparison_without_an_interval_is_none(tmp_path):
    a, b = (entry(make_run(tmp_path, name, srcc)) for name, srcc in (("a", 0.9), ("b", 0.8)))
    (comparison,) = differences.compare_all(measures.Measure(), [(a, b)])
    text = differences.sentence(comparison, {"a": "a", "b": "b"}, 1, True)
    said = "3 images without predictions: too few for an interval"
    assert text == f"a and b: cannot be compared: {said}"
    _, ((*_, cell, _, _, _),) = runs_table.table([a], measures.Measure())
    assert cell == "0.9000"


@pytest.mark.parametrize("values", [(0.99, 0.2), (-0.99, -0.5), (1.0, 1.0), (0.999, 0.9, 0.1)])
def test_the_interval_of_seeds_stays_within_what_a_correlation_can_be(tmp_path, values):
    runs = [make_run(tmp_path, f"s{i}", srcc, seed=str(i)) for i, srcc in enumerate(values)]
    estimate = measures.Measure().estimate(entry(*runs))
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_settings_beside_the_defaults(tmp_path):
    run = make_run(tmp_path, "a", 0.5, patience="5", lr="0.001", resize="384", code="0123456")
    chosen, settings = runs_table.settings_of(entry(run))
    assert chosen == [("backbone", "swin_nano"), ("lr", "0.001")]
    assert [name for name, _ in settings] == [
        "backbone",
        "code",
        "dataset",
        "lr",
        "patience",
        "resize",
    ]
