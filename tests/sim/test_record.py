"""Tables of facts."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import Parallel, delayed
from librt.strings import write_i64_le

import sim
from sim.errors import InvariantError
from sim.record import ITERATION_COLUMNS, MAX_REASONS, Recorder, Table, iteration_ends_ns
from tests.sim.serving import asked


def test_rows_come_back_as_they_were_added():
    table = Table(("a", "b"))
    table.add(1, -2)
    table.add(3, 1 << 62)
    assert len(table) == 2
    assert table.rows().tolist() == [[1, -2], [3, 1 << 62]]
    assert table.column("b").tolist() == [-2, 1 << 62]
    assert table.rows().dtype == np.int64


def test_an_empty_table_has_its_columns():
    assert Table(("a", "b")).rows().shape == (0, 2)


def test_a_frame_is_a_copy():
    table = Table(("a",))
    table.add(1)
    frame = table.frame()
    frame.loc[0, "a"] = 9
    assert table.column("a").tolist() == [1]
    table.add(2)
    assert frame["a"].tolist() == [9]


@pytest.mark.parametrize("row", [(1,), (1, 2, 3), (1, 2.5), (1, 1 << 63)])
def test_what_is_no_row_of_whole_numbers_is_not_added(row):
    table = Table(("a", "b"))
    with pytest.raises(Exception, match=r"cell|integer|too big"):
        table.add(*row)
    assert len(table) == 0


def test_rows_written_cell_by_cell_are_those_added_whole():
    by_cell, whole = Table(("a", "b")), Table(("a", "b"))
    for k in range(10_000):  # past what is kept together
        write_i64_le(by_cell.row, k)
        write_i64_le(by_cell.row, -k)
        by_cell.keep()
        whole.add(k, -k)
        assert len(by_cell) == len(whole) == k + 1
    assert by_cell.rows().tolist() == whole.rows().tolist()


def test_a_row_that_lacks_a_cell_is_noticed():
    table = Table(("a", "b"))
    write_i64_le(table.row, 1)
    table.keep()
    with pytest.raises(InvariantError, match="no cell"):
        table.rows()


rows = st.tuples(
    st.integers(0, 10**6), st.integers(0, 999), st.integers(1, 20), st.integers(1, 10**5), st.integers(0, 999)
)


@given(st.lists(rows, max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_the_ends_of_iterations_are_those_of_adding_one_after_the_other(runs, first, stop):
    table = Table(ITERATION_COLUMNS)
    expected = []
    for row, (start_ns, carry_ps, n_steps, first_ps, growth_ps) in enumerate(runs):
        table.add(0, start_ns, carry_ps, n_steps, first_ps, growth_ps, *(0,) * (len(ITERATION_COLUMNS) - 6))
        clock_ps = start_ns * 1000 + carry_ps
        for k in range(n_steps):
            clock_ps += first_ps + k * growth_ps
            if first <= row < stop:
                expected.append(clock_ps // 1000)
    assert iteration_ends_ns(table, first, stop).tolist() == expected


def test_refusals_are_all_counted_and_the_first_kept_in_words():
    recorder = Recorder()
    for i in range(MAX_REASONS + 5):
        recorder.refuse(asked(i, 10 * i, 4, 1, session_id=i if i else None), f"reason {i}")
    assert len(recorder.refused) == MAX_REASONS + 5
    assert recorder.refused.rows()[:2].tolist() == [[0, 0, 4, 1, -1, 0], [1, 10, 4, 1, 1, 0]]
    assert recorder.refusals == {i: f"reason {i}" for i in range(MAX_REASONS)}


def test_classes_are_numbered_as_they_come():
    recorder = Recorder()
    assert [recorder.slo_class(name) for name in ("", "chat", "", "batch")] == [0, 1, 0, 2]
    assert recorder.slo_classes == {"": 0, "chat": 1, "batch": 2}


def test_a_result_is_pickled_and_copied_whole():
    result = sim.simulate("scenario=synthetic", "scenario.n_requests=20", "hardware.kv_blocks=200", seed=3)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        for one in fields(result):
            mine, its = getattr(result, one.name), getattr(other, one.name)
            if isinstance(mine, Table):
                assert its.columns == mine.columns
                assert its.rows().tobytes() == mine.rows().tobytes()
            else:
                assert its == mine, one.name


def test_a_copied_table_grows_without_the_other():
    table = Table(("a", "b"))
    table.add(1, 2)
    other = copy.deepcopy(table)
    other.add(3, 4)
    assert table.rows().tolist() == [[1, 2]]
    assert other.rows().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("n_rows", [0, 3])
def test_results_come_back_from_other_processes(n_rows):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ends = list(pool.map(one_run, [1, 2][: n_rows or 1]))
    here = [one_run(seed) for seed in [1, 2][: n_rows or 1]]
    assert [one.requests.rows().tobytes() for one in ends] == [one.requests.rows().tobytes() for one in here]
    back = Parallel(n_jobs=2)([delayed(one_run)(1), delayed(one_run)(2)])
    assert [one.seed for one in back] == [1, 2]


def one_run(seed):
    return sim.simulate("scenario=synthetic", "scenario.n_requests=20", seed=seed)
