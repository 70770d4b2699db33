//! Names of the standard operators (`ai.onnx`), with the version of the operator set that brought each.
//!
//! Listed from `onnx.defs.get_all_schemas_with_history()` of the Python package onnx 1.23.2, and from ONNX Runtime
//! 1.32.0 for those that it defines on top under the same domain: its optimizer writes them into models. What the
//! operators take and return is not here.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Newest known version of the standard operators.
pub(super) const NEWEST_OPSET: i64 = 28;
/// Oldest version that is read: ONNX Runtime guarantees nothing below.
pub(super) const OLDEST_OPSET: i64 = 7;

/// Version, and the operators that came with it.
const OPERATORS: &[(i64, &str)] = &[
    (
        1,
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv ConvTranspose DepthToSpace \
        Div Dropout Elu Equal Exp Flatten Floor GRU Gather Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater HardSigmoid \
        Hardmax Identity If InstanceNormalization LRN LSTM LeakyRelu Less Log LogSoftmax Loop LpNormalization LpPool MatMul Max \
        MaxPool MaxRoiPool Mean Min Mul Neg Not Or PRelu Pad Pow RNN RandomNormal RandomNormalLike RandomUniform \
        RandomUniformLike Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd \
        ReduceSum ReduceSumSquare Relu Reshape Selu Shape Sigmoid Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt \
        Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Upsample Xor",
    ),
    (7, "Acos Asin Atan Cos Multinomial Sin Tan"),
    (8, "Expand Scan"),
    (
        9,
        "Acosh Asinh Atanh Compress ConstantOfShape Cosh Erf EyeLike IsNaN MaxUnpool MeanVarianceNormalization NonZero OneHot \
        Scatter Shrink Sign Sinh TfIdfVectorizer Where",
    ),
    (
        10,
        "ConvInteger DequantizeLinear IsInf MatMulInteger Mod NonMaxSuppression QLinearConv QLinearMatMul QuantizeLinear Resize \
        ReverseSequence RoiAlign StringNormalizer ThresholdedRelu",
    ),
    (
        11,
        "BitShift ConcatFromSequence CumSum Det DynamicQuantizeLinear GatherElements GatherND Range Round ScatterElements \
        ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence Unique",
    ),
    (12, "Celu Einsum GreaterOrEqual LessOrEqual NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    (14, "HardSwish Trilu"),
    (15, "Bernoulli CastLike Optional OptionalGetElement OptionalHasElement"),
    (16, "GridSample"),
    (17, "BlackmanWindow DFT HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT SequenceMap"),
    (18, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im GroupNormalization Mish"),
    (19, "DeformConv"),
    (20, "AffineGrid Gelu ImageDecoder RegexFullMatch StringConcat StringSplit"),
    (23, "Attention RMSNormalization RotaryEmbedding"),
    (24, "Swish TensorScatter"),
    (26, "BitCast CumProd"),
    (27, "CausalConvWithState LinearAttention"),
    (28, "SwiGLU"),
];

/// Operators and versions of ONNX Runtime's own.
const RUNTIME_OPERATORS: &str = "Affine Crop DisentangledAttention_TRT DynamicSlice EfficientNMS_TRT GRUUnit GivenTensorFill \
    ImageScaler LayerNormalization MeanVarianceNormalization MemcpyFromHost MemcpyToHost MultilevelCropAndResize_TRT \
    ParametricSoftplus PyramidROIAlign_TRT Scale ScaledTanh SimplifiedLayerNormalization ThresholdedRelu";

/// Operators that no longer exist, from this version on.
const REMOVED: &[(&str, i64, &str)] = &[("Upsample", 10, "Resize"), ("Scatter", 11, "ScatterElements")];

static FIRST_VERSION: LazyLock<HashMap<&str, i64>> = LazyLock::new(|| {
    let standard = OPERATORS.iter().flat_map(|(version, names)| names.split(' ').map(|name| (name, *version)));
    standard.chain(RUNTIME_OPERATORS.split(' ').map(|name| (name, 1))).collect()
});

/// Whether version `opset` of the standard operators has `op_type`.
///
/// # Errors
///
/// What was expected and what was found.
pub(super) fn check_operator(op_type: &str, opset: i64) -> Result<(), String> {
    match FIRST_VERSION.get(op_type) {
        None => Err("expected an operator of ONNX, found none of this name".into()),
        Some(first) if *first > opset => Err(format!("expected operator set {first} or newer, found {opset}")),
        Some(_) => match REMOVED.iter().find(|(name, since, _)| *name == op_type && *since <= opset) {
            Some((_, since, successor)) => Err(format!("expected {successor} since operator set {since}, found set {opset}")),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_exist_from_their_version_on() {
        assert_eq!(FIRST_VERSION.len(), 203 + 16);
        assert_eq!(OPERATORS.last().unwrap().0, NEWEST_OPSET);
        for (op_type, opset, expected) in [
            ("Conv", 7, Ok(())),
            ("Gelu", 20, Ok(())),
            ("Gelu", 19, Err("expected operator set 20 or newer, found 19")),
            ("SimplifiedLayerNormalization", 11, Ok(())),
            ("Upsample", 9, Ok(())),
            ("Upsample", 10, Err("expected Resize since operator set 10, found set 10")),
            ("conv", 17, Err("expected an operator of ONNX, found none of this name")),
        ] {
            assert_eq!(check_operator(op_type, opset), expected.map_err(String::from), "{op_type} {opset}");
        }
    }
}
