//! Statistics of activations: what merging, storing and reading keep of them, and how good the ranges are.

use crate::support::Workdir;
use qtool::calibration::stats::{ActivationStats, ModelIdentity, Refusal, Statistics, merge};
use qtool::method::Method;
use qtool::observers::{Batch, OBSERVERS, ObserverChoice, Target};
use qtool::outputs::staging::Durability;
use qtool::quant::kernel::{Arithmetic, min_max, quantize};
use qtool::quant::params::{ParamRule, Params, Range};
use qtool::quant::scheme::{CodeType, Convention};
use qtool::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Reproducible values: a linear congruential generator and textbook transformations.
struct Random(u64);

/// What activations look like.
const DISTRIBUTIONS: [&str; 8] = ["gaussian", "relu", "gelu", "softmax", "student t3", "outliers", "sigmoid", "relu6"];

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.uniform() * end as f64) as usize
    }

    fn gaussian(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn value(&mut self, distribution: &str) -> f64 {
        let x = self.gaussian();
        match distribution {
            "relu" => x.max(0.0),
            "gelu" => x * 1.5 / (1.0 + (-1.702 * 1.5 * x).exp()),
            "student t3" => x / ((0..3).map(|_| self.gaussian().powi(2)).sum::<f64>() / 3.0).sqrt(),
            "outliers" => x * if self.uniform() < 0.001 { 30.0 } else { 1.0 },
            "sigmoid" => 1.0 / (1.0 + (-3.0 * x).exp()),
            "relu6" => (3.0 * x).clamp(0.0, 6.0),
            _ => x,
        }
    }

    fn values(&mut self, distribution: &str, n: usize) -> Vec<f32> {
        if distribution != "softmax" {
            return (0..n).map(|_| self.value(distribution) as f32).collect();
        }
        let mut values = Vec::with_capacity(n);
        for row in (0..n).step_by(64) {
            let exponentials: Vec<f64> = (row..n.min(row + 64)).map(|_| (2.0 * self.gaussian()).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            values.extend(exponentials.iter().map(|x| (x / sum) as f32));
        }
        values
    }
}

fn model(content: &str) -> ModelIdentity {
    ModelIdentity { name: "model.onnx".to_owned(), bytes: content.len() as u64, blake3: blake3::hash(content.as_bytes()) }
}

fn stats(batches: &[&[f32]]) -> ActivationStats {
    let mut stats = ActivationStats::new();
    batches.iter().for_each(|batch| stats.observe(batch).unwrap());
    stats
}

/// Statistics of the samples at `indices`, each with values for two activations.
fn run(indices: &[usize]) -> Statistics {
    let names = ["/a/Relu_output_0", "b.bins"];
    let mut statistics = Statistics::new(model("m"), names.map(|name| (name.to_owned(), ActivationStats::new())).into());
    for index in indices {
        assert!(statistics.add_sample(blake3::hash(&index.to_le_bytes())));
        let mut random = Random(*index as u64);
        for (name, stats) in &mut statistics.activations {
            let distribution = DISTRIBUTIONS[(index + name.len()) % DISTRIBUTIONS.len()];
            let n = [0, 1, 2, 300, 5000][random.below(5)];
            let scale = [1.0, 1e-6, 0.0, -0.0, 1e30][random.below(5)];
            let values: Vec<f32> = random.values(distribution, n).iter().map(|x| x * scale).collect();
            stats.observe(&values).unwrap();
        }
    }
    statistics
}

/// A file small enough to be changed at every byte.
fn small() -> Statistics {
    let mut smoothed = ActivationStats::with_moving_average(0.01);
    smoothed.observe(&[-0.5, 0.25]).unwrap();
    smoothed.observe(&[0.0, 1.0]).unwrap();
    let activations = [("x", stats(&[&[0.0, -1.5, 1.5, 1.501, 70000.0], &[1e-3]])), ("y", smoothed), ("z", ActivationStats::new())];
    let mut statistics = Statistics::new(model("m"), activations.map(|(name, stats)| (name.to_owned(), stats)).into());
    assert!(["p", "q"].iter().all(|sample| statistics.add_sample(blake3::hash(sample.as_bytes()))));
    statistics
}

fn read(dir: &Workdir, bytes: &[u8]) -> qtool::Result<Statistics> {
    // A new file each time, as the reader maps it.
    let path = dir.path("s.safetensors");
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).unwrap();
    Statistics::read(&path)
}

