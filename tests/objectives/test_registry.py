import ast
import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import preftune.objectives
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.base import Objective
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.pairs import PairObjective
from preftune.objectives.sft import SFT

USERS = '''
from dataclasses import dataclass
from typing import ClassVar, Literal
import torch
from preftune.objectives import DPO, Objective, PairObjective

@dataclass(frozen=True)
class Hinge(PairObjective):
    """Hinge loss."""
    width: float = 1.0
    shape: Literal["plain", "squared"] = "plain"
    steps: tuple[int, ...] = (1, 2)

    def pair_loss(self, pairs):
        return torch.relu(self.width - pairs.delta_E)

    def reward(self, ratio, length):
        return ratio

@dataclass(frozen=True)
class Half(PairObjective):
    def reward(self, ratio, length):
        return ratio

class Bare(DPO):
    slope: float = 1.0

@dataclass(frozen=True)
class Heavy(DPO):
    weight: float = 1.0

@dataclass(frozen=True)
class Holder(DPO):
    table: torch.Tensor | None = None

function = print
'''


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A folder with a user's modules as the current folder, which is not on the path."""
    (tmp_path / "my_losses.py").write_text(USERS)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "typo.py").write_text("def f(:")
    (tmp_path / "needy.py").write_text("import surely_not_installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for module in ("my_losses", "broken", "typo", "needy"):
        sys.modules.pop(module, None)


def refusal(call, *args, **kwargs):
    with pytest.raises(PreftuneError) as raised:
        call(*args, **kwargs)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_every_file_is_an_objective_named_like_it():
    assert registry.names() == sorted(registry.names())
    for name in registry.names():
        cls = registry.resolve(name)
        module = sys.modules[cls.__module__]
        assert module.__name__ == f"preftune.objectives.{name}"
        defined = [
            each
            for each in vars(module).values()
            if inspect.isclass(each) and issubclass(each, Objective) and each.__module__ == module.__name__
        ]
        assert defined == [cls], "one class each"
        assert cls.__name__ == registry.class_names()[name]
        assert cls.__dataclass_params__.frozen
        assert registry.summaries()[name] == inspect.getdoc(cls).splitlines()[0]


def test_an_objective_is_a_derived_dataclass_named_like_its_file(tmp_path, monkeypatch):
    own = "@dataclass(frozen=True)\nclass CalDPO(PairObjective): ...\n"
    (tmp_path / "cal_dpo.py").write_text(f"class Helper: ...\n{own}")
    (tmp_path / "pairs.py").write_text("@dataclass\nclass Pairs: ...")
    (tmp_path / "batch.py").write_text("class Batch(Protocol): ...")
    (tmp_path / "misnamed.py").write_text(own)
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert {name: node.name for name, node in registry._sources.__wrapped__().items()} == {"cal_dpo": "CalDPO"}


def test_every_objective_of_the_package_is_found():
    """One that is named unlike its file would be missed in silence."""
    package = Path(registry.__file__).parent
    for path in package.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            derived = isinstance(node, ast.ClassDef) and {"Objective", "PairObjective"} & {
                ast.unparse(b) for b in node.bases
            }
            if derived and node.decorator_list and path.stem != "modifiers":
                assert registry.class_names().get(path.stem) == node.name


def test_objectives_import_nothing_of_ours_but_each_other():
    for name in registry.names():
        tree = ast.parse((Path(registry.__file__).parent / f"{name}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        ours = {module for module in imported if module.startswith("preftune")}
        allowed = {"preftune.errors", "preftune.importing"}
        assert {module for module in ours if not module.startswith("preftune.objectives.")} <= allowed
        assert not ours & {"preftune.objectives.registry", "preftune.objectives.modifiers"}


def test_names_and_summaries_import_no_torch():
    code = (
        "import sys, preftune.objectives as o; assert o.names() and all(o.summaries().values()) and dir(o); "
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_exports_are_complete_and_exist():
    exported = set(preftune.objectives.__all__)
    assert len(exported) == len(preftune.objectives.__all__)
    assert set(registry.class_names().values()) <= exported <= set(dir(preftune.objectives))
    assert preftune.objectives.DPO is DPO
    assert preftune.objectives.Objective is Objective
    star = {}
    exec("from preftune.objectives import *", star)
    assert exported <= set(star)
    with pytest.raises(AttributeError, match="has no attribute 'DPPO'"):
        _ = preftune.objectives.DPPO


def test_building_by_name_gives_the_class_with_its_defaults():
    assert registry.build("dpo") == DPO()
    assert registry.build("dpo", beta=1) == DPO(beta=1.0)
    assert isinstance(registry.build("dpo", beta=1).beta, float)
    assert registry.build("ipo", tau=0.5, average="mean") == IPO(tau=0.5, average="mean")


def test_a_users_own_objective_is_found_in_the_current_folder(users):
    built = registry.build("my_losses:Hinge", width=2, steps=[3], shape="squared")
    assert (type(built).__name__, built.width, built.steps, built.shape) == ("Hinge", 2.0, (3,), "squared")
    assert isinstance(built, PairObjective)
    (term,) = registry.terms(built)
    assert term.name == "my_losses:Hinge"
    assert registry.terms(registry.spec_of([term])) == (term,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simp", "unknown objective 'simp'; did you mean simpo? (your own: package.module:Class)"),
        ("DPO", "unknown objective 'DPO'; did you mean dpo? (your own: package.module:Class)"),
        ("nothing like it", f"unknown objective 'nothing like it'; known: {registry.names()[0]}, "),
        ("", f"unknown objective ''; known: {registry.names()[0]}, "),
        ("base", "unknown objective 'base'; "),
        ("my_losses", "unknown objective 'my_losses'; "),
        ("my_loses:Hinge", "objective my_loses:Hinge: there is no module my_loses in the current folder or the "),
        ("os.pth:X", "objective os.pth:X: there is no module os.pth in the current folder or the environment"),
        ("my_losses:Hing", "objective my_losses:Hing: module my_losses has no Hing; did you mean Hinge?"),
        ("my_losses:function", "objective my_losses:function: function is not a subclass of preftune.objectives.Obj"),
        ("my_losses:Half", "objective my_losses:Half: Half is abstract, it has yet to define pair_loss"),
        ("my_losses:Bare", "objective my_losses:Bare: Bare must be decorated with @dataclass(frozen=True)"),
        ("my_losses:Heavy", "objective my_losses:Heavy: the field weight is reserved for the config; rename it"),
        ("my_losses:", "objective my_losses:: module my_losses has no "),
        (":Hinge", "objective :Hinge: importing  failed with ValueError: Empty module name"),
        ("broken:X", "objective broken:X: importing broken failed with ZeroDivisionError: division by zero"),
        ("typo:X", "objective typo:X: importing typo failed with SyntaxError: "),
        ("needy:X", "objective needy:X: module needy imports surely_not_installed, which is not installed"),
    ],
)
def test_names_that_stand_for_nothing_are_one_sentence(users, name, message):
    assert refusal(registry.resolve, name).startswith(message)


def test_values_and_fields_that_no_config_can_hold_are_one_sentence(users):
    assert refusal(registry.build, "my_losses:Hinge", width=object()) == (
        "objective my_losses:Hinge: width is of type object, expected a plain value"
    )
    assert refusal(registry.build, "my_losses:Hinge", steps=[1, "x"]) == (
        "objective my_losses:Hinge: steps is the text 'x', expected an integer"
    )
    assert "a field has a type that no config can hold" in refusal(registry.build, "my_losses:Holder")


def test_terms_take_names_objectives_mappings_and_lists_of_them():
    dpo, sft = registry.Term("dpo", DPO(beta=0.3)), registry.Term("sft", SFT(), 0.1)
    assert registry.terms("sft") == (registry.Term("sft", SFT(), 1.0),)
    assert registry.terms(DPO(beta=0.3)) == (dpo,)
    assert registry.terms({"name": "dpo", "beta": 0.3}) == (dpo,)
    assert registry.terms([{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.1}]) == (dpo, sft)
    assert registry.terms((DPO(beta=0.3), sft)) == (dpo, sft)


def test_terms_leave_the_spec_as_it_was():
    spec = {"name": "dpo", "beta": 0.3, "weight": 2}
    registry.terms([spec])
    assert spec == {"name": "dpo", "beta": 0.3, "weight": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], f"the list of objectives is empty; known: {registry.names()[0]}, "),
        (None, "objective is None, expected a name, a mapping such as {name: dpo, beta: 0.1}"),
        ([["dpo"]], "objective.0 is ['dpo'], expected a name"),
        (DPO, "objective is <class 'preftune.objectives.dpo.DPO'>, expected a name"),
        ({"beta": 0.1}, f"objective has no name; known: {registry.names()[0]}, "),
        (["dpo", {}], f"objective.1 has no name; known: {registry.names()[0]}, "),
        ({"name": 3}, f"an objective's name must be text, got 3; known: {registry.names()[0]}, "),
        ([{"name": "dpo", "beat": 1}], "objective dpo has no field beat; did you mean beta?"),
        ({"name": "dpo", "weight": "1"}, "objective dpo: weight must be a finite number > 0, got '1'"),
        *(
            ({"name": "dpo", "weight": weight}, f"objective dpo: weight must be a finite number > 0, got {weight}")
            for weight in (0, -1, math.inf, math.nan, True, None)
        ),
    ],
)
def test_specs_that_say_nothing_clear_are_one_sentence(spec, message):
    assert refusal(registry.terms, spec).startswith(message)


