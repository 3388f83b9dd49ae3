"""The whole of it in Python: align the built-in model on the built-in pairs."""

import preftune

run = preftune.train("sandbox", "sandbox", "dpo", output="runs/python-api", overwrite=True)
print(run.summary["after"]["preference_accuracy"])
run.plot().write_html(run.path / "curves.html")