/// The file with its seal made good.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let key = br#"\"blake3\":\""#;
    let Some(place) = bytes.windows(key.len()).position(|window| window == key).map(|place| place + key.len()) else { return bytes };
    if bytes.len() >= place + 64 {
        bytes[place..place + 64].fill(b'0');
        let seal = blake3::hash(&bytes).to_hex();
        bytes[place..place + 64].copy_from_slice(seal.as_bytes());
    }
    bytes
}

#[test]
fn merging_in_any_grouping_is_one_run_bit_for_bit() {
    let samples: Vec<usize> = (0..24).collect();
    let whole = run(&samples).to_bytes();
    let mut random = Random(1);
    for round in 0..40 {
        let mut shuffled = samples.clone();
        (1..shuffled.len()).for_each(|i| shuffled.swap(i, random.below(i + 1)));
        let mut parts = Vec::new();
        let mut rest = shuffled.as_slice();
        while !rest.is_empty() {
            let (part, others) = rest.split_at(1 + random.below(rest.len().min(9)));
            parts.push(run(part));
            rest = others;
        }
        // Some of them at a time, through files or not, until one is left.
        let dir = Workdir::new();
        while parts.len() > 1 {
            let some: Vec<Statistics> =
                (0..2 + random.below(3).min(parts.len() - 2)).map(|_| parts.remove(random.below(parts.len()))).collect();
            let merged = merge(some).unwrap();
            parts.push(if round % 4 == 0 { read(&dir, &merged.to_bytes()).unwrap() } else { merged });
        }
        assert!(parts[0].to_bytes() == whole, "round {round}");
        assert_eq!(parts[0].samples(), 24);
    }
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let refused = |parts: Vec<Statistics>, expected: &str| {
        let error = merge(parts).err().expect(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), 1);
    };
    let mut another = run(&[2]);
    another.model = model("another");
    refused(vec![run(&[1]), another], "model: expected");
    refused(vec![run(&[1, 2]), run(&[3, 2])], "samples: expected none of those of statistics of this run, found 1 that is");
    let mut more = run(&[2]);
    more.activations.insert("c".to_owned(), ActivationStats::new());
    refused(vec![run(&[1]), more.clone()], r#"activation "c": expected none as in statistics of this run, found one"#);
    refused(vec![more, run(&[1])], r#"activation "c": expected one as in statistics of this run, found none"#);
    let mut smoothed = run(&[2]);
    smoothed.activations.insert("b.bins".to_owned(), ActivationStats::with_moving_average(0.1));
    refused(vec![run(&[1]), smoothed.clone()], "depend on the order of samples");
    assert!(merge(vec![smoothed]).is_ok(), "one part is as it is");
    assert_eq!(merge(vec![]).err().unwrap().exit_code(), 2);
    // A model may have been renamed.
    let renamed = |indices: &[usize], name: &str| {
        let mut statistics = run(indices);
        statistics.model.name = name.to_owned();
        statistics
    };
    let merged = |parts| merge(parts).unwrap().to_bytes();
    assert!(merged(vec![renamed(&[1], "b"), renamed(&[2], "a")]) == merged(vec![renamed(&[2], "a"), renamed(&[1], "b")]));
}

#[test]
fn statistics_of_another_model_are_refused() {
    assert!(run(&[1]).check_model(&ModelIdentity { name: "renamed".to_owned(), ..model("m") }).is_ok());
    let error = run(&[1]).check_model(&model("n")).unwrap_err();
    assert!(error.to_string().contains(&model("n").blake3.to_hex().to_string()), "{error}");
    assert_eq!(error.exit_code(), 1);
    let twice = &mut run(&[1]);
    assert!(!twice.add_sample(blake3::hash(&1usize.to_le_bytes())));
}

#[test]
fn values_that_are_not_finite_leave_no_trace() {
    let mut stats = stats(&[&[1.0, 2.0]]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(stats.observe(&[0.0, bad]), Err(Refusal::NotFinite));
    }
    assert_eq!((stats.values(), stats.batches(), stats.extent()), (2, 1, Range { min: 1.0, max: 2.0 }));
}

#[test]
fn sums_are_those_of_the_values() {
    for distribution in DISTRIBUTIONS {
        let values = Random(9).values(distribution, 100_000);
        let stats = stats(&[&values]);
        let sum: f64 = values.iter().map(|x| f64::from(*x)).sum();
        let squares: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((stats.sum() - sum).abs() <= 1e-12 * squares.sqrt() * 100_000f64.sqrt(), "{distribution}: {} {sum}", stats.sum());
        assert!((stats.sum_of_squares() / squares - 1.0).abs() < 1e-6, "{distribution}: {} {squares}", stats.sum_of_squares());
    }
}

#[test]
fn a_file_says_what_was_written() {
    let dir = Workdir::new();
    let path = dir.path("s.safetensors");
    for statistics in [small(), run(&(0..20).collect::<Vec<_>>()), Statistics::new(model(""), BTreeMap::new())] {
        statistics.write(&path, true, Durability::None).unwrap();
        let back = Statistics::read(&path).unwrap();
        assert_eq!(back.file(), Some(path.as_path()));
        assert!(back.to_bytes() == statistics.to_bytes() && dir.read("s.safetensors") == statistics.to_bytes());
        assert_eq!(
            (&back.model, back.samples(), back.samples_hash()),
            (&statistics.model, statistics.samples(), statistics.samples_hash())
        );
        for (name, stats) in &statistics.activations {
            let read = &back.activations[name];
            assert_eq!((read.values(), read.batches(), read.summary()), (stats.values(), stats.batches(), stats.summary()), "{name}");
        }
        assert!(safetensors::SafeTensors::deserialize(&dir.read("s.safetensors")).is_ok(), "the reference reads it");
    }
    let error = small().write(&path, false, Durability::None).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    dir.expect_no_temporaries();
}

#[test]
fn a_file_with_any_byte_changed_or_cut_off_is_refused() {
    let dir = Workdir::new();
    let bytes = small().to_bytes();
    for at in 0..bytes.len() {
        for bits in [1, 0x20, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= bits;
            assert!(read(&dir, &changed).is_err(), "byte {at} changed by {bits:#x}");
        }
        let error = read(&dir, &bytes[..at]).err().expect("a part of a file is refused");
        assert!(matches!(error.exit_code(), 1 | 6), "{error}");
    }
    assert!(read(&dir, &bytes).is_ok());
}

#[test]
fn a_file_with_any_byte_changed_and_sealed_again_is_refused_or_means_what_it_says() {
    let dir = Workdir::new();
    let bytes = small().to_bytes();
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for bits in [1, 2, 0x10, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= bits;
            let Ok(statistics) = read(&dir, &sealed(changed)) else { continue };
            accepted += 1;
            let again = statistics.to_bytes();
            assert!(read(&dir, &again).unwrap().to_bytes() == again);
            for stats in statistics.activations.values() {
                let summary = stats.summary();
                assert!(summary.bins.iter().all(|bin| bin.low <= bin.mean && bin.mean <= bin.high), "byte {at}");
                assert!(summary.bins.is_sorted_by(|a, b| a.high <= b.low), "byte {at}");
                for observer in OBSERVERS.iter().filter(|observer| observer.name != "moving-average") {
                    let observer = ObserverChoice::new(&Method::new(observer.name)).unwrap();
                    let range = stats.range(&observer, &target(CodeType::Uint8, false)).unwrap();
                    assert!(range.min.is_finite() && range.max.is_finite() && range.min <= range.max, "byte {at}: {range:?}");
                }
            }
        }
    }
    // Names, hashes, extents, some remainders.
    assert!(accepted > 100 && accepted < bytes.len() * 5 / 2, "{accepted} of {}", bytes.len() * 5);
}

