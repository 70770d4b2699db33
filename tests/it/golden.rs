//! Replays what PyTorch, ONNX Runtime, compressed-tensors and llm-compressor computed, bit for bit.
//!
//! `fixtures/golden` holds the inputs and, for each case, the scales, zero points and ranges of the reference and a
//! hash of its codes; `make_fixture.py` there made it. Where `../shared/golden` has the whole set, its codes are
//! compared one by one as well.
//!
//! Deliberate differences, counted and checked to be what they should be: where the reference's scale is not finite
//! (extents beyond f32) ours is; a tensor without elements has the parameters of the range 0..0.

use qtool::method::Method;
use qtool::observers::{Batch, ObserverChoice, Target};
use qtool::quant::kernel::{Arithmetic, dequantize, min_max, quantize};
use qtool::quant::params::{ParamRule, Params, Range};
use qtool::quant::scheme::{CodeType, Convention, Grid};
use qtool::tensor::{Dtype, decode_f32, encode_f32, round_to};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every family with the number of its cases that are replayed and the deliberate differences among them.
const FAMILIES: &[(&str, usize, usize)] = &[
    ("ct.minmax", 460, 6),
    ("llmc.mse", 424, 6),
    ("ort.blocked", 84, 3),
    ("ort.calib", 171, 0),
    ("ort.calib_multi", 60, 0),
    ("ort.weight", 653, 0),
    ("ortrt.QuantizeLinear", 72, 0),
    ("torch.ema", 5, 0),
    ("torch.histogram", 92, 0),
    ("torch.histogram_multi", 5, 0),
    ("torch.minmax", 376, 20),
    ("torch.minmax_multi", 5, 0),
    ("torch.pcminmax", 331, 4),
];

/// A tensor of a safetensors file.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        decode_f32(self.dtype, &self.bytes, &mut values);
        values
    }
}

fn read_safetensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensor = |view: safetensors::tensor::TensorView<'_>| Tensor {
        dtype: Dtype::from_name(&format!("{:?}", view.dtype())).unwrap(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

/// The cases of the fixture.
struct Golden {
    cases: Vec<Value>,
    expected: Vec<u8>,
    inputs: BTreeMap<String, Tensor>,
}

impl Golden {
    fn load() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
        let index: Value = serde_json::from_slice(&std::fs::read(directory.join("cases.json")).unwrap()).unwrap();
        let Value::Array(cases) = index["cases"].clone() else { panic!("cases.json has no list of cases") };
        let expected = std::fs::read(directory.join("expected.bin")).unwrap();
        Golden { cases, expected, inputs: read_safetensors(&directory.join("inputs.safetensors")) }
    }

    /// The expected array `name` of a case as f32, which is exact for every type here.
    fn expected(&self, case: &Value, name: &str) -> Option<Vec<f32>> {
        let place = case[name].as_array()?;
        let (start, length) = (place[1].as_u64()? as usize, place[2].as_u64()? as usize);
        let bytes = &self.expected[start..start + length];
        Some(match place[0].as_str()? {
            "I32" => bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            "I8" => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
            dtype => {
                let dtype = Dtype::from_name(dtype).unwrap();
                let mut values = vec![0.0; bytes.len() / dtype.bytes().unwrap() as usize];
                decode_f32(dtype, bytes, &mut values);
                values
            }
        })
    }

    /// The batches of a case: one tensor, or those that its pattern names.
    fn batches(&self, case: &Value) -> Vec<&Tensor> {
        let input = case["input"].as_str().unwrap();
        match input.strip_suffix('*') {
            None => vec![&self.inputs[input]],
            Some(prefix) => {
                self.inputs.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix)).map(|(_, t)| t).collect()
            }
        }
    }
}

fn family(case: &Value) -> &str {
    case["id"].as_str().unwrap().split('/').next().unwrap()
}

