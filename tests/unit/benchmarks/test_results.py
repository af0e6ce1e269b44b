from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.measure import Goal, Report


def test_only_what_is_between_the_marks_is_replaced():
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    once = results.replaced(text, "new")
    assert once == f"before\n{results.BEGIN}\n\nnew\n\n{results.END}\nafter\n"
    assert results.replaced(once, "new") == once


@pytest.mark.parametrize("text", ["no marks", results.BEGIN, f"{results.END} {results.BEGIN}"])
def test_a_text_without_both_marks_is_refused(text):
    with pytest.raises(ValueError, match="no <!--"):
        results.replaced(text, "new")


def test_a_run_of_one_benchmark_leaves_the_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.json")
    results.RESULTS.write_text(f"{results.BEGIN}{results.END}\nhistory\n")
    titles = ["B1: one", "B2: two"]
    missed = Report("first of two", [Goal("B2 speed", ">= 1", "0.90", False)])
    results.keep("B2: two", missed, titles)
    results.keep("B1: one", Report("of one", [Goal("B1 speed", ">= 1", "1.10", True)]), titles)
    results.keep("B1: one", Report("of one", [Goal("B1 speed", ">= 1", "1.20", True)]), titles)
    text = results.RESULTS.read_text()
    assert "| B1 speed | >= 1 | 1.20 | yes |\n| B2 speed | >= 1 | 0.90 | **no** |" in text
    assert text.index("### B1: one") < text.index("first of two")
    assert "1.10" not in text
    assert text.endswith("history\n")


def test_results_md_has_the_marks():
    text = (Path(results.__file__).parent / "RESULTS.md").read_text("utf-8")
    results.replaced(text, "anything")
