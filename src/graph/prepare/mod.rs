//! Simplifies a float model before it is quantized, without changing what it computes beyond the rounding of floats:
//!
//! 1. [`constants`]: Constant nodes become initializers;
//! 2. [`pass_through`]: Identity and Dropout go;
//! 3. [`fold`]: what is computed from constants alone becomes a constant, if it is small or only another view of one;
//! 4. [`affine`]: BatchNormalization, and Mul, Add, Sub and Div by a constant for each channel, are folded into the
//!    convolution or matrix product beside them;
//! 5. [`gemm`]: MatMul of matrices and the Add of its bias become one Gemm;
//! 6. [`sweep`](super::sweep): what nothing uses any more goes. What the model had unused from the start stays.
//!
//! Quantizing profits because weights, biases and limits are found where they are used, and because an integer kernel
//! computes what a float kernel computed after it. Nodes keep their names; a folded node leaves the name of its output to
//! the one that takes it in, so that the values which remain have the names that users know.
//!
//! Anything unusual is left as it is: an optional input in an odd place, a constant that the caller may replace, a value
//! that is an output or that a body of control flow takes. Functions of the model are left alone.

mod affine;
mod constants;
mod fold;
mod gemm;
mod pass_through;
mod visible;

#[cfg(test)]
pub(super) mod tests;

use super::names::Names;
use super::sweep;
use super::version::raise_ir;
use crate::formats::onnx::proto::{GraphProto, ModelProto};
use visible::Visible;

/// Constants of more elements are not computed, nor stored twice: 65,536.
pub(crate) const SMALL: usize = 1 << 16;

/// What [`prepare`] does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrepareOptions {
    /// Whether to compute what depends on constants only. Default: yes.
    pub fold_constants: bool,
    /// Whether to fold normalization into weights. Default: yes.
    pub fold_affine: bool,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        PrepareOptions { fold_constants: true, fold_affine: true }
    }
}

/// What [`prepare`] did.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Number of Constant nodes that became initializers.
    pub constants: usize,
    /// Number of nodes that became constants because they depend on constants only.
    pub computed: usize,
    /// Number of Identity and Dropout nodes that went.
    pub removed: usize,
    /// Nodes that were folded into another, in the order in which it was done.
    pub folded: Vec<Folded>,
}

/// A node that was folded into another one's weight and bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folded {
    /// Its name, or its output's if it had none.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// The name of the node that took it in, or its output's if it has none.
    pub into: String,
}

/// Simplifies the top graph and the bodies of control flow. Raises the IR version to 4, which lets constants be something
/// else than inputs.
pub(crate) fn prepare(model: &mut ModelProto, options: PrepareOptions) -> Prepared {
    raise_ir(model, 4);
    let (mut names, opset) = (Names::of(model), model.opset());
    let mut run = Run { options, opset, names: &mut names, prepared: Prepared::default() };
    if let Some(graph) = &mut model.graph {
        run.graph(graph, &Visible::default());
    }
    run.prepared
}

/// Makes one Gemm of each MatMul of matrices and the Add of its bias, in one graph.
pub(crate) fn fuse_biases(graph: &mut GraphProto) {
    gemm::fuse(graph, &mut Vec::new());
}

/// What all graphs of a model share.
struct Run<'n> {
    options: PrepareOptions,
    opset: i64,
    names: &'n mut Names,
    prepared: Prepared,
}

impl Run<'_> {
    /// One graph and its bodies. `outer` are the constants of the graphs around it.
    fn graph(&mut self, graph: &mut GraphProto, outer: &Visible<'_>) {
        let unused = sweep::unused(graph);
        self.prepared.constants += constants::to_initializers(graph);
        self.prepared.removed += pass_through::remove(graph, self.opset, outer);
        if self.options.fold_constants {
            self.prepared.computed += fold::compute(graph, outer);
            // A Dropout may have learned only now that it is not training.
            self.prepared.removed += pass_through::remove(graph, self.opset, outer);
        }
        if self.options.fold_affine {
            // What folding leaves unused must not count as another use of a weight.
            sweep::remove(graph, &unused);
            affine::fold(graph, self.opset, self.names, &mut self.prepared.folded);
            gemm::fuse(graph, &mut self.prepared.folded);
        }
        if graph.node.iter().any(|node| node.bodies().next().is_some()) {
            let visible = Visible::within(graph, outer);
            graph.node.iter_mut().flat_map(|node| node.bodies_mut()).for_each(|body| self.graph(body, &visible));
        }
        sweep::remove(graph, &unused);
    }
}
