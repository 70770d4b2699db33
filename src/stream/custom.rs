//! OBSERVE by a command: it is given a tensor as it is stored, in f32, and names the range of every group.

use crate::error::Result;
use crate::model::Model;
use crate::observers::custom::{Command, Question, Subject, ValueStream};
use crate::plan::{TensorScheme, block_axis};
use crate::quant::params::Range;
use crate::quant::scheme::Granularity;

/// Elements that are converted to f32 at a time.
const PIECE: usize = 1 << 14;

/// The clipping range of every group of `tensor`, whose values are all finite, in order.
pub(super) fn ask(model: &Model, tensor: usize, scheme: &TensorScheme, command: &Command) -> Result<Vec<Range>> {
    let info = &model.tensors()[tensor].info;
    let rank = info.shape.len();
    let question = Question {
        subject: Subject::Weight,
        name: &info.name,
        shape: &info.shape,
        granularity: scheme.granularity.to_string(),
        axis: match scheme.granularity {
            Granularity::PerTensor => None,
            Granularity::PerChannel => Some(scheme.axis),
            Granularity::PerGroup(_) if model.onnx().is_some() => Some(block_axis(rank, scheme.axis)),
            Granularity::PerGroup(_) => Some(rank - 1),
        },
        codes: scheme.codes,
        symmetric: scheme.rule.symmetric,
        groups: scheme.layout.groups(),
    };
    let mut values = Stored { model, tensor, next: 0, scratch: Vec::new() };
    command.ask(&question, &mut values).map_err(|message| model.tensor_error(tensor, message))
}

/// A stored tensor, from its first element to its last.
struct Stored<'m> {
    model: &'m Model,
    tensor: usize,
    next: usize,
    scratch: Vec<f32>,
}

impl ValueStream for Stored<'_> {
    fn rewind(&mut self) {
        self.next = 0;
    }

    fn next(&mut self, values: &mut Vec<f32>) {
        let end = (self.next + PIECE).min(self.model.tensors()[self.tensor].info.elements());
        values.extend_from_slice(self.model.values(self.tensor, self.next..end, &mut self.scratch));
        self.next = end;
    }
}