/// Tensors of a file, for changes that keep it well-formed.
type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

fn rewritten(bytes: &[u8], metadata: impl Fn(&str) -> String, change: impl Fn(&mut Tensors)) -> Vec<u8> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    let text = &header.metadata().as_ref().unwrap()["qtool"];
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut tensors: Tensors =
        file.tensors().into_iter().map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let metadata = [("qtool".to_owned(), metadata(text))].into();
    sealed(safetensors::serialize(views, Some(metadata)).unwrap())
}

type Change = Box<dyn Fn(&mut Tensors)>;

fn set(name: &'static str, at: usize, value: &[u8]) -> Change {
    let value = value.to_vec();
    Box::new(move |tensors| tensors.get_mut(name).unwrap().2[at..at + value.len()].copy_from_slice(&value))
}

fn without(name: &'static str) -> Change {
    Box::new(move |tensors| drop(tensors.remove(name)))
}

fn with(name: &'static str) -> Change {
    Box::new(move |tensors| drop(tensors.insert(name.to_owned(), (safetensors::Dtype::U8, vec![1], vec![0]))))
}

#[test]
fn contradictions_are_named() {
    let dir = Workdir::new();
    let bytes = small().to_bytes();
    assert!(read(&dir, &rewritten(&bytes, str::to_owned, |_| {})).is_ok());
    let cases: Vec<(Change, &str)> = vec![
        (without("samples"), "samples: expected a tensor of this name, found none"),
        (without("x.bins"), r#"tensor "x": sections: expected bins, found none"#),
        (with("x.gram"), r#"tensor "x.gram": section: expected one of totals, "#),
        (with("stray"), r#"tensor "stray": name: expected samples or NAME.SECTION, found neither"#),
        (with("x.totals"), "type: expected U64 [2], found U8 [1]"),
        (with("samples"), "type: expected U8 [n, 32], found U8 [1]"),
        (set("samples", 0, &[0xff; 32]), "hashes: expected them ascending"),
        (set("x.totals", 0, &[7]), r#"tensor "x.counts": values: expected the 7 values of the totals, found 6"#),
        (set("x.totals", 8, &[7]), r#"tensor "x.totals": values: expected at most"#),
        (set("z.totals", 0, &[1]), r#"tensor "z.totals": values: expected at most"#),
        (set("x.extent", 0, &f32::NAN.to_le_bytes()), r#"tensor "x.extent": values: expected a finite minimum and maximum"#),
        (set("x.extent", 0, &1e6f32.to_le_bytes()), r#"tensor "x.extent": values: expected a finite minimum and maximum"#),
        (set("x.extent", 0, &(-2f32).to_le_bytes()), r#"tensor "x.bins": values: expected the ends of the extent"#),
        (set("x.bins", 0, &i32::MAX.to_le_bytes()), "expected bins of finite numbers, found 2147483647"),
        (set("x.bins", 4, &(-90_000i32).to_le_bytes()), "expected ascending numbers, found -90000 after"),
        (set("x.counts", 0, &[0, 0]), "expected a count and remainders that fit it, found 0"),
        (set("x.remainders", 0, &[0xff, 0xff]), "expected a count and remainders that fit it, found 1 and 65535"),
        (set("x.extents", 0, &[0xff]), r#"tensor "x.extents": values: expected ascending exponents"#),
        (set("y.extents", 8, &[0xff; 7]), r#"tensor "y.extents": values: expected sums of 2 mantissas"#),
        (set("y.moving_average", 0, &2f32.to_le_bytes()), "expected a weight from 0 to 1 and finite ends, found 2"),
    ];
    for (change, expected) in cases {
        let error = read(&dir, &rewritten(&bytes, str::to_owned, change)).err().expect(expected);
        assert!(error.to_string().contains(expected), "{error} instead of {expected}");
        assert_eq!(error.exit_code(), 1, "{error}");
    }
    for (from, to, expected) in [
        ("qtool-statistics", "statistics", r#"metadata: format: expected "qtool-statistics", found "statistics""#),
        ("\"version\":1", "\"version\":3", "metadata: version: expected 1 or 2, found 3"),
        ("\"version\":1", "\"version\":1,\"more\":0", "metadata: expected the fields of version 1, found unknown field `more`"),
        ("bits\":9", "bits\":10", "bins: expected 9 bits of mantissas, found 10"),
        ("{", "", "metadata: expected a JSON object, found"),
    ] {
        let edited = rewritten(&bytes, |text| text.replacen(from, to, 1), |_| {});
        let error = read(&dir, &edited).err().expect(expected);
        assert!(error.to_string().contains(expected), "{error} instead of {expected}");
    }
    let fixture = Statistics::read(Path::new(crate::support::FIXTURE)).err().unwrap();
    assert!(fixture.to_string().contains("of a file of statistics"), "{fixture}");
}

#[test]
fn an_activation_takes_less_than_200_kb() {
    for distribution in DISTRIBUTIONS {
        let mut random = Random(4);
        let mut stats = ActivationStats::new();
        (0..10).for_each(|_| stats.observe(&random.values(distribution, 100_000)).unwrap());
        println!("{distribution}: {} bins, {} bytes", stats.summary().bins.len(), stats.memory());
        assert!(stats.memory() < 200_000, "{distribution}: {} bytes", stats.memory());
    }
    assert!(ActivationStats::new().memory() < 4000);
}

fn target(codes: CodeType, symmetric: bool) -> Target {
    Target { rule: ParamRule::new(Convention::Ort, codes, symmetric, Dtype::F32), single_batch: false }
}

fn choose(method: &str, batches: &[&[f32]], target: &Target) -> (Range, Range) {
    let observer = ObserverChoice::new(&method.parse().unwrap()).unwrap();
    let mut stats = observer.averaging_weight().map_or_else(ActivationStats::new, ActivationStats::with_moving_average);
    let mut raw = observer.build(target);
    for values in batches {
        stats.observe(values).unwrap();
        raw.observe(Batch { extent: min_max(values).range(), values });
    }
    (stats.range(&observer, target).unwrap(), raw.range())
}

#[test]
fn extents_are_chosen_as_from_the_values() {
    let mut random = Random(5);
    for distribution in DISTRIBUTIONS {
        let batches: Vec<Vec<f32>> = (0..7).map(|i| random.values(distribution, 100 + 50 * i)).collect();
        let batches: Vec<&[f32]> = batches.iter().map(Vec::as_slice).collect();
        for method in ["min-max", "abs-max", "moving-average", "moving-average:0.25"] {
            let (ours, raw) = choose(method, &batches, &target(CodeType::Uint8, false));
            assert_eq!(ours, raw, "{method} of {distribution}");
        }
        let (ours, raw) = choose("mean-min-max", &batches, &target(CodeType::Uint8, false));
        let close = |a: f32, b: f32| (a - b).abs() <= 4.0 * f32::EPSILON * b.abs();
        assert!(close(ours.min, raw.min) && close(ours.max, raw.max), "{ours:?} {raw:?}");
    }
}

#[test]
fn a_moving_average_that_was_not_asked_for_is_an_error() {
    let target = target(CodeType::Uint8, false);
    let observer = ObserverChoice::new(&"moving-average:0.25".parse().unwrap()).unwrap();
    let error = stats(&[&[1.0]]).range(&observer, &target).unwrap_err();
    assert_eq!(error.to_string(), "observer moving-average:0.25: expected statistics with its running values, found none");
    let mut other = ActivationStats::with_moving_average(0.01);
    other.observe(&[1.0]).unwrap();
    let error = other.range(&observer, &target).unwrap_err();
    assert!(error.to_string().ends_with("found those of moving-average:0.01"), "{error}");
    assert_eq!(other.clone().merge(&stats(&[&[1.0]])), Err(Refusal::OrderMatters));
}

#[test]
fn percentiles_are_within_a_bin_of_those_of_the_values() {
    let mut random = Random(6);
    for distribution in DISTRIBUTIONS {
        let values = random.values(distribution, 200_000);
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        let mut magnitudes: Vec<f32> = values.iter().map(|x| x.abs()).collect();
        magnitudes.sort_by(f32::total_cmp);
        let extent = min_max(&values).range();
        let at = |sorted: &[f32], share: f64| {
            let place = (share * sorted.len() as f64).ceil() as usize;
            (sorted[place.saturating_sub(2)], sorted[place.min(sorted.len() - 1)])
        };
        let within = |ours: f32, (low, high): (f32, f32)| ours >= low - low.abs() / 512.0 && ours <= high + high.abs() / 512.0;
        for percent in [90.0, 99.0, 99.9, 99.99, 99.999, 100.0] {
            let method = format!("percentile:{percent}");
            let (ours, raw) = choose(&method, &[&values], &target(CodeType::Uint8, false));
            let cut = (100.0 - percent) / 200.0;
            assert!(within(ours.min, at(&sorted, cut)) && within(ours.max, at(&sorted, 1.0 - cut)), "{method} {distribution}: {ours:?}");
            // The values' own histogram has 2048 bins; it reports the lower edge of one.
            let width = extent.max.max(-extent.min) / 1024.0;
            let near = |a: f32, b: f32| (a - b).abs() <= width * 1.01 + b.abs() / 512.0;
            assert!(near(ours.min, raw.min) && near(ours.max, raw.max), "{method} {distribution}: {ours:?} {raw:?}");
            let (symmetric, _) = choose(&method, &[&values], &target(CodeType::Int8, true));
            let largest = symmetric.max.max(-symmetric.min);
            assert!(within(largest, at(&magnitudes, percent / 100.0)), "{method} {distribution}: {symmetric:?}");
        }
    }
}

fn error(values: &[f32], rule: &ParamRule, params: Params) -> f64 {
    let mut codes = vec![0; values.len()];
    quantize(values, params, Arithmetic::Divide, rule.grid, &mut codes).error
}

fn range_error(values: &[f32], rule: &ParamRule, range: Range) -> f64 {
    error(values, rule, rule.choose_params(range))
}

/// The least error over both ends of the range: a coarse grid of both, and ever finer ones around the best.
fn least_error(values: &[f32], rule: &ParamRule) -> f64 {
    let extent = min_max(values).range().with_zero();
    let mut best = (f64::INFINITY, (0.0f32, 0.0f32));
    let mut consider = |shares: (f32, f32)| {
        let range = Range { min: extent.min * shares.0, max: extent.max * shares.1 };
        let lost = range_error(values, rule, range);
        if lost < best.0 {
            best = (lost, shares);
        }
        best.1
    };
    let both = !rule.symmetric && extent.min < 0.0 && extent.max > 0.0;
    let mut center = (0.0, 0.0);
    for i in 0..24 {
        for k in if both { 0..24 } else { i..i + 1 } {
            center = consider((1.01 * 0.86f32.powi(i), 1.01 * 0.86f32.powi(k)));
        }
    }
    for step in [0.05f32, 0.02, 0.007, 0.0025] {
        for _ in 0..3 {
            let from = center;
            for (i, k) in (-3..=3).flat_map(|i| (-3..=3).map(move |k| (i, k))).filter(|(i, k)| both || i == k) {
                center = consider((from.0 * (1.0 + step * i as f32), from.1 * (1.0 + step * k as f32)));
            }
            if center == from {
                break;
            }
        }
    }
    best.0
}

#[test]
fn the_least_squares_of_bins_are_within_a_twentieth_of_a_decibel_of_those_of_values() {
    let mut random = Random(7);
    let mut worst = f64::NEG_INFINITY;
    for distribution in DISTRIBUTIONS {
        let values = random.values(distribution, 20_000);
        for (codes, symmetric) in [(CodeType::Uint8, false), (CodeType::Int8, true), (CodeType::Uint4, false), (CodeType::Int4, true)] {
            let target = target(codes, symmetric);
            let (ours, raw) = choose("mse", &[&values], &target);
            let least = least_error(&values, &target.rule).min(range_error(&values, &target.rule, raw));
            let gap = 10.0 * (range_error(&values, &target.rule, ours) / least).log10();
            println!("{distribution} {codes} symmetric {symmetric}: {gap:.4} dB above the best");
            worst = worst.max(gap);
        }
    }
    assert!(worst <= 0.05, "{worst} dB");
}

#[test]
fn searches_of_histograms_come_close_to_those_of_the_values() {
    let mut random = Random(8);
    for distribution in DISTRIBUTIONS {
        let values = random.values(distribution, 80_000);
        for (method, allowed) in [("histogram", 0.01), ("entropy:512", 0.05), ("entropy:1024", 0.05), ("memoryless-mse", 0.05)] {
            for symmetric in [false, true] {
                let target = target(if symmetric { CodeType::Int8 } else { CodeType::Uint8 }, symmetric);
                let (ours, raw) = choose(method, &[&values], &target);
                let gap = 10.0 * (range_error(&values, &target.rule, ours) / range_error(&values, &target.rule, raw)).log10();
                assert!(gap.abs() <= allowed, "{method} of {distribution}, symmetric {symmetric}: {ours:?} {raw:?}: {gap} dB");
            }
        }
    }
}

#[test]
fn every_observer_chooses_a_finite_range_within_the_extent_whatever_the_statistics() {
    let rows: [&[f32]; 9] = [
        &[],
        &[0.0],
        &[-0.0, 0.0],
        &[1e-45, 0.0],
        &[f32::MAX, f32::MIN],
        &[-3.0],
        &[1e-12; 700],
        &[f32::MAX; 3],
        &[0.0, 1.0, 1.0, 2.0, 2.0, 2.0],
    ];
    for entry in OBSERVERS {
        for row in rows {
            for symmetric in [false, true] {
                let (ours, raw) = choose(entry.name, &[row, row], &target(CodeType::Uint8, symmetric));
                let what = format!("{} of {} values: {ours:?} {raw:?}", entry.name, row.len());
                assert!(ours.min.is_finite() && ours.max.is_finite() && ours.min <= ours.max, "{what}");
            }
        }
    }
}
