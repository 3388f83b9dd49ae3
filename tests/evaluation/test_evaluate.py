"""What evaluation.json says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation.runs import Made

from preftune import evaluate


@pytest.mark.parametrize(("against", "data"), [(False, False), (True, False), (False, True)])
def test_it_says_whether_reference_and_data_are_the_runs_own(
    made: Made, files: dict[str, Path], tmp_path: Path, against: bool, data: bool
) -> None:
    run = made("dpo")
    given = {"against": run if against else None, "data": files["pairs"] if data else None}
    figures = evaluate(run, out=tmp_path, prompts=0, quiet=True, **given).figures
    assert (figures["own_reference"], figures["own_data"]) == (not against, not data)
