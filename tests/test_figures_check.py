"""Wrong cells of config/figures.tsv: one sentence with file, row, column, value and the nearest name."""

from pathlib import Path

import pandas as pd
import pytest
from made_results import rows

from moe.figures import check_figures, draw, select
from moe.figures.check import text

ROOT = Path(__file__).parent.parent
REPORTED = ROOT / "config/reported"
ROWS = pd.read_csv(ROOT / "config/figures.tsv", sep="\t", dtype=str, keep_default_na=False).to_dict("records")
RUNS = [{**run, "folder": "results/x"} for run in rows()]
TABLE2 = next(row for row in ROWS if row["figure"] == "table2")
FIG3 = next(row for row in ROWS if row["figure"] == "fig3")
TABLE1 = next(row for row in ROWS if row["figure"] == "table1")
RMOE1 = next(row for row in ROWS if (row["paper"], row["figure"]) == ("rmoe", "table1"))
FIG9 = next(row for row in ROWS if row["figure"] == "fig9")
FIG6A = next(row for row in ROWS if row["figure"] == "fig6a")
FIG5 = next(row for row in ROWS if row["figure"] == "fig5")


def test_the_tables_of_the_project_pass():
    check_figures(ROWS, RUNS, REPORTED)


def test_a_query_sees_numbers_as_numbers_and_keeps_the_order():
    as_text = [{**run, "experts": str(run["experts"])} for run in RUNS]
    chosen = select("experts == 8 and setup == 'remoe-469m'", as_text)
    assert [run["label"] for run in chosen] == ["ReMoE", "MoE"]
    assert chosen[0] is next(run for run in as_text if run["run"] == "remoe-469m-relu")
    assert select("", as_text) == []


@pytest.mark.parametrize(
    ("row", "change", "words"),
    [
        (TABLE2, {"kind": "tabel"}, ["column kind", "'tabel'", "'table'"]),
        (TABLE2, {"runs": "router == 'rleu'"}, ["column runs", "selects no run"]),
        (TABLE2, {"runs": "router = 'relu'"}, ["column runs", "no valid pandas query"]),
        (TABLE2, {"runs": "router == 'relu' and"}, ["column runs", "no valid pandas query"]),
        (TABLE2, {"runs": "ruoter == 'relu'"}, ["column runs", "'ruoter'", "'router'"]),
        (TABLE2, {"runs": "run == @REPORTED"}, ["column runs"]),
        (TABLE2, {"runs": ""}, ["column runs", "selects no run"]),
        (TABLE1, {"runs": "router == 'relu'"}, ["column runs", "needs no run"]),
        (TABLE2, {"y": "valid_los"}, ["column y", "'valid_los'", "'valid_loss'"]),
        (TABLE2, {"y": "arc_esay/acc"}, ["column y", "'arc_easy/acc'"]),
        (TABLE2, {"y": ""}, ["column y", "is empty"]),
        (TABLE2, {"x": "lable"}, ["column x", "'lable'", "'label'"]),
        (TABLE1, {"y": "active_parms"}, ["column y", "'active_params'"]),
        (FIG3, {"x": "stpe"}, ["column x", "'stpe'", "'step'"]),
        (FIG5, {"y": "los"}, ["column y", "'los'", "'loss'"]),
        (FIG9, {"x": "end"}, ["column x", "'end'", "'ends'"]),
        (FIG9, {"runs": ""}, ["column runs", "selects no run"]),
        (FIG6A, {"x": "sise"}, ["column x", "'sise'", "'size'"]),
        (FIG6A, {"y": "valid_los"}, ["column y", "'valid_loss'"]),
        (TABLE2, {"runs": "alhpa == 1.2"}, ["column runs", "'alhpa'", "'alpha'"]),
        (FIG5, {"hue": "label lable"}, ["column hue", "'lable'", "'label'"]),
        (FIG5, {"hue": "lable"}, ["column hue", "'lable'", "'label'"]),
        (TABLE2, {"reported": "remoe_tabel2"}, ["column reported", "'remoe_table2'"]),
        (TABLE2, {"match": "{ruoter: router}"}, ["column match", "'ruoter'", "'router'"]),
        (TABLE2, {"match": "{router: ruoter}"}, ["column match", "'ruoter'", "'router'"]),
        (TABLE2, {"match": "{router: router"}, ["column match", "is not YAML"]),
        (TABLE2, {"match": "router"}, ["column match", "not a mapping"]),
        (RMOE1, {"y": "enwik9:valid_bpc"}, ["column y", "'enwik9'", "'enwik8'"]),
        (RMOE1, {"y": "enwik8:valid_bpx"}, ["column y", "'valid_bpx'", "'valid_bpc'"]),
        (TABLE2, {"title": ""}, ["column title", "is empty"]),
    ],
)
def test_a_wrong_cell_is_named_in_one_sentence(row, change, words):
    with pytest.raises(ValueError) as error:
        check_figures([{**row, **change}], RUNS, REPORTED)
    said = str(error.value)
    name = f"{row['paper']}/{row['figure']}"
    for word in ["config/figures.tsv", f"row {name}", *words]:
        assert word in said, said
    assert said.endswith(".") and "\n" not in said and "Traceback" not in said


def test_two_rows_of_one_figure_are_refused():
    with pytest.raises(ValueError, match="row remoe/table2, column figure: 'table2' stands in two"):
        check_figures([TABLE2, FIG3, TABLE2], RUNS, REPORTED)


def test_drawing_an_unknown_kind_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match="'tabel' is no kind of figure; the nearest"):
        draw(
            {**TABLE2, "kind": "tabel"},
            RUNS,
            scale="laptop",
            reported=REPORTED,
            results=tmp_path,
            outputs=[],
        )


def test_an_empty_cell_is_empty_however_it_was_read():
    assert [text({"a": v}, "a") for v in (None, float("nan"), "", " b ", 3)] == [
        "",
        "",
        "",
        "b",
        "3",
    ]
    assert text({}, "a") == ""
