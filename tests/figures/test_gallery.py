import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest

from cocoseg.figures.gallery import LONGEST, Card, has_thumbnails, write_gallery, write_thumbnails
from cocoseg.labels import LabelClass, LabelMap
from tiny import LABELS

ODD = "deep/<b>&\"' #1?%41 ä"


class Page(HTMLParser):
    """The files that a browser would load, and the text of the page."""

    def __init__(self, path: Path):
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def draw(folder: Path, *cards: Card, size: tuple[int, int] = (60, 90)) -> Page:
    """A gallery of three stripes."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    mask = np.repeat(np.arange(3, dtype=np.uint8), size[1] // 3)[None].repeat(size[0], 0)
    image[..., 1] = 80 * mask
    for card in cards:
        write_thumbnails(folder, card.name, image, mask, LABELS, mask if card.has_target else None)
    write_gallery(folder / "gallery.html", cards, LABELS, "Title", "about it")
    return Page(folder / "gallery.html")


def test_all_it_shows_lies_beside_it(tmp_path):
    page = draw(tmp_path, Card(ODD, ODD, (60, 90), {0: 5400}), Card("b", "b", (60, 90), has_target=True))
    files = [tmp_path / unquote(source) for source in page.sources if not source.startswith("data:")]
    assert len(files) == 7
    for file in files:
        assert file.is_relative_to(tmp_path / "gallery")
        with PIL.Image.open(file) as picture:
            assert picture.size == (90, 60)
    assert has_thumbnails(tmp_path, ODD)
    assert not has_thumbnails(tmp_path, "c")


def test_nothing_comes_from_elsewhere(tmp_path):
    draw(tmp_path, Card("a", "a", (60, 90)))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", (tmp_path / "gallery.html").read_text())


def test_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>"
    labels = LabelMap((LABELS.classes[0], LabelClass((1,), evil, (1, 2, 3))))
    write_gallery(tmp_path / "g.html", [Card(evil, "a", (1, 1), {1: 1}, caption=evil)], labels, evil, evil)
    page = Page(tmp_path / "g.html")
    assert page.tags.count("script") == 1  # its own
    assert page.text.count(evil) >= 5


def test_shares_of_the_classes(tmp_path):
    page = draw(tmp_path, Card("a", "a", (60, 90), {0: 100, 1: 0, 2: 300}))
    assert "dog 75.0 %background 25.0 %" in page.text
    assert "cat 0" not in page.text


def test_sorted_by_score_the_lowest_first(tmp_path):
    cards = [Card(f"card {score}", str(score), (60, 90), score=score) for score in (0.5, None, 0.25, 1.0)]
    text = draw(tmp_path, *cards).text
    places = [text.index(f"card {score}") for score in (0.25, 0.5, 1.0, None)]
    assert places == sorted(places)
    assert "0.250 card 0.25" in text


def test_large_images_are_shown_small(tmp_path):
    draw(tmp_path, Card("a", "a", (900, 1200)), size=(900, 1200))
    for kind in ("image.jpg", "overlay.jpg", "mask.png"):
        with PIL.Image.open(tmp_path / "gallery" / f"a.{kind}") as picture:
            assert picture.size == (LONGEST, LONGEST * 3 // 4)


@pytest.mark.browser
def test_in_a_browser(tmp_path):
    """It loads without an error, and the slider uncovers the overlay."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium here")
    draw(tmp_path, Card("", ODD, (60, 90)), Card("", "b", (60, 90)))  # the pictures
    draw(tmp_path, Card("", "narrow", (90, 12)), size=(90, 12))
    many = [Card(f"card {number}", "b", (60, 90)) for number in range(300)]
    cards = [Card(ODD, ODD, (60, 90), {0: 1, 2: 3}), Card("narrow", "narrow", (90, 12)), *many]
    write_gallery(tmp_path / "gallery.html", cards, LABELS, "Title")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get((tmp_path / "gallery.html").as_uri())
        browser.set_script_timeout(30)
        widths = browser.execute_async_script(
            """const done = arguments[0], images = [...document.images].slice(0, 3);
            Promise.all(images.map(i => i.decode())).then(() => done(images.map(i => i.naturalWidth)));"""
        )
        covered = "return getComputedStyle(document.querySelector('.over')).clipPath"
        slider = browser.find_element("css selector", "article input")
        at_first = browser.execute_script(covered)
        slider.send_keys(webdriver.Keys.HOME)
        at_begin = browser.execute_script(covered)
        slider.send_keys(webdriver.Keys.END)
        at_end = browser.execute_script(covered)
        assert widths == [90, 90, 90]
        assert [re.findall(r"([\d.]+)%", css)[-1:] for css in (at_first, at_end)] == [["50"], ["100"]]
        assert not re.findall(r"[1-9]", at_begin)
        assert browser.get_log("browser") == []
        rectangles = browser.execute_script(
            """const place = img => { const r = img.getBoundingClientRect();
                return [r.left, r.top, r.width, r.height].map(Math.round); };
            const pairs = [...document.querySelectorAll(".pair")].slice(0, 2);
            return pairs.map(pair => [...pair.children].map(place));"""
        )
        for (image, over), width in zip(rectangles, (240, 32), strict=True):
            assert image == over
            assert image[2] == width
        sideways = "return document.documentElement.scrollWidth > innerWidth"
        assert not browser.execute_script(sideways)
        pixels = PIL.Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        assert {(255, 0, 0), (0, 0, 255)} <= {color for _, color in pixels.getcolors(1 << 24)}
    finally:
        browser.quit()
