"""Fixtures that the tests share, and `--runslow`."""

import os
import shutil
import sys
from pathlib import Path

# The workers of pytest-xdist share the cores: each computes with one thread. It counts when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from helpers import Done, write_koniq, write_spaq
from processes import Launcher

from hyperiqa.base.command_line import run_tool
from hyperiqa.base.files import CHECKOUT
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options

SCRIPTS = {
    "swin": Script(("swin_nano",), DEFAULT_RESIZE, {}, "swin"),
    "resnet": Script(("resnet18",), DEFAULT_RESIZE, {}),
    "timm": Script(("test_convnext",), DEFAULT_RESIZE, {}, ""),
}


def entries_of_the_checkout():
    folders = [CHECKOUT, *(CHECKOUT / name for name in ("cache", "checkpoints", "demo", "logs"))]
    names = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return {path for path in names if path.name not in ("__pycache__", ".pytest_cache")}


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_checkout():
    """Tests work in folders of their own: several may run at once, and the checkout is the user's."""
    before = entries_of_the_checkout()
    yield
    assert entries_of_the_checkout() <= before


@pytest.fixture(scope="session")
def koniq(tmp_path_factory) -> Path:
    return write_koniq(tmp_path_factory.mktemp("data") / "koniq-10k")


@pytest.fixture(scope="session")
def spaq(tmp_path_factory) -> Path:
    return write_spaq(tmp_path_factory.mktemp("data") / "spaq-test")


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """One process that has imported torch, from which the real scripts are forked."""
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture
def settings(koniq, spaq, tmp_path):
    """settings("swin", "--epochs", 3): the parsed flags of a run that takes a second or two."""

    def make(model: str, *flags: object):
        tiny = [
            *"--no_pretrained --patch_size 64 --resize 72 --train_patch_num 2".split(),
            *"--batch_size 8 --epochs 2 --lr 1e-3 --precision fp32".split(),
            "--dataset_path",
            koniq,
            "--spaq_path",
            spaq,
            "--log_dir",
            tmp_path / "logs",
            "--checkpoint_dir",
            tmp_path / "checkpoints",
        ]
        tiny += ["--cache_dir", tmp_path / "cache"]
        named = "--dataset" in flags and "=" in str(flags[flags.index("--dataset") + 1])
        if "--dataset_path" in flags or named:
            del tiny[tiny.index("--dataset_path") : tiny.index("--dataset_path") + 2]
        if "--init" in flags:
            tiny = [word for word in tiny if word != "--no_pretrained"]
        for switch, own in (
            ("--no_spaq", "--spaq_path"),
            ("--cross_test", "--spaq_path"),
            ("--no_cache", "--cache_dir"),
        ):
            if switch in flags and own in tiny:
                del tiny[tiny.index(own) : tiny.index(own) + 2]
        argv = [str(word) for word in (*tiny, *flags)]
        return train_options(argv, "test", SCRIPTS[model])

    return make


def pytest_addoption(parser):
    parser.addoption(
        "--runslow", action="store_true", help="also the tests marked slow: every kill moment"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs only with --runslow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--runslow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --runslow"))


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs a tool's main in this process, which spares the seconds that importing torch or scipy takes."""

    def run(script, main, *words, code=0):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as left:
            run_tool(main)
        done = Done(left.value.code, *capsys.readouterr())
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def chromium():
    """A real Chromium, driven by Playwright; what is on the machine, never a download."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("needs a Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """browse(path): the page as a browser shows it. At the end it has said nothing and asked nobody for anything."""
    said, asked, contexts = [], [], []

    def open_page(path, width=1200, height=900, scheme="light"):
        contexts.append(
            chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda problem: said.append(str(problem)))
        page.on(
            "request",
            lambda request: None if request.url.startswith("data:") else asked.append(request.url),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield open_page
    assert not said and {url.split("#")[0] for url in asked} == {
        context.pages[0].url for context in contexts
    }
    for context in contexts:
        context.close()
