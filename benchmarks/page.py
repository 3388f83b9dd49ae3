"""The benchmark's figures as docs/performance.md and a bar chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

COLOURS = {
    "preftune": "#3b82d6",
    "preftune, compiled": "#12447f",
    "preftune, stored reference": "#1a9e77",
    "preftune, bf16": "#8d5bd1",
}
OTHER = "#d9652b"
WIDTH, BAR, GAP, LEFT, RIGHT = 820, 15, 16, 130, 250

PAGE = """# Performance

Written by `benchmarks/throughput.py --write` (`make bench`), {when}: torch {torch}, {threads} threads, CPU,
batches of 8 pairs, {pairs} pairs a pass, {rounds} passes of each contender in turn, each in a process of its own,
after one to warm up. Rates are medians (range). Before anything is timed, all contenders in fp32 must give the same
loss on the same batch, to 1e-4.

The model is of Qwen3's shape: hidden 256, 4 layers, 4 heads, vocabulary 16,384 (7.3M parameters) or 151,936 (42M), with
random weights. TRL runs at its fastest settings for CPU (fused AdamW, no checkpointing, with and without torch.compile;
the faster of the two is what others are compared with); its other fast paths, Liger's kernels and padding-free rows,
need CUDA. "Compiled" is `train.compile=true`; the time to compile is in no figure.

**The limit** is the time of the matrix products that the job cannot do without: the policy's forward and backward and a
live reference's forward, every prompt once, the head over response tokens alone; each product timed alone, at its own
shape, into an output that is there already (`benchmarks/limit.py`). Norms, softmax, rotations and the optimiser cost
nothing there, so it cannot be reached. preftune leaves out one part that the limit counts, the last layer's MLP on
prompt tokens (8% of the products on dialogue lengths, 3% on GSM8K's), of which nothing is read. A stored reference
needs no forward of its own: its share may pass 100%.

![pairs per second](images/performance.svg)

| pairs (median prompt / chosen / rejected) | contender | pairs/s | tokens/s | of the limit | peak memory | times TRL |
|---|---|---|---|---|---|---|
{rows}

{summary}
"""


def write(docs: Path, found: Sequence[dict[str, Any]], pairs: int, rounds: int) -> Path:
    """Write page and picture; returns the page's path."""
    page = PAGE.format(
        when=date.today().isoformat(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        pairs=pairs,
        rounds=rounds,
        rows="\n".join(_row(each, name) for each in found for name in each["contenders"]),
        summary=_summary(found),
    )
    (docs / "images").mkdir(exist_ok=True)
    (docs / "images" / "performance.svg").write_text(_picture(found), encoding="utf-8")
    path = docs / "performance.md"
    path.write_text(page, encoding="utf-8")
    return path


def _peer(each: dict[str, Any]) -> dict[str, float] | None:
    """The figures of the peer at its fastest."""
    found = [figures for name, figures in each["contenders"].items() if name.startswith("TRL")]
    return max(found, key=lambda figures: figures["rate"]) if found else None


def _row(each: dict[str, Any], name: str) -> str:
    figures, peer = each["contenders"][name], _peer(each)
    lengths = " / ".join(f"{length:.0f}" for length in each["median_tokens"])
    times = "" if peer is None else f"{figures['rate'] / peer['rate']:.1f}"
    rate = f"{figures['rate']:.2f} ({figures['low']:.2f} to {figures['high']:.2f})"
    tokens, share = f"{figures['rate'] * each['tokens_per_pair']:,.0f}", f"{figures['rate'] / each['limit']:.0%}"
    cells = (f"{each['what']} ({lengths})", name, rate, tokens, share, f"{figures['peak_gb']:.2f} GB", times)
    return f"| {' | '.join(cells)} |"


def _summary(found: Sequence[dict[str, Any]]) -> str:
    rows = [(each["contenders"], peer) for each in found if (peer := _peer(each)) is not None]
    lines = []
    for name in ("preftune", "preftune, compiled"):
        both = [(contenders[name], peer) for contenders, peer in rows if name in contenders]
        if both:
            faster = math.exp(sum(math.log(ours["rate"] / peer["rate"]) for ours, peer in both) / len(both))
            leaner = math.exp(sum(math.log(ours["peak_gb"] / peer["peak_gb"]) for ours, peer in both) / len(both))
            lines.append(
                f"Geometric means over the {len(both)} rows, live reference, fp32, {name}: {faster:.1f} times TRL's "
                f"pairs per second, {leaner:.2f} of its peak memory."
            )
    return "\n\n".join(lines)


def _picture(found: Sequence[dict[str, Any]]) -> str:
    """Bars of pairs per second as a share of each row's limit."""
    parts, y = [], 24
    for each in found:
        parts.append(_text(4, y + 12, each["row"], "start"))
        for name, figures in each["contenders"].items():
            share = min(figures["rate"] / each["limit"], 1.2)
            length = share * (WIDTH - LEFT - RIGHT)
            colour = COLOURS.get(name, OTHER)
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{colour}"/>')
            label = f"{name}: {figures['rate']:.1f} pairs/s, {figures['rate'] / each['limit']:.0%}"
            parts.append(_text(LEFT + length + 5, y + 10, label, "start"))
            y += BAR
        y += GAP
    end = LEFT + WIDTH - LEFT - RIGHT
    parts.append(f'<line x1="{end}" y1="18" x2="{end}" y2="{y - GAP}" stroke="#888" stroke-dasharray="3 3"/>')
    parts.append(_text(end, 13, "limit", "middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="11" role="img" '
        f'aria-label="pairs per second as a share of the limit">{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#808080" text-anchor="{anchor}">{text}</text>'
