"""Graphs in which every condition of ONNX Runtime's fusions is met or not, at random: `graph(seed)` is one of them.

Each has an operator between DequantizeLinear and QuantizeLinear; what varies is types, shapes of scales, what reads the output, biases,
attributes, versions, and what lies in between.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

TYPES = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "int32": np.int32}
# The operator that a graph is about.
TARGET = "target"


class Graph:
    """A graph in the making: methods add nodes and return the name of the value they make."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []
        self.opset = 17

    def choose(self, *options, p=None):
        return options[self.rng.choice(len(options), p=p)]

    def likely(self, usual, *others, share=0.6):
        """`usual`, or sometimes one of the others."""
        return usual if self.rng.random() < share else self.choose(*others)

    def constant(self, array, kind=None):
        name = f"constant_{len(self.initializers)}"
        if kind in ("int4", "uint4"):
            tensor = helper.make_tensor(name, getattr(TensorProto, kind.upper()), array.shape, array.flatten().tolist())
        else:
            tensor = numpy_helper.from_array(np.asarray(array), name)
        self.initializers.append(tensor)
        return name

    def input(self, shape, dtype=TensorProto.FLOAT):
        name = f"input_{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def node(self, op, *inputs, name=None, outputs=1, domain="", **attributes):
        name = name or f"{op}_{len(self.nodes)}"
        made = [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=name, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def output(self, value, dtype=TensorProto.FLOAT):
        if value not in [output.name for output in self.outputs]:
            self.outputs.append(helper.make_tensor_value_info(value, dtype, None))

    def parameters(self, kind, scale=0.05, zero_point=None, shape=()):
        """Scale and zero point as constants."""
        if zero_point is None:
            zero_point = {"uint8": 128, "uint16": 32768}.get(kind, 0)
        found = [self.constant(np.full(shape, scale, np.float32))]
        return found + [self.constant(np.full(shape, zero_point, TYPES[kind]))]

    def quantize(self, value, parameters):
        return self.node("QuantizeLinear", value, *parameters)

    def dequantize(self, codes, parameters, **attributes):
        return self.node("DequantizeLinear", codes, *parameters, **attributes)

    def pair(self, value, parameters):
        return self.dequantize(self.quantize(value, parameters), parameters)

    def model(self):
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    # Parts that graphs have in common

    def activation(self, shape, kind, scale_shape=()):
        """A value that is quantized, mostly; now and then shared, moved, without zero point or not quantized at all."""
        floats = self.input(shape)
        how = self.likely("pair", "float", "shared", "moved", "no zero point", "codes", "computed scale", "identity", share=0.65)
        parameters = self.parameters(kind, shape=scale_shape)
        if how == "float":
            return floats
        if how == "codes":
            return self.dequantize(self.input(shape, getattr(TensorProto, kind.upper())), parameters)
        if how == "no zero point" and kind == "uint8":
            return self.pair(floats, parameters[:1])
        if how == "computed scale":
            parameters[0] = self.node("Abs", self.input([]))
        value = self.pair(floats, parameters)
        if how == "shared":
            self.output(self.node("Tanh", value))
        if how == "identity":
            value = self.node("Identity", value)
        if how == "moved":
            shape_of = self.constant(np.array([dim if isinstance(dim, int) else -1 for dim in shape], np.int64))
            value = self.choose(
                lambda: self.node("Reshape", value, shape_of),
                lambda: self.node("Transpose", value, perm=list(range(len(shape)))),
            )()
        return value

    def weight(self, shape, axis, kind):
        """Stored codes: with a scale a channel or one, along the right axis mostly."""
        low, high = {"int8": (-100, 100), "uint8": (0, 255), "int16": (-1000, 1000), "int4": (-8, 8), "uint4": (0, 16)}[kind]
        if kind == "int8" and self.rng.random() < 0.3:
            low, high = -60, 60
        stored = np.int8 if kind in ("int4", "uint4") else TYPES[kind]
        codes = self.constant(self.rng.integers(low, high, shape).astype(stored), kind)
        how = self.likely("channels", "one", "list of one", "other axis", "no zero point", share=0.6)
        if kind in ("int4", "uint4"):
            scale, attributes = self.constant(np.full((shape[axis],), 0.01, np.float32)), {"axis": axis}
            return self.dequantize(codes, [scale], **attributes)
        if self.opset < 13:
            how = "one"
        zero_point = 128 if kind == "uint8" else 0
        if how in ("one", "list of one"):
            return self.dequantize(codes, self.parameters(kind, 0.01, zero_point, (1,) if how == "list of one" else ()))
        if how == "other axis" and shape[0] == shape[1]:
            axis = 1 - axis
        parameters = self.parameters(kind, 0.01, zero_point, (shape[axis],))
        if how == "no zero point" and kind != "uint8":
            parameters = parameters[:1]
        if self.rng.random() < 0.1:
            axis -= len(shape)
        return self.dequantize(codes, parameters, axis=axis)

    def bias(self, size, scale=0.0005):
        how = self.choose("none", "float", "int32", "int32", "int32 one", "uint8", "two dimensions", "computed", p=[0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.1, 0.05])
        if how == "none" or (how.startswith("int32") and self.opset < 13 and how != "int32 one"):
            return []
        if how in ("float", "two dimensions"):
            return [self.constant(np.ones((1, size) if how == "two dimensions" else size, np.float32))]
        if how == "computed":
            return [self.node("Tanh", self.input([size]))]
        if how == "uint8":
            return [self.dequantize(self.constant(np.ones(size, np.uint8)), self.parameters("uint8", 0.01))]
        codes = self.constant(np.ones(size, np.int32))
        shape = (size,) if how == "int32" else ()
        return [self.dequantize(codes, self.parameters("int32", scale, 0, shape), **({"axis": 0} if how == "int32" else {}))]

    def readers(self, value, kind, moves=()):
        """What becomes of the operator's output."""
        how = self.likely(
            "pair", "float", "besides", "output", "codes", "relu", "relu float", "relu output", "clip", "moved", "two pairs", "two ways", "identity", share=0.4
        )
        function = {"relu": "Relu", "relu float": "Relu", "relu output": "Relu", "clip": "Clip"}.get(how)
        zero_point = None
        if function:
            zero_point = self.choose(None, {"int8": -128, "int16": -32768}.get(kind, 0))
        parameters = self.parameters(kind, 0.1, zero_point, self.likely((), (1,), share=0.85))
        if how == "float":
            return self.output(self.node("Tanh", value))
        if how == "output":
            self.output(value)
        if how == "besides":
            self.output(self.node("Tanh", value))
        if how == "codes":
            return self.output(self.quantize(value, parameters), getattr(TensorProto, kind.upper()))
        if how == "identity":
            value = self.node("Identity", value)
        if function == "Relu":
            value = self.node("Relu", value)
        if how == "relu float":
            return self.output(self.node("Tanh", value))
        if how == "relu output":
            self.output(value)
            return None
        if function == "Clip":
            low = self.choose(0.0, -1.0, -12.8)
            limits = [np.float32(low), np.float32(self.choose(6.0, 25.5, 12.7, 1e6))]
            value = self.node("Clip", value, *map(self.constant, limits))
        if how == "moved" and moves:
            value = self.choose(*moves)(value)
        if how == "two ways":
            self.output(self.pair(value, self.parameters(kind, 0.2)))
        if how == "two pairs":
            self.output(self.node("Sigmoid", self.pair(value, parameters)))
        return self.output(self.node("Tanh", self.pair(value, parameters)))


def activation_type(g):
    return g.likely("uint8", "int8", "int8", "uint16" if g.opset >= 21 else "int8", share=0.6)


def conv(g):
    kind = activation_type(g)
    weights = g.likely("int8", "uint8", *(["int4"] if g.opset >= 21 else []), share=0.7)
    x = g.activation([1, 8, 8, 8], kind)
    w = g.weight((8, 8, 3, 3), 0, weights) if g.rng.random() < 0.9 else g.constant(np.ones((8, 8, 3, 3), np.float32))
    value = g.node("Conv", x, w, *g.bias(8), name=TARGET)
    moves = [
        lambda value: g.node("MaxPool", value, kernel_shape=[2, 2]),
        lambda value: g.node("Reshape", value, g.constant(np.array([1, -1], np.int64))),
        lambda value: g.node("Transpose", value, perm=[0, 2, 3, 1]),
    ]
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85), moves)


