"""No page is wider than its screen, plots have one scale, narrow cards say what wide rows say.

By a real browser, in frames of many widths.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from softtrunc.report import write_report
from softtrunc.report.runs import read_run
from softtrunc.report.study import Setting, study_summary

WIDTHS = (360, 390, 480, 512, 513, 600, 767, 768, 900, 1200, 1600)
HARD = "truncation.k=inf, objective.weighting=likelihood"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), "")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const pages = %s, widths = %s, found = [];
function look(frame, page, width) {
  const inner = frame.contentDocument, all = (what) => [...inner.querySelectorAll(what)];
  for (const each of all("details")) each.open = true;
  const shown = (each) => frame.contentWindow.getComputedStyle(each).visibility === "visible";
  found.push({
    page, width,
    over: inner.documentElement.scrollWidth - width,
    plots: all("img[src^='data:image/svg']").map((plot) => plot.getBoundingClientRect().width),
    repeated: all(".again").filter(shown).length, all_repeated: all(".again").length,
  });
  if (found.length < widths.length * Object.keys(pages).length) return;
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
}
for (const [page, text] of Object.entries(pages)) for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.srcdoc = text;
  frame.onload = () => look(frame, page, width);
  document.body.append(frame);
}
</script>"""


@pytest.fixture
def pages(run_folder: Callable[..., Path], two_runs: tuple[Path, Path], tmp_path: Path):
    """A report of two runs, and one of a study; their names are long."""

    def runs(name: str, k: float) -> dict[int, Path]:
        long = f"{name}-of-a-name-that-does-not-end-before-the-edge-of-a-telephone"
        return {s: run_folder(f"{long}-{s}", seed=s, k=k, steps=200) for s in (0, 1)}

    folders = {"hard": runs("hard", float("inf")), "soft": runs("soft", 1.0)}
    read = {k: {s: read_run(path) for s, path in found.items()} for k, found in folders.items()}
    settings = [
        Setting(HARD, {}, read["hard"]),
        Setting("truncation.k=1, objective.weighting=likelihood", {}, read["soft"], HARD),
    ]
    first = [found[0] for found in folders.values()]
    study = study_summary(settings)
    return {
        "two runs": write_report(two_runs, tmp_path / "runs.html").read_text(),
        "study": write_report(first, tmp_path / "study.html", study=study).read_text(),
    }


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_pages_fit_screens_from_360_to_1600_pixels(pages, tmp_path):
    # Frames take no text with a policy against scripts' own; pages have none to run.
    told = json.dumps(pages).replace("</", "<\\/")
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS % (told, json.dumps(WIDTHS)), encoding="utf-8")
    done = subprocess.run(
        [
            *(BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}"),
            *("--virtual-time-budget=20000", "--dump-dom", harness.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    match = re.search("FOUND(.*?)END", done.stdout)
    assert match is not None, done.stderr[-2000:]
    found = json.loads(match[1])
    assert len(found) == len(pages) * len(WIDTHS)
    for each in found:
        where = f"{each['page']} at {each['width']} px"
        assert each["over"] <= 0, f"{where} is {each['over']} px too wide"
        narrowest, widest = min(each["plots"]), max(each["plots"])
        assert widest <= 1.35 * narrowest, f"{where}: plots {narrowest} to {widest} px wide"
        shown = each["all_repeated"] if each["width"] <= 512 else 0
        assert each["repeated"] == shown, where
    assert any(each["all_repeated"] for each in found)
