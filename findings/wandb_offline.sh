#!/usr/bin/env bash
# wandb's offline mode keeps logged lines in memory for up to 15 seconds: a killed process has logged nothing.
#
# Guess: offline means that a line is on the disk a moment after run.log, as with TensorBoard's writer flushed.
# wandb 0.31.0 writes its file in blocks and every 15 seconds. A run that is killed 5 seconds after five calls of log
# leaves a file of 7 bytes: no lines, and no config either. After 17 seconds they are there. A machine that is taken
# away without notice loses that much of each run. wandb.Settings(x_transaction_log_flush_interval=1) makes it a second.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'wandb==0.31.0'
cat > run.py << 'PYTHON'
import os
import signal
import sys
import time

import wandb

run = wandb.init(project="finding", mode="offline", dir=sys.argv[1])
for step in range(5):
    run.log({"loss": step + 0.5}, step=step)
time.sleep(float(sys.argv[2]))
os.killpg(0, signal.SIGKILL)
PYTHON
cat > start.py << 'PYTHON'
import pathlib
import subprocess
import sys

sizes = {}
for seconds in (5, 17):
    folder = pathlib.Path(f"killed-after-{seconds}")
    folder.mkdir()
    command = [sys.executable, "run.py", folder, str(seconds)]
    subprocess.run(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    sizes[seconds] = file.stat().st_size
    print(f"killed {seconds} s after five calls of log: {sizes[seconds]} bytes")
assert sizes[5] < 100 < 1000 < sizes[17]
PYTHON
venv/bin/python start.py
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   killed 5 s after five calls of log: 7 bytes
#   killed 17 s after five calls of log: 2178 bytes
