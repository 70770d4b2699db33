//! Values of the weights of an ONNX model as they were written: from codes and parameters where there are codes.

use crate::error::Result;
use crate::formats::mmap::MappedFile;
use crate::model::Model;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::outputs::{Content, OutputLayout};
use crate::plan::Plan;
use crate::quant::packing::packed_len;
use crate::quant::params::Params;
use crate::tensor::decode_f32;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

/// The files of an output, and where each weight is in them.
pub(super) struct StoredWeights<'a> {
    model: &'a Model,
    plan: &'a Plan,
    params: &'a ParamsOf,
    files: Vec<MappedFile>,
    places: HashMap<usize, (usize, &'a Content, u64)>,
}

impl<'a> StoredWeights<'a> {
    /// Opens the files of `layout` at `paths`, in the same order.
    ///
    /// # Errors
    ///
    /// As [`MappedFile::open`].
    pub(super) fn open(
        model: &'a Model,
        plan: &'a Plan,
        params: &'a ParamsOf,
        layout: &'a OutputLayout,
        paths: &[PathBuf],
    ) -> Result<Self> {
        let files = paths.iter().map(|path| MappedFile::open(path)).collect::<Result<Vec<_>>>()?;
        let mut places = HashMap::new();
        for (file, contents) in layout.files.iter().map(|file| &file.contents).enumerate() {
            for (content, place) in contents {
                if let Content::Codes(tensor)
                | Content::TransposedCodes(tensor)
                | Content::UnsignedCodes(tensor)
                | Content::Values(tensor) = content
                {
                    places.entry(*tensor).or_insert((file, content, place.start));
                }
            }
        }
        Ok(StoredWeights { model, plan, params, files, places })
    }

    /// The values of a quantized tensor, in its order; `None` if they are not there.
    pub(super) fn of(&self, tensor: usize) -> Option<StoredWeight<'_>> {
        let info = &self.model.tensors()[tensor].info;
        let scheme = self.plan.scheme(tensor)?;
        let &(file, content, start) = self.places.get(&tensor)?;
        let bytes = self.files[file].bytes().get(usize::try_from(start).ok()?..)?;
        if let Content::Values(_) = content {
            let width = info.dtype.bytes()? as usize;
            let bytes = bytes.get(..info.elements().checked_mul(width)?)?;
            return Some(StoredWeight { stored: self, tensor, kind: StoredKind::Values { bytes, width } });
        }
        let bytes = bytes.get(..packed_len(scheme.codes, info.elements()))?;
        let codes = StoredCodes { bytes, bits: scheme.codes.bits(), is_signed: scheme.codes.is_signed(), content, shape: &info.shape };
        Some(StoredWeight { stored: self, tensor, kind: StoredKind::Codes { codes, params: self.params.get(&tensor)? } })
    }
}

/// One weight.
pub(super) struct StoredWeight<'a> {
    stored: &'a StoredWeights<'a>,
    tensor: usize,
    kind: StoredKind<'a>,
}

enum StoredKind<'a> {
    Codes { codes: StoredCodes<'a>, params: &'a [Params] },
    Values { bytes: &'a [u8], width: usize },
}

impl StoredWeight<'_> {
    /// Appends the values of some elements to `values`.
    pub(super) fn append(&self, elements: Range<usize>, values: &mut Vec<f32>) {
        match &self.kind {
            StoredKind::Values { bytes, width } => {
                let from = values.len();
                values.resize(from + elements.len(), 0.0);
                let bytes = &bytes[elements.start * width..elements.end * width];
                decode_f32(self.stored.model.tensors()[self.tensor].info.dtype, bytes, &mut values[from..]);
            }
            StoredKind::Codes { codes, params } => {
                let Some(scheme) = self.stored.plan.scheme(self.tensor) else { return };
                scheme.layout.for_each_run(elements, |group, run| {
                    let Params { scale, zero_point } = params[group];
                    values.extend(run.map(|element| (codes.code(element) - zero_point) as f32 * scale));
                });
            }
        }
    }
}

/// The codes of a tensor as they are in a file.
struct StoredCodes<'a> {
    bytes: &'a [u8],
    bits: u32,
    is_signed: bool,
    content: &'a Content,
    shape: &'a [usize],
}

impl StoredCodes<'_> {
    /// The code of an element, in the order of the tensor.
    fn code(&self, element: usize) -> i32 {
        let at = match (self.content, self.shape) {
            (Content::TransposedCodes(_), [.., rows, columns]) => {
                let (matrix, within) = (element / (rows * columns), element % (rows * columns));
                matrix * rows * columns + within % columns * rows + within / columns
            }
            _ => element,
        };
        let code = match self.bits {
            4 => i32::from(self.bytes[at / 2] >> (4 * (at % 2)) & 0xf),
            _ => i32::from(self.bytes[at]),
        };
        let half = 1 << (self.bits - 1);
        match self.content {
            Content::UnsignedCodes(_) => code - half,
            _ if self.is_signed && code >= half => code - 2 * half,
            _ => code,
        }
    }
}
