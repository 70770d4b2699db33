"""Quantized ONNX models are valid, compute what the float models compute, and keep everything else."""

import json
import os
import re

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import quant_utils

import onnx_models
from conftest import ROOT, assert_bits, run
from onnx_models import CASES, UNKNOWN_FIELD, graphs
from onnx_tools import Quantizer, is_exact, operators, optimized, outputs, sqnr
from test_ort import reference

MODES = ["weight-only", "dynamic", "static"]

# Least SQNR of outputs in dB with int8 weights per channel, a little below the worst of all cases.
FLOORS = {"weight-only": 30, "dynamic": 27, "static": 20}

# What one of the other options changes is the same for all operators but these.
VARIED = ["conv2d-grouped", "conv-transpose", "matmul-3d", "matmul-left", "matmul-transposed", "gemm-bias", "gemm-transB-bias", "gather", "tied-embedding", "lstm", "gru-bidirectional", "if"]
VARIANTS = {
    "uint8": ("--weights", "uint8"),
    "asymmetric": ("--asymmetric",),
    "uint8-asymmetric": ("--weights", "uint8", "--asymmetric"),
    "per-tensor": ("--granularity", "per-tensor"),
    "avx2": ("--target", "ort-cpu-avx2"),
    "uint16": ("--activations", "uint16"),
}

SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/sidecar.schema.json").read_text()))


def every_case(names=CASES):
    """Cases in all modes that they can be quantized in."""
    pairs = [(name, mode) for name in names for mode in MODES if mode != "static" or CASES[name]().calibrates]
    return pytest.mark.parametrize("name, mode", pairs)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """quantized(case, options…) is the file of a quantized model."""
    return Quantizer(tmp_path_factory.mktemp("cases"))


@every_case()
def test_verify(quantized, name, mode):
    run("verify", quantized(name, "--mode", mode), "--quiet")


@every_case()
def test_valid(quantized, name, mode):
    path = quantized(name, "--mode", mode)
    onnx.checker.check_model(path, full_check=True)


def assert_close(case, source, path, floor):
    feeds = [case.feeds(seed) for seed in range(4)]
    expected = outputs(source, feeds, optimize=False)
    for optimize in (optimize for optimize in (True, False) if is_exact(path, optimize)):
        found = sqnr(expected, outputs(path, feeds, optimize=optimize))
        assert found >= floor, f"{found:.1f} dB with{'' if optimize else 'out'} optimizations"


@every_case([name for name in CASES if CASES[name]().runs])
def test_outputs(quantized, name, mode):
    case = CASES[name]()
    assert_close(case, quantized.source(name), quantized(name, "--mode", mode), case.floors.get(mode, FLOORS[mode]))


@pytest.mark.parametrize("variant", VARIANTS)
@every_case(VARIED)
def test_variants(quantized, name, mode, variant):
    path = quantized(name, "--mode", mode, *VARIANTS[variant])
    onnx.checker.check_model(path, full_check=True)
    assert_close(CASES[name](), quantized.source(name), path, FLOORS[mode] - 6)


@every_case()
def test_interface_and_metadata_are_kept(quantized, name, mode):
    source, found = CASES[name]().proto, onnx.load(quantized(name, "--mode", mode))
    # Before IR version 4, constants were listed as inputs.
    stored = {tensor.name for tensor in source.graph.initializer} if source.ir_version < 4 else set()
    assert [value for value in found.graph.input if value.name not in stored] == [value for value in source.graph.input if value.name not in stored]
    assert list(found.graph.output) == list(source.graph.output)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(found, field) == getattr(source, field), field
    assert list(found.metadata_props) == list(source.metadata_props)
    assert (found.graph.name, found.graph.doc_string) == (source.graph.name, source.graph.doc_string)
    assert found.SerializeToString().endswith(UNKNOWN_FIELD)
    assert list(found.functions) == list(source.functions)
    versions = {opset.domain: opset.version for opset in found.opset_import}
    for opset in source.opset_import:
        assert versions[opset.domain] >= opset.version if opset.domain == "" else versions[opset.domain] == opset.version
    assert found.ir_version >= source.ir_version


