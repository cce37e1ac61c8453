#!/usr/bin/env bash
# ONNX's Resize with antialias=1 is Pillow's in the middle of an image and not at its border, unless exclude_outside=1.
#
# Guess: antialias=1 gives Pillow's pixels, whose filter it takes, so a graph may do its own resizing.
# By the default exclude_outside=0 the filter's weights beyond the image fall on the last pixel; Pillow, TensorFlow
# and JAX leave them out. onnx 1.23.2's reference and onnxruntime 1.32.0 agree on that. Cubic takes -0.75 for the
# curve where the others take -0.5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'onnx==1.23.2' 'onnxruntime==1.32.0' 'pillow==13.0.0' 'numpy==2.4.6'
venv/bin/python - << 'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

image = np.random.default_rng(0).uniform(0, 255, (40, 60)).repeat(5, 0).repeat(5, 1).astype(np.float32)


def graph(**options):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 200, 300])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 64, 64])
    node = helper.make_node("Resize", ["x", "", "", "size"], ["y"], antialias=1, **options)
    size = numpy_helper.from_array(np.array([1, 1, 64, 64]), "size")
    whole = helper.make_graph([node], "resize", [x], [y], [size])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


most = {}
for mode, filter in (("linear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)):
    pillow = np.asarray(Image.fromarray(image).resize((64, 64), filter))
    for options in ({}, {"exclude_outside": 1}, {"cubic_coeff_a": -0.5}, {"cubic_coeff_a": -0.5, "exclude_outside": 1}):
        if mode == "linear" and "cubic_coeff_a" in options:
            continue
        model = graph(mode=mode, **options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feed = {"x": image[None, None]}
        (by_runtime,), (by_reference,) = session.run(None, feed), ReferenceEvaluator(model).run(None, feed)
        difference = np.abs(by_runtime[0, 0] - pillow)
        most[mode, *options] = float(difference.max())
        print(
            f"{mode} {options}: from Pillow at most {difference.max():.3f}, "
            f"{difference[4:-4, 4:-4].max():.3f} inside; from onnx {np.abs(by_runtime - by_reference).max():.4f}"
        )
assert most["linear",] > 2 and most["linear", "exclude_outside"] < 0.01
assert most["cubic", "cubic_coeff_a"] > 2 and most["cubic", "cubic_coeff_a", "exclude_outside"] < 0.01
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   linear {}: from Pillow at most 2.826, 0.000 inside; from onnx 0.0001
#   linear {'exclude_outside': 1}: from Pillow at most 0.000, 0.000 inside; from onnx 0.0001
#   cubic {}: from Pillow at most 13.314, 12.490 inside; from onnx 0.0002
#   cubic {'exclude_outside': 1}: from Pillow at most 13.314, 12.490 inside; from onnx 0.0002
#   cubic {'cubic_coeff_a': -0.5}: from Pillow at most 2.756, 0.000 inside; from onnx 0.0001
#   cubic {'cubic_coeff_a': -0.5, 'exclude_outside': 1}: from Pillow at most 0.000, 0.000 inside; from onnx 0.0002
