#!/usr/bin/env bash
# jaxtyping's import hook compiles anew every library that an instrumented module imports.
#
# Guess: the hook, told to instrument one package, changes how that package is loaded, and no other.
# While it loads a module of the package, the hook has bytecode looked for under another file name, for whatever is
# imported meanwhile. So a library that is first imported there is compiled from source, though its bytecode lies beside
# it, and a second set of bytecode is written. Where none may be written (PYTHONDONTWRITEBYTECODE, a container, a system's
# folder) that happens each time. Import such libraries before the first module of the package, as a conftest.py can.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --compile 'jaxtyping==0.3.11' 'sympy==1.14.0'
echo 'import sympy' > ours.py
cat > count.py << 'PYTHON'
import importlib.machinery
import sys

how, compiled = sys.argv[1], []
source_to_code = importlib.machinery.SourceFileLoader.source_to_code

def counted(self, data, path, **options):
    compiled.append(str(path))
    return source_to_code(self, data, path, **options)

if how != "without":
    import jaxtyping
    jaxtyping.install_import_hook("ours", None)
if how == "library first":
    import sympy
importlib.machinery.SourceFileLoader.source_to_code = counted
import ours
print(sum("sympy" in path for path in compiled))
PYTHON
count() { PYTHONDONTWRITEBYTECODE=$2 venv/bin/python count.py "$1"; }  # an empty value lets Python write bytecode
without=$(count without 1)
hook=$(count hook 1)
again=$(count hook "")
kept=$(count hook 1)
first=$(count "library first" 1)
files=$(find venv -path '*sympy/core/__pycache__/basic.*' | wc -l)
echo "modules of sympy compiled from source: without the hook $without, with it $hook, again $again, where the last time has"
echo "written bytecode $kept, with the library imported first $first; files of bytecode of sympy/core/basic.py: $files"
[ "$without" = 0 ] && [ "$first" = 0 ] && [ "$kept" = 0 ] && [ "$files" = 2 ]
[ "$hook" -gt 100 ] && [ "$again" = "$hook" ]
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   modules of sympy compiled from source: without the hook 0, with it 419, again 419, where the last time has
#   written bytecode 0, with the library imported first 0; files of bytecode of sympy/core/basic.py: 2
