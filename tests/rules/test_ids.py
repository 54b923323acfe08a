"""Ids: ordered by time, unguessable, and able to say where their job lives."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.errors import ConfigError
from asyncq.ids import EPOCH_MS, LENGTH, check_job_id, made_ms, new_ids, partition_of

MOMENTS = st.integers(EPOCH_MS, EPOCH_MS + (1 << 40) - 1)


@given(MOMENTS)
def test_an_id_tells_when_it_was_made(moment: int) -> None:
    (job_id,) = new_ids(1, moment)
    assert made_ms(job_id) == moment
    assert made_ms(new_ids(1, moment, "~7")[0]) == moment


@given(MOMENTS, MOMENTS)
def test_ids_sort_by_time(one: int, other: int) -> None:
    (first,), (second,) = new_ids(1, one), new_ids(1, other)
    assert (first < second) == (one < other) or one == other


def test_a_batch_of_ids_shares_its_moment_and_nothing_else() -> None:
    ids = new_ids(500, EPOCH_MS + 1)
    assert len(set(ids)) == 500
    assert len({job_id[:6] for job_id in ids}) == 1
    assert len({job_id[7:] for job_id in ids}) == 500


def test_ids_are_long_enough_not_to_be_guessed_and_have_no_troublesome_character() -> None:
    allowed = set(string.ascii_letters + string.digits + "-_")
    for job_id in new_ids(500, EPOCH_MS + (1 << 36)):
        assert len(job_id) == LENGTH
        assert set(job_id) <= allowed
        assert not job_id.startswith("-")


def test_no_ids_are_no_ids() -> None:
    assert new_ids(0, EPOCH_MS) == []


def test_a_clock_before_the_epoch_makes_ids_all_the_same() -> None:
    assert made_ms(new_ids(1, 0)[0]) == EPOCH_MS


@pytest.mark.parametrize("job_id", ["", "mine", "x" * 19, "x" * 21, "invoice:2024.000001/7", "é" * 20, "~1"])
def test_an_id_of_a_users_choice_tells_no_time(job_id: str) -> None:
    assert made_ms(job_id) is None


@pytest.mark.parametrize("job_id", ["a", "_", "0", "invoice:42", "a@b", "x=1", "a/b+c", "A-b.c", "x" * 128])
def test_chosen_ids(job_id: str) -> None:
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "job_id", ["", " ", "a b", "a\n", "a~1", "-a", ".a", ":a", "é", "a\0", "x" * 129, "a{b}", "a*"]
)
def test_ids_that_cannot_be_chosen(job_id: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        check_job_id(job_id)


@given(st.text(string.ascii_letters + string.digits, min_size=1), st.integers(1, 1024))
def test_every_id_lives_in_one_partition(job_id: str, partitions: int) -> None:
    assert 0 <= partition_of(job_id, partitions) < partitions
    assert partition_of(job_id, partitions) == partition_of(job_id, partitions)


@given(st.integers(2, 1024), st.data())
def test_a_made_id_says_its_partition(partitions: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, partitions - 1))
    assert partition_of(new_ids(1, EPOCH_MS, f"~{n}")[0], partitions) == n


def test_chosen_ids_spread_over_the_partitions() -> None:
    assert {partition_of(f"invoice:{n}", 8) for n in range(200)} == set(range(8))


@pytest.mark.parametrize("odd", ["x~", "x~9", "x~-1", "x~1.5", "x~²", "~"])
def test_a_mark_that_names_no_partition_is_part_of_the_id(odd: str) -> None:
    assert 0 <= partition_of(odd, 4) < 4
