#!/usr/bin/env bash
# A process that has imported JAX hands its libtpu to the processes that it starts, also to those of other environments.
#
# Guess: an environment with a libtpu of its own loads that one, whoever starts it.
# On import jax 0.10.2 imports the package libtpu, if there is one, and the package sets TPU_LIBRARY_PATH to its own file
# unless it is set. Processes inherit the variable, and JAX obeys it. So a program that tries two versions of libtpu in
# two environments compiles with the first in both, while importlib.metadata tells the version of the second. Take the
# variable out of the environment of such a process. Nor does the variable tell that somebody has set it on purpose.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
unset TPU_LIBRARY_PATH
for version in 0.0.42.1 0.0.52; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' "libtpu==$version" 'numpy==2.4.6'
done
cat > loaded.py << 'PYTHON'
import importlib.metadata
import re

from jax.experimental import topologies

topologies.get_topology_desc(platform="tpu", topology_name="v3:2x2x1")
with open("/proc/self/maps") as maps:
    (path,) = {line.split()[-1] for line in maps if line.rstrip().endswith("/libtpu.so")}
loaded = re.search(r"/venv-([\d.]+)/", path)[1]
print(f"installed {importlib.metadata.version('libtpu')}, loaded {loaded}")
PYTHON
cat > starts.py << 'PYTHON'
import os
import subprocess

child = ["venv-0.0.52/bin/python", "loaded.py"]


def said(environment=None):
    return subprocess.run(child, env=environment, capture_output=True, text=True, check=True).stdout.strip()


before = said()
import jax  # noqa: E402, F401

found = os.environ["TPU_LIBRARY_PATH"]
print(f"TPU_LIBRARY_PATH after the import of jax: {found.removeprefix(os.getcwd() + '/').split('/lib/')[0]}/...")
after = said()
without = said({name: value for name, value in os.environ.items() if name != "TPU_LIBRARY_PATH"})
print(f"started before it:             {before}")
print(f"started after it:              {after}")
print(f"and without that variable:     {without}")
assert before == without == "installed 0.0.52, loaded 0.0.52", (before, without)
assert after == "installed 0.0.52, loaded 0.0.42.1", after
PYTHON
venv-0.0.42.1/bin/python starts.py
# Output seen on 2026-12-01, Python 3.11.7 on x86-64 Linux:
#   TPU_LIBRARY_PATH after the import of jax: venv-0.0.42.1/...
#   started before it:             installed 0.0.52, loaded 0.0.52
#   started after it:              installed 0.0.52, loaded 0.0.42.1
#   and without that variable:     installed 0.0.52, loaded 0.0.52
