"""The CUDA benchmark's figures as a page of Markdown."""

from __future__ import annotations

from typing import Any

HEAD = """# On a GPU

{device}; torch {torch}, CUDA {cuda}, transformers {transformers}, TRL {trl}, Triton {triton}, Liger {liger_kernel}.
{seconds:.0f} s in all. Shapes of Qwen3 with random weights, float32 under bf16 autocast, generated pairs; {rounds}
passes of each contender in turn after one to warm up, each contender in a process of its own. Rates are medians
(range). The limit is the time of the matrix products alone, with a live reference: without one, a share may pass 100%.
"""
ROWS = """
| model | median prompt / chosen / rejected | contender | pairs/s | tokens/s | of the limit | peak memory | times TRL |
|---|---|---|---|---|---|---|---|
"""
HEADS = """
## The head alone, forward and backward

| model, targets | head | ms | peak GB | log-probs off by at most | hidden gradient off by | weight gradient off by |
|---|---|---|---|---|---|---|
"""


def page(found: dict[str, Any]) -> str:
    """All of it; parts that are not there yet are left out."""
    parts = [HEAD.format(seconds=found["seconds"], rounds=found["rounds"], **found["machine"])]
    if found["rows"]:
        parts.append(ROWS + "\n".join(line for row in found["rows"] for line in _rows(row)) + "\n")
    if missing := [*found["missing"], *_missing(found["rows"])]:
        parts.append("\nNot measured:\n\n" + "\n".join(f"- {each}" for each in missing) + "\n")
    if found["heads"]:
        parts.append(HEADS + "\n".join(line for each in found["heads"] for line in _heads(each)) + "\n")
    parts.append("\n## Checks\n\n" + "\n".join(_check(each) for each in found.get("checks", [])) + "\n")
    if tests := found.get("tests"):
        said = tests["said"].replace("\n", "\n  ")
        parts.append(f"- tests of {', '.join(tests['files'])}: {'pass' if tests['passed'] else 'FAIL'}\n\n  {said}\n")
    if waiting := _waits(found["rows"]):
        parts.append("\n## Where a step waits for the device\n\n" + "\n".join(waiting) + "\n")
    return "".join(parts)


def _rows(row: dict[str, Any]) -> list[str]:
    lengths = " / ".join(f"{length:.0f}" for length in row["median_tokens"])
    peer = max((f["rate"] for name, f in row["contenders"].items() if name.startswith("TRL")), default=None)
    limit = row["limit"]["pairs_per_second"]
    lines = []
    for name, figures in row["contenders"].items():
        rate = f"{figures['rate']:.2f} ({figures['low']:.2f} to {figures['high']:.2f})"
        times = "" if peer is None else f"{figures['rate'] / peer:.2f}"
        tokens, share = f"{figures['rate'] * row['tokens_per_pair']:,.0f}", f"{figures['rate'] / limit:.1%}"
        pairs = f"{row['lengths']} ({lengths})"
        cells = (row["model"], pairs, name, rate, tokens, share, f"{figures['peak_gb']:.1f} GB", times)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _missing(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['model']}, {row['lengths']}, {name}: {reason}" for row in rows for name, reason in row["missing"].items()
    ]


def _heads(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"| | not measured: {_line(found['error'])} | | | | | |"]
    where = f"{found['model']}, {found['targets']:,}"
    lines = []
    for name, figures in found["heads"].items():
        if "error" in figures:
            lines.append(f"| {where} | {name} | {_line(figures['error'])} | | | | |")
            continue
        errors = (figures[key] for key in ("hidden_error", "weight_error"))
        cells = [
            where, name, f"{figures['seconds'] * 1e3:.2f}", f"{figures['peak_gb']:.2f}",
            f"{figures['logp_error']:.1e} nats", *(f"{error:.1e}" for error in errors),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _line(text: str) -> str:
    return text.strip().splitlines()[-1].replace("|", "\\|") if text.strip() else "it ended"


def _check(verdict: dict[str, Any]) -> str:
    if "error" in verdict and "allowed" not in verdict:
        return f"- {verdict['check']}: FAIL: {_line(verdict['error'])}"
    state = "holds" if verdict["holds"] else "FAILS"
    return f"- {verdict['check']}: {state} (off by {verdict['error']:.1e}, allowed {verdict['allowed']:.1e})"


def _waits(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        for name, figures in row["contenders"].items():
            if not figures["waits"]:
                continue
            total = sum(figures["waits"].values())
            lines.append(f"- {row['model']}, {name}: {total:g} times a step")
            if name.startswith("preftune"):
                lines += [f"  - {place}: {count:g}" for place, count in figures["waits"].items()]
    return lines
