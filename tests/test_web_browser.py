"""The page in headless Chromium: what is seen, what plays, what the keyboard does, and what the page asks for."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.web_cases import FakeSearch, write_clip
from video_search.web.clips import clip_id

pytest.importorskip("fastapi")
pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from video_search.web.app import create_app
from video_search.web.connections import make_server

pytestmark = pytest.mark.slow

SECONDS = 20
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,900",
)  # fmt: skip
HTML_NAME = "e<img src=x onerror=alert(1)>كلب 🐕.mp4"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "videos"
    for seed, name in enumerate(("a.mp4", "b.mp4", "c.mp4", HTML_NAME)):
        write_clip(folder / name, seed)
    write_clip(folder / "d.avi", 4, codec="mpeg4")
    return folder


@pytest.fixture(scope="module")
def search(videos) -> FakeSearch:
    return FakeSearch(videos)


@pytest.fixture(scope="module")
def address(search) -> Iterator[str]:
    """Of a server that searches `videos`."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(create_app(search))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless browser of its own; skips where there is none."""
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in paths.items():
        if path is None:
            pytest.skip(f"{name} is not installed (Debian's packages: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = paths["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(paths["chromedriver"], log_output=subprocess.DEVNULL)
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


class Page:
    """What a person does with the page, and what he sees."""

    def __init__(self, browser, address: str):
        self.browser = browser
        self.address = address

    def open(self, question: str = "") -> None:
        self.browser.get(f"{self.address}/{question}")
        self.wait("return document.getElementById('about').textContent")

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str, *arguments):
        """What the script returns, as soon as that is true."""
        return WebDriverWait(self.browser, SECONDS, 0.05).until(lambda browser: self.run(script, *arguments), script)

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def wait_for_results(self, count: int) -> None:
        self.wait("return document.querySelectorAll('.result').length === arguments[0]", count)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def requests(self) -> list[str]:
        """The addresses that the browser has asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors in the console since the last call: of scripts, of the content security policy, of the network."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]


@pytest.fixture
def page(chromium, address) -> Iterator[Page]:
    page = Page(chromium, address)
    page.open()
    page.requests(), page.complaints()
    yield page
    ours = (f"{address}/", f"blob:{address}/", "data:")  # data: are the pictures of Chromium's own player
    assert [url for url in page.requests() if not url.startswith(ours)] == []
    assert page.complaints() == []


# from second 1, which matches best
FIRST_PLAYS = "const v = document.querySelector('.result video'); return v.currentTime > 1.2 && v.videoWidth > 0"


def test_a_query_gives_ranked_videos_that_play(page):
    page.browser.find_element("id", "query").send_keys("red circle")
    page.browser.find_element("css selector", "#search .primary").click()
    page.wait_for_results(5)
    assert page.texts(".rank") == ["1", "2", "3", "4", "5"]
    assert page.texts(".name") == ["a.mp4", "b.mp4", "c.mp4", "d.avi", HTML_NAME]
    assert page.texts(".score") == ["0.900", "0.800", "0.700", "0.600", "0.500"]
    assert page.texts("#status") == ["5 videos of 5, in 0.01 seconds."]
    assert page.browser.current_url == f"{page.address}/?q=red+circle"
    page.wait("return [...document.querySelectorAll('.frames img')].slice(0, 6).every((i) => i.naturalWidth === 224)")
    page.run("document.querySelector('.result video').play()")
    page.wait(FIRST_PLAYS)
    page.wait("return document.querySelector('.frames [aria-current] .second').textContent === '0:02'")


def test_bars_and_shades_are_the_weights(page):
    page.open("?q=red+circle")
    page.wait_for_results(5)
    heights = page.run(
        "return [...document.querySelectorAll('.result:first-child .bar')].map((bar) => "
        "bar.getBoundingClientRect().height / bar.parentElement.clientHeight)"
    )
    assert heights == pytest.approx([1 / 3, 2 / 3, 1], abs=0.02)
    assert page.texts(".result:first-child .second") == ["0:00", "0:01", "0:02"]
    assert page.texts(".result:first-child .best .second") == ["0:01"]
    shades = "return [...document.querySelectorAll('#words button')].map((b) => +b.style.getPropertyValue('--shade'))"
    assert page.run(shades) == pytest.approx([3 / 6, 1])
    page.press(Keys.TAB)
    page.run(
        "document.querySelectorAll('.result')[1].focus()"
    )  # the weights of the other video are the other way round
    assert page.run(shades) == pytest.approx([1, 3 / 6])
    backgrounds = page.run(
        "return [...document.querySelectorAll('#words button')].map((b) => getComputedStyle(b).backgroundColor)"
    )
    assert len(set(backgrounds)) == 2


def test_frames_and_words_seek(page):
    page.open("?q=red+circle")
    page.wait_for_results(5)
    seeks = "return Math.abs(document.querySelector('.result video').currentTime - arguments[0]) < 0.01"
    page.run("document.querySelectorAll('.result:first-child .frames button')[2].click()")
    page.wait(seeks, 2)
    assert page.texts(".frames [aria-current] .second")[0] == "0:02"
    page.run("document.querySelectorAll('#words button')[1].click()")
    page.wait(seeks, 1)
    assert page.texts(".frames [aria-current] .second")[0] == "0:01"


def test_the_keyboard_suffices(page):
    page.press("/")
    page.press("red circle", Keys.ENTER)
    page.wait_for_results(5)
    page.press(Keys.ARROW_DOWN)
    focused = "return [...document.querySelectorAll('.result')].indexOf(document.activeElement)"
    assert page.run(focused) == 0
    page.press(Keys.ENTER)
    page.wait(FIRST_PLAYS)
    page.press(" ")
    page.wait("return document.querySelector('.result video').paused")
    page.press(Keys.ARROW_LEFT)
    page.wait("return Math.abs(document.querySelector('.result video').currentTime - 0) < 0.01")
    page.press(Keys.ARROW_RIGHT)
    page.wait("return Math.abs(document.querySelector('.result video').currentTime - 1) < 0.01")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert page.run(focused) == 1
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"
    page.press("s")
    page.wait("return location.search === '?like=' + arguments[0]", clip_id("b.mp4"))
    page.wait("return document.getElementById('example').videoWidth > 0")
    page.wait("return document.querySelectorAll('.result').length === 5 && !document.querySelector('#words button')")
    assert page.run(focused) == 0
    page.browser.back()
    page.wait("return location.search === '?q=red+circle'")
    page.wait("return document.getElementById('query').value === 'red circle'")
    page.wait("return document.querySelector('#words button')?.textContent === 'red'")
    page.press("/")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert page.run("return document.activeElement.id") == "query"


def test_more_videos(page, search, monkeypatch):
    monkeypatch.setattr(search, "listed", search.listed * 3)
    page.open("?q=red+circle")
    page.wait_for_results(10)
    page.browser.find_element("id", "more").click()
    page.wait_for_results(15)
    assert page.texts(".rank") == [str(rank) for rank in range(1, 16)]
    assert page.run("return document.activeElement.querySelector('.rank').textContent") == "11"
    assert page.run("return document.getElementById('more').hidden")
    page.run("document.querySelector('.result').focus()")  # one of those that were there before
    page.run("document.querySelectorAll('#words button')[1].click()")
    page.wait("return document.querySelector('.frames [aria-current] .second').textContent === '0:01'")


def test_only_one_video_plays(page):
    page.open("?q=red")
    page.wait_for_results(5)
    for number in (0, 1):
        page.run("document.querySelectorAll('.result')[arguments[0]].focus()", number)
        page.press(Keys.ENTER)
    page.wait("const [a, b] = document.querySelectorAll('.result video'); return a.paused && b.currentTime > 1.1")


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("question", ["", "?q=red+circle", f"?q={'x' * 300}", "?q=" + "word+" * 200])
def test_no_sideways_scrolling(page, width, question):
    screen = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        page.open(question)
        page.wait_for_results(5 if question else 0)
        assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    "text", ["<b>bold</b><script>alert(1)</script>", "كلب يجري في الحديقة", "👩‍👩‍👧 🐕", "100% & more #1 +?"]
)
def test_queries_stay_text(page, text):
    page.browser.find_element("id", "query").click()
    page.run("document.getElementById('query').value = arguments[0]", text)  # the driver cannot type emoji
    page.press(Keys.ENTER)
    page.wait_for_results(5)
    assert page.texts("#words button") == text.split()
    is_arabic = "\u0600" < text[0] < "\u06ff"
    assert page.run("return document.getElementById('words').dir") == ("rtl" if is_arabic else "ltr")
    assert page.run("return document.querySelectorAll('main b, main script, main [onerror]').length") == 0
    page.browser.refresh()
    page.wait_for_results(5)
    assert page.run("return document.getElementById('query').value") == text


def test_errors_are_told(page):
    page.press("/", Keys.ENTER)
    assert page.texts("#status.error") == ["Type a few words to search for."]
    assert page.run("return document.getElementById('status').ariaLive") == "polite"
    page.run("document.getElementById('query').value = 'x'.repeat(2001)")
    page.press(Keys.ENTER)
    assert page.texts("#status.error") == ["The query has 2001 characters; at most 2000 are accepted."]
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.run("document.getElementById('query').value = 'red'")
    page.press(Keys.ENTER)
    page.wait("return document.getElementById('status').textContent.startsWith('The server does not answer.')")


def test_an_uploaded_video_is_an_example(page, videos):
    page.browser.find_element("id", "file").send_keys(str(videos / "b.mp4"))
    page.wait_for_results(5)
    page.wait("return document.getElementById('example').videoWidth > 0")


DROP = """
const transfer = new DataTransfer();
transfer.items.add(new File([new Uint8Array(arguments[0])], "dropped.mp4"));
for (const kind of arguments[1])
  document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""


