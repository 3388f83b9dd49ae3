"""What is read from source is what the classes say."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
import yaml

from preftune.errors import PreftuneError
from preftune.objectives import catalogue, registry

NAMES = registry.names()


def fields_of(entry):
    return {field.name: field.default for field in entry.fields}


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_fields_read_from_source_are_those_of_the_class(name):
    entry, cls = catalogue.entry(name), registry.resolve(name)
    for attribute in catalogue.ATTRIBUTES:
        assert getattr(entry, attribute) == getattr(cls, attribute), attribute
    assert entry.title == cls.__name__
    assert fields_of(entry) == {field.name: catalogue.yaml_of(field.default) for field in dataclasses.fields(cls)}
    imported = catalogue._imported(name, cls)  # the other way to read: all but annotations, which are objects there
    assert dataclasses.replace(imported, fields=entry.fields) == entry
    assert fields_of(imported) == fields_of(entry)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_snippet_is_the_objective_with_its_defaults(name):
    read = yaml.safe_load(catalogue.entry(name).config())["objective"]
    assert read["name"] == name
    (term,) = registry.terms(read)
    assert term.objective == registry.build(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_family_a_source_and_words_for_each_field(name):
    entry = catalogue.entry(name)
    assert entry.family in catalogue.FAMILIES
    assert entry.source
    assert all(field.meaning for field in entry.fields)


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_have_all_sections_and_say_what_is_usual(name):
    """Equation, source, use, nats and libraries of each; of each number, the range that is recommended."""
    entry, cls = catalogue.entry(name), registry.resolve(name)
    expected = {"Equation", "Source", "When to use", "In nats", "Differs between libraries", "Example"}
    assert expected | ({"Args"} if entry.fields else set()) == set(entry.sections) - {"About"}
    for field in dataclasses.fields(cls):
        if re.search(r"\b(float|int)\b", str(field.type)):
            meaning = next(each.meaning for each in entry.fields if each.name == field.name)
            assert "Usual: " in meaning, f"{name}.{field.name} does not say what is usual"


def test_families_are_told_by_data_reference_and_reward_head():
    families = {entry.name: entry.family for entry in catalogue.entries()}
    assert list(families) == NAMES
    assert families["ipo"] == "Pairs, with a reference"
    assert families["simpo"] == "Pairs, without a reference"
    assert families["sft"] == "Demonstrations"
    pair = dataclasses.replace(catalogue.entry("dpo"), needs=frozenset({"reward_R"}))
    assert pair.family == "Reward models"
    for data, family in (("labels", "Unpaired labels"), ("rankings", "Rankings")):
        assert dataclasses.replace(pair, needs=frozenset(), data=data).family == family


def test_listing_and_explaining_import_no_torch():
    code = (
        "import sys; from preftune.objectives import catalogue as c; "
        "assert c.entries() and c.entry('ipo').config(); "
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BASE = """
from typing import ClassVar
LIMIT = 0.25
class Base:
    data: ClassVar[str] = "pairs"
    reference: ClassVar[bool] = True
    couples: ClassVar[bool] = False
    baselines: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[frozenset[str]] = frozenset()
    learning_rate: ClassVar[float] = 1e-6
    lora_learning_rate: ClassVar[float] = 5e-5