def matmul(g):
    kind = activation_type(g)
    weights = g.likely("int8", "uint8", *(["int4", "uint4"] if g.opset >= 21 else []), share=0.7)
    x = g.activation(g.choose([4, 16], ["rows", 16], [2, 3, 16], ["batch", 3, 16]), kind)
    w = g.weight((16, 16), 1, weights)
    if g.rng.random() < 0.2:
        w = g.node("Transpose", w, perm=[1, 0])
    value = g.node("MatMul", x, w, name=TARGET)
    if g.rng.random() < 0.3:
        bias = g.choose(np.ones(16), np.ones((1, 16)), np.ones((1,)))
        inputs = [value, g.constant(bias.astype(np.float32))]
        value = g.node("Add", *(inputs if g.rng.random() < 0.5 else inputs[::-1]))
    moves = [lambda value: g.node("Transpose", value)]
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85), moves)


def gemm(g):
    kind = activation_type(g)
    weights = g.likely("int8", "uint8", *(["int4", "uint4"] if g.opset >= 21 else []), share=0.7)
    x = g.activation(g.choose([4, 16], ["rows", 16]), kind)
    transposed = g.choose(0, 1)
    w = g.weight((16, 16), 1 - transposed, weights)
    attributes = {"transB": transposed}
    if g.rng.random() < 0.15:
        attributes |= g.choose({"alpha": 0.5}, {"beta": 0.5})
    value = g.node("Gemm", x, w, *g.bias(16), name=TARGET, **attributes)
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85))