def test_a_dropped_video_is_an_example(page, videos):
    content = list((videos / "a.mp4").read_bytes())
    page.run(DROP, content, ["dragover"])
    assert page.run("return !document.getElementById('drop').hidden")
    page.run(DROP, content, ["drop"])
    assert page.run("return document.getElementById('drop').hidden")
    page.wait_for_results(5)


def test_a_dropped_file_that_is_no_video(page):
    page.run(DROP, [1, 2, 3], ["dragover", "drop"])
    page.wait("return document.getElementById('status').textContent.startsWith('This file cannot be read as a video')")
    assert any("422" in complaint for complaint in page.complaints())


def test_a_video_that_browsers_cannot_play_shows_its_frames(page):
    page.open("?q=red")
    page.wait_for_results(5)
    page.run("document.querySelectorAll('.result')[3].focus()")
    page.press(Keys.ENTER)
    item = "const item = document.querySelectorAll('.result')[3];"
    page.wait(
        f"{item} return item.querySelector('.trouble').textContent.startsWith('This browser cannot play the file')"
    )
    assert page.run(f"{item} return item.querySelector('video').hidden && !item.querySelector('.still').hidden")
    page.wait(f"{item} return item.querySelector('.still img').naturalWidth === 224")
    page.press(Keys.ARROW_RIGHT)
    page.wait(f"{item} return item.querySelector('.still img').src.endsWith('/2.jpg')")
    assert page.run(f"{item} return item.querySelector('.download').download") == "d.avi"


def test_a_video_that_is_gone_is_named(page, videos):
    page.open("?q=red")
    page.wait_for_results(5)
    (videos / "c.mp4").rename(videos / "away")
    try:
        page.run("document.querySelectorAll('.result')[2].focus()")
        page.press(Keys.ENTER)
        text = "c.mp4 is no longer in the folder of the index."
        page.wait("return document.querySelectorAll('.trouble')[2].textContent === arguments[0]", text)
    finally:
        (videos / "away").rename(videos / "c.mp4")
    assert all("404" in complaint for complaint in page.complaints())
