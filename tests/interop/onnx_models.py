"""Small ONNX models: one for every operator and every way in which a weight reaches it.

    CASES["gemm-transB-bias"]() -> Case

A case is a model, what its inputs look like, and which of its constants are weights along which axis.
"""

from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, FLOAT16, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL

# Sizes that stand for symbolic dimensions when a model runs.
SIZES = {"batch": 3, "time": 5}

# A field that no version of ONNX has: number 1000, length-delimited.
UNKNOWN_FIELD = b"\xc2\x3e\x0dnot in onnx 1"


@dataclass
class Case:
    proto: onnx.ModelProto
    # Stored constant -> axis of its output channels; what `quantize` makes codes of.
    weights: dict
    # Constants that are computed from stored ones before they are quantized, when they are small.
    folded: dict = field(default_factory=dict)
    # Integer input -> one past its largest value.
    limits: dict = field(default_factory=dict)
    # Whether ONNX Runtime's CPU provider has all operators.
    runs: bool = True
    # Whether the embedded engine, which calibration runs on, has all operators.
    calibrates: bool = True
    # Whether calibrated models get a normalization folded into weights, so that they are others.
    folds: bool = False
    # Whether some matrix product can be computed in integers with activations quantized on the way.
    dynamic: bool = False
    # Least SQNR of outputs in dB where rounding errors are not averaged out, by mode.
    floors: dict = field(default_factory=dict)

    def feeds(self, seed):
        """Inputs of one run."""
        rng = np.random.default_rng(seed)
        made = {}
        constant = constants(self.proto) if self.proto.ir_version < 4 else {}
        for value in self.proto.graph.input:
            if value.name in constant:
                continue
            tensor = value.type.tensor_type
            shape = [dim.dim_value or SIZES[dim.dim_param] for dim in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if tensor.elem_type == BOOL:
                made[value.name] = np.array(seed % 2 == 0).reshape(shape)
            elif value.name in self.limits:
                made[value.name] = rng.integers(0, self.limits[value.name], shape).astype(dtype)
            else:
                made[value.name] = rng.normal(0.3, 1, shape).astype(dtype)
        return made

    def values(self, name):
        """A constant as it is stored, or computed."""
        if name in self.folded:
            return self.folded[name]
        return numpy_helper.to_array(constants(self.proto)[name])


def graphs(model):
    """The graph and all bodies in it, outer ones first."""

    def inner(graph):
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                    yield from inner(body)

    return list(inner(model.graph))


def constants(model):
    """Initializers of all graphs, and Constant nodes by the name of their output."""
    found = {tensor.name: tensor for graph in graphs(model) for tensor in graph.initializer}
    for graph in graphs(model):
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = node.attribute[0].t
    return found


def fold(case, name, computed, values, axis):
    """Says that `computed` takes the place of the weight `name`."""
    del case.weights[name]
    case.weights[computed], case.folded[computed] = axis, values
    return case


# Rows of a constant that is not computed in advance, as it would be stored twice: more than 65,536 elements of 48 columns.
LARGE = 1400


class Build:
    """A graph in the making. Methods add to it and return the name of the value they add."""

    def __init__(self, seed=0, prefix=""):
        self.rng = np.random.default_rng(seed)
        self.prefix = prefix
        self.inputs, self.outputs, self.nodes, self.initializers = [], [], [], []
        self.limits, self.weights = {}, {}

    def input(self, name, shape, dtype=FLOAT, limit=None):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        if limit is not None:
            self.limits[name] = limit
        return name

    def constant(self, name, array):
        self.initializers.append(array if isinstance(array, TensorProto) else numpy_helper.from_array(np.asarray(array), name))
        return name

    def numbers(self, shape, fan_in):
        """Values such that sums of `fan_in` products keep the size of what they are summed over; each channel with a range of its own."""
        values = self.rng.normal(0, fan_in**-0.5, shape) * self.rng.uniform(0.5, 1.5, (shape[0],) + (1,) * (len(shape) - 1))
        return values.astype(np.float32)

    def weight(self, name, shape, axis, fan_in=None):
        """A constant whose output channels are along `axis`."""
        self.weights[name] = axis
        return self.constant(name, self.numbers(shape, fan_in or np.prod(shape) / shape[axis]))

    def bias(self, name, shape):
        return self.constant(name, self.rng.normal(0, 0.3, shape).astype(np.float32))

    def node(self, op, *inputs, outputs=1, domain="", **attributes):
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        names = [f"{name}_{i}" if i else f"{name}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def output(self, value, shape, dtype=FLOAT, name="y"):
        """Makes `value` an output called `name`."""
        for node in self.nodes:
            node.output[:] = [name if known == value else known for known in node.output]
            node.input[:] = [name if known == value else known for known in node.input]
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def graph(self, name="graph"):
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers, doc_string=f"what {name} is for")

    def case(self, opset=17, functions=(), domains=(), **fields):
        imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1) for domain in domains]
        proto = helper.make_model(
            self.graph(),
            opset_imports=imports,
            functions=functions,
            ir_version=helper.find_min_ir_version_for(imports[:1]),
            producer_name="onnx_models",
            producer_version="1.2",
            domain="org.example",
            model_version=7,
            doc_string="a model\nfor tests",
        )
        if proto.ir_version < 4:
            # Constants had to be inputs as well.
            listed = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in self.initializers]
            proto.graph.input.extend(listed)
        helper.set_model_props(proto, {"author": "somebody", "labels": "a,b,c", "empty": ""})
        proto.graph.node[0].MergeFromString(UNKNOWN_FIELD)
        proto.MergeFromString(UNKNOWN_FIELD)
        return Case(proto, self.weights, limits=self.limits, **fields)


