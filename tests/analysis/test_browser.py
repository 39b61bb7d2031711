"""The report page in a real browser, without a network: it draws, it sorts, and no script of it fails."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from analysis import report
from tests.analysis.synthetic import write_run
from tests.analysis.test_commands import compare_rows

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROBE = """<script>
const failures = [];
addEventListener("error", event => failures.push(event.message));
addEventListener("load", () => {
  const said = {failures, tables: {}, figures: [], hidden: [], byKey: null};
  for (const box of document.querySelectorAll("main, .scroll")) {
    const hides = !box.closest("details") && box.scrollWidth > box.clientWidth;
    if (hides) said.hidden.push(box.textContent.trim().slice(0, 80));
  }
  for (const figure of document.querySelectorAll("figure")) {
    const box = figure.querySelector("svg").getBoundingClientRect();
    said.figures.push([figure.querySelector("h3").textContent, Math.round(box.width), Math.round(box.height)]);
  }
  for (const section of document.querySelectorAll("section.table")) {
    const read = () => [...section.querySelectorAll("tbody tr")].map(row => row.cells[COLUMN].textContent);
    const orders = [read()];
    for (let click = 0; click < 3; click++) {
      section.querySelectorAll("th")[COLUMN].click();
      orders.push(read());
    }
    said.tables[section.querySelector("h3").textContent] = orders;
  }
  const head = document.querySelector("th");
  head.focus();
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  said.byKey = head.getAttribute("aria-sort");
  const shown = document.createElement("pre");
  shown.id = "probe";
  shown.textContent = JSON.stringify(said);
  document.body.append(shown);
});
</script>"""


def in_browser(page: Path, column: int, width: int = 1200) -> dict[str, Any]:
    """What the probe saw: script failures, figures with their size, and each table's column after 0 to 3 clicks."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("<head>", "<head>" + PROBE.replace("COLUMN", str(column)), 1))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    command = [browser, *quiet, *offline, f"--window-size={width},900", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:] + done.stderr
    said: dict[str, Any] = json.loads(unescape(found[1]))
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("browser") / "r", compare_rows())
    assert report.main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    return in_browser(folder / "report.html", column=3)


def test_every_plot_is_drawn(said: dict[str, Any]) -> None:
    assert said["failures"] == []
    titles = [title for title, _, _ in said["figures"]]
    assert "Every request's way, pair 0" in titles
    assert "Gaps between tokens over time, pair 0" in titles
    assert "Modeled against measured" in titles
    assert all(width > 200 and height > 80 for _, width, height in said["figures"])


def test_a_head_sorts_by_size_whatever_the_unit(said: dict[str, Any]) -> None:
    """Up, down, and back; intervals sort by their middle, and what is no number comes last."""
    (orders,) = (found for title, found in said["tables"].items() if title.startswith("Ledger, all lengths"))
    before, up, down, again = orders
    assert before == again
    assert sorted(map(seconds, up)) == [seconds(text) for text in up]
    assert [seconds(text) for text in down] == sorted(map(seconds, down), reverse=True)
    assert up != before


def test_a_head_sorts_by_the_keyboard_too(said: dict[str, Any]) -> None:
    assert said["byKey"] == "ascending"


def test_no_column_is_hidden_on_a_narrow_screen(said: dict[str, Any], folder: Path) -> None:
    assert said["hidden"] == []
    assert in_browser(folder / "report.html", column=0, width=800)["hidden"] == []


def seconds(text: str) -> float:
    found = re.fullmatch(r"([-\d.]+)(?: \[[^]]*\])? (ns|us|ms|s)", text)
    return float(found[1]) * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else float("inf")
