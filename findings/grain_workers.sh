#!/usr/bin/env bash
# The batches of Grain's DataLoader depend on the number of workers, and drop_remainder drops a part for each worker.
#
# Guess: workers change the speed. The sampler is global and seeded, so batches stay.
# In grain 0.2.18 each worker takes every n-th record and makes whole batches of its own: another order, smaller
# batches in the middle, and with drop_remainder=True and three workers 12 of 20 records instead of 20. A state saved
# with two workers is refused by a loader with none. Batches of MapDataset are made before the workers and stay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'grain==0.2.18' 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
cat > batches.py << 'PYTHON'
import grain
import numpy as np
from absl import app


class Records:
    def __len__(self):
        return 20

    def __getitem__(self, number):
        return np.int64(number)

    def __repr__(self):
        return "Records()"


def loader(workers, drop):
    sampler = grain.samplers.IndexSampler(20, grain.sharding.NoSharding(), shuffle=False, num_epochs=1, seed=0)
    batch = grain.transforms.Batch(4, drop_remainder=drop)
    return grain.DataLoader(data_source=Records(), sampler=sampler, operations=[batch], worker_count=workers)


def main(_):
    found = {}
    for drop in (False, True):
        for workers in (0, 2, 3):
            found[drop, workers] = [batch.tolist() for batch in loader(workers, drop)]
            print(f"drop_remainder={drop}, {workers} workers:", *found[drop, workers])
    assert found[False, 0] != found[False, 2] and sum(map(len, found[True, 3])) == 12
    iterator = iter(loader(2, False))
    next(iterator)
    try:
        iter(loader(0, False)).set_state(iterator.get_state())
        raise SystemExit("the state was taken")
    except ValueError as error:
        print("state of two workers in a loader with none:", str(error).splitlines()[0])
    batches = grain.MapDataset.source(Records()).batch(4)
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=2)
    assert [batch.tolist() for batch in batches.to_iter_dataset().mp_prefetch(options)] == found[False, 0]


if __name__ == "__main__":
    app.run(main)
PYTHON
venv/bin/python batches.py 2> messages.txt || { cat messages.txt; exit 1; }
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   drop_remainder=False, 0 workers: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9, 10, 11] [12, 13, 14, 15] [16, 17, 18, 19]
#   drop_remainder=False, 2 workers: [0, 2, 4, 6] [1, 3, 5, 7] [8, 10, 12, 14] [9, 11, 13, 15] [16, 18] [17, 19]
#   drop_remainder=False, 3 workers: [0, 3, 6, 9] [1, 4, 7, 10] [2, 5, 8, 11] [12, 15, 18] [13, 16, 19] [14, 17]
#   drop_remainder=True, 0 workers: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9, 10, 11] [12, 13, 14, 15] [16, 17, 18, 19]
#   drop_remainder=True, 2 workers: [0, 2, 4, 6] [1, 3, 5, 7] [8, 10, 12, 14] [9, 11, 13, 15]
#   drop_remainder=True, 3 workers: [0, 3, 6, 9] [1, 4, 7, 10] [2, 5, 8, 11]
#   state of two workers in a loader with none: Worker count in checkpoint does not match dataloader worker count.
