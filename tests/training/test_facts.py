"""What processes compare: every setting and flag, the software, and what their data hold."""

import dataclasses
import subprocess

import jax
import numpy as np
import pytest

from mixer.config import recipe
from mixer.config.checks import flat
from mixer.data.sources import Example, Source
from mixer.training import facts


def source(images: list[bytes | None], labels: list[int], names: tuple[str, ...] = ("cat", "dog")) -> Source:
    def fetch(numbers: np.ndarray) -> list[Example]:
        return [Example(images[n], (labels[n],)) for n in numbers]

    return Source(len(images), names, max_labels=1, multi_label=False, fetch=fetch)


IMAGES, LABELS = [bytes([n]) for n in range(40)], [n % 2 for n in range(40)]


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_every_setting_counts_but_where_data_lie():
    config = recipe.base()
    found = facts.of_command(config, stop_after=None)
    settings = flat(config)
    assert found["stop_after"] == "None"
    assert set(settings) - set(found) == {name for name in settings if name.endswith("data_dir")}
    config.update_from_flattened_dict({"optimizer.learning_rate": 0.5, "input.data_dir": "/elsewhere"})
    assert differing(found, facts.of_command(config, stop_after=3)) == {"optimizer.learning_rate", "stop_after"}


def test_whether_weights_are_given_counts_but_not_where_they_lie():
    new, one, other = recipe.base(), recipe.base(), recipe.base()
    one.init_from, other.init_from = "/here/w.npz", "/there/w.npz"
    assert facts.of_command(one) == facts.of_command(other)
    assert differing(facts.of_command(new), facts.of_command(one)) == {"init_from"}


def test_software_has_versions_options_and_the_code(monkeypatch, tmp_path):
    found = facts.of_software()
    assert found["jax"] == jax.__version__
    assert {"jaxlib", "flax", "numpy", "Python", "the code of mixer"} < set(found)
    assert any(name.startswith("tensorflow") for name in found)
    assert facts.of_software() == found
    monkeypatch.setattr(facts, "_version", lambda name: "9.9")
    assert facts.of_software()["flax"] == "9.9"
    (tmp_path / "other.py").write_text("0")
    monkeypatch.setattr(facts.mixer, "__file__", str(tmp_path / "__init__.py"))
    assert facts.of_software()["the code of mixer"] != found["the code of mixer"]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (source(IMAGES[::-1], LABELS), {"digest of some records"}),
        (source([*IMAGES[:-1], None], LABELS), {"digest of some records"}),
        (source(IMAGES, [1 - label for label in LABELS]), {"digest of some records"}),
        (source(IMAGES, LABELS, ("cat", "bird")), {"digest of the class names"}),
        (source(IMAGES[:-1], LABELS), {"number of examples", "digest of some records"}),
        (source(IMAGES, LABELS, ("cat", "dog", "x")), {"number of classes", "digest of the class names"}),
    ],
)
def test_data_that_differ_have_other_facts(other, what):
    found = differing(facts.of_source("the data", source(IMAGES, LABELS)), facts.of_source("the data", other))
    assert found == {f"the {part} of the data" for part in what}


def test_the_same_data_have_the_same_facts_wherever_they_lie():
    one = source(IMAGES, LABELS)
    assert facts.of_source("x", one) == facts.of_source("x", dataclasses.replace(one, remote=True, shuffle_block=16))
    assert facts.of_source("x", source([b"a"], [0]))  # fewer records than are compared


def test_weights_that_differ_in_a_bit_have_another_digest():
    params = {"head": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    found = facts.digest_of_weights(params)
    assert found == facts.digest_of_weights(jax.tree.map(np.copy, params))
    params["head"]["kernel"] = np.nextafter(params["head"]["kernel"], np.float32(9))
    assert found != facts.digest_of_weights(params)


def test_a_fingerprint_is_part_of_the_facts_and_a_split_has_its_name():
    one = dataclasses.replace(source(IMAGES, LABELS), fingerprint={"file names": "1"}, name="folder train")
    other = dataclasses.replace(one, fingerprint={"file names": "2"})
    found = differing(facts.of_source("the data", one), facts.of_source("the data", other))
    assert found == {"the digest of the file names of the data (folder train)"}


def test_the_version_has_the_commit_of_its_own_clone_only(monkeypatch, tmp_path):
    found = facts.of_version()
    assert set(found) >= {"mixer"}
    (tmp_path / "mixer").mkdir()
    monkeypatch.setattr(facts.mixer, "__file__", str(tmp_path / "mixer" / "__init__.py"))
    assert "commit" not in facts.of_version()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert "commit" not in facts.of_version()  # there is none yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    assert len(facts.of_version()["commit"]) == 12


def test_processors_count_where_they_are_the_devices(mesh):
    assert facts.of_machine(mesh).keys() == {"devices", "processes", "processors"}
