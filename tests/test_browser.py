"""The sliders in a real browser: JupyterLab on 127.0.0.1 with a token, Chromium, mouse and keyboard; on digits, to be quick."""

import ast
import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from helpers.data import HOME
from helpers.maintain.series import NOTEBOOKS

pytestmark = pytest.mark.browser
CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SHOTS = HOME / "build" / "screenshots"
SLIDERS = {
    "01_distillation": "temperature",
    "02_pruning": "sparsity",
    "03_low_rank": "energy",
    "04_combined": "bits",
    "06_case_studies": "inferences a day",
    "07_your_own_network": "at most",
}

ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => cell.model.type === 'code' ?
    cell.model.outputs.toJSON().filter(output => output.output_type === 'error').map(output => output.evalue) : [])"""

WATCH = """image => { window.removed = 0; new MutationObserver(changes => changes.forEach(change => {
    window.removed += [...change.removedNodes].filter(node => node === image || node.contains?.(image)).length; }))
    .observe(image.closest('.jp-OutputArea'), {childList: true, subtree: true}); }"""
LISTEN = """() => { window.failed = []; const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    kernel.iopubMessage.connect((_, message) => {
        if (message.header.msg_type === 'error') window.failed.push(message.content.evalue); }); }"""
CORNER = """async image => { const bitmap = await createImageBitmap(await (await fetch(image.src)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height); const context = canvas.getContext('2d');
    context.drawImage(bitmap, 0, 0); return Array.from(context.getImageData(0, 0, 1, 1).data); }"""

if CHROMIUM is None:
    pytest.skip(
        "Chromium is not installed: apt install chromium, or set CHROMIUM to its path",
        allow_module_level=True,
    )
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a copy of the notebooks (it saves what it shows); yields address and token."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    for name in SLIDERS:  # the other cells are nbval's to run
        path = folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = _behind_the_slider(notebook.cells)
        nbformat.write(notebook, path)
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(
        json.dumps({"windowingMode": "none"})
    )  # cells out of sight stay in the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        "--expose-app-in-browser",
        opening(),
    ]
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "NNC_DATA": "digits",
    }
    environment |= {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "NNC_BUDGET": "quick",
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.5)
        yield address, token
    finally:
        server.terminate()
        server.wait(20)


def _behind_the_slider(cells):
    """The last cell with a slider, and of those before it the ones that name what it stands on."""
    last = max(place for place, cell in enumerate(cells) if re.search(r"_sliders?\(", cell.source))
    kept, wanted = [], set()
    for cell in reversed([cell for cell in cells[: last + 1] if cell.cell_type == "code"]):
        tree = ast.parse(cell.source)
        given = {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
        given |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        given |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
        if not kept or given & wanted:
            kept.insert(0, cell)
            wanted |= {name.id for name in names if isinstance(name.ctx, ast.Load)}
    return kept


def opening():
    """The Makefile's own words for the page that make lab opens."""
    return re.search(r"--LabApp\.default_url=\S+", (HOME / "Makefile").read_text())[0]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def test_nobody_gets_in_without_the_token(lab):
    address, _ = lab
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/contents", timeout=5)
    assert refused.value.code == 403


def test_make_lab_opens_the_start_which_leads_on(lab, browser):
    address, token = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(f"{address}/?token={token}", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell h1", timeout=60_000)
    current = "() => window.jupyterapp.shell.currentWidget.title.label"
    assert page.evaluate(current) == "00_start_here.ipynb"
    page.evaluate("() => window.jupyterapp.commands.execute('toc:show-panel')")
    contents = page.locator(".jp-TableOfContents-content, .jp-TableOfContents-tree").first
    contents.get_by_text("The one idea", exact=False).first.wait_for(timeout=20_000)
    page.locator(".jp-NotebookPanel .jp-MarkdownOutput a", has_text="01 distillation").first.click()
    page.wait_for_function(f"() => ({current})() === '01_distillation.ipynb'", timeout=20_000)
    page.close()


@pytest.mark.parametrize("name", SLIDERS)
def test_the_slider_moves_by_mouse_and_by_keys(lab, browser, name):
    address, token = lab
    for last in (
        False,
        True,
    ):  # now and then JupyterLab loses a reply of the kernel and waits for it for ever: then once more, in a new page
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        complaints = []
        page.on("pageerror", lambda error, said=complaints: said.append(str(error)))
        page.on(
            "console",
            lambda message, said=complaints: said.append(message.text) if message.type == "error" else None,
        )
        try:
            _run_all(page, f"{address}/lab/tree/notebooks/{name}.ipynb?token={token}&reset")
            break
        except playwright.TimeoutError:
            if last:
                raise
            page.close()
    assert page.evaluate(ERRORS) == []
    slider = page.locator(".jp-NotebookPanel .widget-slider").first
    slider.scroll_into_view_if_needed()
    assert SLIDERS[name] in slider.inner_text()
    handle, image = slider.locator(".noUi-handle"), page.locator(".jp-NotebookPanel img.widget-image").first
    image.wait_for(timeout=20_000)
    start = _shown(page, image)
    page.evaluate(
        LISTEN
    )  # an error behind a slider is published by the kernel, and shown nowhere in the page
    back, forth = _drag(page, slider, handle)
    dragged = _settled(page, image, start)
    assert dragged != start
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}-dragged.png")
    end = slider.locator(".widget-readout").inner_text()
    page.evaluate(WATCH, image.element_handle())
    slider.locator(".widget-label").click()
    for _ in range(5):  # by keys alone: Tab reaches the handle
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.matches('.noUi-handle')"):
            break
    assert page.evaluate("handle => document.activeElement === handle", handle.element_handle())
    page.keyboard.press(back)
    moved = _settled(page, image, dragged)
    assert moved != dragged
    words = page.locator(".jp-NotebookPanel .widget-label", has_text="figure: ").inner_text()
    assert f"{SLIDERS[name]} {slider.locator('.widget-readout').inner_text()}" in words
    assert slider.locator(".widget-readout").inner_text() != end
    page.keyboard.press(forth)
    assert slider.locator(".widget-readout").inner_text() == end
    assert (
        _settled(page, image, moved) == dragged
    )  # the picture belongs to the value, however fast it came there
    assert (
        page.evaluate("() => window.removed") == 0
    )  # no flicker: the picture is exchanged, never taken away
    page.evaluate(
        "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached", timeout=20_000)
    page.screenshot(path=SHOTS / f"{name}-dark.png")
    assert page.evaluate(CORNER, image.element_handle()) == [
        255,
        255,
        255,
        255,
    ]  # a white ground, in a dark page too
    page.evaluate(
        "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"
    )
    assert page.evaluate("() => window.failed") == []
    assert not [text for text in complaints if not _harmless(text)]
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def _run_all(page, address):
    """Open a notebook, wait for its kernel and for every cell."""
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=60_000,
    )
    page.evaluate(
        "() => { window.ran = null; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ran = true); }"
    )
    quiet = None
    for _ in range(48):
        with contextlib.suppress(playwright.TimeoutError):
            return page.wait_for_function("() => window.ran === true", timeout=10_000)
        before, quiet = quiet, _idle_since(address)
        if quiet and quiet == before:  # the kernel has had nothing to do for ten seconds: its reply was lost
            break
    raise playwright.TimeoutError("the cells were not run")


