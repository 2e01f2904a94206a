"""What `report.py` shows of runs: their figures side by side, their tests, certificates, and where they look."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from tqdm import tqdm

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints
from hyperiqa.pages.page import Page, block
from hyperiqa.pages.set_sections import Tested
from hyperiqa.runs import footnotes, measures, standards_table
from hyperiqa.runs.differences import Comparison, cannot_be_seen, sentence
from hyperiqa.runs.measures import Entry, Measure
from hyperiqa.runs.reading import Run
from hyperiqa.scoring import certificate_checks, maps
from hyperiqa.scoring.quality_model import QualityModel
from hyperiqa.stats.metrics import RECORDED
from hyperiqa.training.log import SilentLog
from hyperiqa.training.options import settings_again
from hyperiqa.training.run_files import read_records
from hyperiqa.training.sets import RunData

MAPS = 4  # in each level of quality


@functools.cache  # for pages that are written again and again
def decoded(path: Path, where: tuple, cache: tuple) -> tuple[dict[str, Any], str]:
    """Part -> (decoded images, records, crop) of what a run's records are of, read as by the run, and what keeps them
    from being read. where: items of set -> place, where it is not as then. cache: items of the cache's flags."""
    try:
        flags = next(r["flags"] for r in read_records(path) if r["type"] == "run")
        place, seed = flags["dataset_path"], int(flags["seed"])
    except (UserError, StopIteration, KeyError):
        return {}, f"{path}: a log that does not say which sets it is of"
    both = [
        place if isinstance(place, dict) else {flags["dataset"]: place},
        flags.get("cross_test") or {},
    ]
    trained, cross = (
        {n: dict(where).get(n, p and Path(p)) for n, p in each.items()} for each in both
    )
    problems: list[str] = []
    for tests in (cross, {}):
        try:
            o = settings_again(
                flags,
                trained=trained,
                cross_test=tests,
                image_root=flags["image_root"],
                allow_overlap=True,
                cache_device="cpu",
                **dict(cache),
            )
            data = RunData(o, seed)
            data.decode(torch.device("cpu"), SilentLog(Path(), Path()), new=True)
        except UserError as mistake:
            problems.append(str(mistake))
            continue
        crop = (o.patch_size, o.test_crop, o.test_patch_num)
        found = {
            part: (images, images.records(split), crop)
            for part, (images, split) in data.tests.items()
        }
        return found, "; ".join(problems)
    return {}, problems[-1]


def all_tested(
    shown: Mapping[Run, str], where: Mapping[str, Path | None], cache: Any
) -> tuple[list[Tested], list[str]]:
    """What these runs (-> their short names) were tested on and left predictions of, each set once, and what is
    missing. cache: as of `decoded`; None: without images."""
    found: dict[Any, Tested] = {}
    notes: dict[str, None] = {}
    for run, name in shown.items():
        for part in ("test", *run.cross_tests):
            if (scores := run.scores(part)) is None:
                continue
            title = run.settings.get("dataset", "test") if part == "test" else part
            key = (title, scores.keys, scores.mos.tobytes())
            if key not in found:
                again = sum(title == each[0] for each in found)  # other images of a set
                tested = Tested(
                    f"{title} ({again + 1})" if again else title,
                    [i for i, _ in scores.keys],
                    scores.mos,
                )
                sets, problem = (
                    decoded(run.path, tuple(where.items()), tuple(cache.items()))
                    if cache
                    else ({}, "")
                )
                notes |= {f"without pictures: {problem}": None} if problem else {}
                images, records, crop = sets.get(part, (None, [], tested.crop))
                by_name = {record.name: record for record in records}
                if len(by_name) == len(records) and by_name.keys() >= {*tested.names}:
                    tested.records, tested.images = (
                        [by_name[image] for image in tested.names],
                        images,
                    )
                    tested.crop = crop
                found[key] = tested
            found[key].scores[name] = scores.score
    return list(found.values()), list(notes)


def add_runs(
    page: Page,
    entries: Sequence[Entry],
    measure: Measure,
    grouped: bool,
    compared: Sequence[Comparison],
    short: Mapping[str, str],
) -> None:
    """The sections on runs: their table, differences, settings and curves."""
    head, rows = measures.table(entries, measure, grouped)
    table = block(
        "table", head=head, rows=[[short[name], *cells] for name, *cells in rows], label="Runs"
    )
    full = [f"{brief} = {name}" for name, brief in short.items() if name != brief]
    page.section(
        "Runs", table, block("text", lines=[*full, *footnotes.footnotes(entries, measure)])
    )
    lines = []
    for each in compared:
        lines.append(sentence(each, dict(short), len(compared), measure.higher_is_better))
        if unseen := cannot_be_seen(each):
            lines[-1] += f"; {unseen}"
    page.section(
        f"Differences in {measure.metric.upper()}", block("list", lines=lines) if lines else None
    )
    head, rows = measures.settings_table(entries)
    differ = [[short[name], *cells] for name, *cells in rows]
    page.section(
        "Settings that differ", block("table", head=head, rows=differ) if len(head) > 1 else None
    )
    page.section("Curves", _curves(entries))
    standards = [
        (short[e.name], of, found)
        for e in entries
        for of, found in standards_table.entry_standards(e).items()
    ]
    head, rows = standards_table.table(standards, "run") if standards else ([], [])
    page.section("Figures of the standards", block("table", head=head, rows=rows) if rows else None)


