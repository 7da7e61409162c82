"""The page: self-contained, safe, complete, the same twice, and never half-written."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from softtrunc.report import page as page_module
from softtrunc.report import write_report

Folder = Callable[..., Path]

_VOID = {"meta", "link", "img", "br", "path"}


class Page(HTMLParser):
    """Tags, what they refer to, the text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.data: list[tuple[float, str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "data":
            values = dict(self.tags[-1][1])
            self.data.append((float(values["value"] or "nan"), data))

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def pictures(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def two_run_page(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert write_report(list(two_runs), out) == out
    return out.read_text(encoding="utf-8")


def test_page_of_two_runs(two_run_page: str) -> None:
    page = Page(two_run_page)
    assert "hard vs soft" in page.words
    assert "digits (1,437 images, 1 x 8 x 8, 17 levels)" in page.words
    assert "240,193 parameters, 4,000 steps, batches of 128" in page.words
    headings = ["Summary", "Density against sample quality", "Samples", "Loss by diffusion time",
                "Truncation times drawn", "Training", "How it was measured"]  # fmt: skip
    places = [page.words.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "truncation.k" in page.words
    assert "dequantization: uniform" in page.words
    assert "sha256:6f1d0c5a" in page.words
    assert "sha256:91ab77e0" in page.words
    assert not re.search(r'class="(absent|notes)"', two_run_page)
    # trade-off, 3 grids, 2 x 4 grids while training, 2 by time, 2 maps, 2 tau, shares, loss, speed
    assert len(page.pictures()) == 1 + 3 + 8 + 2 + 2 + 2 + 1 + 1 + 1


def test_page_is_self_contained(two_run_page: str, two_runs: tuple[Path, Path]) -> None:
    page = Page(two_run_page)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            if value is not None and tag != "a":
                assert value.startswith("data:"), (tag, name)
    assert re.findall(r"@import|url\(", two_run_page) == []
    for uri in page.pictures():
        if uri.startswith("data:image/svg+xml"):
            drawing = base64.b64decode(uri.split(",")[1]).decode()
            assert re.findall(r'(?:href|src)="(?!#|data:)', drawing) == []
    assert str(two_runs[0].parent) not in two_run_page


def test_page_shows_the_values_of_the_json(two_run_page: str, two_runs: tuple[Path, Path]) -> None:
    page = Page(two_run_page)
    shown = {value for value, _ in page.data}
    for run in two_runs:
        for figure in json.loads((run / "evaluation.json").read_text())["figures"]:
            assert figure["value"] in shown
    assert (1.8031, "1.803 ± 0.012") in page.data


def test_names_and_values_are_escaped(run_folder: Folder, tmp_path: Path) -> None:
    name = "<script>alert('x')<|script>&\"quoted\""
    run = run_folder(name)
    evaluation = (run / "evaluation.json").read_text()
    evil = '<img src=x onerror=\\"alert(1)\\">'
    (run / "evaluation.json").write_text(
        evaluation.replace('"uniform"', f'"{evil}"').replace("FD(digits-mlp)", evil)
    )
    for title in (None, "</title><script>1</script>"):
        text = write_report([run], tmp_path / "report.html", title=title).read_text()
        page = Page(text)
        assert "<script" not in text
        assert all(uri.startswith("data:image/") for uri in page.pictures())
        assert not any("onerror" in attributes for _, attributes in page.tags)
        assert name in page.words
        assert evil.replace("\\", "") in page.words


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("recipe",), ["No run has both", "No run has a sample grid", "No run recorded its loss",
                       "No run recorded its truncation", "No run has training metrics",
                       "No run has been evaluated", "no evaluation.json yet"]),
        (("metrics",), ["no recipe.yaml", "no sample grids yet", "No run recorded versions"]),
        (("evaluation",), ["no readable line in metrics.jsonl", "No run has training metrics"]),
        (("recipe", "metrics", "samples"), ["samples while training, step 1,000"]),
    ],
)  # fmt: skip
def test_missing_parts_are_said(
    run_folder: Folder, tmp_path: Path, parts: tuple[str, ...], said: list[str]
) -> None:
    page = Page(write_report([run_folder("a", parts=parts)], tmp_path / "r.html").read_text())
    for words in said:
        assert words in page.words


def test_what_to_know_before_comparing_is_said(run_folder: Folder, tmp_path: Path) -> None:
    a, b = run_folder("a"), run_folder("b", protocol={"passes": 5})
    recipe = (b / "recipe.yaml").read_text()
    (b / "recipe.yaml").write_text(recipe.replace("6f1d0c5a", "00000000"))
    with (a / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1100, "loss": 1.0}\n{"step": 12')
    page = Page(write_report([a, b], tmp_path / "r.html").read_text())
    assert "trained on different data (fingerprints differ)" in page.words
    assert "a: evaluated at step 1,000, trained up to step 1,100." in page.words
    assert "a: 1 unreadable line of metrics.jsonl skipped." in page.words
    assert "not measured in the same way for all runs (differs in: passes)" in page.words


def test_eight_runs(run_folder: Folder, tmp_path: Path) -> None:
    runs = [run_folder(f"run-{i}", steps=200, k=0.5 * i, distance=(3 + i, 0.3)) for i in range(8)]
    out = write_report([*runs, runs[0]], tmp_path / "report.html")
    page = Page(out.read_text())
    assert "8 runs compared" in page.words
    assert len([1 for tag, a in page.tags if tag == "td" and a.get("class") == "number best"]) == 1
    assert out.stat().st_size < 1_000_000


def test_the_same_folders_give_the_same_bytes(
    two_run_page: str, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    again = write_report(list(two_runs), tmp_path / "b.html")
    assert again.read_text(encoding="utf-8") == two_run_page


def test_a_page_is_replaced_whole_or_not_at_all(
    run_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder("a", steps=200)
    out = tmp_path / "site" / "report.html"
    write_report([run], out)
    before = out.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]

    reader = tmp_path / "reader.html"
    reader.hardlink_to(out)
    write_report([run], out, title="newer")
    assert reader.read_bytes() == before
    before = out.read_bytes()

    def half(self: Path, content: bytes) -> int:
        self.write_text(content.decode()[:1000])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="disk full"):
            write_report([run], out, title="new")
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_mistakes_are_one_line(run_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs given"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="is a folder; write a file name"):
        write_report([run_folder("a", steps=200)], tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = (
        "import sys, softtrunc.report; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_template_travels_with_the_package() -> None:
    assert Path(page_module.__file__).with_name("page.html.j2").is_file()


def test_what_clipping_does_is_shown_where_norms_were_recorded(
    run_folder: Folder, tmp_path: Path
) -> None:
    runs = [run_folder(name, k=1.0) for name in ("clipped", "free")]
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        for line in lines:
            line["grad_norms"] = [0.5 / tau**0.25 for tau in line["taus"]]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = (runs[0] / "recipe.yaml").read_text()
    recipe = recipe.replace("batch_size: 128", "batch_size: 128\n  grad_clip: 1.0")
    (runs[0] / "recipe.yaml").write_text(recipe)
    plain = Page(write_report([run_folder("old")], tmp_path / "old.html").read_text())
    assert "What clipping does" not in plain.words
    page = Page(write_report(runs, tmp_path / "new.html").read_text())
    assert "What clipping does" in page.words
    assert "clipped: clipped at 1" in page.words
    assert "free: no clipping" in page.words
    assert "Share of the steps whose gradient was clipped" in page.words
    free = Page(write_report(runs[1:], tmp_path / "free.html").read_text())
    assert "Share of the steps whose gradient was clipped" not in free.words
