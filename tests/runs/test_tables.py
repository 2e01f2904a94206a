import re

import pytest

from hyperiqa.runs import tables

LONG = [f"swin_multiscale_ranking_alpha{a}_20261122_1{s}000" for a in (0, 0.3) for s in (42, 43)]


@pytest.mark.parametrize("width", [12, 16, 20, 30, 60])
def test_short_names_fit_and_stay_apart(width):
    for names in (LONG, [f"{'x' * 40}{i}{'y' * 40}" for i in range(12)], ["a", "b"]):
        short = tables.short_names(names, width)
        assert list(short) == names
        assert all(len(text) <= width for text in short.values())
        assert len(set(short.values())) == len(names)


def test_short_names_keep_what_tells_runs_apart():
    assert (
        tables.short_names(["resnet50_20251215_191130", "b"], 12)["resnet50_20251215_191130"]
        == "resnet50"
    )
    # The same setting at two times: the date must stay.
    twice = ["resnet50_20251215_191130", "resnet50_20251215_220614"]
    assert set(tables.short_names(twice, 12).values()) == {"191130", "220614"}
    settings = [
        "ranking_loss_alpha=0.1 ranking_loss_margin=0.3",
        "ranking_loss_alpha=0.5 ranking_loss_margin=0.3",
    ]
    assert tables.short_names(settings, 20)[settings[0]].startswith("alpha=0.1")


@pytest.mark.parametrize("width", [20, 24, 30])
def test_what_differs_is_not_cut_out_of_names_of_a_search(width):
    alphas = [f"search_ranking_loss_alpha={a}_seed=42_8feb579b" for a in (0, 0.1, 0.3)]
    names = [*alphas, "resnet50_20251215_191130", "swin_multiscale_attention_20251215_191130"]
    short = tables.short_names(names, width)
    for name, alpha in zip(alphas, ("alpha=0", "alpha=0.1", "alpha=0.3")):
        assert alpha in short[name].split("…") or alpha in re.split("[_…]", short[name])
    assert "~" not in "".join(short.values())
    grid = [f"search_lr={a}_ranking_loss_margin={b}_1" for a in "12" for b in "34"]
    assert tables.short_names([*grid, "other"], 20)[grid[1]] == "lr=1…margin=4"


HEADER = ["run", "best/\nepochs", "SRCC [95 %]", "status"]
ROWS = [
    ["swin_tiny", "3/10", "0.9205 [.912 .928]", "finished"],
    ["resnet50", "1/2", "0.9000", "cut off"],
]


def test_text_table_lines_up():
    lines = tables.text_table(HEADER, ROWS, 100).splitlines()
    assert lines == [
        "            best/",
        "run        epochs         SRCC [95 %]    status",
        "swin_tiny    3/10  0.9205 [.912 .928]  finished",
        "resnet50      1/2              0.9000   cut off",
    ]


def test_text_table_keeps_its_width_by_further_blocks():
    text = tables.text_table(HEADER, ROWS, 40)
    assert max(map(len, text.splitlines())) <= 40
    for cell in sum(ROWS, []):
        assert cell in text


def test_markdown_table():
    text = tables.markdown_table(HEADER, [["a|b", "1", "2", "3"]])
    assert text.splitlines() == [
        "| run | best/ epochs | SRCC [95 %] | status |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 1 | 2 | 3 |",
    ]