/// How a case is to be computed.
struct Recipe {
    rule: ParamRule,
    /// The codes that values are clamped to.
    clamp: Grid,
    observer: Method,
    /// What the observer is told about symmetry.
    observed_symmetric: bool,
}

fn recipe(case: &Value, dtype: Dtype) -> Recipe {
    let codes: CodeType = case["qdtype"].as_str().unwrap().parse().unwrap();
    let symmetric = case["scheme"] == "symmetric";
    let convention = match family(case).split('.').next().unwrap() {
        "torch" => Convention::Torch,
        "ct" | "llmc" => Convention::CompressedTensors,
        _ => Convention::Ort,
    };
    let mut rule = ParamRule::new(convention, codes, symmetric, dtype);
    let mut clamp = codes.grid();
    if let (Some(qmin), Some(qmax)) = (case["qmin"].as_i64(), case["qmax"].as_i64()) {
        rule.grid = Grid { qmin: qmin as i32, qmax: qmax as i32 };
    }
    if let Some(eps) = case["eps"].as_f64() {
        rule.min_scale = eps as f32;
    }
    if case["reduce_range"] == true {
        rule.grid = if codes.is_signed() { Grid { qmin: -64, qmax: 64 } } else { Grid { qmin: 0, qmax: 127 } };
    }
    let calibration = &case["calib"];
    let observer = match (family(case), calibration["method"].as_str()) {
        ("torch.histogram", _) => {
            clamp = rule.grid;
            "histogram".to_owned()
        }
        ("torch.histogram_multi", _) => "histogram".to_owned(),
        ("torch.ema", _) => format!("moving-average:{}", case["averaging_constant"]),
        ("llmc.mse", _) => "memoryless-mse".to_owned(),
        ("ort.blocked", _) => {
            rule.blocked = true;
            "min-max".to_owned()
        }
        (_, Some("percentile")) => format!("percentile:{}", calibration["percentile"]),
        (_, Some("entropy")) => format!("entropy:{}", calibration["num_bins"]),
        (_, Some("minmax")) if calibration["moving_average"] == true => "mean-min-max".to_owned(),
        (_, Some("minmax")) if calibration["symmetric"] == true => "abs-max".to_owned(),
        _ => "min-max".to_owned(),
    };
    let observed_symmetric = calibration["symmetric"].as_bool().unwrap_or(symmetric);
    Recipe { rule, clamp, observer: observer.parse().unwrap(), observed_symmetric }
}

/// The elements of each group, groups in the order in which their scales are stored.
fn groups(case: &Value, shape: &[usize]) -> Vec<Vec<usize>> {
    let elements: usize = shape.iter().product();
    let columns = shape.last().copied().unwrap_or(1).max(1);
    let size = case["group_size"].as_u64().or(case["block_size"].as_u64()).map_or(columns, |size| size as usize);
    let group_of: Box<dyn Fn(usize) -> usize> = match case["granularity"].as_str().unwrap() {
        "tensor" => Box::new(|_| 0),
        "channel" => {
            let axis = case["axis"].as_u64().unwrap_or(0) as usize;
            let inner: usize = shape[axis + 1..].iter().product();
            let channels = shape[axis];
            Box::new(move |i| i / inner % channels)
        }
        "block" if case["block_size"].is_null() => Box::new(move |i| i / columns / 16 * columns.div_ceil(16) + i % columns / 16),
        _ => Box::new(move |i| i / columns * columns.div_ceil(size) + i % columns / size),
    };
    let count = (0..elements).map(&group_of).max().map_or(1, |last| last + 1);
    let mut groups = vec![Vec::new(); count];
    (0..elements).for_each(|i| groups[group_of(i)].push(i));
    groups
}

/// What a case comes to.
struct Outcome {
    ranges: Vec<Range>,
    params: Vec<Params>,
    codes: Vec<u8>,
    dequantized: Vec<f32>,
}

