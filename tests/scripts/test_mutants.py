"""Which changes the mutation check makes, and that its list of equivalent mutants fits the code."""

import pytest

from scripts import mutants
from scripts.mutations import mutants as mutants_of


def changed(tmp_path, text):
    (tmp_path / "m.py").write_text(text)
    found = mutants_of(tmp_path, "m.py")
    assert len({one.key for one in found}) == len(found)
    for one in found:
        compile(one.source, "m.py", "exec")
    return [one.source for one in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", ["(a - b)"]),
        ("a * (b // 7)", ["(a / (b // 7))", "a * ((b * 7))", "a * (b // 8)"]),
        ("a < 1", ["(a <= 1)", "a < 2", "a < 0"]),
        ("not a and b", ["(not a or b)", "a and b"]),
        ("x = -y if True else z", ["x = -y if (not True) else z", "x = -y if False else z", "x = y if True else z"]),
        ("np.min(a, axis=0)", ["np.min(a)", "np.max(a, axis=0)", "np.min(a, axis=1)"]),
        ("zip(a, b, strict=True)", []),
        ("def f(a: A = 2) -> A:\n  'One.'\n  return a",
         ["def f(a: A = 3) -> A:\n  'One.'\n  return a", "def f(a: A = 2) -> A:\n  'One.'\n  return None"]),
        ("x = f'{1}'", []),
        ("[a for a in b if a]", ["[a for a in b if (not a)]"]),
        ("x += 1", ["x -= 1", "pass", "x += 2", "x += 0"]),
    ],
)  # fmt: skip
def test_one_thing_at_a_time_is_changed(tmp_path, text, expected):
    assert sorted(changed(tmp_path, text)) == sorted(expected)


def test_every_equivalent_mutant_on_the_list_exists():
    """An entry that no longer fits the code would hide nothing, but explain nothing either."""
    found = {
        (module, one.line, one.old, one.new, number)
        for module in mutants.TESTS
        for one in mutants_of(mutants.ROOT, module)
        for number in ("", str(one.number))
    }
    assert mutants._equivalents() <= found
    entries = [line for line in mutants.EQUIVALENT.read_text().splitlines() if line.startswith("- ")]
    assert len(entries) == len(mutants._equivalents())


def test_each_module_and_its_tests_exist():
    for module, tests in mutants.TESTS.items():
        assert all((mutants.ROOT / path).is_file() for path in (module, *tests))
