"""Quantized ONNX models are valid, compute what the float models compute, and keep everything else."""

import json
import re

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_models
from conftest import ROOT, assert_bits, run
from onnx_models import CASES, UNKNOWN_FIELD, graphs
from onnx_tools import Quantizer, outputs, session, sqnr
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
}

SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/sidecar.schema.json").read_text()))


def every_case(names=CASES, modes=MODES):
    """Cases in all modes that they can be quantized in."""
    pairs = [(name, mode) for name in names for mode in modes if mode != "static" or CASES[name]().calibrates]
    return pytest.mark.parametrize("name, mode", pairs)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """quantized(case, options…) is the file of a quantized model."""
    return Quantizer(tmp_path_factory.mktemp("cases"))


@every_case()
def test_valid(quantized, name, mode):
    path = quantized(name, "--mode", mode)
    onnx.checker.check_model(path, full_check=True)


# What ONNX Runtime refuses to run, and why. Each is a bug of the output.
REFUSED = {
    ("matmul-batched", "dynamic"): "integer products of stacked matrices take one zero point, or one for each matrix and column",
    ("matmul-batched", "static"): "integer products of stacked matrices take one zero point, or one for each matrix and column",
    ("if", "weight-only"): "MatMulNBits is not made of a weight that is outside of the body",
    ("loop", "weight-only"): "MatMulNBits is not made of a weight that is outside of the body",
    ("lstm", "dynamic", "asymmetric"): "DynamicQuantizeLSTM takes int8 weights with zero points of 0 only",
    ("lstm", "static", "asymmetric"): "DynamicQuantizeLSTM takes int8 weights with zero points of 0 only",
    ("lstm", "dynamic", "uint8-asymmetric"): "DynamicQuantizeLSTM wants one zero point for all channels",
    ("lstm", "static", "uint8-asymmetric"): "DynamicQuantizeLSTM wants one zero point for all channels",
}


@pytest.fixture
def may_be_refused(request):
    """Marks the test of a refused model as one that fails."""
    arguments = request.node.callspec.params
    key = (arguments["name"], arguments["mode"])
    reason = REFUSED.get((*key, arguments["variant"]) if "variant" in arguments else key) or REFUSED.get(key)
    if reason:
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))


def assert_close(case, source, path, floor):
    feeds = [case.feeds(seed) for seed in range(4)]
    expected = outputs(source, feeds, optimize=False)
    for optimize in (True, False):
        found = sqnr(expected, outputs(path, feeds, optimize=optimize))
        assert found >= floor, f"{found:.1f} dB with{'' if optimize else 'out'} optimizations"


@every_case([name for name in CASES if CASES[name]().runs])
def test_outputs(quantized, may_be_refused, name, mode):
    case = CASES[name]()
    assert_close(case, quantized.source(name), quantized(name, "--mode", mode), case.floors.get(mode, FLOORS[mode]))


@pytest.mark.parametrize("variant", VARIANTS)
@every_case(VARIED)
def test_variants(quantized, may_be_refused, name, mode, variant):
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
        pytest.param(("--op-types", "Convolution"), 2, marks=pytest.mark.xfail(strict=True, reason="accepted, though it matches nothing")),
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


@pytest.mark.xfail(strict=True, reason="panics in Rewriter::weight")
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


@pytest.mark.xfail(strict=True, reason="verify looks for tensors in a file of safetensors")
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
