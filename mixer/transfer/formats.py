"""The registry of file formats for weights. `mixer.export` writes all of them; `loading.load` reads some.

To add a format, write a module with its `Format`, and add it here. Flags, messages and model cards follow.
"""

from mixer.transfer import npz, onnx, stablehlo, timm
from mixer.transfer.format import Format

FORMATS: dict[str, Format] = {
    "npz": npz.FORMAT,
    "timm": timm.FORMAT,
    "stablehlo": stablehlo.FORMAT,
    "onnx": onnx.FORMAT,
}
