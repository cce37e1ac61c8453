"""Makes a TFDS dataset from class folders, local or in a bucket: one file of records in place of a thousand images.

The plan, which image is in which shard, depends only on the files' paths, sizes and versions. Each shard is written
whole or not at all, and then a small record of it. So a run that was interrupted continues with the shards that are
missing, and ends with the same bytes. The file by which TFDS knows a dataset is written last.
"""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from mixer.data.datasets import base, checked_images, dataset_files, shard_plan
from mixer.data.folders import folder_layout, listing
from mixer.data.pixels.image_status import OK, STATUSES
from mixer.data.records import tfrecord_index
from mixer.runtime.errors import UserError

VERSION = tfds.core.Version("1.0.0")
TWICE = "in_several_splits.jsonl"  # one line for each training image that is, to the byte, in another split too
_DONE = "features.json"  # by this file TFDS knows a dataset
_PROGRESS = ".progress.json"  # after the name of a shard: what is in it


def prepare(
    images: str,
    data_dir: str,
    name: str,
    *,
    validation_share: float = folder_layout.DEFAULT_SHARE,
    shard_bytes: int = 128 << 20,
    max_pixels: int = 100_000_000,
    report: Callable[[str], None] = base.no_report,
) -> None:
    """Prepares the dataset, unless it is there. Continues if it was interrupted.

    Features: `image` (the file's bytes if it is a JPEG or PNG, else its first frame as PNG) and `label`. Splits:
    `train`, and `validation` and `test` if they have images. `info.metadata["skipped"]` counts unusable images by kind.

    Args:
      images: the folder with class folders, or with folders for the splits; the folder reader's layouts.
      data_dir: the dataset is made in its folder `name`/1.0.0.
      name: of the dataset.
      validation_share: see `folder_layout.find`.
      shard_bytes: the size of a file of records, approximately. Twice as many bytes are in memory.
      max_pixels: larger images are left out.
      report: is called with what was found in the folder, and with lines about the progress.

    Raises:
      UserError: there are no class folders, none of the images can be used, or another process prepares the dataset.
      OSError: a file cannot be written, or a bucket cannot be read.
    """
    target = dataset_folder(data_dir, name)
    if not is_prepared(target):
        plan = shard_plan.make_plan(images, name, validation_share, shard_bytes, max_pixels)
        report("\n".join(plan.report))
        with dataset_files.lock(data_dir, name, wait=False):
            if not is_prepared(target):  # another process may have ended while this one looked at the images
                done = _continue(target, name, plan, report)
                done |= _write_missing(target, plan, done, max_pixels)
                _check_written(target, done)
                dataset_files.write(target, base.PREPARED_FROM, json.dumps(plan.prepared_from, indent=2).encode())
                _complete(target, name, plan, done)
    with contextlib.suppress(OSError):  # of no use any more, and no harm
        dataset_files.delete(target, [file for file in dataset_files.sizes(target) if file.endswith(_PROGRESS)])


def dataset_folder(data_dir: str, name: str) -> str:
    """Returns the folder of the dataset."""
    return os.path.join(os.path.expanduser(data_dir), name, str(VERSION))


def is_prepared(target: str) -> bool:
    """Returns whether a dataset's folder is complete."""
    return _DONE in dataset_files.sizes(target)


# ---------------------------------------------------------------------------------------------------------- the shards


