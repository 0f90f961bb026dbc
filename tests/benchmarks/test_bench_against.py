"""``make bench BASE=COMMIT`` without its timings: the worktree, the processes, the ratios."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.against import BenchError, Timer, compare, main, ratio, timer, worktree

ROOT = Path(__file__).parents[2]
# A tree whose own rows take as long as their names say.
ROWS = """
import sys
for line in sys.stdin:
    if line.startswith("dies"):
        sys.exit(1)
    print("-" if line.startswith("lacks") else line.strip(), flush=True)
"""


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "rows.py").write_text(ROWS)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "all")
    return tmp_path


def test_the_worktree_goes_whatever_happens(root: Path) -> None:
    with worktree("HEAD", root) as tree:
        assert (tree / "benchmarks" / "rows.py").read_text() == ROWS
    assert not tree.exists()
    with pytest.raises(ZeroDivisionError), worktree("HEAD", root) as tree:
        raise ZeroDivisionError
    assert not tree.exists()
    assert git(root, "worktree", "list").count("\n") == 1


def test_a_commit_that_is_none_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError, match="nowhere"), worktree("nowhere", root):
        raise AssertionError
    assert main(["no/such commit"]) == 2
    assert "no/such commit" in capsys.readouterr().err
    assert main([]) == 2


def test_each_tree_is_timed_by_its_own_rows(root: Path) -> None:
    """The base answers with names, as committed; the tree beside it has changed since."""
    (root / "benchmarks" / "rows.py").write_text(ROWS.replace("line.strip()", "2 * float(line)"))
    assert list(compare("HEAD", root, ["0.5", "1.5"])) == [("0.5", "2.000"), ("1.5", "2.000")]


def test_a_base_that_lacks_a_row_says_so(root: Path) -> None:
    (root / "benchmarks" / "rows.py").write_text(
        "import sys\nfor _ in sys.stdin:\n    print(1, flush=True)\n"
    )
    assert list(compare("HEAD", root, ["lacks it"])) == [("lacks it", "not in the base")]


def test_this_tree_must_have_every_row_and_must_not_die(root: Path) -> None:
    with pytest.raises(BenchError, match="this tree lacks the row 'lacks it'"):
        list(compare("HEAD", root, ["lacks it"]))
    with pytest.raises(BenchError, match="ended at the row 'dies'"):
        list(compare("HEAD", root, ["dies"]))
    assert git(root, "worktree", "list").count("\n") == 1


def test_a_tree_without_rows_is_timed_by_ours(tmp_path: Path) -> None:
    """By the names that its own benchmark modules import, or not at all."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("__init__.py", "counting.py"):
        (tmp_path / "benchmarks" / name).touch()
    (tmp_path / "cli.py").write_text("main = print")
    (tmp_path / "pyproject.toml").write_text('[project.scripts]\nmoesim = "cli:main"')
    with timer(tmp_path) as seconds:
        assert seconds("counting") is None
        assert seconds("a row of later days") is None
        found = seconds("moesim --help")
    assert found is not None
    assert found > 0


def test_the_ratio_is_the_median_of_ten_by_turns() -> None:
    asked = []

    def clock(name: str, answers: Iterator[float]) -> Timer:
        def seconds(row: str) -> float:
            asked.append(name)
            return next(answers)

        return seconds

    this = clock("this", iter([99.0, *(3.0, 5.0) * 5]))
    assert ratio("a row", this, clock("base", iter([1.0] + [2.0] * 10))) == 2.0
    assert asked == ["this", "base", *("this", "base", "base", "this") * 5]


@pytest.mark.parametrize("name", [name for name in rows.ROWS if name != "moesim demo, second run"])
def test_every_row_can_be_called(name: str, tmp_path: Path) -> None:
    rows.ROWS[name](tmp_path)()


def test_answers_come_after_a_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(rows, "LEAST_S", 1e-9)
    monkeypatch.setitem(rows.ROWS, "own", lambda folder: lambda: called.append(sum(range(10_000))))
    found = list(rows.answers(["own\n", "own\n", "none\n"]))
    assert [each == "-" for each in found] == [False, False, True]
    assert len(called) == 3