def _curves(entries: Sequence[Entry]) -> dict[str, Any]:
    """A panel for each figure of each set, and for the training loss and its parts."""
    shown = [run for entry in entries for run in entry.runs]
    parts = dict.fromkeys(["test", *(part for run in shown for part in run.cross_tests), "train"])
    panels = [(part, name) for part in parts for name in RECORDED]
    trained = [epoch.get("train", {}) for run in shown for epoch in run.epochs.values()]
    losses = list(
        dict.fromkeys(name for train in trained for name in train if name not in RECORDED)
    )
    panels += [
        ("train", name) for name in (losses if len(losses) != 2 else ["loss"])
    ]  # one part is the loss itself
    drawn = []
    for part, name in panels:
        title = part if part in ("test", "train") else part.upper()
        values = [[run.figure(part, name, epoch) for epoch in sorted(run.epochs)] for run in shown]
        drawn.append([f"{title} {name.upper() if name in RECORDED else name}", values])
    own = [{"name": run.name, "epochs": sorted(run.epochs), "best": run.best} for run in shown]
    return block("curves", runs=own, panels=drawn)


def checkpoint_of(run: Run, folder: Path | None) -> Path:
    """Where the model of a run's round lies. folder: that of the runs' checkpoints; None: as the run says.
    Raises UserError."""
    if run.path.suffix != ".jsonl":
        raise UserError(f"{run.path}: a log alone does not say where its model is")
    flags: dict[str, Any] = next(r["flags"] for r in read_records(run.path) if r["type"] == "run")
    number = re.search(r"_round(\d+)$", run.name.removeprefix(run.path.stem))
    place = (folder or Path(flags.get("checkpoint_dir", "checkpoints"))) / run.path.stem
    return checkpoints.find_model(
        place / f"round{number[1]}" if number and number[1] != "1" else place
    )


def add_certificates(page: Page, shown: Mapping[Run, str], folder: Path | None) -> None:
    """The certificates of the runs' models, and why there is none."""
    missing, blocks = [], []
    for run, name in shown.items():
        try:
            path = checkpoint_of(run, folder)
            blocks.append(
                block(
                    "facts",
                    rows=list(certificate_checks.facts(path.name, checkpoints.load_model(path)[1])),
                )
            )
        except (UserError, KeyError) as problem:
            missing.append(
                f"{name}: {problem if isinstance(problem, UserError) else 'made before there were any'}"
            )
    said = ["python certify.py checkpoints/NAME checks them"] if blocks else []
    page.section("Certificates", *blocks, block("text", lines=said + missing))


def add_maps(page: Page, tested: Tested, model: QualityModel, number: int) -> None:
    """Where the model looks, by quality level: of `number` images of the set the stages that `attention` weighs and the
    spread of the generated weights, of MAPS in each level the map."""
    order, cache = np.argsort(tested.mos, kind="stable"), tested.images.cache
    chosen = order[
        np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int)
    ].tolist()
    by_level = maps.levels(tested.mos[chosen])
    mapped = {int(i) for of in by_level.values() for i in of[:: max(1, len(of) // MAPS)][:MAPS]}
    looked = [
        maps.map_image(model, cache[cache.index[tested.records[i].path]], k in mapped)
        for k, i in enumerate(tqdm(chosen, "Where it looks", unit="image", leave=False))
    ]
    shown = [k for k, each in enumerate(looked) if each.map is not None]
    better = model.description["higher_is_better"]
    level_of = {k: level for level, of in by_level.items() for k in of}
    pictures, dark, bright = zip(*(maps.coloured(looked[k], better) for k in shown))
    fields = {
        "MOS": [float(tested.mos[chosen[k]]) for k in shown],
        "score": [looked[k].score for k in shown],
        "dark": dark,
        "bright": bright,
        "level": [level_of[k] for k in shown],
    }
    page.images(
        "maps",
        [tested.names[chosen[k]] for k in shown],
        fields,
        [picture.copy for picture in pictures],
    )
    layers, panels = [f"layer {k}" for k in maps.LAYERS], list[list]()
    for title, names, values in (
        (
            "what attention weighs each stage",
            [f"stage {k}" for k in range(1, 5)],
            [each.stages for each in looked],
        ),
        (
            "spread of the generated weights within an image",
            layers,
            [each.spread for each in looked],
        ),
    ):
        if values[0] is not None:
            parts = [np.stack(values)[of] for of in by_level.values()]
            halves = [
                scipy.stats.t.ppf(0.975, len(v) - 1) * scipy.stats.sem(v)
                if len(v) > 1
                else 0 * v[0]
                for v in parts
            ]
            panels.append(
                [
                    title,
                    names,
                    [v.mean(0).tolist() for v in parts],
                    [half.tolist() for half in halves],
                ]
            )
    vectors = [np.stack([each.weights[k] for each in looked]) for k in range(len(layers))]
    between = [[float(v[of].std(0).mean() / v.std()) for v in vectors] for of in by_level.values()]
    panels.append(
        ["spread of each weight between images, of all weights' spread", layers, between, None]
    )
    said = [
        f"{len(looked)} images of {tested.title}, in {len(by_level)} levels of their opinions; bars: 95 % of the mean.",
        "Maps: scores of a dense grid of patches; dark is worse, bright is better, scored as said below each.",
    ]
    gallery = block("gallery", set="maps", by="MOS", most=4, down=False)
    page.section(
        "Where the model looks",
        block("text", lines=said),
        block("levels", levels=list(by_level), panels=panels),
        gallery,
    )
