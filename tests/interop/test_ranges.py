"""--ranges takes over what ONNX Runtime's calibrators found: the same scales and zero points, in a model that runs."""

import json
import struct

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType, write_calibration_table

from conftest import assert_bits, run
from onnx_models import CASES
from onnx_tools import outputs, sqnr

METHODS = [CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile]
TYPES = {"uint8": (QuantType.QUInt8, False), "int8": (QuantType.QInt8, True)}


class Feeds(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def calibrated(case, feeds, method, tmp_path):
    """The model's file and the ranges of all of its values."""
    path = tmp_path / "model.onnx"
    onnx.save(case.proto, path)
    calibrator = create_calibrator(str(path), None, str(tmp_path / "augmented.onnx"), calibrate_method=method)
    calibrator.set_execution_providers(["CPUExecutionProvider"])
    calibrator.collect_data(Feeds(feeds))
    return path, calibrator.compute_data()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["conv-relu", "conv-relu6", "conv-batchnorm", "conv2d-depthwise", "matmul-add-relu", "gemm-bias"])
def test_scales_are_those_of_onnx_runtime(tmp_path, name, method):
    case = CASES[name]()
    feeds = [case.feeds(seed) for seed in range(8)]
    path, data = calibrated(case, feeds, method, tmp_path)
    save_tensors_data(data, tmp_path / "wrapped.json")
    write_calibration_table(data.data, str(tmp_path))
    plain = {name: [float(end.item()) for end in tensor.range_value] for name, tensor in data.items()}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    for codes, (qtype, symmetric) in TYPES.items():
        written = []
        for table in ("wrapped.json", "calibration.json", "plain.json"):
            out = tmp_path / f"{codes}-{table}.onnx"
            run("quantize", path, "--ranges", tmp_path / table, "-o", out, "--activations", codes, "--activation-symmetry", "symmetric" if symmetric else "asymmetric")
            run("verify", out)
            written.append(out.read_bytes())
        assert written[0] == written[1] == written[2]
        records = json.loads(out.with_suffix(".json").read_text())["activations"]
        assert records and {record["observer"] for record in records.values()} == {"given"}
        for value, record in records.items():
            lowest, highest = (np.array(end, np.float32) for end in plain[value])
            zero_point, scale = compute_scale_zp(lowest, highest, *get_qmin_qmax_for_qType(qtype.tensor_type, symmetric=symmetric), symmetric)
            assert_bits(np.float32(record["scale"]), np.float32(scale), f"{value} scale")
            assert record["zero_point"] == int(zero_point), value
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}
        assert sqnr(outputs(case.proto, feeds), outputs(onnx.load(out), feeds)) > 15


def test_a_cache_of_tensorrt_gives_its_scales(tmp_path):
    case = CASES["conv-relu"]()
    feeds = [case.feeds(seed) for seed in range(8)]
    path, data = calibrated(case, feeds, CalibrationMethod.MinMax, tmp_path)
    scales = {name: np.float32(max(abs(end.item()) for end in tensor.range_value) / 127) for name, tensor in data.items()}
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    (tmp_path / "cache").write_text("\n".join(["TRT-8501-EntropyCalibration2", *lines, ""]))
    out = tmp_path / "q.onnx"
    run("quantize", path, "--ranges", tmp_path / "cache", "--target", "tensorrt", "-o", out)
    records = json.loads(out.with_suffix(".json").read_text())["activations"]
    for value, record in records.items():
        assert_bits(np.float32(record["scale"]), scales[value], value)
        assert record["zero_point"] == 0
    assert sqnr(outputs(case.proto, feeds), outputs(onnx.load(out), feeds)) > 20


@pytest.mark.parametrize("name", ["conv-relu", "conv-relu6"])
def test_wider_ranges_let_nothing_pass_that_activation_functions_stop(tmp_path, name):
    case = CASES[name]()
    feeds = [case.feeds(seed) for seed in range(8)]
    path, data = calibrated(case, feeds, CalibrationMethod.MinMax, tmp_path)
    lowest = {name: tensor.range_value[0].item() for name, tensor in data.items()}
    highest = {name: tensor.range_value[1].item() for name, tensor in data.items()}
    for case_of, table in {
        "below": {name: [lowest[name] - 1, highest[name]] for name in lowest},
        "above": {name: [lowest[name], highest[name] + 3] for name in lowest},
    }.items():
        (tmp_path / "table.json").write_text(json.dumps(table))
        for form in ("qdq", "qoperator"):
            out = tmp_path / f"{case_of}-{form}.onnx"
            run("quantize", path, "--ranges", tmp_path / "table.json", "-o", out, "--format", form)
            assert sqnr(outputs(case.proto, feeds), outputs(onnx.load(out), feeds)) > 25
