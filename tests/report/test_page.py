"""The report as people meet it: opened in a browser, without a network, on a desk and on a phone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from src.published import Comparison as Line
from src.report.bootstrap import Interval
from src.report.comparison import Change, Comparison
from src.report.examples import Cell, Example, Row
from src.report.page import PublishedScores, Report, score_text, write_report
from src.report.record import ImageRecords

WIDTHS = {"desk": 1280, "tablet": 768, "phone": 390, "small phone": 320}
# addresses in a page that would make a browser ask for something
REFERENCE = re.compile(
    r"""(?:src|href|action|poster|data|srcset)\s*=\s*["']?(?!data:)[^"'\s>]|url\(|@import|<script"""
)


@pytest.fixture(params=["good", "bad"])
def report(request: pytest.FixtureRequest, scored: Path) -> Path:
    return scored / request.param / "report.html"


class Reader(HTMLParser):
    """Collects the text of a page, and complains about tags that are not closed."""

    void = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def test_the_page_refers_to_nothing_outside(report: Path) -> None:
    page = report.read_text()
    assert not REFERENCE.search(re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "data:", page))
    assert "default-src 'none'" in page  # and the browser would not fetch it anyway
    assert REFERENCE.search('<img src="http://a/b.png">')
    assert REFERENCE.search("<link href=style.css>")


def test_the_page_is_well_formed(report: Path) -> None:
    reader = Reader()
    reader.feed(report.read_text())
    assert reader.open == []
    assert "Lowest boundary IoU" in " ".join(reader.text)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_it_fits_every_screen(browser, scored: Path, width: int) -> None:
    page = browser.open(scored / "good" / "report.html", width)
    assert page.evaluate("window.innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # nothing sticks out, apart from what lies in an area that scrolls by itself
    outside = page.evaluate(
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll') && "
        f"e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    # and tables that are wider than the screen do scroll
    scrolling = page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => ['auto', 'scroll'].includes("
        "getComputedStyle(e).overflowX))"
    )
    assert scrolling


def test_the_browser_asks_for_nothing_and_does_not_complain(browser, scored: Path) -> None:
    report = scored / "good" / "report.html"
    page = browser.open(report, 1280)
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    assert page.requests == [report.resolve().as_uri()]
    assert page.complaints == []


def test_every_picture_decodes(browser, scored: Path) -> None:
    page = browser.open(scored / "good" / "report.html", 1280)
    # three photos, each whole and two details, four pictures in each row
    assert page.evaluate("document.images.length") == 3 * 3 * 4
    decoded = page.evaluate(
        "[...document.images].map(i => { i.loading = 'eager'; return i.src.startsWith('data:image/') })"
    )
    assert all(decoded)
    page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_it_shows_all_parts(browser, scored: Path) -> None:
    page = browser.open(scored / "good" / "report.html", 1280)
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings == [
        "Beside the published scores",
        "Beside another evaluation",
        "Classes",
        "Boundary IoU by mask complexity",
        "Boundary F1 by tolerance",
        "What labelled pixels are taken for",
        "Lowest boundary IoU",
        "Highest boundary IoU",
    ]
    assert page.evaluate("document.querySelectorAll('.matrix tbody tr').length") == 7
    assert page.evaluate("document.querySelectorAll('svg.chart').length") == 2
    assert page.evaluate("document.querySelectorAll('.tile').length") == 3
    bars = page.evaluate("[...document.querySelectorAll('.fill')].map(e => e.getBoundingClientRect().width)")
    assert max(bars) > 100
    # bars are as long as their numbers say
    lengths = page.evaluate(
        "[...document.querySelectorAll('.bar')].map(e => [e.querySelector('.fill').offsetWidth / "
        "e.querySelector('.track').offsetWidth, e.querySelector('.num').textContent])"
    )
    for share, text in lengths:
        value = float(text)
        assert share == pytest.approx(
            value if value <= 1 and "." in text and len(text) == 6 else value / 100, abs=0.01
        )


def test_dark_and_light_differ_and_stay_readable(browser, scored: Path, tmp_path: Path) -> None:
    report = scored / "good" / "report.html"
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    contrasts, pictures = [], []
    for dark in (False, True):
        page = browser.open(report, 1280, dark=dark)
        ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in page.evaluate(colours))
        contrasts.append(abs(ink - paper))
        assert (paper < 128) == dark
        pictures.append(page.screenshot(tmp_path / f"{dark}.png"))
    assert min(contrasts) > 150
    assert pictures[0].mean() - pictures[1].mean() > 50
    for picture in pictures:
        assert picture.std() > 10


def test_charts_stay_inside_their_frames(browser, scored: Path) -> None:
    page = browser.open(scored / "good" / "report.html", 390)
    outside = page.evaluate(
        "[...document.querySelectorAll('svg.chart')].flatMap(s => { const frame = s.getBoundingClientRect(); "
        "return [...s.querySelectorAll('circle, polyline, text')].filter(e => { const r = e.getBoundingClientRect();"
        "return r.left < frame.left - 1 || r.right > frame.right + 1 || r.top < frame.top - 1 || "
        "r.bottom > frame.bottom + 1 }).map(e => e.outerHTML) })"
    )
    assert outside == []


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\""
    images = ImageRecords((evil,), *np.array([[[2, 3]]] * 4), np.array([[0.5, 0.25]]), np.array([4.0]))
    interval = Interval(*np.array([[0.5, np.nan, 0.5]] * 3))
    comparison = Comparison(evil, 1, 1, {"IoU": interval}, [Change(evil, 0.5, 0.25)])
    report = Report(
        title=evil,
        facts=[(evil, evil)],
        classes={evil: [0, 0, 0], "sky": [0, 0, 255]},
        intervals={"IoU": interval},
        level=0.95,
        confusion=np.array([[3, 1], [0, 0]]),
        f1_curve=None,
        images=images,
        published=PublishedScores(evil, [Line("mIoU", 50.0, 88.97, -38.97)], evil),
        comparison=comparison,
        worst=[Example(evil, evil, [Row(evil, [Cell(evil, "data:,")], None)])],
        best=[],
    )
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    reader = Reader()
    reader.feed(page)
    text = " ".join(reader.text)
    assert evil in text
    assert "does not occur" in text  # the class without a score
    assert "Boundary F1 by tolerance" not in text  # was not measured
    assert "-38.97" in text


def test_scores_are_printed_as_the_paper_does() -> None:
    assert score_text("IoU", 0.88971) == "88.97"
    assert score_text("BF1", 0.56391) == "0.5639"
    assert score_text("BIoU", 0.0123, signed=True) == "+1.23"
    assert score_text("BIoU", float(np.nan)) == "-"