CASES = {}


def case(name=None, **arguments):
    """Enters a function in CASES, called with `arguments`; several times over for several cases."""

    def enter(function):
        key = name or function.__name__.replace("_", "-")
        assert key not in CASES
        CASES[key] = lambda: function(**arguments)
        return function

    return enter


# Convolutions


@case("conv1d", dims=1)
@case("conv2d")
@case("conv3d", dims=3)
@case("conv2d-strided", strides=[2, 2], pads=[1, 1, 1, 1])
@case("conv2d-dilated", dilations=[2, 2])
@case("conv2d-without-bias", bias=False)
@case("conv2d-grouped", group=4)
@case("conv2d-depthwise", group=16)
def conv(dims=2, group=1, bias=True, **attributes):
    b = Build(dims + group)
    x = b.input("x", ["batch", 16] + [9] * dims)
    w = b.weight("w", (32, 16 // group) + (3,) * dims, 0)
    parts = [x, w] + ([b.bias("b", (32,))] if bias else [])
    y = b.node("Conv", *parts, group=group, kernel_shape=[3] * dims, **attributes)
    b.output(y, ["batch", 32] + [None] * dims)
    return b.case(calibrates=dims < 3)


@case()
def conv_bias_computed():
    """A convolution whose bias depends on the inputs."""
    b = Build(12)
    x, shift = b.input("x", ["batch", 8, 9, 9]), b.input("shift", [16])
    bias = b.node("Mul", b.node("Add", shift, b.bias("b", (16,))), b.constant("factor", np.float32(2)))
    y = b.node("Conv", x, b.weight("w", (16, 8, 3, 3), 0), bias, kernel_shape=[3, 3])
    b.output(y, ["batch", 16, None, None])
    return b.case()


@case("conv-relu", op="Relu")
@case("conv-relu6", op="Clip")
@case("conv-clip-symmetric", op="Clip", low=-1.0)
@case("conv-leaky-relu", op="LeakyRelu")
@case("conv-sigmoid", op="Sigmoid")
@case("conv-hard-swish", op="HardSwish")
def conv_activation(op, low=0.0):
    """Two convolutions with an activation function behind each."""
    b = Build(5)
    value = b.input("x", ["batch", 8, 10, 10])
    for i, channels in enumerate([8, 16]):
        w = b.weight(f"w{i}", (16, channels, 3, 3), 0)
        value = b.node("Conv", value, w, b.bias(f"b{i}", (16,)), pads=[1, 1, 1, 1])
        limits = [b.constant(f"low{i}", np.float32(low)), b.constant(f"high{i}", np.float32(6))] if op == "Clip" else []
        value = b.node(op, value, *limits)
    b.output(value, ["batch", 16, 10, 10])
    return b.case()


@case()
def conv_batchnorm():
    """Convolution, normalization, Relu, twice, and a residual connection around the second."""
    b = Build(6)
    x = b.input("x", ["batch", 8, 12, 12])

    def block(i, value, channels):
        w = b.weight(f"w{i}", (16, channels, 3, 3), 0)
        value = b.node("Conv", value, w, pads=[1, 1, 1, 1])
        scale = b.constant(f"gamma{i}", b.rng.uniform(0.5, 1.5, 16).astype(np.float32))
        mean, shift = b.bias(f"mean{i}", (16,)), b.bias(f"beta{i}", (16,))
        variance = b.constant(f"variance{i}", b.rng.uniform(0.5, 2, 16).astype(np.float32))
        return b.node("BatchNormalization", value, scale, shift, mean, variance)

    first = b.node("Relu", block(0, x, 8))
    second = b.node("Relu", b.node("Add", block(1, first, 16), first))
    b.output(b.node("GlobalAveragePool", second), ["batch", 16, 1, 1])
    return b.case(folds=True)


@case()
def conv_mul_add():
    """What exporters write for a normalization: Mul and Add by a constant a channel."""
    b = Build(7)
    x = b.input("x", ["batch", 8, 12, 12])
    value = b.node("Conv", x, b.weight("w", (16, 8, 3, 3), 0))
    value = b.node("Mul", value, b.constant("factor", b.rng.uniform(0.5, 1.5, (1, 16, 1, 1)).astype(np.float32)))
    value = b.node("Add", value, b.bias("shift", (1, 16, 1, 1)))
    b.output(b.node("Relu", value), ["batch", 16, 10, 10])
    return b.case(folds=True)


@case()
def conv_classifier():
    """A whole small network: convolutions, pooling, a dense layer."""
    b = Build(8)
    value = b.input("x", ["batch", 3, 16, 16])
    for i, (inputs, outputs, group) in enumerate([(3, 16, 1), (16, 16, 16), (16, 32, 1)]):
        w = b.weight(f"w{i}", (outputs, inputs // group, 3, 3), 0)
        value = b.node("Conv", value, w, b.bias(f"b{i}", (outputs,)), pads=[1, 1, 1, 1], group=group)
        value = b.node("Relu", value)
    value = b.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = b.node("Conv", value, b.weight("w3", (32, 32, 1, 1), 0), b.bias("b3", (32,)))
    value = b.node("Relu", value)
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    value = b.node("Gemm", value, b.weight("w4", (10, 32), 0), b.bias("b4", (10,)), transB=1)
    b.output(b.node("Softmax", value), ["batch", 10], name="probabilities")
    return b.case(dynamic=True)


@case()
def conv_two_readers():
    """The output of a convolution is used twice, and is an output as well."""
    b = Build(9)
    x = b.input("x", ["batch", 8, 8, 8])
    first = b.node("Conv", x, b.weight("w0", (16, 8, 3, 3), 0), pads=[1, 1, 1, 1])
    left = b.node("Relu", b.node("Conv", first, b.weight("w1", (16, 16, 3, 3), 0), pads=[1, 1, 1, 1]))
    right = b.node("Conv", first, b.weight("w2", (16, 16, 1, 1), 0))
    first = b.output(first, ["batch", 16, 8, 8], name="features")
    left = b.output(left, ["batch", 16, 8, 8], name="left")
    b.output(b.node("Concat", left, right, axis=1), ["batch", 32, 8, 8])
    return b.case()


@case()
@case("conv-transpose-grouped", group=2)
def conv_transpose(group=1):
    b = Build(10)
    x = b.input("x", ["batch", 16, 6, 6])
    w = b.weight("w", (16, 24 // group, 3, 3), 1)
    b.output(b.node("ConvTranspose", x, w, b.bias("b", (24,)), strides=[2, 2], group=group), ["batch", 24, None, None])
    return b.case()


@case()
def conv_weight_computed():
    """No weight is constant here: nothing can be quantized."""
    b = Build(11)
    x = b.input("x", ["batch", 4, 6, 6])
    w = b.input("w", [8, 4, 3, 3])
    b.output(b.node("Conv", x, w), ["batch", 8, 4, 4])
    return b.case()


# Matrix products


@case("matmul", shape=["batch", 48])
@case("matmul-3d", shape=["batch", "time", 48])
@case("matmul-4d", shape=["batch", 2, "time", 48])
@case("matmul-one-row", shape=[1, 48])
def matmul(shape):
    b = Build(20)
    y = b.node("MatMul", b.input("x", shape), b.weight("w", (48, 40), 1))
    b.output(y, shape[:-1] + [40])
    return b.case(dynamic=True)


@case()
def matmul_add_relu():
    """Three layers of MatMul, Add, Relu: here weight-only forms stay unfused in ONNX Runtime."""
    b = Build(21)
    value = b.input("x", ["batch", 48])
    for i in range(3):
        value = b.node("MatMul", value, b.weight(f"w{i}", (48, 48), 1))
        value = b.node("Relu", b.node("Add", value, b.bias(f"b{i}", (48,))))
    b.output(value, ["batch", 48])
    return b.case(dynamic=True)


@case("matmul-add", shape=["batch", 48])
@case("matmul-add-3d", shape=["batch", "time", 48])
def matmul_add(shape):
    """A layer as exporters write it; of rank 2, ONNX Runtime makes a Gemm of it before anything else."""
    b = Build(36)
    y = b.node("Add", b.node("MatMul", b.input("x", shape), b.weight("w", (48, 40), 1)), b.bias("b", (40,)))
    b.output(y, shape[:-1] + [40])
    return b.case(dynamic=True)


@case()
def matmul_left():
    """The weight is the left factor."""
    b = Build(22)
    b.output(b.node("MatMul", b.weight("w", (40, 48), 0), b.input("x", ["batch", 48, 7])), ["batch", 40, 7])
    return b.case()


@case()
def matmul_batched():
    """One matrix for each of two heads: channels are along the last axis."""
    b = Build(23)
    y = b.node("MatMul", b.input("x", ["batch", 2, 5, 32]), b.weight("w", (2, 32, 40), 2))
    b.output(y, ["batch", 2, 5, 40])
    return b.case(dynamic=True)


@case()
def matmul_vector():
    """A weight of one axis is left in float."""
    b = Build(24)
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), b.bias("w", (48,))), ["batch"])
    return b.case()


@case()
@case("matmul-transposed-large", large=True)
def matmul_transposed(large=False):
    """The weight as PyTorch stores it, behind a Transpose."""
    b = Build(25)
    rows, columns = (LARGE, 48) if large else (40, 48)
    w = b.weight("w", (rows, columns), 0)
    transposed = b.node("Transpose", w, perm=[1, 0])
    b.output(b.node("MatMul", b.input("x", ["batch", columns]), transposed), ["batch", rows])
    case = b.case(dynamic=True)
    return case if large else fold(case, w, transposed, case.values(w).T, 1)


@case()
def matmul_identity():
    b = Build(26)
    w = b.node("Identity", b.weight("w", (48, 40), 1))
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), w), ["batch", 40])
    return b.case(dynamic=True)


