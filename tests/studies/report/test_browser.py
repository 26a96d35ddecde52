"""Pages in a real browser, at a desktop's and a phone's width. Needs a Chromium and the extra `browser`."""

import shutil

import pytest

from sparsity.studies import report
from tests.studies.report.runs import HOSTILE, LAYERS, MEASURES, write_run

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Addresses of the page of a run and of the page of three."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder / f"w{i}", f"run_{i}", i) for i in range(3)]
    hostile = write_run(folder / "hostile", HOSTILE)
    (folder / "one.html").write_text(report.runs_page([hostile]))
    (folder / "three.html").write_text(report.runs_page(runs))
    return [(folder / name).as_uri() for name in ("one.html", "three.html")]


@pytest.fixture
def opened(browser):
    """opened(address, **context): a page; at the end no console error and no request but its own were seen."""
    contexts, seen = [], []

    def open_page(address, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: request.url == address or seen.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_page_fits_shows_its_figures_and_can_be_read(opened, pages, viewport, scheme):
    for address, figures in zip(pages, (5, 5), strict=True):
        page = opened(address, viewport=viewport, color_scheme=scheme)
        assert page.evaluate(OVERFLOW) <= 0
        boxes = [svg.bounding_box() for svg in page.locator("figure svg").all()]
        assert len(boxes) == figures
        assert all(box["width"] >= 350 and box["height"] > 100 for box in boxes)
        colours = page.evaluate(
            "[...document.querySelectorAll('figure svg text')].map((text) => getComputedStyle(text).fill)"
        )
        paper, ink = page.evaluate("['backgroundColor', 'color'].map((key) => getComputedStyle(document.body)[key])")
        assert set(colours) == {ink}
        assert (sum(map(int, paper[4:-1].split(","))) > 3 * 128) == (scheme == "light")
        assert (sum(map(int, ink[4:-1].split(","))) > 3 * 128) == (scheme == "dark")


def test_a_header_sorts_up_down_and_back(opened, pages):
    page = opened(pages[0], viewport=DESKTOP)
    table = page.locator("[aria-label=Results] table")
    order = lambda: table.locator("tbody th").all_inner_texts()
    names = [m.name for m in MEASURES]
    first, nll, two, ten, endless, nothing = names
    measure, value = table.locator("thead th").all()
    value.locator("button").click()
    assert order() == [two, ten, first, nll, endless, nothing]
    assert (value.get_attribute("aria-sort"), measure.get_attribute("aria-sort")) == ("ascending", None)
    value.locator("button").press("Enter")
    assert order() == [endless, nll, first, ten, two, nothing]  # what is no number stays last
    assert value.get_attribute("aria-sort") == "descending"
    value.locator("button").press("Enter")
    assert order() == names
    assert value.get_attribute("aria-sort") is None
    measure.locator("button").click()
    assert [name for name in order() if name.startswith("nonzero")] == [two, ten]  # block_2 before block_10


def test_a_definition_is_shown_under_the_mouse_in_focus_and_by_touch(opened, pages):
    page = opened(pages[0], viewport=DESKTOP)
    tip, term, next_term = page.locator("#tip"), *page.locator("a.term").all()[:2]
    assert tip.is_hidden()
    term.hover()
    assert tip.inner_text() == f"{MEASURES[0].definition}; n = 400"
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    term.focus()
    assert tip.is_visible()
    page.keyboard.press("Tab")
    assert tip.inner_text() == f"{MEASURES[1].definition}; n = 400"
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    next_term.click()
    assert page.url.endswith(next_term.get_attribute("href"))

    phone = opened(pages[0], viewport=PHONE, has_touch=True)
    tip, term = phone.locator("#tip"), phone.locator("a.term").first
    term.tap()
    assert tip.is_visible()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert "#" not in phone.url
    phone.touchscreen.tap(5, 5)
    assert tip.is_hidden()
    term.tap()
    term.tap()
    assert phone.url.endswith(term.get_attribute("href"))


def test_values_are_read_by_mouse_by_keyboard_and_by_touch(opened, pages):
    page = opened(pages[1], viewport=DESKTOP)
    tip, said, plot = page.locator("#tip"), page.locator("#said"), page.locator("#plot-0")
    plot.focus()
    read = lambda key: page.keyboard.press(key) or tip.inner_text().splitlines()
    nonzero = lambda layer, step: f"{50 / (layer + step + 1):.5g}"
    assert read("ArrowRight") == [f"run_0, {LAYERS[0]}", f"nonzero activations (%): {nonzero(0, 0)}", "step: 0"]
    assert read("ArrowRight") == [f"run_0, {LAYERS[0]}", f"nonzero activations (%): {nonzero(0, 20)}", "step: 20"]
    assert read("ArrowDown") == [f"run_0, {LAYERS[1]}", f"nonzero activations (%): {nonzero(1, 20)}", "step: 20"]
    assert said.inner_text().split() == tip.inner_text().split()  # which is read out, in one line
    circle = plot.locator("circle").bounding_box()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.mouse.move(circle["x"] + circle["width"] / 2, circle["y"] + circle["height"] / 2)  # the point itself
    assert tip.inner_text().splitlines()[0] == f"run_0, {LAYERS[1]}"
    page.locator("h1").hover()
    assert tip.is_hidden()

    phone = opened(pages[1], viewport=PHONE, has_touch=True)
    phone.locator("#plot-1").tap()
    assert "step: " in phone.locator("#tip").inner_text()
    phone.locator("#plot-0").tap()
    assert phone.locator("#plot-1 circle").get_attribute("r") == "0"


def test_a_config_can_be_copied(opened, pages):
    page = opened(pages[0], viewport=DESKTOP)
    button = page.locator(".code button").first
    button.click()
    page.wait_for_function("document.querySelector('.code button').textContent !== 'copy'")
    assert button.inner_text() in ("copied", "selected")


def test_without_scripts_all_is_there_to_read(opened, pages):
    page = opened(pages[0], viewport=PHONE, java_script_enabled=False)
    assert page.locator("figure svg").count() == 5
    assert page.locator("dd").count() == len(MEASURES) - 1