@every_case()
def test_other_nodes_are_kept(quantized, name, mode):
    source, found = CASES[name]().proto, onnx.load(quantized(name, "--mode", mode))
    if source.opset_import[0].version != found.opset_import[0].version:
        pytest.skip("operators are converted to another version")
    kept = {node.output[0]: node for graph in graphs(found) for node in graph.node}
    constants = onnx_models.constants(source)
    untouched = {"Concat", "Softmax", "Tanh", "MaxPool"} | ({"Relu", "Add"} if mode != "static" else set())
    for node in (node for graph in graphs(source) for node in graph.node):
        if node.domain or node.op_type in untouched:
            assert kept[node.output[0]] == node
    first = source.graph.node[0]
    if first.output[0] in kept and kept[first.output[0]].op_type == first.op_type:
        assert UNKNOWN_FIELD in kept[first.output[0]].SerializeToString()
    for tensor_name, tensor in onnx_models.constants(found).items():
        if tensor_name in constants:
            assert tensor.data_type == constants[tensor_name].data_type
            assert numpy_helper.to_array(tensor).tobytes() == numpy_helper.to_array(constants[tensor_name]).tobytes()


def numpy_int8(values, axes):
    """Scales and codes of the convention of ONNX Runtime, symmetric int8: absmax / 127, half to even."""
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = (largest.astype(np.float64) * 2 / 254).astype(values.dtype)
    scale[scale < np.finfo(values.dtype).tiny] = 1
    return scale.squeeze(others), np.clip(np.rint(values / scale), -127, 127).astype(np.int8)


