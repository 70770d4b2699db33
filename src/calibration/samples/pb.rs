//! ONNX test data: TensorProto messages, one in each `.pb` file.
//!
//! The ONNX model zoo and `onnx.backend.test` put the inputs of one run into a directory `test_data_set_N` as
//! `input_0.pb`, `input_1.pb`, …, in the order of the graph's inputs, beside `output_0.pb`, …, which are of no concern
//! here. Names in the messages are optional and come first. Values in other files (external data) are refused.

use super::decode::{Stored, read_array};
use super::listing::{check_inside, names};
use super::signature::{InputSpec, match_names, show_inputs};
use super::{Context, Origin, SampleFile, check_memory, check_sample};
use crate::calibration::array::Array;
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::onnx::proto::{Message, TensorProto};
use crate::formats::onnx::tensor::EXTERNAL;
use crate::limits::raised_by;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// What the names of directories of test data begin with.
const TEST_DATA: &str = "test_data_set_";

/// The number of an input that a file is named after.
fn input_number(name: &std::ffi::OsStr) -> Option<usize> {
    let number = name.to_str()?.strip_prefix("input_")?.strip_suffix(".pb")?;
    number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a directory holds the inputs of one run.
pub(super) fn is_test_data(dir: &Path) -> Result<bool> {
    let is_named_so = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEST_DATA));
    Ok(is_named_so || names(dir)?.iter().any(|name| input_number(name).is_some()))
}

/// An array of a message.
struct Tensor {
    file: Arc<MappedFile>,
    name: String,
    stored: Stored,
    /// Little-endian, row-major; part of the file's map if it is stored like that.
    values: Bytes,
}

impl Tensor {
    fn read(file: MappedFile, context: &Context<'_>) -> Result<Self> {
        let path = file.path().to_owned();
        let file = Arc::new(file);
        let fail = |message: String| Error::malformed(&path, format!("TensorProto: {message}"));
        let proto = TensorProto::parse(file.to_bytes()).map_err(fail)?;
        if proto.data_location == Some(EXTERNAL) || !proto.external_data.is_empty() {
            let error = fail("values: expected them in the message, found external data".into());
            return Err(error.with_hint("save the sample without external data"));
        }
        if proto.dims.len() as u64 > context.limits.max_rank {
            let origin = Origin { key: None, ..Origin::of(&path, "") };
            return Err(raised_by(
                origin.limit("dims: limit of dimensions", context.limits.max_rank, proto.dims.len() as u64),
                "sample-rank",
            ));
        }
        let element = proto.element_type().map_err(fail)?;
        let dtype = element.dtype.ok_or_else(|| fail(format!("data_type: expected numbers or booleans, found {}", element.name)))?;
        let shape = proto.shape().map_err(fail)?;
        let stored = Stored::plain(dtype, shape);
        check_memory(&path, None, stored.memory(), context.limits)?;
        let values = proto.contents().map_err(fail)?;
        Ok(Tensor { name: proto.name, stored, values, file })
    }
}

/// A sample: one message for each input, in their order.
struct TestData {
    tensors: Vec<Tensor>,
}

impl TestData {
    /// Finds the input of each message: by its name, else by the number that its file is named after.
    fn new(path: &Path, tensors: Vec<Tensor>, context: &Context<'_>) -> Result<Self> {
        let inputs = context.inputs;
        let mut names = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            let number = tensor.file.path().file_name().and_then(input_number);
            let by_number = match number {
                None if tensor.name.is_empty() && inputs.len() == 1 => Some(0),
                other => other,
            };
            let is_known = inputs.iter().any(|input| input.name == tensor.name);
            names.push(match by_number {
                Some(number) if !is_known => {
                    let named = inputs.get(number).map(|input| input.name.as_str());
                    named.ok_or_else(|| {
                        let message = format!("inputs: expected {}, found one more with number {number}", show_inputs(inputs));
                        Error::malformed(tensor.file.path(), message)
                    })?
                }
                _ => tensor.name.as_str(),
            });
        }
        let places = match_names(path, "inputs", inputs, &names)?;
        let mut tensors: Vec<Option<Tensor>> = tensors.into_iter().map(Some).collect();
        let tensors: Vec<Tensor> = places.into_iter().map(|place| tensors[place].take().expect("names are matched one to one")).collect();
        check_sample(path, None, context, &tensors.iter().map(|tensor| &tensor.stored).collect::<Vec<_>>())?;
        Ok(TestData { tensors })
    }
}

/// Opens one message.
pub(super) fn open(file: MappedFile, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    let path = file.path().to_owned();
    Ok(Box::new(TestData::new(&path, vec![Tensor::read(file, context)?], context)?))
}

/// Opens a directory of messages.
pub(super) fn open_test_data(dir: &Path, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    let names = names(dir)?;
    let mut numbered: Vec<_> = names.iter().filter_map(|name| Some((input_number(name)?, dir.join(name)))).collect();
    numbered.sort();
    if numbered.len() > context.inputs.len() {
        let (found, inputs) = (numbered.len(), show_inputs(context.inputs));
        return Err(Error::malformed(dir, format!("inputs: expected {inputs}, found {found} files named input_N.pb")));
    }
    if numbered.is_empty() {
        let inputs = show_inputs(context.inputs);
        return Err(Error::malformed(dir, format!("inputs: expected {inputs}, found no samples: there is no input_0.pb")));
    }
    let mut tensors = Vec::with_capacity(numbered.len());
    for (_, path) in numbered {
        check_inside(dir, &path)?;
        tensors.push(Tensor::read(MappedFile::open(&path)?, context)?);
    }
    Ok(Box::new(TestData::new(dir, tensors, context)?))
}

impl SampleFile for TestData {
    fn len(&self) -> usize {
        1
    }

    fn read(&self, _index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>> {
        let read = |(input, tensor): (&InputSpec, &Tensor)| {
            read_array(&Origin::of(tensor.file.path(), &input.name), input, &tensor.stored, &mut &tensor.values[..])
        };
        inputs.iter().zip(&self.tensors).map(read).collect()
    }

    fn files(&self) -> Vec<&MappedFile> {
        self.tensors.iter().map(|tensor| &*tensor.file).collect()
    }
}
