"""The page as a browser shows it: pictures decoded, nothing fetched, fit for a narrow window."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.speed import patience
from tests.unit.bench.fake import document, row
from vmm.bench import page, pictures
from vmm.bench.kinds.kind import histogram

pytestmark = pytest.mark.full
# Runs in the browser, once all is loaded; the page itself has no script.
LOOK = """<script>addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  document.title = JSON.stringify({
    images: [...document.images].map(
      i => [i.complete, i.naturalWidth, box(i).width, box(i).height]),
    tables: [...document.querySelectorAll("section table, h2 ~ table")].map(t => t.rows.length),
    wide: document.documentElement.scrollWidth, inner: innerWidth,
    fetched: performance.getEntriesByType("resource").map(r => r.name.slice(0, 5)),
    weight: getComputedStyle(document.querySelector("tr.differs td:nth-child(4)")).fontWeight,
  });
});</script>"""


@pytest.fixture(scope="module")
def text() -> str:
    whole = document(
        row("A", {"time": [10.0, 11.0, 10.5, 9.8, 10.2]}),
        row("a much longer name of a contender <b>", {"time": [5.0, 5.2, 4.9, 5.1, 5.3]}),
        {**row("C", {}), "error": "/a/long/path/without/any/blank" * 20},
        row("A", {"time": [10.1, 10.8, 10.4, 9.9, 10.3]}, True),
    )
    whole["measurements"][0]["rows"][0]["histograms"] = {"late": histogram([1.0, 2.0, 90.0])}
    return page.page(whole, list(pictures.draw(whole)))


def looked_at(text: str, folder: Path, width: int) -> dict:
    """What the browser says of it."""
    if shutil.which("chromium") is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", "apt-get install chromium"
        pytest.skip("needs chromium (apt-get install chromium)")
    path = folder / "page.html"
    path.write_text(text.replace("</body>", LOOK + "</body>"))
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--virtual-time-budget=10000", f"--window-size={width},900",
         f"--user-data-dir={folder / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=patience(90), check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stdout[-2000:]
    return json.loads(html.unescape(title[1]))


@pytest.mark.parametrize("width", [1200, 500])
def test_the_browser_shows_it_whole(text, tmp_path, width):
    found = looked_at(text, tmp_path, width)
    assert len(found["images"]) == 2
    for complete, natural, shown, height in found["images"]:
        assert complete
        assert natural > 400
        assert 200 < shown <= width
        assert height > 60
    assert found["wide"] <= found["inner"]
    assert found["tables"] == [3]
    assert int(found["weight"]) >= 700
    assert set(found["fetched"]) <= {"data:"}