@case()
def matmul_constant_node():
    b = Build(27)
    w = b.node("Constant", value=numpy_helper.from_array(b.numbers((48, 40), 48)))
    b.weights[w] = 1
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), w), ["batch", 40])
    return b.case(dynamic=True)


@case()
def matmul_shared():
    """Two layers with one weight."""
    b = Build(28)
    w = b.weight("w", (48, 48), 1)
    value = b.node("Relu", b.node("MatMul", b.input("x", ["batch", 48]), w))
    b.output(b.node("MatMul", value, w), ["batch", 48])
    return b.case(dynamic=True)


@case()
def matmul_shared_input():
    """Three layers with one input, as query, key and value have."""
    b = Build(29)
    x = b.input("x", ["batch", "time", 48])
    parts = [b.node("MatMul", x, b.weight(f"w{i}", (48, 16), 1)) for i in range(3)]
    b.output(b.node("Concat", *parts, axis=-1), ["batch", "time", 48])
    return b.case(dynamic=True)


@case()
def matmul_attention():
    """One head of attention: its inner products have no constant factor."""
    b = Build(30)
    x = b.input("x", ["batch", "time", 32])
    query, key, value = (b.node("Add", b.node("MatMul", x, b.weight(n, (32, 32), 1)), b.bias(f"{n}-bias", (32,))) for n in ("q", "k", "v"))
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1]))
    scores = b.node("Softmax", b.node("Mul", scores, b.constant("scale", np.float32(32**-0.5))), axis=-1)
    y = b.node("MatMul", b.node("MatMul", scores, value), b.weight("o", (32, 32), 1))
    b.output(b.node("Add", y, x), ["batch", "time", 32])
    return b.case(dynamic=True)


