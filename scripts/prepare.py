"""Prepares a dataset for training.

    python scripts/prepare.py folder --images DIR_OF_CLASS_FOLDERS --name my_photos --data_dir DIR
    python scripts/prepare.py imagenet21k --archive winter21_whole.tar.gz --data_dir DIR
    python scripts/prepare.py multilabel --manifest m.jsonl --classes classes.txt --images ROOT --data_dir DIR
    python scripts/prepare.py fractals --categories 64 --instances 200 --size 32 --data_dir DIR
    python scripts/prepare.py leaves --pictures 2000 --size 48 --data_dir DIR
    python scripts/prepare.py digits --size 32 --coloured --data_dir DIR
    python scripts/prepare.py index --dataset DIR/imagenet2012/5.1.0

Folders and files may be local or gs://. Progress is written to stderr, the result to stdout. A dataset appears when it
is whole. If the script is stopped, the next run of `folder` continues; the others start from the beginning.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping

import tqdm
from absl import logging
from etils import epath, epy

from mixer.config import recipe
from mixer.runtime import bucket, bucket_check, environment, files, libjpeg_lines, owners
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import TensorFlow, for which --help does not wait
    import tensorflow_datasets as tfds

    from mixer.data import datasets, readers
    from mixer.data.datasets import base, class_folders, digits, fractals, imagenet21k, leaves, multilabel, shard_plan
    from mixer.data.records import records, tfrecord_index

_CALLED = "python scripts/prepare.py"  # in the examples above
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: that of the process) and returns the exit status."""
    args = _parser().parse_args(argv)
    environment.prepare()
    logging.set_verbosity(logging.ERROR)
    try:
        for name, value in vars(args).items():
            if isinstance(value, str):
                setattr(args, name, files.expanded(value))
                bucket_check.check(value)
        for name in {"data_dir", "dataset"} & vars(args).keys():
            files.refuse_patterns(vars(args)[name], f"--{name} {vars(args)[name]}", "TFDS")
        owners.do_without()
        place = args.dataset if args.command == "index" else args.data_dir
        with bucket.as_os_errors(place), libjpeg_lines.counted():
            print(_index(args.dataset) if args.command == "index" else _prepare(args))
    except (ValueError, OSError, ImportError, UserError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "the same command continues" if args.command == "folder" else "nothing was kept"
        print(f"prepare.py: interrupted; {kept}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        (example,) = (line for line in (__doc__ or "").splitlines() if line.startswith(f"    {_CALLED} {name} "))
        sub = commands.add_parser(
            name, help=text, description=f"{text}\n\n{example}", allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name != "index":
            sub.add_argument("--data_dir", required=True, help="the folder of datasets, local or gs://")
        if name not in ("index", "folder"):
            sub.add_argument("--file_format", choices=("tfrecord", "array_record"), default="tfrecord",
                             help="of the files (default: %(default)s)")  # fmt: skip
        return sub

    _add_imports(command)
    sub = command("fractals", "fractals, for pre-training without photographs")
    sub.add_argument("--categories", type=int, default=64, help="kinds of fractals (default: %(default)s)")
    sub.add_argument("--instances", type=int, default=200,
                     help="of each category; a tenth is for validation (default: %(default)s)")  # fmt: skip
    sub.add_argument("--size", type=int, default=32, help="side in pixels (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")

    sub = command("leaves", "dead leaves, each picture a category, for pre-training without photographs")
    sub.add_argument("--pictures", type=int, default=2000, help="how many (default: %(default)s)")
    sub.add_argument("--size", type=int, default=48, help="side in pixels (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")

    sub = command("digits", "handwritten digits of scikit-learn, with ten training examples for each class")
    sub.add_argument("--size", type=int, default=32, help="side in pixels (default: %(default)s)")
    sub.add_argument("--coloured", action="store_true", help="each in two random colours")

    sub = command("index", "the index of a prepared TFRecord dataset that has none")
    sub.add_argument("--dataset", required=True, help="the folder of a version, such as gs://b/tfds/imagenet2012/5.1.0")
    return parser


def _add_imports(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the commands for images that come from elsewhere."""
    sub = command("folder", "records from a folder of class folders, which training reads faster, above all from gs://")
    sub.add_argument("--images", required=True, help="the folder of class folders, or of train/ and validation/")
    sub.add_argument("--name", default="my_photos", help="name of the dataset (default: %(default)s)")
    sub.add_argument(
        "--validation_share",
        type=float,
        default=recipe.base().input.validation_share,
        help="of each class, if no folder is for it (default: %(default)s)",
    )
    sub.add_argument("--shard_mib", type=int, default=128, help="size of a file (default: %(default)s MiB)")

    sub = command("imagenet21k", "ImageNet-21k from its official archive; DATA_DIR needs room for twice its size")
    sub.add_argument("--archive", required=True, help="winter21_whole.tar.gz or fall11_whole.tar, local or gs://")
    sub.add_argument(
        "--classes",
        help="text file whose lines begin with a WordNet id, in the order of the labels, such as "
        "mixer/data/class_lists/imagenet21k.txt (default: the archive's classes, for which it is read once more)",
    )
    sub.add_argument("--allow_truncated", action="store_true", help="use what can be read of a damaged archive")
    sub.add_argument("--name", default="imagenet21k", help="name of the dataset (default: %(default)s)")

    sub = command("multilabel", "images with several labels each, from a manifest of JSON lines")
    sub.add_argument("--manifest", required=True, help='lines {"image": "a/path.jpg", "labels": ["cat", 3]}')
    sub.add_argument(
        "--classes", required=True, help="text file with one class name a line, in the order of the labels"
    )
    sub.add_argument("--images", required=True, help="the folder to which the manifest's paths are relative")
    sub.add_argument(
        "--validation_share", type=float,
        help="share of the lines without a split (default: 0.1, or 0 if the manifest names lines for validation)",
    )  # fmt: skip
    sub.add_argument("--skip_bad", action="store_true", help="list unusable lines in a file instead of stopping")
    sub.add_argument("--name", default="multilabel", help="name of the dataset (default: %(default)s)")


def _check_name(name: str, command: str) -> None:
    """Checks that the dataset of a command can have this name.

    Raises:
      ValueError: it cannot.
    """
    if name in readers.READERS:
        raise ValueError(f"--name {name}: in a config, this is another reader; choose another")
    if not _NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: use small letters, digits and _, beginning with a letter")
    if name not in (command, *datasets.EMBEDDED) and name in tfds.list_builders(with_community_datasets=False):
        raise ValueError(f"--name {name}: TFDS already has a dataset with this name; choose another")
    if command != name and name in datasets.EMBEDDED:
        raise ValueError(f"--name {name}: that is the name of an embedded dataset; choose another")


def _prepare(args: argparse.Namespace) -> str:
    """Prepares the dataset, unless it is there, and returns a summary of it."""
    name = args.name if "name" in args else args.command
    _check_name(name, args.command)
    if args.command == "folder":
        return _prepare_folder(args)
    if args.file_format == "array_record" and bucket.is_remote(args.data_dir):
        raise ValueError("--file_format array_record: such files cannot be written to a bucket; use tfrecord")
    config = _config(args)
    full_name = f"{name}/{config}" if config else name
    try:
        made = _builder(args, name, config)
    except ValueError as error:
        if "File format is already set" not in str(error):
            raise
        another = "--name" if "name" in args else "--data_dir"
        raise UserError(
            f"{name} is in {args.data_dir} already, in another --file_format: delete it, or give another {another}"
        ) from None
    there = epath.Path(made.data_dir).exists()
    if there and isinstance(made, base.ImportBuilder):
        _check_same(str(made.data_dir), made.prepared_from())
    lacks_index = made.is_prepared() and not records.has_index(str(made.data_dir))
    datasets.prepare(made)
    # Open it as training does, from its files and without the code that built it.
    builder = tfds.builder(full_name, data_dir=args.data_dir)
    _check_whole(builder)
    summary = _summary(builder, full_name, args.data_dir, there)
    if lacks_index:
        summary = f"Its index was missing and has been made.\n{summary}"
    if args.command == "multilabel" and args.validation_share is None and "validation" not in builder.info.splits:
        return (
            f"WARNING: no image is for validation; give a larger --validation_share, or lines with a split\n{summary}"
        )
    return summary


def _check_same(folder: str, now: Mapping[str, str]) -> None:
    """Checks that a dataset that is there is the one that was asked for.

    Raises:
      UserError: it is another one.
    """
    if changes := base.changes(folder, now):
        raise UserError(
            f"{folder} is there already and was prepared otherwise ({'; '.join(changes)}): delete it, or give another "
            "--name"
        )


def _check_whole(builder: tfds.core.DatasetBuilder) -> None:
    """Checks that all shards are there: a bucket renames a folder file by file, and may be interrupted.

    Raises:
      UserError: some are not.
    """
    present = {path.name for path in epath.Path(builder.data_dir).iterdir()}
    missing = {path.name for split in builder.info.splits.values() for path in split.filepaths} - present
    if missing:
        raise UserError(f"{builder.data_dir} is incomplete, {len(missing)} of its shards are missing: delete it")


def _prepare_folder(args: argparse.Namespace) -> str:
    """Prepares records from class folders, unless they are there, and returns a summary of them."""
    if not 0 <= args.validation_share < 1:
        raise ValueError(f"--validation_share {args.validation_share}: it must be at least 0 and below 1")
    if args.shard_mib < 1:
        raise ValueError(f"--shard_mib {args.shard_mib}: it must be at least 1")
    target = class_folders.dataset_folder(args.data_dir, args.name)
    shard_bytes, max_pixels = args.shard_mib << 20, recipe.base().input.max_pixels
    if there := class_folders.is_prepared(target):
        plan = shard_plan.make_plan(args.images, args.name, args.validation_share, shard_bytes, max_pixels)
        _report("\n".join(plan.report))
        _check_same(target, plan.prepared_from)
    class_folders.prepare(
        args.images,
        args.data_dir,
        args.name,
        validation_share=args.validation_share,
        shard_bytes=shard_bytes,
        max_pixels=max_pixels,
        report=_report,
    )
    builder = tfds.builder(args.name, data_dir=args.data_dir)
    _check_whole(builder)
    return _summary(builder, args.name, args.data_dir, there)


def _index(folder: str) -> str:
    """Writes the index of a prepared dataset, unless it is there and fits, and returns what was done."""
    if not (epath.Path(folder) / "dataset_info.json").exists():
        raise UserError(
            f"--dataset {folder} is no prepared dataset: give the folder that holds dataset_info.json, such as "
            "DIR/imagenet2012/5.1.0"
        )
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format.value == "array_record":
        return f"{folder}: ArrayRecord files have an index of their own; nothing was written."
    splits = [name for name, split in builder.info.splits.items() if split.num_examples]
    if all(_index_fits(builder, split) for split in splits):
        return f"{folder}: the index of {', '.join(splits)} is there and fits; it was left as it is."
    records.write_index(folder)
    written = [f"  {tfrecord_index.file_name(name)}: {builder.info.splits[name].num_examples:,} records in "
               f"{builder.info.splits[name].num_shards:,} files" for name in splits]  # fmt: skip
    return "\n".join([f"Wrote into {folder}:", *written])


def _index_fits(builder: tfds.core.DatasetBuilder, split: str) -> bool:
    """Returns whether a split has an index that fits its files."""
    if not (epath.Path(builder.data_dir) / tfrecord_index.file_name(split)).exists():
        return False
    try:
        with tempfile.TemporaryDirectory() as elsewhere:
            records.open_records(builder, split, elsewhere)
    except UserError:
        return False
    return True


def _config(args: argparse.Namespace) -> str:
    if args.command == "fractals":
        return fractals.Shape(args.categories, args.instances, args.size, args.seed).name
    if args.command == "leaves":
        return leaves.Shape(args.pictures, args.size, args.seed).name
    if args.command == "digits":
        return f"{args.size}{'-coloured' if args.coloured else ''}"
    return ""


def _builder(args: argparse.Namespace, name: str, config: str) -> base.Builder:
    common = {"data_dir": args.data_dir, "file_format": args.file_format}
    drawn = {"fractals": fractals.Fractals, "leaves": leaves.Leaves, "digits": digits.Digits}
    if args.command in drawn:
        return drawn[args.command](config=config, **common)
    common |= {"classes": args.classes, "name": name, "report": _report}
    if args.command == "imagenet21k":
        return imagenet21k.Imagenet21k(archive=args.archive, allow_truncated=args.allow_truncated, **common)
    return multilabel.Multilabel(
        manifest=args.manifest,
        images=args.images,
        validation_share=args.validation_share,
        skip_bad=args.skip_bad,
        **common,
    )


def _report(line: str) -> None:
    tqdm.tqdm.write(line, file=sys.stderr)  # does not break TFDS' progress bar


def _summary(builder: tfds.core.DatasetBuilder, name: str, data_dir: str, there: bool) -> str:
    metadata = builder.info.metadata or {}
    lines = []
    if truncated := metadata.get("truncated"):
        lines.append(f"WARNING: {truncated}; kept what was read.")
    for key, what in (
        ("classes_not_listed", "classes of the archive are not in the class list"),
        ("classes_without_images", "classes of the list have no image"),
    ):
        if names := metadata.get(key):
            lines.append(f"WARNING: {len(names):,} {what}: {', '.join(names[:5])}{' ...' if names[5:] else ''}")
    skipped = metadata.get("skipped") or {}
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items(), key=lambda item: -item[1]))
    lines.append(f"Skipped: {sum(skipped.values()):,}{f' ({kinds})' if kinds else ''}")
    rejects = epath.Path(builder.data_dir) / base.REJECTS
    if skipped and rejects.exists():
        lines.append(f"They are listed in {rejects}")
    if twice := metadata.get("in_several_splits"):
        where = epath.Path(builder.data_dir) / class_folders.TWICE
        lines.append(f"WARNING: {twice:,} training images are in another split too, to the byte: {where} lists them")
    if "max_labels" in metadata:
        lines.append(f"Most labels on one image: {metadata['max_labels']}")
    sizes = ", ".join(f"{split.name} {split.num_examples:,}" for split in builder.info.splits.values())
    lines += [
        f"Examples: {sizes}",
        f"{name} is in {builder.data_dir}"
        + ("; it was there before and was left as it is: delete that folder to build it again" if there else ""),
        "To use it, write in the config:",
        f'  config.input.dataset = "{name}"',
        f'  config.input.data_dir = "{data_dir}"',
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
