"""The page in a real browser: it renders without a word on the console, and prints on pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from report_support import variant

from cljax.report import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-extensions", "--disable-background-networking", "--enable-logging=stderr",
         "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Runs the browser on a page and returns its standard output and console messages."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed (apt: chromium)")
    home = tmp_path_factory.mktemp("home")

    def run(page, *flags):
        done = subprocess.run(
            [found, *FLAGS, f"--user-data-dir={home}", *flags, page.as_uri()],
            capture_output=True, text=True, timeout=600, env={**os.environ, "HOME": str(home)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)

    return run


@pytest.fixture(scope="module")
def page(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = [real, *(variant(real, folder / name, seed=i) for i, name in enumerate("ab"))]
    return report(*runs, out=folder / "page.html").page


@pytest.mark.slow
def test_a_browser_shows_all_of_it_without_complaint(browse, page, tmp_path):
    shot = tmp_path / "shot.png"
    dom, console = browse(page, "--dump-dom", "--virtual-time-budget=5000")
    assert console == [] and dom.count("<figure>") == page.read_text().count("<figure>") > 8
    assert dom.rstrip().endswith("</html>") and "Comparison" in dom
    _, console = browse(page, f"--screenshot={shot}", "--window-size=900,3000")
    assert console == []
    from PIL import Image

    with Image.open(shot) as image:
        pixels = image.convert("RGB")
    assert pixels.size == (900, 3000)
    colours = pixels.getcolors(1 << 22)
    assert colours is not None and len(colours) > 200
    assert max(colours)[1] == (255, 255, 255), "dark on white"


@pytest.mark.slow
def test_no_image_is_broken_and_nothing_is_wider_than_the_page(browse, page, tmp_path):
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "broken: [...document.images].filter(i => !i.naturalWidth).length,"
        "images: document.images.length,"
        "wide: document.documentElement.scrollWidth - innerWidth}) })</script></html>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</html>", probe), "utf-8")
    for width in (1920, 1280, 500):
        dom, _ = browse(probed, "--dump-dom", "--virtual-time-budget=5000",
                        f"--window-size={width},1000")  # fmt: skip
        said = re.search(r"<title>(.*?)</title>", dom)
        assert said is not None and '"broken":0' in said[1], said
        assert '"wide":0' in said[1] or '"wide":-' in said[1], said[1]


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1280, 1920])
def test_a_dark_page_is_dark_and_so_are_its_figures(width, browse, page, tmp_path):
    from PIL import Image

    from cljax.report.style import BACK

    shot = tmp_path / "shot.png"
    _, console = browse(page, f"--screenshot={shot}", f"--window-size={width},3000",
                        "--blink-settings=preferredColorScheme=0")  # fmt: skip
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
    colours = pixels.getcolors(1 << 23)
    assert console == [] and colours is not None
    assert max(colours)[1] == tuple(bytes.fromhex(BACK[1:]))
    white = sum(count for count, colour in colours if min(colour) > 240)
    assert white < 0.1 * pixels.width * pixels.height, "no figure glares"


@pytest.mark.slow
def test_it_prints(browse, page, tmp_path):
    pdf = tmp_path / "page.pdf"
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF") and len(content) < 5e6
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", content)) < 40