@case()
def matmul_ties():
    """Weights that are half-way between two codes, zeros, and a channel of zeros."""
    b = Build(31)
    values = (b.rng.integers(-254, 255, (48, 40)) / 2).astype(np.float32)
    values[0, :], values[:, 7] = 127, 0
    b.weights["w"] = 1
    w = b.constant("w", values / 64)
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), w), ["batch", 40])
    return b.case(dynamic=True)


@case()
def matmul_names_taken():
    """Names that an output could want for itself are in use."""
    b = Build(32)
    x = b.input("x", ["batch", 48])
    w = b.weight("w", (48, 48), 1)
    taken = [b.bias(name, (48,)) for name in ("w_quantized", "w_scale", "w_zero_point", "w_dequantized", "x_quantized", "x_scale", "x_zero_point")]
    value = b.node("MatMul", x, w)
    for name in taken:
        value = b.node("Add", value, name)
    b.output(value, ["batch", 48])
    for node in b.nodes:
        node.name = ""
    return b.case(dynamic=True)


@case()
def matmul_weight_is_output():
    """A weight that the graph hands out must not change its type."""
    b = Build(33)
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), b.constant("w", b.numbers((48, 40), 48))), ["batch", 40])
    b.outputs.append(helper.make_tensor_value_info("w", FLOAT, [48, 40]))
    return b.case()


