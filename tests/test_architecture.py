"""Imports point one way, as docs/architecture.md draws it; and heavy libraries stay where they belong."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1] / "mixer"

# From the top down. A room may import from itself and from any later layer; rooms of one layer do not know each other.
LAYERS = [
    {"commands"},
    {"page"},
    {"performance", "analysis"},
    {"evaluation"},
    {"transfer"},
    {"training"},
    {"data", "config"},
    {"runtime", "models"},
]
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}

# Which files may import a library, at any level of nesting. A name that ends in a slash is a whole room.
KEPT_TO = {
    "tensorflow": {"data/tensorflow.py"},
    "tensorflow_datasets": {"data/records/records.py", "data/records/tfds_dataset.py", "data/datasets/"},
    "clu": {"training/tensorboard.py"},
    "wandb": {"training/weights_and_biases.py"},
    "google": {"runtime/bucket.py", "runtime/bucket_check.py", "data/records/tfds_dataset.py"},  # the last: an error
    "tensorstore": {"runtime/bucket.py", "runtime/conditional.py"},
    "jax2onnx": {"transfer/onnx.py"},
    "orbax": {"training/checkpoint.py", "training/checkpoint_reader.py"},
    "absl": {"runtime/errors.py", "config/command_line.py", "config/help_text.py", "commands/"},
}
# What the models may import: they can be lifted out and used alone.
MODELS_NEED = {"jax", "flax", "jaxtyping"}


def room_of(path: pathlib.Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else "commands"


def imports_of(path: pathlib.Path) -> set[str]:
    """Every module that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def test_every_room_has_a_layer():
    assert {room_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_back_up(path):
    mine = room_of(path)
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] != "mixer" or len(parts) < 2:
            continue
        theirs = parts[1] if (ROOT / parts[1]).is_dir() else "commands"
        assert theirs == mine or LEVEL[theirs] > LEVEL[mine], f"{mine} imports {module}"


@pytest.mark.parametrize("library", KEPT_TO)
def test_a_library_is_imported_only_where_it_belongs(library):
    for path in FILES:
        if any(module.split(".")[0] == library for module in imports_of(path)):
            name = "commands/" if room_of(path) == "commands" else str(path.relative_to(ROOT))
            rooms = tuple(kept for kept in KEPT_TO[library] if kept.endswith("/"))
            assert name in KEPT_TO[library] or (rooms and name.startswith(rooms)), path


def test_models_can_be_lifted_out():
    standard = __import__("sys").stdlib_module_names
    outside = {module.split(".")[0] for path in (ROOT / "models").rglob("*.py") for module in imports_of(path)} - set(
        standard
    )
    assert outside <= MODELS_NEED | {"mixer"}


def test_rooms_do_not_import_each_other_in_circles():
    """Also file by file: no file is imported by one that it imports."""
    names = {str(path.relative_to(ROOT.parent).with_suffix("")).replace("/", "."): path for path in FILES}
    graph = {
        name: {other for module in imports_of(path) for other in (module, module.rpartition(".")[0]) if other in names}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())