def _idle_since(address):
    """When the notebook's kernel did something last, as its server says; None while it is at work."""
    server, _, query = address.partition("/lab/tree/")
    path, token = query.partition("?")[0], re.search("token=[0-9a-f]+", query)[0]
    with urllib.request.urlopen(f"{server}/api/sessions?{token}", timeout=30) as answer:
        (kernel,) = (each["kernel"] for each in json.loads(answer.read()) if each["path"] == path)
    return kernel["last_activity"] if kernel["execution_state"] == "idle" else None


def _shown(page, image):
    """The picture's bytes."""
    script = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
    return base64.b64encode(bytes(page.evaluate(script, image.element_handle())))


def _drag(page, slider, handle):
    """Take the handle to the end where it is not, fast; return the keys that take it a step back, and to that end again."""
    slider.scroll_into_view_if_needed()
    box = handle.bounding_box()
    across = slider.locator(".noUi-base, .noUi-target").first.bounding_box()
    at_left = abs(box["x"] + box["width"] / 2 - across["x"]) < 10
    end = across["x"] + across["width"] * at_left
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(1, 21):
        page.mouse.move(box["x"] + (end - box["x"]) * step / 20, box["y"] + box["height"] / 2)
    page.mouse.up()
    return ("ArrowLeft", "ArrowRight") if at_left else ("ArrowRight", "ArrowLeft")


def _settled(page, image, before, patience=30.0):
    """The picture's bytes once they are others than ``before`` and have stayed the same for a second."""
    last, since, end = _shown(page, image), time.monotonic(), time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(0.1)
        now = _shown(page, image)
        if now != last:
            last, since = now, time.monotonic()
        elif now != before and time.monotonic() - since > 1:
            break
    return last


def _harmless(text):
    """What JupyterLab itself asks for and does not find is not the notebook's fault: source maps, extensions' update feed,
    a widget of a page that was closed before the second try (that the slider moves is what the test sees)."""
    return any(one in text for one in ("Failed to load resource", "WebSocket", "favicon", "Comm not found"))