fn replay(case: &Value, recipe: &Recipe, batches: &[&Tensor]) -> Outcome {
    let observer = ObserverChoice::new(&recipe.observer).unwrap();
    let target = Target { rule: ParamRule { symmetric: recipe.observed_symmetric, ..recipe.rule }, single_batch: false };
    let values = batches[0].values();
    let groups = groups(case, &batches[0].shape);
    let rows: Vec<Vec<f32>> = groups.iter().map(|group| group.iter().map(|i| values[*i]).collect()).collect();
    let slices: Vec<&[f32]> = rows.iter().map(|row| row.as_slice()).collect();
    let shown: Vec<Batch<'_>> = slices.iter().map(|row| Batch { extent: min_max(row).range(), values: row }).collect();
    let ranges: Vec<Range> = if batches.len() > 1 {
        let mut observer = observer.build(&target);
        for batch in batches {
            let values = batch.values();
            observer.observe(Batch { extent: min_max(&values).range(), values: &values.as_slice() });
        }
        vec![observer.range()]
    } else if values.is_empty() {
        vec![Range::EMPTY; groups.len()]
    } else if let Some(joint) = observer.joint(&target) {
        joint(&shown)
    } else {
        shown.iter().map(|batch| observer.observe_once(*batch, &target)).collect()
    };
    let params: Vec<Params> = ranges.iter().map(|range| recipe.rule.choose_params(*range)).collect();
    let arithmetic = Arithmetic::of(recipe.rule.convention, recipe.rule.dtype);
    let (mut codes, mut dequantized) = (vec![0; values.len()], vec![0.0; values.len()]);
    for ((group, row), params) in groups.iter().zip(&rows).zip(&params) {
        let (mut row_codes, mut back) = (vec![0; row.len()], vec![0.0; row.len()]);
        quantize(row, *params, arithmetic, recipe.clamp, &mut row_codes);
        dequantize(&row_codes, recipe.clamp.qmin < 0, *params, &mut back);
        for (at, i) in group.iter().enumerate() {
            codes[*i] = row_codes[at];
            dequantized[*i] = back[at];
        }
    }
    Outcome { ranges, params, codes, dequantized }
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Same,
    /// A deliberate difference.
    Differs,
    Wrong(String),
}

fn judge(golden: &Golden, case: &Value, recipe: &Recipe) -> Verdict {
    let batches = golden.batches(case);
    let outcome = replay(case, recipe, &batches);
    let scales = golden.expected(case, "scale").expect("every case has scales");
    let zero_points = golden.expected(case, "zero_point").expect("every case has zero points");
    if outcome.params.iter().any(|params| !params.scale.is_finite() || params.scale <= 0.0) {
        return Verdict::Wrong("a scale is not finite and positive".to_owned());
    }
    if outcome.params.len() != scales.len() {
        return Verdict::Wrong(format!("{} groups, expected {}", outcome.params.len(), scales.len()));
    }
    let is_empty = batches[0].shape.contains(&0);
    for (i, params) in outcome.params.iter().enumerate().filter(|(i, _)| scales[*i].is_finite() && !is_empty) {
        if params.scale.to_bits() != scales[i].to_bits() || params.zero_point != zero_points[i] as i32 {
            return Verdict::Wrong(format!("group {i}: {params:?}, expected scale {} and zero point {}", scales[i], zero_points[i]));
        }
    }
    if is_empty {
        let same = outcome.params[0].scale == scales[0] && outcome.params[0].zero_point == zero_points[0] as i32;
        return if same { Verdict::Same } else { Verdict::Differs };
    }
    if scales.iter().any(|scale| !scale.is_finite()) {
        return Verdict::Differs;
    }
    let ends = |pick: fn(&Range) -> f32| outcome.ranges.iter().map(pick).collect::<Vec<f32>>();
    let whole = || outcome.ranges.iter().flat_map(|range| [range.min, range.max]).collect::<Vec<f32>>();
    for (name, ours) in [("range", whole()), ("min", ends(|range| range.min)), ("max", ends(|range| range.max))] {
        if golden.expected(case, name).is_some_and(|expected| expected != ours) {
            return Verdict::Wrong(format!("{name}: {ours:?}, expected {:?}", golden.expected(case, name)));
        }
    }
    if case["q"].as_str().is_some_and(|expected| expected != short_hash(&outcome.codes)) {
        return Verdict::Wrong("codes differ".to_owned());
    }
    if let (Some(expected), Some(dtype)) = (case["dq"].as_str(), case["dq_dtype"].as_str()) {
        let dtype = [("float32", Dtype::F32), ("float16", Dtype::F16), ("bfloat16", Dtype::BF16)].iter().find(|d| d.0 == dtype).unwrap().1;
        let rounded: Vec<f32> = outcome.dequantized.iter().map(|value| round_to(dtype, *value)).collect();
        let mut bytes = vec![0; rounded.len() * dtype.bytes().unwrap() as usize];
        encode_f32(dtype, &rounded, &mut bytes);
        if short_hash(&bytes) != expected {
            return Verdict::Wrong("dequantized values differ".to_owned());
        }
    }
    Verdict::Same
}

