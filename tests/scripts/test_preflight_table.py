"""The table of pre-flight: which cells are compiled, and what is printed of them."""

import json

import jax
import pytest

from mixer.performance import tpu_topology
from mixer.runtime.errors import UserError
from scripts import preflight_table
from scripts.preflight_table import CONFIGS, SLICES


def result(config, topology, **found):
    whole = {"fits": True, "seconds_per_step": 0.0507, "images_per_sec_per_core": 631.0, "total": 1.9 * 2**30}
    return {"config": config, "topology": topology, "core_days": 77.34, **whole, **found}


RESULTS = [
    result("b16_i21k", "v3:8x8"),
    result("b16_i21k", "v2:8x8", fits=False, needed=9e9),
    result("s32_jft", "tpu7x:4x4x4", seconds_per_step=None, core_days=None),
]


def test_all_eleven_configs_on_a_slice_of_128_cores_of_each_generation():
    assert len(set(CONFIGS)) == 11
    assert sorted(name.partition(":")[0] for name in SLICES) == ["tpu7x", "v2", "v3", "v4", "v5e", "v5p", "v6e"]


def test_cells_that_are_there_are_not_compiled_again():
    left = list(preflight_table.missing(RESULTS, CONFIGS, SLICES))
    assert len(left) == 11 * 7 - 3
    assert left[0] == ("b16_i21k", "v5e:8x16")
    assert ("b16_i21k", "v3:8x8") not in left


def test_results_of_another_compiler_are_refused():
    results = [{"libtpu": "0.0.42.1", **one} for one in RESULTS]
    preflight_table.check_compiler(results, "0.0.42.1")
    preflight_table.check_compiler([], "0.0.50.1")
    with pytest.raises(UserError, match=r"results of libtpu 0\.0\.42\.1, and this is 0\.0\.50\.1: give another file"):
        preflight_table.check_compiler(results, "0.0.50.1")


def test_what_the_file_has_is_printed(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in RESULTS))
    assert preflight_table.main(["--results", str(path), "--print"]) == 0
    time, memory = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    assert time[0] == "| ms a step, images/s/core | v2:8x8 | v3:8x8 | v4:4x4x8 | v5e:8x16 | v5p:4x4x8 | v6e:8x16 | " \
        "tpu7x:4x4x4 |"  # fmt: skip
    assert time[2] == "| `b16_i21k.py` | does not fit | 50.7, 631 | - | - | - | - | - |"
    assert time[3] == "| `s32_jft.py` | - | - | - | - | - | - | no estimate |"
    assert memory[2] == "| `b16_i21k.py` | does not fit | 1.90, 77.3 | - | - | - | - | - |"
    assert memory[3].endswith("| 1.90 |")
    given = ["--configs=b16_i21k", "--slices=v3:8x8,v2:2x2"]
    assert preflight_table.main(["--results", str(path), "--print", *given]) == 0
    time, _ = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    assert time[0] == "| ms a step, images/s/core | v2:2x2 | v3:8x8 |"
    assert time[2:] == ["| `b16_i21k.py` | - | 50.7, 631 |"]


def test_a_cell_is_kept_at_once_and_the_next_command_continues(tmp_path, monkeypatch, capsys):
    path, cells = tmp_path / "results.jsonl", []

    def compiled(config, topology):
        if len(cells) == 2:
            raise KeyboardInterrupt
        cells.append((config, topology))
        return result(config, topology, libtpu="1")

    monkeypatch.setattr(preflight_table, "compiled", compiled)
    monkeypatch.setattr(tpu_topology, "libtpu_version", lambda: "1")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    command = ["--results", str(path), "--configs=s32_jft", "--slices=v2:8x8,v3:8x8,v4:4x4x8"]
    with pytest.raises(KeyboardInterrupt):
        preflight_table.main(command)
    assert [json.loads(line)["topology"] for line in path.read_text().splitlines()] == ["v2:8x8", "v3:8x8"]
    cells.clear()
    assert preflight_table.main(command) == 0
    assert cells == [("s32_jft", "v4:4x4x8")]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--results=nowhere/a.jsonl"], "No such file or directory"),
        (["--results=none.jsonl", "--print"], "--results=none.jsonl is not there"),
        (["--results=torn.jsonl", "--print"], "torn.jsonl: line 2 is no JSON; take it out, and its cell is compiled"),
        (["--results=a.jsonl", "--configs=b17"], "--config b17: no such file"),
        (["--results=a.jsonl", "--slices=v9:2x2"], "--slices: 'v9:2x2': expected v2, v3, v4, v5e, v5p, v6e, tpu7x, a "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_compiled(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(preflight_table, "compiled")
    (tmp_path / "torn.jsonl").write_text(json.dumps(RESULTS[0]) + '\n{"config": "s32')
    assert preflight_table.main(given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("preflight_table.py: ")
    assert said in line