def _continue(
    target: str, name: str, plan: shard_plan.Plan, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Returns the records of the shards that an interrupted run has finished. Deletes its other files."""
    sizes = dataset_files.sizes(target)
    records = dataset_files.read_json(target, [file for file in sizes if file.endswith(_PROGRESS)])
    done = {
        shard.name: record
        for shard in plan.shards
        if (record := records.get(shard.name + _PROGRESS))
        and record["plan"] == plan.digest
        and sizes.get(shard.name) == sum(record["lengths"])
    }
    kept = {*done, *(shard + _PROGRESS for shard in done)}
    dataset_files.delete(
        target, [file for file in sizes if file not in kept and file.startswith((f"{name}-", f".{name}-"))]
    )
    if done:
        report(f"Continues: {len(done):,} of {len(plan.shards):,} shards are there.")
    elif records:
        report("The images or the options are not those of the run that was interrupted: begins anew.")
    return done


def _write_missing(
    target: str, plan: shard_plan.Plan, done: dict[str, Any], max_pixels: int
) -> dict[str, dict[str, Any]]:
    """Writes the shards that are not done, with a line of progress. Returns their records."""
    written: dict[str, dict[str, Any]] = {}
    missing = [shard for shard in plan.shards if shard.name not in done]
    total = sum(len(shard.files) for shard in plan.shards)
    stream = checked_images.read(itertools.chain.from_iterable(shard.files for shard in missing), max_pixels)
    with contextlib.closing(stream), tqdm.tqdm(total=total, unit=" images", mininterval=1) as progress:
        progress.update(total - sum(len(shard.files) for shard in missing))
        for shard in missing:
            content, record = _read_shard(shard, plan, stream, progress)
            dataset_files.write(target, shard.name, content)
            dataset_files.write(target, shard.name + _PROGRESS, json.dumps(record).encode())
            written[shard.name] = record
    return written


def _check_written(target: str, records: dict[str, dict[str, Any]]) -> None:
    """Checks that all shards are there, since a bucket has no lock against a second process that begins anew.

    Raises:
      UserError: some are not.
    """
    sizes = dataset_files.sizes(target)
    missing = [shard for shard, record in records.items() if sizes.get(shard) != sum(record["lengths"])]
    if missing:
        raise UserError(
            f"{target}: {len(missing)} of {len(records)} shards are gone or changed, the first is {missing[0]}: "
            "prepare it by one process alone, with the same command"
        )


def _read_shard(
    shard: shard_plan.Shard, plan: shard_plan.Plan, stream: Iterator[checked_images.Checked], progress: tqdm.tqdm
) -> tuple[bytes, dict[str, Any]]:
    """Returns a shard's content, and what is noted of it.

    That is the length of each record, its image with a digest of the bytes, and the images that were left out.
    """
    buffer = io.BytesIO()
    lengths: list[int] = []
    digests: list[tuple[str, str]] = []
    rejects: list[tuple[str, str]] = []
    for file in shard.files:
        image, status = next(stream)
        if status == OK:
            lengths.append(buffer.write(dataset_files.record(image, file.label)))
            digest = hashlib.blake2b(image, digest_size=8).hexdigest()
            digests.append((digest, listing.readable(shard_plan.relative(file.path, plan.root))))
        else:
            rejects.append((listing.readable(shard_plan.relative(file.path, plan.root)), STATUSES[status]))
        progress.update()
    return buffer.getvalue(), {"plan": plan.digest, "lengths": lengths, "digests": digests, "rejects": rejects}


# ---------------------------------------------------------------------------------------------------------- the dataset


def _complete(target: str, name: str, plan: shard_plan.Plan, records: dict[str, dict[str, Any]]) -> None:
    """Writes the index, the list of rejects and the metadata: what makes a dataset of the shards."""
    rejects = [reject for shard in plan.shards for reject in records[shard.name]["rejects"]]
    lines = [json.dumps({"image": image, "problem": problem}) for image, problem in rejects]
    dataset_files.write(target, base.REJECTS, "".join(f"{line}\n" for line in lines).encode())
    twice = _in_several_splits(plan, records)
    if twice:
        lines = [json.dumps({"image": image, "same_as": other}) for image, other in twice]
        dataset_files.write(target, TWICE, "".join(f"{line}\n" for line in lines).encode())
    infos = []
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        lengths = [records[shard.name]["lengths"] for shard in plan.shards if shard.split == split]
        if not any(lengths):
            raise UserError(
                f"none of the images for {split} can be used; {os.path.join(target, base.REJECTS)} says why"
            )
        offsets = np.concatenate([np.cumsum([0, *shard], dtype=np.int64) for shard in lengths])
        tfrecord_index.save(epath.Path(target) / tfrecord_index.file_name(split), offsets)
        infos.append(tfds.core.SplitInfo(split, [len(shard) for shard in lengths], int(sum(map(sum, lengths)))))
    skipped = collections.Counter(problem for _, problem in rejects)
    for file, content in _metadata(name, plan, infos, dict(skipped), len(twice)).items():
        dataset_files.write(target, file, content)


def _in_several_splits(plan: shard_plan.Plan, records: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the training images that are in another split too, to the byte, each with its other path."""
    held_out = {
        digest: path
        for shard in plan.shards
        if shard.split != "train"
        for digest, path in records[shard.name]["digests"]
    }
    return [
        (path, held_out[digest])
        for shard in plan.shards
        if shard.split == "train"
        for digest, path in records[shard.name]["digests"]
        if digest in held_out
    ]


def _metadata(
    name: str, plan: shard_plan.Plan, splits: Sequence[tfds.core.SplitInfo], skipped: dict[str, int], twice: int
) -> dict[str, bytes]:
    """Returns the files of TFDS' metadata, the one that makes it a dataset as the last."""
    with tempfile.TemporaryDirectory() as folder_name:
        for shard in plan.shards:
            pathlib.Path(folder_name, shard.name).touch()  # TFDS learns names from a folder
        with contextlib.redirect_stdout(io.StringIO()):
            tfds.folder_dataset.write_metadata(
                data_dir=folder_name,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(),
                        "label": tfds.features.ClassLabel(names=list(plan.class_names)),
                    }
                ),
                split_infos=splits,
                version=str(VERSION),
                check_data=False,
                description=f"Images from class folders, prepared as {name}.",
                supervised_keys=("image", "label"),
                metadata=tfds.core.MetadataDict(skipped=skipped, in_several_splits=twice),
            )
        written = {path.name: path.read_bytes() for path in pathlib.Path(folder_name).iterdir()}
    shards = {shard.name for shard in plan.shards}
    return {file: written[file] for file in sorted(written.keys() - shards, key=lambda file: (file == _DONE, file))}
