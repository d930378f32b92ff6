"""One thread a test process: small tensors gain nothing from more, and tests run side by side.

With RELIABILITY=1 a run of the tests rewrites the table in docs/reliability.md: every promise whose test passed.
"""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAGE = Path(__file__).parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def pytest_collection_modifyitems(items):
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # files of long tests first: nobody shall wait for them at the end
    for item in items:
        for mark in item.iter_markers("promise"):
            item.user_properties += [("promise", mark.args[0]), *mark.kwargs.items()]


def pytest_terminal_summary(terminalreporter):
    if not os.environ.get("RELIABILITY"):
        return
    rows: dict[str, list] = {}
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            found = dict(report.user_properties)
            if "promise" in found:
                rows.setdefault(found.pop("promise"), []).append((report, found))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest}", encoding="utf-8")


def table(rows: dict[str, list]) -> str:
    """A line of each promise: how many tests, what they counted, how long they took."""
    lines = ["| promise | tests passed | counted | seconds |", "|---|---|---|---|"]
    for promise in sorted(rows):
        reports = rows[promise]
        names = dict.fromkeys(name for _, found in reports for name in found)
        counted = ", ".join(f"{sum(found.get(name, 0) for _, found in reports)} {name}" for name in names)
        file = reports[0][0].nodeid.partition("::")[0]
        seconds = sum(report.duration for report, _ in reports)
        lines.append(f"| {promise} | {len(reports)} in `{file}` | {counted} | {seconds:.0f} |")
    return "\n".join(lines)
