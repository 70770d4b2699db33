//! NumPy's `.npz`: a ZIP archive with one `NAME.npy` for each array, written by `numpy.savez` or `savez_compressed`.
//!
//! One archive is one sample; the names are those of the model's inputs. They are labels, never paths: nothing is
//! unpacked to disk. Inflation is bounded by what the array's header promises, which is bounded by [`SampleLimits`]. The
//! checksum of a member is compared when its values are read.
//!
//! [`SampleLimits`]: super::SampleLimits

use super::decode::read_array;
use super::npy::{Header, read_header};
use super::signature::{InputSpec, match_names, show_inputs};
use super::zip::{Member, read_members};
use super::{Context, Origin, SampleFile, check_sample};
use crate::calibration::array::Array;
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;

/// What NumPy appends to the names of arrays.
const EXTENSION: &str = ".npy";

struct NpzFile {
    file: MappedFile,
    /// For each input its array.
    arrays: Vec<(Member, Header)>,
}

/// Opens a `.npz` file.
pub(super) fn open(file: MappedFile, context: &Context<'_>) -> Result<Box<dyn SampleFile>> {
    let path = file.path().to_owned();
    let members = read_members(&path, file.bytes(), context.limits)?;
    if members.is_empty() {
        let message = format!("inputs: expected {}, found no samples: the archive is empty", show_inputs(context.inputs));
        return Err(Error::malformed(&path, message));
    }
    if let Some(pickle) = members.iter().find(|member| member.name.ends_with("data.pkl")) {
        let error = Error::tensor(&path, &pickle.name, "member: expected an array of NumPy, found a pickle, such as torch.save writes");
        return Err(error.with_hint("save the inputs with numpy.savez(FILE, NAME=array, …)"));
    }
    let names: Vec<&str> = members.iter().map(|member| member.name.strip_suffix(EXTENSION).unwrap_or(&member.name)).collect();
    let places = match_names(&path, "inputs", context.inputs, &names)?;
    let mut members: Vec<Option<Member>> = members.into_iter().map(Some).collect();
    let mut arrays = Vec::with_capacity(places.len());
    for (place, input) in places.into_iter().zip(context.inputs) {
        let member = members[place].take().expect("names are matched one to one");
        let header = read_header(&Origin::of(&path, &input.name), &mut member.reader(file.bytes()), member.size, context.limits)?;
        arrays.push((member, header));
    }
    let stored: Vec<_> = arrays.iter().map(|(_, header)| &header.stored).collect();
    check_sample(&path, None, context, &stored)?;
    Ok(Box::new(NpzFile { file, arrays }))
}

impl SampleFile for NpzFile {
    fn len(&self) -> usize {
        1
    }

    fn read(&self, _index: usize, inputs: &[InputSpec]) -> Result<Vec<Array>> {
        let read = |(input, (member, header)): (&InputSpec, &(Member, Header))| {
            let origin = Origin::of(self.file.path(), &input.name);
            let mut source = member.reader(self.file.bytes());
            // The header again, because the checksum covers it.
            std::io::copy(&mut std::io::Read::take(&mut source, header.len as u64), &mut std::io::sink())
                .map_err(|e| origin.error(format!("npy header: expected {} bytes, found {e}", header.len)))?;
            let array = read_array(&origin, input, &header.stored, &mut source)?;
            source.finish(&origin)?;
            Ok(array)
        };
        inputs.iter().zip(&self.arrays).map(read).collect()
    }

    fn files(&self) -> Vec<&MappedFile> {
        vec![&self.file]
    }
}
