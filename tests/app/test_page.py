"""The page in Chromium: a generation, a bad upload, a cancel, two visitors at once, and what is served."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import published
import pytest
from children import started

from flowley_jax.media.read import probe, read_audio
from flowley_jax.media.write import write_video
from flowley_jax.runs.included_model import INCLUDED, examples

pytestmark = pytest.mark.app
ROOT = Path(__file__).parents[2]
# Milliseconds that Chromium waits for something to appear.
PATIENCE = 120_000
# As the root of a container, and without connections to the web.
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_server(tmp_path_factory):
    """Run the page with the included model; yield its address and the folder of its files."""
    temporary = tmp_path_factory.mktemp("server")
    with _serving(temporary, "--most-seconds=45", "--most-megabytes=1") as (_, address):
        yield address, temporary


@contextlib.contextmanager
def _serving(temporary, *flags):
    """Run the page; yield its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.environ["PYTHONPATH"]}
    command = [sys.executable, "-m", "flowley_jax.app", "--port", port, *flags]
    with started(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}"
        assert process.stdout.readline() == f"the page is at {address} (Ctrl-C stops it)\n"
        yield process, address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_files_are_removed_when_the_server_stops(tmp_path, number):
    with _serving(tmp_path) as (process, _):
        assert list(tmp_path.glob("flowley_page_*"))
        process.send_signal(number)
        process.wait(timeout=60)
    assert not list(tmp_path.glob("flowley_page_*"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser, page_server):
    """Return a function that opens the page as another visitor."""
    contexts = []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.foreign = []
        page.on("request", lambda request: _note_foreign(page, request.url))
        page.goto(page_server[0])
        page.wait_for_selector("#make")
        return page

    yield opened
    for context in contexts:
        context.close()


def _note_foreign(page, url):
    if not url.startswith(("http://127.0.0.1", "data:", "blob:")):
        page.foreign.append(url)


def _upload(page, path):
    page.set_input_files("#video input[type=file]", str(path))
    page.wait_for_selector("#video video")


def _set(page, label, value):
    box = page.get_by_label(label).first
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def _open_settings(page):
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").first.wait_for()


def _wait_for_status(page, text):
    page.locator("#status", has_text=text).wait_for()


def _downloaded(page, number, folder):
    """Return the file that the download button of a player gives."""
    with page.expect_download() as download:
        page.locator(
            f"#sound-{number} a[download], #sound-{number} button[aria-label='Download']"
        ).first.click()
    path = folder / f"{number}.mp4"
    download.value.save_as(path)
    return path


def test_a_whole_generation(new_page, tmp_path):
    video, prompt = examples(INCLUDED)[0]
    page = new_page(accept_downloads=True)
    _upload(page, video)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    _open_settings(page)
    _set(page, "Candidates", 3)
    _set(page, "Seed", 5)
    page.click("#make")
    page.locator("#status progress").wait_for()
    _wait_for_status(page, "Done: 3 sounds, best first. Seed 5 gives the same sounds again.")
    for number in range(3):
        page.locator(f"#sound-{number} video").wait_for()
    assert not page.locator("#sound-3 video").is_visible()
    assert page.get_by_text("agreement with the other candidates").count() == 3
    assert page.locator(".sound img:visible").count() == 3
    # The browser can play it: it knows the length.
    seconds = page.eval_on_selector(
        "#sound-0 video",
        "v => new Promise(r => v.readyState ? r(v.duration) : v.onloadedmetadata = () => r(v.duration))",
    )
    assert seconds == pytest.approx(probe(video).duration, abs=0.1)
    path = _downloaded(page, 0, tmp_path)
    assert probe(path).has_audio and np.abs(read_audio(path, sample_rate=16_000)).max() > 0.01
    assert page.foreign == []


def test_the_page_fits_a_phone(new_page):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    assert page.locator("#make").bounding_box()["width"] > 100


def test_a_bad_upload_is_one_readable_line(new_page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all" * 100)
    page = new_page()
    page.set_input_files("#video input[type=file]", str(broken))
    page.wait_for_timeout(1000)
    page.click("#make")
    page.locator("#status .fault").wait_for()
    text = page.inner_text("#status .fault")
    assert text.startswith("broken.mp4: ") and "/" not in text and "Traceback" not in text


def test_no_video_is_asked_for(new_page):
    page = new_page()
    page.click("#make")
    _wait_for_status(page, "Choose a video first.")


def test_cancel_ends_a_long_request(new_page, tmp_path):
    long = tmp_path / "long.mp4"
    write_video(long, np.zeros((480, 64, 64, 3), np.uint8), 8.0)
    page = new_page()
    _upload(page, long)
    _open_settings(page)
    assert page.get_by_label("Seconds").first.get_attribute("max") == "45"
    _set(page, "Seconds", 45)
    _set(page, "Steps", 100)
    page.click("#make")
    _wait_for_status(page, re.compile(r"step \d+ of 100"))
    page.click("#cancel")
    _wait_for_status(page, "Cancelled.")
    # The page serves again, and quickly.
    _set(page, "Seconds", 2)
    _set(page, "Steps", 2)
    page.click("#make")
    _wait_for_status(page, "Done: 1 sound.")


def test_two_visitors_at_once_get_their_own_sounds(new_page):
    pages, clips = [new_page(), new_page()], examples(INCLUDED)[:2]
    for page, (video, _) in zip(pages, clips, strict=True):
        _upload(page, video)
        _open_settings(page)
        # Long enough that both are at work at the same time.
        _set(page, "Steps", 100)
    for page in pages:
        page.click("#make")
    for page in pages:
        page.locator("#status progress").wait_for()
    for page in pages:
        _wait_for_status(page, "Done: 1 sound.")
    names = [page.get_attribute("#sound-0 video", "src") for page in pages]
    for name, (video, _) in zip(names, clips, strict=True):
        assert video.stem in name


def test_only_own_files_are_served_and_those_of_visitors_are_removed(new_page, page_server, tmp_path):
    address, files = page_server
    private = ROOT / "pyproject.toml"
    for path in ("/etc/passwd", str(private), "pyproject.toml", "../../etc/passwd"):
        for route in ("file=", "gradio_api/file="):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{address}/{route}{urllib.parse.quote(path)}", timeout=30)
            assert caught.value.code in (403, 404)
            caught.value.close()
    marked = tmp_path / "visitor.mp4"
    write_video(marked, np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8), 8.0)
    page = new_page()
    _upload(page, marked)
    page.click("#make")
    _wait_for_status(page, "Done: 1 sound.")
    assert len(list(files.rglob("visitor*.mp4"))) == 2
    page.context.close()
    deadline = time.monotonic() + 60
    while list(files.rglob("visitor*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert list(files.rglob("visitor*.mp4")) == []


def test_an_example_stays_for_the_next_visitor(new_page):
    for _ in range(2):
        page = new_page()
        page.locator("table tbody tr").first.click()
        page.wait_for_selector("#video video")
        page.click("#make")
        _wait_for_status(page, "Done: 1 sound.")
        page.context.close()
        time.sleep(2)


def test_made_up_paths_remove_nothing(page_server):
    address, files = page_server
    (own,) = files.glob("flowley_page_*")
    victim = own / "victim"
    victim.mkdir()
    (victim / "a.mp4").write_bytes(b"of someone else")
    before = sorted(path for path in files.rglob("*"))
    for path in (own, victim, victim / "a.mp4", own / ".." / "x.mp4"):
        session = f"s{abs(hash(str(path)))}"
        data = [0, {"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        data += ["", "", 1, 2.0, 1, 2, 1.0, 0]
        config = json.load(urllib.request.urlopen(f"{address}/config", timeout=30))
        number = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 10)
        body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
        request = urllib.request.Request(
            f"{address}/gradio_api/queue/join", body, {"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30).read()
        heartbeat = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/{session}", timeout=30)
        time.sleep(2)
        heartbeat.close()
    time.sleep(3)
    assert sorted(path for path in files.rglob("*") if path in before) == before


def test_an_upload_that_is_too_large_is_refused(page_server):
    content = b"\r\n".join(
        [
            b"--part",
            b'Content-Disposition: form-data; name="files"; filename="large.mp4"',
            b"",
            bytes(2_000_000),
            b"--part--",
            b"",
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=part"}
    request = urllib.request.Request(f"{page_server[0]}/gradio_api/upload", content, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 413
    caught.value.close()


def test_a_port_in_use_is_one_line_for_every_kind_of_model(page_server, tiny_run, tmp_path):
    port = page_server[0].rsplit(":", 1)[1]
    bundles = published.write_bundles(tmp_path / "bundles")
    for model in (("--workdir", tiny_run), ("--published", bundles)):
        command = [sys.executable, "-m", "flowley_jax.app", "--port", port, *map(str, model)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
        assert result.returncode == 2
        # The page was built before: only then does it listen.
        assert result.stderr.splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{port}, which")