@case()
def matmul_weight_is_input():
    """A constant that the caller may replace."""
    b = Build(34)
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), b.constant("w", b.numbers((48, 40), 48))), ["batch", 40])
    b.inputs.append(helper.make_tensor_value_info("w", FLOAT, [48, 40]))
    return b.case()


@case()
def matmul_mixed_use():
    """A weight that another operator reads as a float."""
    b = Build(35)
    w = b.weight("w", (48, 48), 1)
    b.output(b.node("MatMul", b.node("Add", b.input("x", [48, 48]), w), w), [48, 48])
    return b.case(dynamic=True)


# Gemm


@case("gemm", bias=None)
@case("gemm-bias", bias=(40,))
@case("gemm-bias-2d", bias=(1, 40))
@case("gemm-bias-column", bias=(3, 1))
@case("gemm-bias-scalar", bias=())
@case("gemm-transB", bias=None, transB=1)
@case("gemm-transB-bias", bias=(40,), transB=1)
@case("gemm-transB-bias-2d", bias=(1, 40), transB=1)
@case("gemm-alpha", bias=(40,), alpha=0.5)
@case("gemm-alpha-transB", bias=(40,), alpha=0.5, transB=1)
@case("gemm-beta", bias=(40,), beta=2.0)
@case("gemm-beta-0", bias=(40,), beta=0.0)
@case("gemm-transA", bias=(40,), transA=1)
@case("gemm-transA-transB", bias=(40,), transA=1, transB=1)
def gemm(bias, transA=0, transB=0, alpha=1.0, beta=1.0):
    b = Build(40)
    x = b.input("x", [48, 3] if transA else [3, 48])
    w = b.weight("w", (40, 48), 0) if transB else b.weight("w", (48, 40), 1)
    rest = [] if bias is None else [b.bias("b", bias)]
    b.output(b.node("Gemm", x, w, *rest, transA=transA, transB=transB, alpha=alpha, beta=beta), [3, 40])
    plain = not transA and alpha == 1 and (beta == 1 or bias is None)
    return b.case(dynamic=plain)


@case()
def gemm_mlp():
    b = Build(41)
    value = b.input("x", ["batch", 48])
    for i in range(3):
        value = b.node("Relu", b.node("Gemm", value, b.weight(f"w{i}", (48, 48), 0), b.bias(f"b{i}", (48,)), transB=1))
    b.output(value, ["batch", 48])
    return b.case(dynamic=True)


# Embeddings


@case()
@case("gather-axis-negative", axis=-2)
def gather(axis=0):
    b = Build(50)
    ids = b.input("ids", ["batch", "time"], INT64, limit=200)
    b.output(b.node("Gather", b.weight("table", (200, 24), 0, fan_in=1), ids, axis=axis), ["batch", "time", 24])
    return b.case()


@case()
def gather_columns():
    """Along the other axis a Gather is no embedding."""
    b = Build(51)
    ids = b.input("ids", ["batch"], INT64, limit=24)
    b.output(b.node("Gather", b.constant("table", b.numbers((200, 24), 1)), ids, axis=1), [200, "batch"])
    return b.case()


@case()
def gather_scalar():
    """One row, of rank 1."""
    b = Build(52)
    id = b.input("id", [], INT64, limit=200)
    b.output(b.node("Gather", b.weight("table", (200, 24), 0, fan_in=1), id), [24])
    return b.case()


