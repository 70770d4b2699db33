//! What a model takes, and whether arrays of a sample are that: names, element types, dimensions.

use super::Origin;
use crate::error::{Error, Result, show_name};
use crate::tensor::Dtype;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

/// Most inputs or names that a message lists.
const LISTED: usize = 6;

/// Names longer than this, in bytes, are not compared for likeness.
const COMPARABLE: usize = 64;

/// An input that a model declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// The name, which is the key in samples.
    pub name: String,
    /// The element type; `None` if the model does not say.
    pub dtype: Option<Dtype>,
    /// The dimensions, outermost first; `None` in place of one that may vary, or of all if the model does not say.
    pub shape: Option<Vec<Option<usize>>>,
}

impl fmt::Display for InputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", show_name(&self.name))?;
        if let Some(dtype) = self.dtype {
            write!(f, " {dtype}")?;
        }
        match &self.shape {
            Some(shape) => write!(f, " {}", show_shape(shape)),
            None => Ok(()),
        }
    }
}

pub(super) fn show_shape(shape: &[Option<usize>]) -> String {
    let dims: Vec<String> = shape.iter().map(|dim| dim.map_or("?".into(), |dim| dim.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

/// All inputs as one line; the first ones if there are many.
pub(super) fn show_inputs(inputs: &[InputSpec]) -> String {
    list(inputs.iter().map(ToString::to_string))
}

fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(LISTED);
    let mut shown: Vec<String> = items.take(LISTED).collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

/// For each of `inputs`, the place of its name in `names`, which are those of one sample.
///
/// # Errors
///
/// If a name occurs twice, an input is missing, or a name is none of the inputs'; with what the model takes and the likeliest name.
pub(super) fn match_names(path: &Path, what: &str, inputs: &[InputSpec], names: &[&str]) -> Result<Vec<usize>> {
    let places: HashMap<&str, usize> = names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    if places.len() < names.len() {
        let twice = names.iter().enumerate().find(|(place, name)| places[*name] != *place).map_or("", |(_, name)| name);
        return Err(Error::malformed(path, format!("{what}: expected every name once, found {} twice", show_name(twice))));
    }
    let known: HashSet<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
    let missing: Vec<&InputSpec> = inputs.iter().filter(|input| !places.contains_key(input.name.as_str())).collect();
    let unknown: Vec<&str> = names.iter().copied().filter(|name| !known.contains(name)).collect();
    let quoted = |names: &[&str]| list(names.iter().map(|name| show_name(name).to_string()));
    let found = match (missing.is_empty(), unknown.is_empty()) {
        (true, true) => return Ok(inputs.iter().map(|input| places[input.name.as_str()]).collect()),
        (false, false) => quoted(&unknown),
        (true, false) => format!("{} as well", quoted(&unknown)),
        (false, true) => format!("no {}", list(missing.iter().map(|input| show_name(&input.name).to_string()))),
    };
    let error = Error::malformed(path, format!("{what}: expected {}, found {found}", show_inputs(inputs)));
    Err(match (&missing[..], &unknown[..]) {
        ([], unknown) => error.with_hint(format!("leave out {}: the model has no such input", quoted(unknown))),
        (_, []) => error.with_hint("every sample needs all inputs of the model"),
        (missing, unknown) => match likeliest(missing, unknown) {
            Some((input, name)) => error.with_hint(format!("did you mean {}? Rename {} to it", show_name(&input.name), show_name(name))),
            None => error.with_hint("name the arrays as the inputs of the model"),
        },
    })
}

/// The pair of a missing input and an unknown name that are most alike, if any are.
fn likeliest<'a>(missing: &[&'a InputSpec], unknown: &[&'a str]) -> Option<(&'a InputSpec, &'a str)> {
    if let ([input], [name]) = (missing, unknown) {
        return Some((input, name));
    }
    let pairs = missing.iter().take(LISTED).flat_map(|input| unknown.iter().take(LISTED).map(move |name| (*input, *name)));
    let alike = pairs.filter_map(|(input, name)| Some((edits(&input.name, name)?, input, name)));
    alike.min_by_key(|(edits, ..)| *edits).map(|(_, input, name)| (input, name))
}

/// Edits (Levenshtein distance) between two names that differ in case, or in less than half of the shorter one.
fn edits(a: &str, b: &str) -> Option<usize> {
    if a.len().max(b.len()) > COMPARABLE {
        return None;
    }
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let shorter = a.chars().count().min(b.chars().count());
    Some(strsim::levenshtein(&a, &b)).filter(|edits| 2 * edits < shorter)
}

/// Whether an array of this type and shape can be given for `input`.
///
/// Any float is rounded to the declared float type and any integer that fits is taken, because NumPy makes F64 and I64
/// (or I32) of Python's numbers unasked.
///
/// # Errors
///
/// If the type is of another kind, the rank is another, or a dimension that the model fixes is another.
pub(super) fn check_array(origin: &Origin<'_>, input: &InputSpec, dtype: Dtype, shape: &[usize]) -> Result<()> {
    let declared = input.dtype.unwrap_or(dtype);
    if kind(dtype).is_none() || kind(declared) != kind(dtype) {
        let wanted = input.dtype.map_or("numbers or booleans".to_owned(), |dtype| dtype.to_string());
        let error = origin.error(format!("dtype: expected {wanted}, found {dtype}"));
        return Err(match numpy_name(declared) {
            Some(name) if kind(dtype).is_some() => error.with_hint(format!("convert it when saving: array.astype({name})")),
            _ => error,
        });
    }
    let Some(expected) = &input.shape else {
        return Ok(());
    };
    if fits(expected, shape) {
        return Ok(());
    }
    let error = origin.error(format!("shape: expected {}, found {shape:?}", show_shape(expected)));
    Err(if expected.split_first().is_some_and(|(_, rest)| fits(rest, shape)) {
        error.with_hint("the first axis is missing: save array[None]")
    } else if shape.split_first().is_some_and(|(_, rest)| fits(expected, rest)) {
        error.with_hint("for many samples, write one file for each, or for models with one input a .npy file whose first axis counts them")
    } else if expected.first() == Some(&Some(1)) && fits(&expected[1..], shape.get(1..).unwrap_or_default()) {
        error.with_hint("the model takes one at a time: write one file for each, or array[:, None] as a .npy file")
    } else {
        error
    })
}

/// Whether a shape is one that the model takes.
pub(super) fn fits(expected: &[Option<usize>], shape: &[usize]) -> bool {
    expected.len() == shape.len() && expected.iter().zip(shape).all(|(expected, dim)| expected.is_none_or(|e| e == *dim))
}

/// What types convert to each other within: nothing for those that samples cannot have.
fn kind(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        dtype if dtype.is_decodable() => Some("float"),
        Dtype::Bool => Some("boolean"),
        Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64 => Some("integer"),
        _ => None,
    }
}

fn numpy_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F16 => "numpy.float16",
        Dtype::F32 | Dtype::BF16 | Dtype::F8E4M3 | Dtype::F8E5M2 => "numpy.float32",
        Dtype::F64 => "numpy.float64",
        Dtype::Bool => "bool",
        Dtype::U8 => "numpy.uint8",
        Dtype::I8 => "numpy.int8",
        Dtype::U16 => "numpy.uint16",
        Dtype::I16 => "numpy.int16",
        Dtype::U32 => "numpy.uint32",
        Dtype::I32 => "numpy.int32",
        Dtype::U64 => "numpy.uint64",
        Dtype::I64 => "numpy.int64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, dtype: Dtype, shape: &[Option<usize>]) -> InputSpec {
        InputSpec { name: name.into(), dtype: Some(dtype), shape: Some(shape.to_vec()) }
    }

    #[test]
    fn names_must_be_those_of_the_inputs() {
        let images = || input("images", Dtype::F32, &[None, Some(3), Some(224), Some(224)]);
        let two = || vec![input("ids", Dtype::I64, &[None, None]), input("mask", Dtype::I64, &[None, None])];
        type Verdict<'a> = Result<&'a [usize], (&'a str, &'a str)>;
        let cases: [(Vec<InputSpec>, &[&str], Verdict<'_>); 6] = [
            (two(), &["mask", "ids"], Ok(&[1, 0])),
            (
                vec![images()],
                &["image"],
                Err((
                    r#"f: inputs: expected "images" F32 [?, 3, 224, 224], found "image""#,
                    r#"did you mean "images"? Rename "image" to it"#,
                )),
            ),
            (
                two(),
                &["ids"],
                Err((
                    r#"f: inputs: expected "ids" I64 [?, ?], "mask" I64 [?, ?], found no "mask""#,
                    "every sample needs all inputs of the model",
                )),
            ),
            (
                vec![images()],
                &["images", "labels"],
                Err((
                    r#"f: inputs: expected "images" F32 [?, 3, 224, 224], found "labels" as well"#,
                    r#"leave out "labels": the model has no such input"#,
                )),
            ),
            (
                two(),
                &["Mask", "idx", "z"],
                Err((
                    r#"f: inputs: expected "ids" I64 [?, ?], "mask" I64 [?, ?], found "Mask", "idx", "z""#,
                    r#"did you mean "mask"? Rename "Mask" to it"#,
                )),
            ),
            (
                two(),
                &["p", "q"],
                Err((
                    r#"f: inputs: expected "ids" I64 [?, ?], "mask" I64 [?, ?], found "p", "q""#,
                    "name the arrays as the inputs of the model",
                )),
            ),
        ];
        for (inputs, names, expected) in cases {
            match (match_names(Path::new("f"), "inputs", &inputs, names), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err((message, hint))) => assert_eq!((error.to_string().as_str(), error.hint()), (message, Some(hint))),
                (found, expected) => panic!("expected {expected:?}, found {found:?}"),
            }
        }
    }

    #[test]
    fn types_and_dimensions_must_be_those_of_the_input() {
        use Dtype::*;
        let (any, four) = (None, Some(4));
        let cases: [(InputSpec, Dtype, &[usize], &str, &str); 14] = [
            (input("x", F32, &[any, four]), F32, &[7, 4], "", ""),
            (input("x", F32, &[any, four]), F64, &[7, 4], "", ""),
            (input("x", F16, &[]), BF16, &[], "", ""),
            (input("x", I64, &[any]), I32, &[0], "", ""),
            (InputSpec { name: "x".into(), dtype: None, shape: None }, Bool, &[1, 2, 3], "", ""),
            (input("x", F32, &[any]), I64, &[1], "dtype: expected F32, found I64", "convert it when saving: array.astype(numpy.float32)"),
            (input("x", I64, &[any]), F64, &[1], "dtype: expected I64, found F64", "convert it when saving: array.astype(numpy.int64)"),
            (input("x", Bool, &[any]), U8, &[1], "dtype: expected BOOL, found U8", "convert it when saving: array.astype(bool)"),
            (input("x", F32, &[any]), C64, &[1], "dtype: expected F32, found C64", ""),
            (InputSpec { name: "x".into(), dtype: None, shape: None }, F4, &[2], "dtype: expected numbers or booleans, found F4", ""),
            (input("x", F32, &[any, four]), F32, &[4], "shape: expected [?, 4], found [4]", "the first axis is missing: save array[None]"),
            (input("x", F32, &[any, four]), F32, &[7, 3], "shape: expected [?, 4], found [7, 3]", ""),
            (input("x", F32, &[any, four]), F32, &[2, 7, 4], "shape: expected [?, 4], found [2, 7, 4]", "for many samples, write one file"),
            (input("x", F32, &[Some(1), four]), F32, &[7, 4], "shape: expected [1, 4], found [7, 4]", "the model takes one at a time"),
        ];
        for (input, dtype, shape, message, hint) in cases {
            match check_array(&Origin::of(Path::new("f"), "x"), &input, dtype, shape) {
                Ok(()) => assert_eq!("", message, "{input} takes {dtype} {shape:?}"),
                Err(error) => {
                    assert_eq!(error.to_string(), format!("f: tensor \"x\": {message}"));
                    let found = error.hint().unwrap_or_default();
                    assert!(found.starts_with(hint) && found.is_empty() == hint.is_empty(), "{message}: {found}");
                }
            }
        }
    }

    #[test]
    fn lists_stay_short() {
        let names: Vec<String> = (0..100).map(|i| format!("n{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error = match_names(Path::new("f"), "inputs", &[input("x", Dtype::F32, &[])], &names).unwrap_err();
        assert!(error.to_string().ends_with(r#""n5", 94 more"#), "{error}");
    }
}
