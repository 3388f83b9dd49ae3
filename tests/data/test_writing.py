from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import sources
from preftune.data.records import (
    Demonstration,
    Judged,
    Message,
    Preference,
    Ranking,
    Record,
    Where,
    fingerprint,
    records,
)
from preftune.data.writing import write_records

WHERE = Where("given data", 0)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: text.strip())
answers = texts.map(lambda text: (Message("assistant", text),))
asked = texts.map(lambda text: (Message("system", "Be brief."), Message("user", text)))
weights = st.sampled_from([1.0, 0.5, 0.0])
numbers = st.none() | st.floats(0, 1)
scores = st.floats(-10, 10)


def of_form(prompts: st.SearchStrategy, responses: st.SearchStrategy) -> st.SearchStrategy[list[Record]]:
    """Records of one kind, whose texts are all plain or all turns."""
    return st.one_of(
        st.lists(
            st.builds(Preference, prompts, responses, responses, st.just(WHERE), weights, numbers, st.none() | scores),
            min_size=1,
            max_size=4,
        ),
        st.lists(st.builds(Judged, prompts, responses, st.booleans(), st.just(WHERE), weights), min_size=1, max_size=4),
        st.lists(
            st.builds(
                Ranking,
                prompts,
                st.tuples(responses, responses, responses),
                st.tuples(scores, scores, scores),
                st.just(WHERE),
                weights,
            ),
            min_size=1,
            max_size=4,
        ),
        st.lists(st.builds(Demonstration, prompts, responses, st.just(WHERE), weights), min_size=1, max_size=4),
    )


@settings(max_examples=150, deadline=None)
@given(found=of_form(texts, texts) | of_form(asked, answers))
def test_what_is_written_reads_back_as_the_same_records(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "data" / "train.jsonl"
    write_records(path, found)
    again = list(records(sources.rows(str(path))))
    assert fingerprint(again) == fingerprint(found)
    assert [type(record) for record in again] == [type(record) for record in found]