@case()
def tied_embedding():
    """A language model's table: rows for the input, its transpose for the output."""
    b = Build(53)
    ids = b.input("ids", ["batch", "time"], INT64, limit=200)
    table = b.weight("table", (200, 24), 0, fan_in=1)
    value = b.node("Gather", table, ids)
    value = b.node("Relu", b.node("MatMul", value, b.weight("w", (24, 24), 1)))
    b.output(b.node("MatMul", value, b.node("Transpose", table, perm=[1, 0])), ["batch", "time", 200])
    return b.case(dynamic=True)


# Recurrent layers


@case("lstm", op="LSTM", gates=4)
@case("lstm-bidirectional", op="LSTM", gates=4, directions=2)
@case("lstm-reverse", op="LSTM", gates=4, direction="reverse")
@case("lstm-state", op="LSTM", gates=4, state=True)
@case("gru", op="GRU", gates=3)
@case("gru-bidirectional", op="GRU", gates=3, directions=2)
@case("gru-linear-before-reset", op="GRU", gates=3, linear_before_reset=1)
@case("rnn", op="RNN", gates=1)
def recurrent(op, gates, directions=1, direction=None, state=False, **attributes):
    b = Build(60 + gates)
    inputs, hidden = 24, 32
    x = b.input("x", ["time", "batch", inputs])
    w = b.weight("w", (directions, gates * hidden, inputs), 1, fan_in=inputs)
    r = b.weight("r", (directions, gates * hidden, hidden), 1, fan_in=hidden)
    parts = [x, w, r, b.bias("b", (directions, 2 * gates * hidden))]
    if state:
        parts += [""] + [b.input(name, [directions, "batch", hidden]) for name in ("h", "c")]
    names = b.node(op, *parts, outputs=2, hidden_size=hidden, direction=direction or ("bidirectional" if directions == 2 else "forward"), **attributes)
    b.output(names[0], ["time", directions, "batch", hidden])
    b.output(names[1], [directions, "batch", hidden], name="last")
    return b.case(dynamic=op == "LSTM")


@case("lstm-in-if")
def recurrent_in_branches():
    """As PyTorch exports it: nothing between the recurrent layers and the readers of their output has a type but by inference."""
    b = Build(69)
    x, condition = b.input("x", ["time", "batch", 24]), b.input("condition", [], BOOL)
    bodies = []
    for name in ("then", "else"):
        inner = Build(69, prefix=f"{name}_")
        w = inner.weight(f"{name}_w", (1, 128, 24), 1, fan_in=24)
        r = inner.weight(f"{name}_r", (1, 128, 32), 1, fan_in=32)
        value = inner.node("LSTM", x, w, r, hidden_size=32)
        inner.outputs.append(helper.make_empty_tensor_value_info(value))
        b.weights.update(inner.weights)
        bodies.append(inner.graph(name))
    value = b.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    value = b.node("Unsqueeze", value, b.constant("first", np.array([0], np.int64)))
    value = b.node("Squeeze", value, b.constant("axes", np.array([0, 2], np.int64)))
    b.output(b.node("MatMul", value, b.weight("w1", (32, 40), 1)), ["time", "batch", 40])
    return b.case(dynamic=True)


# Bodies and functions


@case("if")
def branches():
    """Branches with a weight each, and with one from outside in both."""
    b = Build(70)
    x = b.input("x", ["batch", 48])
    condition = b.input("condition", [], BOOL)
    outer = b.weight("outer", (48, 48), 1)
    bodies = []
    for name in ("then", "else"):
        inner = Build(70, prefix=f"{name}_")
        value = inner.node("Relu", inner.node("MatMul", x, inner.weight(f"{name}_w", (48, 48), 1)))
        inner.output(inner.node("MatMul", value, outer), ["batch", 48], name=f"{name}_y")
        b.weights.update(inner.weights)
        bodies.append(inner.graph(name))
    value = b.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    b.output(b.node("MatMul", value, outer), ["batch", 48])
    return b.case(dynamic=True)


