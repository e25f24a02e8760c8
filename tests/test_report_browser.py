"""The pages of `runner report` in a real Chromium: what they draw, what a hover and a click do, and what they ask for.

Needs the package playwright (extra `browser`) and a Chromium of the system (`apt-get install chromium`).
"""

import json
import random
import shutil
import time

import pytest

from conftest import until
from generated_runs import HOSTILE, config_of, rows_of, write_big_sweep, write_run, write_sweep
from runner.cli import report

sync_api = pytest.importorskip("playwright.sync_api", reason="the optional extra [browser]")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page, with all that it asked for and complained about."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(**{"viewport": {"width": 1240, "height": 900}, **options})
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.absolute().as_uri())
        self.page.wait_for_selector("footer")

    def check(self, path):
        left = [url for url in self.requests if not url.startswith("data:")]
        assert left == [path.absolute().as_uri()] and self.errors == []


def written(folder, *words):
    report.main(report.parser().parse_args([str(folder), *words]))
    return folder / "report.html"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    steps = [{"step": at, "epoch": 1, "lr": 0.1, "train/loss": 1 / at} for at in range(1, 50)]
    config = config_of(epochs=5, name=HOSTILE, notes=HOSTILE)
    write_run(folder, config, rows_of(5, 0.9, random.Random(0)), steps=steps, error=HOSTILE, tags=[HOSTILE])
    return written(folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    settings = [
        {"optimizer__lr": lr, "model__width": width, "scheduler__gamma": gamma}
        for lr in (0.001, 0.01, 0.1)
        for width in (16, 32)
        for gamma in (0.5, 0.9)
    ]
    bad = {
        0: {"state": "failed", "failure": "diverged", "error": HOSTILE, "rows": 1},
        5: {"state": "failed", "rows": 0},
    }
    write_sweep(folder, settings, seeds=(1, 2), epochs=5, bad=bad, arguments=["hydra/sweeper=optuna"])
    history = [
        {"state": state, "value": value, "params": {"optimizer.lr": lr, "model.width": 16, "scheduler.gamma": 0.5}}
        for state, value, lr in (("complete", 0.8, 0.01), ("pruned", None, 0.001), ("complete", 0.9, 0.1))
    ]
    study = {"importances": {"optimizer.lr": 0.9, "model.width": 0.1}, "history": history}
    (folder / "study.json").write_text(json.dumps(study))
    return written(folder)


# Of a chart by its title, in the page: `chart(title)`.
FIND = """const chart = (title) => [...document.querySelectorAll(".chart")].find(
  (one) => one.querySelector("h3").textContent === title);
"""
# The longest of ten choices of a run, until all is drawn, and the mean of fifty moves of the pointer; in milliseconds.
FLUENT = """async () => {
  const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const choices = [];
  for (let run = 0; run < 10; run++) {
    const began = performance.now();
    report.toggle([run * 7]);
    await drawn();
    choices.push(performance.now() - began);
  }
  const plot = document.querySelector(".chart").plot, began = performance.now();
  for (let at = 0; at < 50; at++) plot.setCursor({ left: at * 5, top: 60 });
  return [Math.max(...choices), (performance.now() - began) / 50];
}"""


def pixel_lightness(page):
    """Of the page's background."""
    red, green, blue = (
        int(part) for part in page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")[:3]
    )
    return (red + green + blue) / 3


@pytest.mark.parametrize("kind", ["run", "sweep"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1240), ("dark", 1240), ("light", 390)])
def test_a_page_draws_in_light_and_dark_and_on_a_phone_asks_for_nothing_and_hostile_text_stays_text(
    browser, request, kind, scheme, width
):
    path = request.getfixturevalue(kind)
    viewport = {"width": width, "height": 800}
    opened = Opened(browser, path, color_scheme=scheme, viewport=viewport)
    page = opened.page
    assert (pixel_lightness(page) > 200) == (scheme == "light")
    assert page.locator("canvas").count() >= 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inked = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].every((canvas) =>
             canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte > 0))"""
    )
    assert inked and page.evaluate("window.hacked") is None
    assert page.locator("text=window.hacked=1").count() > 0 and page.locator("img").count() == 0
    opened.check(path)
    page.close()


def test_the_theme_changes_while_the_page_is_open_and_paper_is_light(browser, sweep):
    opened = Opened(browser, sweep, color_scheme="light")
    page = opened.page
    page.emulate_media(color_scheme="dark")
    until(lambda: page.evaluate("getComputedStyle(document.body).backgroundColor === 'rgb(15, 18, 22)'"), 10)
    page.emulate_media(media="print", color_scheme="dark")
    until(lambda: page.evaluate("document.documentElement.classList.contains('paper')"), 10)
    assert pixel_lightness(page) == 255
    assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
    opened.check(sweep)
    page.close()


def hover(page, chart, index):
    """Puts the pointer at the index-th place of a chart's axis, upon its first visible curve; returns the tooltip."""
    card = page.locator(".chart", has=page.locator("h3", has_text=chart)).first
    card.scroll_into_view_if_needed()
    x, y = card.evaluate(
        """(card, index) => {
             const u = card.plot, box = u.over.getBoundingClientRect();
             const at = u.series.findIndex((s, i) => i > 0 && s.show && u.data[i][index] !== null && s.width > 0);
             return [box.left + u.valToPos(u.data[0][index], "x"), box.top + u.valToPos(u.data[at][index], "y")];
           }""",
        index,
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    card.locator(".tip:not(.hidden)").wait_for()
    return card.locator(".tip").inner_text(), (x, y)


def test_a_hover_names_the_epoch_and_the_values_that_the_records_hold(browser, run):
    opened = Opened(browser, run)
    rows = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
    for index in (1, 3):
        text, _ = hover(opened.page, "accuracy", index)
        for name in ("val/accuracy", "train/accuracy"):
            assert f"{name}\n{rows[index][name]:.5g}" in text
        assert text.startswith(f"epoch {index + 1}\n")
    opened.check(run)
    opened.page.close()


def test_a_hover_over_many_curves_names_the_nearest_with_its_value(browser, sweep):
    opened = Opened(browser, sweep)
    page = opened.page
    text, _ = hover(page, "val/accuracy", 3)
    head, name, value = text.split("\n")
    series = next(b for b in page.evaluate("report.data.blocks") if b.get("heading") == "Curves")["charts"][0]["series"]
    runs = page.evaluate("report.data.runs")
    named = [one for one in series if name in (one.get("label"), runs[one["run"]] if "run" in one else None)]
    assert head == "epoch 4" and [f"{one['y'][3]:.5g}" for one in named] == [value]
    page.mouse.move(5, 5)
    until(lambda: page.locator(".tip:not(.hidden)").count() == 0, 10)
    page.close()


def test_a_drag_zooms_and_a_double_click_goes_back(browser, run):
    opened = Opened(browser, run)
    page = opened.page
    _, (x, y) = hover(page, "accuracy", 1)
    page.mouse.down()
    page.mouse.move(x + 250, y, steps=4)
    page.mouse.up()
    extent = "[...document.querySelectorAll('.chart')][0].plot.scales.x"
    assert page.evaluate(f"{extent}.max - {extent}.min") < 4
    page.mouse.dblclick(x, y)
    until(lambda: page.evaluate(f"{extent}.max - {extent}.min === 4"), 10)
    page.close()


def test_a_click_on_a_row_brings_out_its_curves_dots_and_lines_and_a_second_one_lets_go(browser, sweep):
    opened = Opened(browser, sweep)
    page = opened.page
    name = page.evaluate("report.data.runs[9]")
    runs = page.locator("section", has=page.get_by_role("heading", name="Runs", exact=True)).locator("tbody tr")
    row = runs.nth(9)
    row.click()
    assert page.evaluate("[...report.state.chosen]") == [9]
    assert "chosen" in row.get_attribute("class")
    assert page.locator("svg .dot:not(.faded)").count() == 3  # one in each key's chart
    assert page.locator("svg .line.chosen").count() == 1
    assert page.locator("#chosen").inner_text().startswith(name)
    page.keyboard.press("Escape")
    assert page.evaluate("report.state.chosen.size") == 0 and page.locator(".faded").count() == 0

    summary = page.locator("section", has=page.get_by_role("heading", name="Summary")).locator("tbody tr").first
    summary.click()
    own = page.evaluate("report.data.blocks.find((one) => one.heading === 'Summary').rows[0].runs")
    assert sorted(page.evaluate("[...report.state.chosen]")) == sorted(own) and len(own) == 2
    assert runs.locator("xpath=self::*[contains(@class, 'chosen')]").count() == 2
    summary.click()
    assert page.evaluate("report.state.chosen.size") == 0
    opened.check(sweep)
    page.close()


def test_chosen_curves_are_drawn_in_their_colour_and_the_others_fade(browser, sweep):
    opened = Opened(browser, sweep)
    page = opened.page
    script = (
        f"(run) => {{ {FIND} report.toggle([run]); const widths = chart('val/accuracy').plot.series.slice(1)"
        ".map((one) => one.width); return [Math.max(...widths), widths.filter((width) => width > 2.5).length]; }"
    )
    assert page.evaluate(script, 9) == [2.6, 1]
    page.close()


def test_a_band_lies_between_the_lowest_and_the_highest_of_its_own_setting(browser, sweep):
    opened = Opened(browser, sweep)
    drawn = opened.page.evaluate(
        f"""() => {{ {FIND} const plot = chart('val/accuracy').plot;
          return plot.bands.map((one) => one.series.map((at) => plot.data[at])); }}"""
    )
    curves = next(b for b in opened.page.evaluate("report.data.blocks") if b.get("heading") == "Curves")
    means = [one for one in curves["charts"][0]["series"] if one.get("isMean")]
    assert curves["charts"][0]["title"] == "val/accuracy" and len(means) == 10  # two settings have one finished seed
    assert drawn == [one["band"][::-1] for one in means]
    opened.page.close()


def test_a_header_sorts_and_filters_hide_rows_and_their_curves(browser, sweep):
    opened = Opened(browser, sweep)
    page = opened.page
    section = page.locator("section", has=page.get_by_role("heading", name="Runs", exact=True))
    header = section.locator("th", has_text="best val/accuracy")
    column = section.locator("th").all_inner_texts().index("best val/accuracy")

    def values():
        return [text for text in section.locator(f"tbody td:nth-child({column + 1})").all_inner_texts() if text]

    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending" and values() == sorted(values(), reverse=True)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending" and values() == sorted(values())

    section.locator("select[aria-label=state]").select_option(label="diverged")
    assert section.locator("tbody tr:visible").count() == 1 and "1 of 24 runs" in section.inner_text()
    shown = f"() => {{ {FIND} return chart('val/accuracy').plot.series.slice(1).filter((one) => one.show).length; }}"
    assert page.evaluate(shown) == 1
    section.locator("select[aria-label=state]").select_option(label="state: all")
    section.locator("input[type=search]").fill("LR=0.001")
    assert section.locator("tbody tr:visible").count() == 8
    opened.check(sweep)
    page.close()


def test_the_command_is_copied_and_the_config_unfolds(browser, run):
    opened = Opened(browser, run)
    page = opened.page
    before = page.locator("section", has_text="What differs from the defaults").locator("tr").count()
    page.get_by_role("button", name="all ").click()
    assert page.locator("section", has_text="What differs from the defaults").locator("tr").count() > before
    page.get_by_role("button", name="copy").click()
    page.get_by_role("button", name="copied").wait_for()
    opened.check(run)
    page.close()


def test_two_hundred_runs_stay_fluent(browser, tmp_path):
    """Bounds are several times what was measured, for machines that are slower."""
    write_big_sweep(tmp_path)
    path = written(tmp_path)
    began = time.monotonic()
    opened = Opened(browser, path)
    loaded = time.monotonic() - began
    page = opened.page
    chosen, moved = (min(took) for took in zip(*(page.evaluate(FLUENT) for _ in range(3)), strict=True))
    print(f"loaded {loaded:.2f} s, a choice {chosen:.0f} ms, a move {moved:.1f} ms, {path.stat().st_size:,} bytes")
    assert loaded < 60 and chosen < 1500 and moved < 100
    opened.check(path)
    page.close()