@pytest.mark.parametrize("name", registry.names())
def test_a_spec_holds_every_field_and_reads_back(name):
    one = registry.terms(name)
    spec = registry.spec_of(one)
    assert spec.keys() == {"name", "weight", *(field.name for field in dataclasses.fields(one[0].objective))}
    assert registry.terms(spec) == one
    two = registry.terms([name, {"name": "ipo", "tau": 0.7, "weight": 0.5}])
    assert registry.terms(registry.spec_of(two)) == two


def test_what_terms_need_together():
    dpo, sft = registry.terms("dpo"), registry.terms("sft")
    assert registry.needs_reference(dpo)
    assert not registry.needs_reference(sft)
    assert registry.needs_reference(sft + dpo)
    weighted = (SimpleNamespace(objective=SimpleNamespace(needs=frozenset({"entropy_K"}))),)
    assert registry.needs(dpo + weighted) == {"entropy_K"}
    assert registry.needs(dpo) == frozenset()


def test_what_data_terms_train_on_together():
    dpo, sft = registry.terms("dpo"), registry.terms("sft")
    labels = (SimpleNamespace(name="judged", objective=SimpleNamespace(data="labels")),)
    assert registry.data_kind(dpo) == "pairs"
    assert registry.data_kind(sft) == "demonstrations"
    assert registry.data_kind(sft + dpo) == "pairs"
    assert registry.data_kind(labels) == "labels"
    assert registry.data_kind(labels + dpo) == "pairs"
    assert registry.data_kind(sft + labels) == "pairs"