"""
OWN = '''
from dataclasses import dataclass, field
from typing import ClassVar
from preftune.objectives.base import LIMIT, Base as Root
TENTH = 0.1
class Middle(Root):
    reference: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"kl_K"})
@dataclass(frozen=True)
class Own(Middle):
    """Own: an example.

    Source: Somebody, Another and Third 2024, "A title", arXiv 2401.00001, and more.
    """
    couples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = Middle.needs | frozenset({"entropy_K"})
    learning_rate: ClassVar[float] = Root.learning_rate
    beta: float = TENTH
    gamma: float = LIMIT
    steps: tuple[int, ...] = (1, 2)
    size: int = field(default=3)
    free: float
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of objectives with one of its own, in place of ours."""
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "own.py").write_text(OWN)
    for module in (catalogue, registry):
        monkeypatch.setattr(module, "__file__", str(tmp_path / "any.py"))
    caches = (catalogue._module, catalogue._read, registry._sources)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_bases_constants_and_other_modules_are_followed(folder):
    entry = catalogue.entry("own")
    assert (entry.reference, entry.couples, entry.data) == (False, True, "pairs")
    assert entry.needs == {"kl_K", "entropy_K"}
    assert entry.learning_rate == 1e-6
    assert fields_of(entry) == {"beta": "0.1", "gamma": "0.25", "steps": "[1, 2]", "size": "3", "free": "required"}
    assert entry.source == "Somebody, Another and Third 2024, arXiv 2401.00001"


@pytest.mark.parametrize("name", NAMES)
def test_the_source_is_a_citation_with_its_own_number(name):
    """Nothing but a title in quotes lies between the authors and the number that the table sets beside them."""
    entry = catalogue.entry(name)
    text = entry.sections["Source"]
    authors, _, number = entry.source.partition(", arXiv ")
    begin = text.index(authors)
    if number:
        between = text[begin + len(authors) : text.index(number, begin)]
        assert re.fullmatch(r', "[^"]+", arXiv ', between), between
    else:
        assert not text[begin + len(authors) :].startswith(", arXiv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bradley and Terry 1952; as a loss, Christiano et al. 2017, arXiv 1706.03741", "Bradley and Terry 1952"),
        ('Older 1999, "A title", and Newer et al. 2020, arXiv 2001.00001', "Older 1999"),
        ("ours, after Newer et al. 2020 (arXiv 2001.00001)", "Newer et al. 2020, arXiv 2001.00001"),
        ('Newer 2020, "A title: of 1999", arXiv 2001.00001, and Other 2021', "Newer 2020, arXiv 2001.00001"),
        ("arXiv 2001.00001, without authors", "arXiv 2001.00001"),
        ("a remark. And more", "a remark"),
    ],
)
def test_a_number_is_never_another_papers(text, expected):
    entry = catalogue.entry("dpo")
    assert dataclasses.replace(entry, sections={**entry.sections, "Source": text}).source == expected


def test_what_cannot_be_read_without_importing_is_named(folder):
    (folder / "own.py").write_text(OWN.replace("= TENTH", "= max(TENTH, 0.2)"))
    with pytest.raises(RuntimeError, match=r"max\(TENTH, 0\.2\) cannot be read without importing"):
        catalogue.entry("own")


def test_sections_of_a_docstring():
    summary, sections = catalogue.sections(
        """First line: with a colon.

        Prose that belongs
        to no section.

        Equation:
            loss = 1
              + 2

            where: always

        Source: begins here,
            and goes on.

            A second paragraph.

        Args:
            a: one thing,
                and more of it: yes.
            b: another
        """
    )
    assert summary == "First line: with a colon."
    assert sections["About"] == "Prose that belongs\nto no section."
    assert sections["Equation"] == "loss = 1\n  + 2\n\nwhere: always"
    assert sections["Source"] == "begins here, and goes on.\n\nA second paragraph."
    assert catalogue.arguments(sections["Args"]) == {"a": "one thing, and more of it: yes.", "b": "another"}


def test_defaults_are_written_so_that_yaml_reads_them_back():
    for value in (0.1, 1e-6, 1e16, 2, True, False, None, "sum", (1, 2.5), ()):
        expected = list(value) if isinstance(value, tuple) else value
        read = yaml.safe_load(catalogue.yaml_of(value))
        assert read == expected
        assert type(read) is type(expected)


def test_an_unknown_name_is_one_sentence_with_the_nearest():
    with pytest.raises(PreftuneError, match=r"unknown objective 'simp'; did you mean simpo\? \(your own: package"):
        catalogue.entry("simp")