@case("loop")
def loop():
    """A body that runs three times, with a weight of its own and one from outside."""
    b = Build(71)
    x = b.input("x", ["batch", 48])
    outer = b.weight("outer", (48, 48), 1)
    inner = Build(71, prefix="body_")
    inner.input("i", [], INT64)
    inner.input("condition", [], BOOL)
    state = inner.input("state", ["batch", 48])
    value = inner.node("Tanh", inner.node("MatMul", state, inner.weight("inner", (48, 48), 1)))
    inner.output(inner.node("Identity", "condition"), [], BOOL, name="again")
    inner.output(inner.node("MatMul", value, outer), ["batch", 48], name="next")
    b.weights.update(inner.weights)
    count, condition = b.constant("count", np.int64(3)), b.constant("always", np.bool_(True))
    b.output(b.node("Loop", count, condition, x, body=inner.graph("body")), ["batch", 48])
    return b.case(dynamic=True)


@case("bodies-same-names")
def bodies_same_names():
    """Constants of two branches share a name."""
    b = Build(72)
    x, condition = b.input("x", ["batch", 48]), b.input("condition", [], BOOL)
    bodies = []
    for seed, name in enumerate(("then", "else")):
        inner = Build(seed, prefix=f"{name}_")
        inner.output(inner.node("MatMul", x, inner.constant("w", inner.numbers((48, 40), 48))), ["batch", 40], name=f"{name}_y")
        bodies.append(inner.graph(name))
    b.output(b.node("If", condition, then_branch=bodies[0], else_branch=bodies[1]), ["batch", 40])
    return b.case(dynamic=True)


@case("function")
def function():
    """A layer inside a function of the model; its weight comes in from outside."""
    body = [
        helper.make_node("MatMul", ["a", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["out"]),
    ]
    dense = helper.make_function("org.example", "Dense", ["a", "w"], ["out"], body, [helper.make_opsetid("", 17)])
    b = Build(73)
    value = b.node("Dense", b.input("x", ["batch", 48]), b.constant("w", b.numbers((48, 48), 48)), domain="org.example")
    b.output(b.node("MatMul", value, b.weight("w1", (48, 40), 1)), ["batch", 40])
    return b.case(functions=[dense], domains=["org.example"], calibrates=False, dynamic=True)


@case("contrib-operators")
def contrib():
    """Operators of ONNX Runtime between the standard ones."""
    b = Build(74)
    value = b.node("MatMul", b.input("x", ["batch", 48]), b.weight("w0", (48, 48), 1))
    value = b.node("BiasGelu", value, b.bias("b0", (48,)), domain="com.microsoft")
    b.output(b.node("MatMul", value, b.weight("w1", (48, 40), 1)), ["batch", 40])
    return b.case(domains=["com.microsoft"], dynamic=True)


@case("custom-operators")
def custom():
    """A node that nobody but its author knows."""
    b = Build(75)
    value = b.node("MatMul", b.input("x", ["batch", 48]), b.weight("w0", (48, 48), 1))
    value = b.node("Fold", value, b.constant("secret", b.numbers((48, 48), 48)), domain="org.example.custom", strength=0.5, mode="deep")
    b.output(b.node("MatMul", value, b.weight("w1", (48, 40), 1)), ["batch", 40])
    return b.case(domains=["org.example.custom"], runs=False, calibrates=False, dynamic=True)


# Types


def typed(name, values, code, raw):
    """A constant of another float type, in bytes or in the field that its type has."""
    values = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(code))
    if raw:
        return helper.make_tensor(name, code, values.shape, values.tobytes(), raw=True)
    return helper.make_tensor(name, code, values.shape, values.astype(np.float64).flatten())


@case("f32-typed-field", code=FLOAT, raw=False)
@case("f16-raw", code=FLOAT16)
@case("f16-typed-field", code=FLOAT16, raw=False)
@case("f64-raw", code=DOUBLE)
@case("f64-typed-field", code=DOUBLE, raw=False)
def dtypes(code, raw=True):
    """Weights and activations of one type."""
    b = Build(80)
    b.weights["w"] = 1
    w = b.constant("w", typed("w", b.numbers((48, 40), 48), code, raw))
    b.output(b.node("MatMul", b.input("x", ["batch", 48], code), w), ["batch", 40], code)
    return b.case(dynamic=code == FLOAT)