def weight_only(g):
    """A product of floats and stored codes."""
    kind = g.choose("int8", "uint8", *(["int4", "uint4"] if g.opset >= 21 else []))
    x = g.input(g.choose([4, 64], ["rows", 64], [2, 3, 64]))
    axis = 1
    if g.opset >= 21 and g.rng.random() < 0.3:
        block = g.choose(16, 32, 64, 8, 24)
        stored = np.int8 if kind in ("int4", "uint4") else TYPES[kind]
        codes = g.constant(g.rng.integers(0, 7, (64, 16)).astype(stored), kind)
        scale = g.constant(np.full((-(-64 // block), 16), 0.01, np.float32))
        w = g.node("DequantizeLinear", codes, scale, axis=0, block_size=block)
    else:
        w = g.weight((64, 16), axis, kind)
    product = g.choose("MatMul", "MatMul", "Gemm")
    inputs, attributes = [x, w], {}
    if product == "Gemm":
        if len(g.inputs[0].type.tensor_type.shape.dim) != 2:
            g.inputs[0].type.tensor_type.shape.CopyFrom(helper.make_tensor_value_info("", 1, [4, 64]).type.tensor_type.shape)
        inputs += g.likely([], g.bias(16), share=0.3)
        attributes = g.likely({}, {"alpha": 0.5}, {"beta": 0.5}, share=0.85)
    value = g.node(product, *inputs, name=TARGET, **attributes)
    if product == "MatMul" and g.rng.random() < 0.3:
        value = g.node("Add", value, g.constant(np.ones(16, np.float32)))
    if g.rng.random() < 0.15:
        g.output(g.node("MatMul", x, w, name="tied"))
    how = g.likely("float", "relu", "relu output", "quantized", "twice", share=0.5)
    if how.startswith("relu"):
        value = g.node("Relu", value)
    if how == "quantized":
        value = g.pair(value, g.parameters("uint8"))
    if how == "twice":
        g.output(g.node("Sigmoid", value))
    g.output(value if how == "relu output" else g.node("Tanh", value))


def unary(g):
    op = g.choose("Sigmoid", "Softmax", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Tanh", "HardSwish" if g.opset >= 14 else "Elu")
    kind = activation_type(g)
    x = g.activation([1, 4, 8, 8], kind)
    attributes = {"kernel_shape": [2, 2]} if op == "AveragePool" else {}
    value = g.node(op, x, name=TARGET, **attributes)
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85))


def binary(g):
    op = g.choose("Add", "Mul", "Add", "Mul", "Sub", "Div")
    kind = activation_type(g)
    a = g.activation([1, 4, 8, 8], kind)
    how = g.likely("other", "same", "constant", "stored", share=0.6)
    if how == "other":
        b = g.activation([1, 4, 8, 8], g.likely(kind, "uint8", "int8", share=0.85))
    elif how == "same":
        b = a
    elif how == "constant":
        b = g.constant(np.ones((1, 4, 1, 1), np.float32) * 2)
    else:
        stored = kind if kind in ("uint8", "int8") else "uint8"
        b = g.dequantize(g.constant(np.full((1, 4, 1, 1), g.choose(50, 100)).astype(TYPES[stored])), g.parameters(stored))
    value = g.node(op, a, b, name=TARGET)
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85))


def several(g):
    """Concat and Where."""
    kind = activation_type(g)
    a = g.activation([1, 4, 8, 8], kind)
    b = g.activation([1, 4, 8, 8], g.likely(kind, "uint8", "int8", share=0.85))
    if g.rng.random() < 0.5:
        value = g.node("Concat", a, b, name=TARGET, axis=1)
    else:
        value = g.node("Where", g.input([1, 4, 8, 8], TensorProto.BOOL), a, b, name=TARGET)
    g.readers(value, g.likely(kind, "uint8", "int8", share=0.85))


def moves(g):
    """Operators that keep the parameters of what they move."""
    kind = activation_type(g)
    x = g.input([1, 4, 8, 8])
    parameters = g.parameters(kind, shape=g.likely((), (1,), share=0.8))
    value = g.pair(x, parameters)
    shape = g.constant(np.array([1, -1], np.int64))
    made = {
        "MaxPool": lambda: g.node("MaxPool", value, name=TARGET, kernel_shape=[2, 2]),
        "Reshape": lambda: g.node("Reshape", value, shape, name=TARGET),
        "Flatten": lambda: g.node("Flatten", value, name=TARGET),
        "Gather": lambda: g.node("Gather", value, g.constant(np.array([1, 0], np.int64)), name=TARGET, axis=1),
        "Tile": lambda: g.node("Tile", value, g.constant(np.array([1, 2, 1, 1], np.int64)), name=TARGET),
        "ArgMax": lambda: g.node("ArgMax", value, name=TARGET, axis=1),
        "Split": lambda: g.node("Split", value, *([g.constant(np.array([2, 2], np.int64))] if g.opset >= 13 else []), name=TARGET, axis=1, outputs=2),
    }
    op = g.choose(*made)
    result = made[op]()
    if op == "ArgMax":
        return g.output(result, TensorProto.INT64)
    how = g.likely("same", "equal", "other", "float", "output", share=0.4)
    others = {"same": parameters, "equal": g.parameters(kind), "other": g.parameters(kind, 0.07)}
    for value in result if isinstance(result, list) else [result]:
        if how == "output":
            g.output(value)
        elif how == "float":
            g.output(g.node("Tanh", value))
        else:
            g.output(g.node("Tanh", g.pair(value, others[how])))


def dynamic(g):
    """A product in integers of a value that is quantized when the model runs."""
    x = g.input(g.choose([4, 16], [2, 3, 16]))
    codes, scale, zero_point = g.node("DynamicQuantizeLinear", x, outputs=3)
    for number in range(g.likely(1, 2, share=0.7)):
        weights = g.constant(g.rng.integers(-100, 100, (16, 16)).astype(np.int8))
        zero_points = [g.constant(np.zeros(16, np.int8))] if g.rng.random() < 0.5 else []
        product = g.node("MatMulInteger", codes, weights, zero_point, *zero_points, name=f"{TARGET}{number}")
        floats = g.node("Cast", product, to=TensorProto.FLOAT)
        weight_scale = g.constant(np.full(16, 0.01, np.float32))
        how = g.likely("scales", "one by one", "cast besides", share=0.7)
        if how == "one by one":
            value = g.node("Mul", g.node("Mul", floats, scale), weight_scale)
        else:
            value = g.node("Mul", floats, g.node("Mul", scale, weight_scale))
        if how == "cast besides":
            g.output(g.node("Tanh", floats))
        if g.rng.random() < 0.5:
            value = g.node("Add", value, g.constant(np.ones(16, np.float32)))
        g.output(g.node("Tanh", value))


KINDS = [conv, conv, matmul, matmul, gemm, gemm, weight_only, weight_only, unary, binary, several, moves, dynamic]


def graph(seed):
    """A model, and what kind it is."""
    g = Graph(seed)
    g.opset = int(g.choose(11, 12, 13, 15, 17, 17, 19, 21, 22))
    kind = KINDS[seed % len(KINDS)]
    kind(g)
    return g.model(), kind.__name__