def stored(case, model, name):
    """What stands for a weight in an output: codes as the weight was stored, scales, zero points."""
    taken = onnx_models.constants(case.proto)
    constants = {key: tensor for key, tensor in onnx_models.constants(model).items() if key not in taken}

    def matching(suffix, types):
        pattern = re.compile(rf"{re.escape(name)}{suffix}(_\d+)?")
        return [constants[key] for key in constants if pattern.fullmatch(key) and constants[key].data_type in types]

    integers, floats = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8), (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    codes = [numpy_helper.to_array(tensor) for tensor in matching("_quantized", integers)]
    codes += [numpy_helper.to_array(tensor).swapaxes(-1, -2) for tensor in matching("_transposed_quantized", integers)]
    scales = [numpy_helper.to_array(tensor) for tensor in matching("_scale", floats) if len(tensor.dims) < 2]
    zero_points = [numpy_helper.to_array(tensor) for tensor in matching("_zero_point", integers) if len(tensor.dims) < 2]
    return codes, scales, zero_points


@every_case()
def test_weights_are_those_of_onnxruntime(quantized, name, mode):
    case, found = CASES[name](), onnx.load(quantized(name, "--mode", mode))
    if case.folds and mode == "static":
        pytest.skip("weights are others after folding")
    for weight, axis in case.weights.items():
        values = case.values(weight)
        if values.dtype not in (np.float32, np.float16):
            values = values.astype(np.float32)
        codes, scales, zero_points = stored(case, found, weight)
        assert codes and scales and zero_points, f"{weight} is not quantized"
        expected_scales, _, expected = reference(values, "int8", True, axis)
        for array in codes:
            np.testing.assert_array_equal(array, expected, err_msg=weight)
        for array in scales:
            assert_bits(array.astype(np.float32).flatten(), np.array(expected_scales, np.float32).flatten(), f"{weight} scales")
        assert not any(array.any() for array in zero_points)
        if values.dtype == np.float32:
            again, codes_again = numpy_int8(values, (axis,))
            assert_bits(again, np.array(expected_scales, np.float32).flatten(), "NumPy and ONNX Runtime")
            np.testing.assert_array_equal(codes_again, expected)


@pytest.mark.parametrize("variant", VARIANTS)
@every_case(VARIED)
def test_weights_of_variants(quantized, name, mode, variant):
    case, found = CASES[name](), onnx.load(quantized(name, "--mode", mode, *VARIANTS[variant]))
    dtype = "uint8" if "uint8" in variant else "int8"
    for weight, axis in case.weights.items():
        codes, scales, zero_points = stored(case, found, weight)
        expected = reference(case.values(weight), dtype, "asymmetric" not in variant, None if variant == "per-tensor" else axis)
        if variant == "avx2":
            # The codes of int8, moved up.
            expected = expected[0], np.array(expected[1], int) + 128, (np.array(expected[2], int) + 128).astype(np.uint8)
        for array in codes:
            np.testing.assert_array_equal(array, expected[2], err_msg=weight)
        for kind, arrays, values in [("scales", scales, expected[0]), ("zero points", zero_points, expected[1])]:
            assert arrays, f"{weight} has no {kind}"
            for array in arrays:
                np.testing.assert_array_equal(array.flatten(), np.array(values).flatten(), err_msg=f"{weight} {kind}")


@every_case()
def test_sidecar_names_the_weights(quantized, name, mode):
    case, path = CASES[name](), quantized(name, "--mode", mode)
    document = json.loads(path.with_suffix(".json").read_text())
    SCHEMA.validate(document)
    assert document["output"]["form"] == "qdq"
    missing = case.weights.keys() - document["tensors"].keys()
    assert not missing
    for weight, record in document["tensors"].items():
        assert record["dtype"] == "int8" and record["error"]["sqnr_db"] > 30, weight
        if weight in case.weights:
            assert record["axis"] == case.weights[weight] and record["shape"] == list(case.values(weight).shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["conv-classifier", "tied-embedding", "loop"])
def test_same_bytes(quantized, tmp_path, name, mode):
    first = quantized(name, "--mode", mode)
    for threads in (1, 2, 3):
        again = tmp_path / f"{threads}" / first.name
        again.parent.mkdir()
        extra = ("--samples", quantized.samples(name)) if mode == "static" else ()
        run("quantize", quantized.source(name), "-o", again, "--quiet", "--durability", "none", "--mode", mode, "--threads", threads, *extra)
        assert again.read_bytes() == first.read_bytes()
        assert again.with_suffix(".json").read_bytes() == first.with_suffix(".json").read_bytes()


@pytest.mark.parametrize("name", ["conv-classifier", "tied-embedding", "lstm"])
def test_auto_is_dynamic_without_samples(quantized, name):
    assert quantized(name).read_bytes() == quantized(name, "--mode", "dynamic").read_bytes()


# Other forms


@pytest.mark.parametrize("name", ["conv2d", "conv-bias-computed", "conv-relu", "conv2d-depthwise", "conv-classifier", "matmul-3d", "gemm-bias", "gemm-mlp", "matmul-attention"])
def test_operators_on_codes(quantized, name):
    """`--format qoperator` computes what the form with pairs computes."""
    pairs, path = quantized(name, "--mode", "static"), quantized(name, "--mode", "static", "--format", "qoperator")
    onnx.checker.check_model(path, full_check=True)
    case = CASES[name]()
    feeds = [case.feeds(seed) for seed in range(4)]
    assert sqnr(outputs(pairs, feeds), outputs(path, feeds)) > FLOORS["static"] + 10
    assert_close(case, quantized.source(name), path, FLOORS["static"])


@pytest.mark.parametrize("weights", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("symmetry", ["--symmetric", "--asymmetric"])
@pytest.mark.parametrize("name", ["matmul-3d", "matmul-ties", "matmul-transposed", "matmul-transposed-large", "gemm-bias", "gemm-transB-bias"])
def test_blocks(quantized, name, symmetry, weights):
    """Weights in blocks of 16 along the axis that is summed over, which ONNX Runtime makes MatMulNBits of."""
    options = ("--mode", "weight-only", "--weights", weights, symmetry, "--granularity", "per-group:16")
    path = quantized(name, *options)
    onnx.checker.check_model(path, full_check=True)
    assert_close(CASES[name](), quantized.source(name), path, FLOORS["weight-only"] if weights.endswith("8") else 12)
    assert operators(optimized(path))["MatMulNBits"] == 1


# Which tensors


def float_weights(path, case):
    """Weights of a case that are still there in float."""
    constants = onnx_models.constants(onnx.load(path))
    return {name for name in case.weights if name in constants and constants[name].data_type == onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    "options, kept",
    [
        (("--op-types", "Conv"), {"w4"}),
        (("--op-types", "Gemm,MatMul"), {"w0", "w1", "w2", "w3"}),
        (("--exclude", "w0"), {"w0"}),
        (("--exclude", "Conv_*"), {"w0", "w1", "w2", "w3"}),
        (("--include", "Conv_*", "--exclude", "re:w[12]"), {"w1", "w2", "w4"}),
        (("--include", "Gemm_11"), {"w0", "w1", "w2", "w3"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_selection(quantized, options, kept, mode):
    path = quantized("conv-classifier", "--mode", mode, *options)
    case = CASES["conv-classifier"]()
    assert float_weights(path, case) == kept
    assert_close(case, quantized.source("conv-classifier"), path, FLOORS[mode])


# External data


def external(model):
    """Names of the files that values are in, by constant."""
    found = {}
    for graph in graphs(model):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                found[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
    return found


@pytest.mark.parametrize("split", [False, True], ids=["one file", "several files"])
@pytest.mark.parametrize("name", ["conv-classifier", "tied-embedding", "lstm", "f16-cast-raw"])
@pytest.mark.parametrize("mode", MODES)
def test_external_data(quantized, tmp_path, name, mode, split):
    case = CASES[name]()
    source, path = onnx_models.store(case, tmp_path, split), tmp_path / "out" / "q.onnx"
    path.parent.mkdir()
    extra = ("--samples", quantized.samples(name)) if mode == "static" else ()
    run("quantize", source, "-o", path, "--quiet", "--durability", "none", "--mode", mode, *extra)
    onnx.checker.check_model(path, full_check=True)
    assert_close(case, source, path, FLOORS[mode])
    assert sorted(file.name for file in path.parent.iterdir()) == ["q.json", "q.onnx", "q.onnx.data"]
    model = onnx.load(path, load_external_data=False)
    places = external(model)
    size = (path.parent / "q.onnx.data").stat().st_size
    for entry in places.values():
        assert entry["location"] == "q.onnx.data" and int(entry["offset"]) % 4096 == 0
        assert int(entry["offset"]) + int(entry["length"]) <= size
    for tensor in model.graph.initializer:
        assert tensor.name in places or len(tensor.raw_data) < 1024
    # What is inside does not depend on where the input had it.
    inside = onnx.load(quantized(name, "--mode", mode))
    outside = onnx.load(path)
    for tensor in outside.graph.initializer:
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    assert outside.graph == inside.graph


@every_case()
def test_no_external_data_unless_the_input_has_it(quantized, name, mode):
    path = quantized(name, "--mode", mode)
    assert not external(onnx.load(path, load_external_data=False))
    assert not path.with_suffix(".onnx.data").exists()


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "missing.bin", "weights.bin/../../weights.bin"])
def test_external_data_elsewhere_is_refused(tmp_path, location):
    directory = tmp_path / "model"
    directory.mkdir()
    source = onnx_models.store(CASES["matmul"](), directory)
    (tmp_path / "weights.bin").write_bytes((directory / "weights.bin").read_bytes())
    model = onnx.load(source, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    onnx.save(model, source)
    run("quantize", source, status=4 if location == "missing.bin" else 1)
    assert sorted(file.name for file in directory.iterdir()) == ["model.onnx", "weights.bin"]


@pytest.mark.skipif("QTOOL_LARGE" not in os.environ, reason="takes 1 GB of disk and memory: set QTOOL_LARGE to run it")
def test_model_of_more_than_2_gib(tmp_path):
    """Three layers of 1 GiB in a file with holes; only a few rows are not 0."""
    size, rows = 16384, 4
    first = np.random.default_rng(0).normal(0, size**-0.5, (rows, size)).astype(np.float32)
    tensors = []
    with open(tmp_path / "weights.bin", "wb") as file:
        for i in range(3):
            offset = 4 * size * size * i
            file.seek(offset)
            file.write(first.tobytes())
            tensor = onnx.TensorProto(name=f"w{i}", data_type=onnx.TensorProto.FLOAT, dims=[size, size], data_location=onnx.TensorProto.EXTERNAL)
            for key, value in [("location", "weights.bin"), ("offset", offset), ("length", 4 * size * size)]:
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
        file.truncate(4 * size * size * 3)
    b = onnx_models.Build()
    value = b.input("x", [1, size])
    for i in range(3):
        value = b.node("MatMul", value, f"w{i}")
    b.output(value, [1, size])
    case = b.case()
    case.proto.graph.initializer.extend(tensors)
    source, path = tmp_path / "model.onnx", tmp_path / "q.onnx"
    onnx.save(case.proto, source)
    run("quantize", source, "-o", path, "--quiet", "--durability", "none", "--mode", "dynamic", timeout=600)
    onnx.checker.check_model(path, full_check=True)
    feed = case.feeds(0)
    expected = feed["x"]
    for _ in range(3):
        expected = expected[:, :rows] @ first
    assert sqnr({"y": [expected]}, outputs(path, [feed])) > FLOORS["dynamic"]


# Refusals


def model_file(tmp_path, name="conv-classifier"):
    path = tmp_path / "model.onnx"
    onnx.save(CASES[name]().proto, path)
    return path


def test_default_names(tmp_path):
    source = model_file(tmp_path)
    run("quantize", source, "--quiet")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.int8.json", "model.int8.onnx", "model.onnx"]
    run("quantize", source, "--quiet", status=2)
    run("quantize", source, "--quiet", "--force")


def test_dry_run_writes_nothing(tmp_path):
    text = run("quantize", model_file(tmp_path), "--dry-run")
    assert "w0" in text and [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    "options, status",
    [
        (("--include", "nothing*"), 2),
        (("--exclude", "nothing*"), 2),
        (("--op-types", "Convolution"), 2),
        (("--mode", "sometimes"), 2),
        (("--format", "sidecar"), 2),
        (("-o", "missing/q.onnx"), 4),
    ],
    ids=str,
)
def test_refused_options(tmp_path, options, status):
    options = [tmp_path / option if option.startswith("missing") else option for option in options]
    run("quantize", model_file(tmp_path), *options, status=status)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_not_finite_weights(tmp_path):
    case = CASES["gemm-bias"]()
    values = case.values("w").copy()
    values[3, 5] = np.nan
    next(tensor for tensor in case.proto.graph.initializer if tensor.name == "w").CopyFrom(numpy_helper.from_array(values, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(case.proto, path)
    run("quantize", path, status=1)
    run("quantize", path, "--allow-non-finite", "--quiet")
    kept = onnx_models.constants(onnx.load(tmp_path / "model.int8.onnx"))["w"]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), values)


def test_verify_finds_changes(tmp_path):
    source = onnx_models.store(CASES["conv-classifier"](), tmp_path)
    path = tmp_path / "q.onnx"
    run("quantize", source, "-o", path, "--quiet", "--durability", "none")
    for changed in (path, tmp_path / "q.onnx.data"):
        content = changed.read_bytes()
        changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        run("verify", path, status=3)
        changed.write_bytes(content)
        run("verify", path)


def test_truncated_model(tmp_path):
    path = model_file(tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        run("quantize", path, status=1)


# Calibration


@pytest.fixture
def samples(quantized):
    return quantized.samples("conv-classifier")


def test_statistics_add_up(quantized, samples, tmp_path):
    """Statistics of parts are those of the whole, and quantize to the same bytes as samples do."""
    source = quantized.source("conv-classifier")
    run("calibrate", source, "--samples", samples, "-o", tmp_path / "whole", "--quiet")
    for i in range(3):
        run("calibrate", source, "--samples", samples, "--part", f"{i}/3", "-o", tmp_path / f"part-{i}", "--quiet")
    run("merge", tmp_path / "part-2", tmp_path / "part-0", tmp_path / "part-1", "-o", tmp_path / "merged", "--quiet")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    path = tmp_path / quantized("conv-classifier", "--mode", "static").name
    run("quantize", source, "--stats", tmp_path / "merged", "-o", path, "--quiet", "--durability", "none")
    assert path.read_bytes() == quantized("conv-classifier", "--mode", "static").read_bytes()
    run("quantize", quantized.source("gemm"), "--stats", tmp_path / "merged", "-o", tmp_path / "other.onnx", status=1)


def activations(path):
    """Scale, zero point and range of each quantized activation, as the sidecar records them."""
    return json.loads(path.with_suffix(".json").read_text())["activations"]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", ["conv2d", "conv-relu", "matmul-3d", "gemm-mlp", "conv-classifier"])
def test_ranges_are_those_that_onnxruntime_sees(quantized, name, dtype):
    """Smallest and largest values over all samples, widened to 0; scale and zero point as ONNX Runtime computes them."""
    case, path = CASES[name](), quantized(name, "--mode", "static", "--activations", dtype)
    exposed, records = onnx.ModelProto(), activations(path)
    exposed.CopyFrom(case.proto)
    known = {value.name for value in [*exposed.graph.input, *exposed.graph.output]}
    made = {output for node in exposed.graph.node for output in node.output} - known
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in sorted(made & records.keys()))
    feeds = [case.feeds(seed) for seed in Quantizer.SAMPLES]
    values = outputs(exposed, feeds, optimize=False) | {value: [feed[value] for feed in feeds] for value in feeds[0]}
    kind = onnx.TensorProto.UINT8 if dtype == "uint8" else onnx.TensorProto.INT8
    qmin, qmax = quant_utils.get_qmin_qmax_for_qType(kind)
    assert records
    for value, record in records.items():
        low = min(0, *(float(array.min()) for array in values[value]))
        high = max(0, *(float(array.max()) for array in values[value]))
        # Engines sum in different orders.
        np.testing.assert_allclose([record["min"], record["max"]], [low, high], rtol=1e-4, atol=1e-5)
        zero_point, scale = quant_utils.compute_scale_zp(np.float32(record["min"]), np.float32(record["max"]), qmin, qmax, False)
        assert record["scale"] == np.float32(scale) and record["zero_point"] == zero_point, value
        assert record["dtype"] == dtype


@pytest.mark.parametrize("name", ["conv2d", "conv-classifier", "gemm-bias", "gemm-transB-bias"])
def test_biases_are_those_of_onnxruntime(quantized, name):
    """round(bias / (input scale * weight scale)) in 32 bits."""
    model = onnx.load(quantized(name, "--mode", "static"))
    made = {output: node for node in model.graph.node for output in node.output}
    constants = {key: numpy_helper.to_array(tensor) for key, tensor in onnx_models.constants(model).items()}
    case, seen = CASES[name](), 0
    original = {node.output[0]: node for node in case.proto.graph.node}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        inputs, weights, biases = (made[value] for value in node.input)
        product = constants[inputs.input[1]].astype(np.float64) * constants[weights.input[1]]
        before = original.get(node.output[0]) or next(other for other in original.values() if other.name == node.name)
        expected = np.rint(case.values(before.input[2]).astype(np.float64) / product.astype(np.float32)).astype(np.int32)
        np.testing.assert_array_equal(constants[biases.input[0]], expected)
        assert_bits(constants[biases.input[1]], product.astype(np.float32), "bias scales")
        seen += 1
    assert seen


def wrong_samples(case):
    """Samples that do not fit, with the exit code."""
    (name,) = case.feeds(0)
    fine = case.feeds(0)[name]
    yield "name", {"other": fine}, 1
    yield "rank", {name: fine[0]}, 1
    yield "channels", {name: fine[:, :2]}, 1
    yield "not finite", {name: np.full_like(fine, np.nan)}, 1
    yield "no number", {name: fine.astype(str)}, 1
    yield "none", None, 1


@pytest.mark.parametrize("what, feed, status", list(wrong_samples(CASES["conv-classifier"]())), ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_samples(tmp_path, what, feed, status):
    source, directory = model_file(tmp_path), tmp_path / "samples"
    directory.mkdir()
    if feed:
        np.savez(directory / "0.npz", **feed)
    run("quantize", source, "--samples", directory, status=status)
    run("calibrate", source, "--samples", directory, "-o", tmp_path / "stats", status=status)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "samples"]


def test_missing_samples(tmp_path):
    source = model_file(tmp_path)
    run("quantize", source, "--mode", "static", status=2)
    run("quantize", source, "--samples", tmp_path / "missing", status=4)
    run("quantize", source, "--stats", tmp_path / "missing", status=4)
    run("quantize", source, "--mode", "static", "--samples", source, "--stats", source, status=1)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name]().calibrates])
def test_what_the_embedded_engine_cannot_run_is_refused(quantized, tmp_path, name):
    run("quantize", quantized.source(name), "--samples", quantized.samples(name), "-o", tmp_path / "q.onnx", status=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["conv-classifier", "if", "matmul-transposed-large", "matmul-transposed", "f16-cast-raw"])
def test_names_that_inspect_shows_can_be_excluded(quantized, tmp_path, name):
    source = quantized.source(name)
    tensors = [tensor for tensor in json.loads(run("inspect", source, "--json"))["tensors"] if tensor["plan"] == "quantize"]
    assert tensors
    for i, tensor in enumerate(tensors):
        run("quantize", source, "--exclude", tensor["name"], "-o", tmp_path / f"{i}.onnx", "--quiet")
