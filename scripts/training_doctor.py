"""Writes the generated part of docs/training-doctor.md: the rules, as the code has them.

python scripts/training_doctor.py
"""

from __future__ import annotations

from pathlib import Path

from preftune.training.doctor.rules import RULES

PAGE = Path(__file__).parents[1] / "docs" / "training-doctor.md"
BEGIN, END = "<!-- rules: begin (make docs-training-doctor) -->", "<!-- rules: end -->"


def rules() -> str:
    """A table of all rules, and what each of them says."""
    lines = ["| rule | severity | reads | fires |", "| --- | --- | --- | --- |"]
    for rule in RULES:
        reads = ", ".join(f"`{name}`" for name in rule.needs) or "what is known before training"
        lines.append(f"| `{rule.name}` | {rule.severity} | {reads} | {rule.threshold} |")
    for rule in RULES:
        lines += ["", f"**{rule.title.capitalize()}.** {rule.explanation} *{rule.remedy}*"]
    return "\n".join(lines)


def replaced(text: str) -> str:
    """The page with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{rules()}\n{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