#[test]
fn references_are_reproduced_to_the_bit() {
    let golden = Golden::load();
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in &golden.cases {
        let recipe = recipe(case, golden.batches(case)[0].dtype);
        let (replayed, differ) = counts.entry(family(case)).or_default();
        *replayed += 1;
        match judge(&golden, case, &recipe) {
            Verdict::Same => {}
            Verdict::Differs => *differ += 1,
            Verdict::Wrong(why) => wrong.push(format!("{}: {why}", case["id"].as_str().unwrap())),
        }
    }
    println!("family: cases, of which deliberately different\n{counts:#?}");
    let shown: Vec<&String> = wrong.iter().take(40).collect();
    assert!(wrong.is_empty(), "{} cases are wrong: {shown:#?}", wrong.len());
    let counts: Vec<(&str, usize, usize)> = counts.into_iter().map(|(family, (cases, differ))| (family, cases, differ)).collect();
    assert_eq!(counts, FAMILIES);
}

#[test]
fn a_wrong_divisor_is_noticed() {
    let golden = Golden::load();
    let is_plain = |case: &&Value| family(case) == "torch.minmax" && case["id"].as_str().unwrap().contains("/int8.sym.tensor/");
    let cases: Vec<&Value> = golden.cases.iter().filter(is_plain).collect();
    let wrong = cases.iter().filter(|case| {
        let mut recipe = recipe(case, Dtype::F32);
        recipe.rule.grid = Grid { qmin: -127, qmax: 127 };
        matches!(judge(&golden, case, &recipe), Verdict::Wrong(_))
    });
    // Only tensors of zeros, without elements or with the smallest scale come out the same.
    assert!(wrong.count() * 10 > cases.len() * 8, "of {} cases", cases.len());
}

#[test]
fn codes_of_the_whole_set_are_equal_one_by_one() {
    let directory: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    if !directory.join("golden.safetensors").exists() {
        println!("skipped: no {}", directory.display());
        return;
    }
    let golden = Golden::load();
    let arrays = read_safetensors(&directory.join("golden.safetensors"));
    let mut compared = 0;
    for case in &golden.cases {
        let id = case["id"].as_str().unwrap();
        let Some(expected) = arrays.get(&format!("{id}#q")) else { continue };
        let batches = golden.batches(case);
        if golden.expected(case, "scale").unwrap().iter().any(|scale| !scale.is_finite()) {
            continue;
        }
        let outcome = replay(case, &recipe(case, batches[0].dtype), &batches);
        assert_eq!(outcome.codes, expected.bytes, "{id}");
        compared += 1;
    }
    println!("{compared} cases");
    assert!(compared > 2000);
}
