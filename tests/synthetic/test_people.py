"""People of a synthetic data set: order, age groups, genders."""

from __future__ import annotations

import pytest

from dataset_11k import AGE_GROUPS, GENDERS, age_group
from synthetic.people import draw_people


@pytest.mark.parametrize("n_people", [1, 2, 7, 24, 200])
def test_people_are_varied_and_ordered(n_people: int) -> None:
    people = draw_people(5, n_people)
    ids = [person.id for person in people]
    assert ids == sorted(set(ids))
    assert len(ids) == n_people
    assert "1200000" in ids
    assert all(18 <= person.age <= 75 for person in people)
    if n_people >= 2:
        assert {person.gender for person in people} == set(GENDERS)
    if n_people >= 24:
        groups = [age_group(person.age) for person in people]
        counts = {group: groups.count(group) for group in AGE_GROUPS}
        assert min(counts.values()) >= 3
        for group in AGE_GROUPS:  # otherwise gender would follow from age
            genders = [p.gender for p in people if age_group(p.age) == group]
            assert set(genders) == set(GENDERS)
    if n_people == 200:
        assert counts["21"] > 3 * counts["31-75"]