@case("f16-cast-raw", code=FLOAT16)
@case("f16-cast-typed-field", code=FLOAT16, raw=False)
@case("bf16-cast-raw", code=BFLOAT16)
@case("bf16-cast-typed-field", code=BFLOAT16, raw=False)
@case("f64-cast-raw", code=DOUBLE)
@case("f16-cast-large", code=FLOAT16, large=True)
@case("bf16-cast-large", code=BFLOAT16, large=True)
@case("f64-cast-large", code=DOUBLE, large=True)
def cast(code, raw=True, large=False):
    """Weights of one type, cast to f32 before they are used."""
    b = Build(81)
    b.weights["w"] = 1
    columns = LARGE if large else 40
    cast = b.node("Cast", b.constant("w", typed("w", b.numbers((48, columns), 48), code, raw)), to=FLOAT)
    b.output(b.node("MatMul", b.input("x", ["batch", 48]), cast), ["batch", columns])
    case = b.case()
    return case if large else fold(case, "w", cast, case.values("w").astype(np.float32), 1)


@case("f16-conv", code=FLOAT16)
def half_conv(code):
    b = Build(82)
    b.weights["w"] = 0
    w = b.constant("w", typed("w", b.numbers((16, 8, 3, 3), 72), code, True))
    bias = b.constant("b", typed("b", b.rng.normal(0, 0.3, 16), code, True))
    b.output(b.node("Conv", b.input("x", ["batch", 8, 8, 8], code), w, bias), ["batch", 16, 6, 6], code)
    return b.case()


@case("f16-gather", code=FLOAT16)
@case("f64-gather", code=DOUBLE)
def half_gather(code):
    b = Build(83)
    b.weights["table"] = 0
    table = b.constant("table", typed("table", b.numbers((200, 24), 1), code, True))
    b.output(b.node("Gather", table, b.input("ids", ["batch"], INT64, limit=200)), ["batch", 24], code)
    return b.case()


# Versions


def versioned(opset):
    """Operators whose form changed between versions: Dropout, BatchNormalization, Clip, Squeeze, ReduceSum, Softmax, Upsample."""
    b = Build(90)
    value = b.input("x", ["batch", 8, 8, 8])
    value = b.node("Conv", value, b.weight("w0", (16, 8, 3, 3), 0), pads=[1, 1, 1, 1])
    parts = [b.constant(f"norm{i}", b.rng.uniform(0.5, 1.5, 16).astype(np.float32)) for i in range(4)]
    value = b.node("BatchNormalization", value, *parts)
    if opset < 11:
        value = b.node("Clip", value, min=0.0, max=6.0)
    else:
        value = b.node("Clip", value, b.constant("low", np.float32(0)), b.constant("high", np.float32(6)))
    sizes = b.constant("sizes", np.array([1, 1, 2, 2], np.float32))
    if opset < 9:
        value = b.node("Upsample", value, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    elif opset == 9:
        value = b.node("Upsample", value, sizes, mode="nearest")
    elif opset == 10:
        value = b.node("Resize", value, sizes, mode="nearest")
    else:
        value = b.node("Resize", value, b.constant("roi", np.zeros(0, np.float32)), sizes, mode="nearest")
    value = b.node("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])
    axes = b.constant("axes", np.array([2], np.int64))
    if opset < 13:
        value = b.node("ReduceSum", value, axes=[2], keepdims=1)
        value = b.node("Squeeze", value, axes=[2])
    else:
        value = b.node("ReduceSum", value, axes, keepdims=1)
        value = b.node("Squeeze", value, axes)
    value = b.node("Flatten", value)
    if opset < 12:
        value = b.node("Dropout", value, ratio=0.5)
    else:
        value = b.node("Dropout", value, b.constant("ratio", np.float32(0.5)))
    value = b.node("MatMul", value, b.weight("w1", (128, 32), 1))
    value = b.node("LeakyRelu", b.node("Add", value, b.bias("b1", (32,))), alpha=0.2)
    # Rank 1 biases of Gemm need no attribute from version 7 on.
    value = b.node("Gemm", value, b.weight("w2", (10, 32), 0), b.bias("b2", (10,)), transB=1)
    b.output(b.node("Softmax", value, axis=1), ["batch", 10])
    return b.case(opset=opset, folds=True, dynamic=True, floors={"static": 15})


OPSETS = range(7, 22)
for opset in OPSETS:
    CASES[f"opset-{opset}"] = lambda opset=opset: versioned(opset)


# External data


def store(case, directory, split=None, size_threshold=0):
    """Writes a case as model.onnx with its constants outside: in one file, or with `split` in one each."""
    path = directory / "model.onnx"
    onnx.save_model(case.proto, path, save_as_external_data=True, all_tensors_to_one_file=not split, location=None if split else "weights.bin", size_threshold=size_threshold)
    return path
