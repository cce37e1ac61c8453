"""Which steps a trace holds. tests/test_train.py reads the traces of runs."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from mixer.training.profile import Profile


@pytest.mark.parametrize(
    ("first_step", "num_steps", "total_steps", "expected"),
    [(0, 3, 100, [11, 12, 13]), (40, 1, 100, [51]), (0, 3, 8, [6, 7, 8]), (0, 50, 5, [2, 3, 4, 5]), (0, 0, 100, [])],
)
def test_whole_steps_are_traced(first_step, num_steps, total_steps, expected, tmp_path, monkeypatch):
    traced, runs = [], []
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 30, lambda _, y: jnp.tanh(y @ y), x))

    def change(begins: bool) -> None:
        assert results.is_ready()  # else the trace would begin or end within a step
        runs.append(begins)

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: change(begins=True))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: change(begins=False))
    profile = Profile(epath.Path(tmp_path), first_step, num_steps, total_steps)
    for step in range(first_step + 1, total_steps + 1):
        if runs == [True]:
            traced.append(step)
        results = slow(jnp.ones((300, 300)))
        profile.at(step, results)
    assert traced == expected
    assert runs == [True, False][: 2 * bool(expected)]
