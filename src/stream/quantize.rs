//! The jobs that fill one output file of quantized weights: observe → choose → quantize, piece by piece.
//!
//! Where a piece holds whole groups, one job does all three while the values are in cache. Where a group is larger
//! than a piece, or spread over the tensor (channels of an inner axis), a job before it has observed the tensor.

use super::{Jobs, Latch, Scratch};
use crate::algorithms::solver::Solver;
use crate::error::Result;
use crate::model::Model;
use crate::observers::Batch;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::outputs::{Content, FileLayout};
use crate::plan::{Decision, Plan, TensorScheme};
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::{self, Arithmetic, ColumnParams, min_max};
use crate::quant::metrics::ErrorSums;
use crate::quant::packing::{pack_nibbles, pack_rows_to_words, packed_len};
use crate::quant::params::Params;
use crate::quant::saturation::{PairCheck, Pairing, SaturationSums};
use crate::quant::scheme::Granularity;
use crate::stream::observe;
use crate::tensor::{Dtype, encode_f32};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Elements of a piece: 1 MiB of f32, so that values and codes stay in a second-level cache. It must be even, for
/// codes of four bits.
const PIECE: usize = 1 << 18;

/// Elements whose extents are found before they are quantized: 256 KiB of f32, a share of a second-level cache.
const CACHED: usize = 1 << 16;

/// The same for types that are converted to f32 first: 32 KiB, most of a first-level cache.
const CONVERTED: usize = 1 << 13;

/// Longest run of elements (a channel, or a row of groups) that is dealt with in one piece.
const LONGEST_LOCAL: usize = 1 << 20;

/// Bytes that a copying job moves.
const COPY: usize = 1 << 20;

/// Most bytes that one thread's buffers take: values converted to f32, codes twice, and gathered channels.
pub(crate) const LARGEST_PIECE_BYTES: u64 = (LONGEST_LOCAL * (4 + 2) + observe::GATHERED * 4) as u64;

/// The number of the first part of a tensor that is stored transposed.
const TRANSPOSED: usize = usize::MAX / 2;

enum Work {
    Copy {
        tensor: usize,
        bytes: Range<usize>,
    },
    /// Bytes that are known.
    Store {
        bytes: Bytes,
    },
    /// Codes of the columns `columns` of matrix `matrix`, stored column by column.
    Transpose {
        tensor: usize,
        matrix: usize,
        columns: Range<usize>,
    },
    /// A weight that is copied because it is small: a NaN in it is an error all the same.
    CheckFinite {
        tensor: usize,
    },
    Observe {
        tensor: usize,
    },
    /// All codes of a tensor, by what its layer's inputs were.
    Solve {
        tensor: usize,
    },
    Quantize {
        tensor: usize,
        part: usize,
        elements: Range<usize>,
        store: Store,
    },
    Scales {
        tensor: usize,
        parts: Range<usize>,
    },
    /// In the tensor's own type.
    ScalesInType {
        tensor: usize,
        parts: Range<usize>,
    },
    PackedZeroPoints {
        tensor: usize,
        parts: Range<usize>,
    },
    ZeroPoints {
        tensor: usize,
        parts: Range<usize>,
    },
}

/// What is stored of codes.
#[derive(Clone, Copy)]
enum Store {
    Codes,
    /// Codes with these bits of every stored byte flipped: the highest of each code, to make it unsigned.
    Flipped(u8),
    /// The values that they stand for, in the tensor's own type.
    Values,
}

struct Job {
    offset: Option<u64>,
    work: Work,
}

/// What jobs of one tensor share.
struct TensorState {
    /// Params of all groups, where a job of its own observes the tensor.
    observed: OnceLock<Vec<Params>>,
    columns: OnceLock<ColumnParams>,
    is_observed: Latch,
    is_quantized: Latch,
    parts: Mutex<BTreeMap<usize, Part>>,
    /// All codes, where they were chosen together, until the last job has stored its part of them.
    codes: Mutex<Arc<Vec<u8>>>,
    /// Jobs that still store codes.
    readers: AtomicUsize,
}

/// What quantizing one piece found.
#[derive(Default)]
struct Part {
    params: Vec<Params>,
    sums: ErrorSums,
    saturation: SaturationSums,
    /// How many of scales and zero points were stored as tensors.
    stored: usize,
}

const SCALES_ONLY: usize = 1;
const SCALES_AND_ZERO_POINTS: usize = 2;

/// What became of a tensor.
pub(crate) struct Outcome {
    /// One a group, in order; empty where a tensor of the output holds them.
    pub params: Vec<Params>,
    pub sums: ErrorSums,
    /// Of pairs that were checked.
    pub saturation: SaturationSums,
}

/// Jobs for one file of an output.
pub(crate) struct QuantizeJobs<'a> {
    model: &'a Model,
    plan: &'a Plan,
    known: &'a ParamsOf,
    solver: Option<&'a Solver<'a>>,
    jobs: Vec<Job>,
    states: BTreeMap<usize, TensorState>,
    /// Tensors whose params are stored as tensors, and need not be kept.
    stored_apart: BTreeSet<usize>,
}

impl<'a> QuantizeJobs<'a> {
    /// Jobs for the file that `layout` describes; `known` has the params of tensors that were observed before, `solver` knows
    /// the inputs of layers.
    pub(crate) fn new(model: &'a Model, plan: &'a Plan, layout: &FileLayout, known: &'a ParamsOf, solver: Option<&'a Solver<'a>>) -> Self {
        let (jobs, states, stored_apart) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        let mut this = QuantizeJobs { model, plan, known, solver, jobs, states, stored_apart };
        let mut seen = BTreeSet::new();
        let before: Vec<usize> = (layout.contents.iter())
            .filter_map(|(content, _)| match content {
                Content::Codes(tensor) | Content::UnsignedCodes(tensor) | Content::TransposedCodes(tensor) | Content::Values(tensor)
                    if this.is_observed_first(*tensor) && seen.insert(*tensor) =>
                {
                    Some(*tensor)
                }
                _ => None,
            })
            .collect();
        // One tensor ahead, so that a thread can observe the next one while another is still at this one.
        let mut to_observe = before.into_iter();
        this.push_observe(to_observe.next());
        for (content, place) in &layout.contents {
            match *content {
                Content::Literal(ref bytes) => this.push_stores(bytes, place.start),
                Content::Source(tensor) => this.push_copies(tensor, place.start),
                Content::TransposedCodes(tensor) => {
                    if seen.remove(&tensor) {
                        this.push_observe(to_observe.next());
                    }
                    this.push_transposed(tensor, place.start);
                }
                Content::Codes(tensor) | Content::UnsignedCodes(tensor) | Content::Values(tensor) => {
                    if seen.remove(&tensor) {
                        this.push_observe(to_observe.next());
                    }
                    let store = match (content, this.scheme(tensor).codes.bits()) {
                        (Content::UnsignedCodes(_), 4) => Store::Flipped(0x88),
                        (Content::UnsignedCodes(_), _) => Store::Flipped(0x80),
                        (Content::Values(_), _) => Store::Values,
                        _ => Store::Codes,
                    };
                    this.push_pieces(tensor, place.start, store);
                }
                Content::Scales(tensor) => {
                    this.store_apart(tensor);
                    this.push_params(tensor, place.start, 4, |tensor, parts| Work::Scales { tensor, parts });
                }
                Content::ScalesInType(tensor) => {
                    this.store_apart(tensor);
                    let width = this.width(tensor) as u64;
                    this.push_params(tensor, place.start, width, |tensor, parts| Work::ScalesInType { tensor, parts });
                }
                Content::PackedZeroPoints(tensor) => {
                    let parts = 0..model.tensors()[tensor].info.elements().div_ceil(piece_len(this.scheme(tensor)));
                    this.jobs.push(Job { offset: Some(place.start), work: Work::PackedZeroPoints { tensor, parts } });
                }
                Content::ZeroPoints(tensor) => this.push_params(tensor, place.start, 1, |tensor, parts| Work::ZeroPoints { tensor, parts }),
            }
        }
        this
    }

    /// Whether a job of its own looks at all of a tensor before any of its codes are stored.
    fn is_observed_first(&self, tensor: usize) -> bool {
        self.is_solved(tensor) || !self.known.contains_key(&tensor) && !is_local(self.scheme(tensor))
    }

    fn is_solved(&self, tensor: usize) -> bool {
        self.solver.is_some_and(|solver| solver.is_for(tensor))
    }

    fn push_observe(&mut self, tensor: Option<usize>) {
        let Some(tensor) = tensor else { return };
        let work = if self.is_solved(tensor) { Work::Solve { tensor } } else { Work::Observe { tensor } };
        self.jobs.push(Job { offset: None, work });
    }

    /// What became of each quantized tensor of the file, after a run.
    pub(crate) fn into_outcomes(self) -> BTreeMap<usize, Outcome> {
        let QuantizeJobs { states, stored_apart, .. } = self;
        let outcome = |(tensor, state): (usize, TensorState)| {
            let parts = state.parts.into_inner().expect("no job panicked");
            let mut outcome = Outcome { params: Vec::new(), sums: ErrorSums::default(), saturation: SaturationSums::default() };
            // Codes that are stored twice have the same pairs.
            let is_stored_as_is = parts.first_key_value().is_some_and(|(first, _)| *first < TRANSPOSED);
            for (index, part) in parts {
                outcome.sums.merge(&part.sums);
                if is_stored_as_is == (index < TRANSPOSED) {
                    outcome.saturation.merge(&part.saturation);
                }
                outcome.params.extend(part.params);
            }
            if let Some(params) = state.observed.into_inner() {
                outcome.params = params;
            }
            if stored_apart.contains(&tensor) {
                outcome.params.clear();
            }
            (tensor, outcome)
        };
        states.into_iter().map(outcome).collect()
    }

    /// Notes that params of groups, which are many, are only stored as tensors.
    fn store_apart(&mut self, tensor: usize) {
        if let Granularity::PerGroup(_) = self.scheme(tensor).granularity {
            self.stored_apart.insert(tensor);
        }
    }

    fn scheme(&self, tensor: usize) -> &'a TensorScheme {
        self.plan.scheme(tensor).expect("layouts ask for codes of quantized tensors only")
    }

    /// Bytes of an element of a tensor as it was stored.
    fn width(&self, tensor: usize) -> usize {
        self.model.tensors()[tensor].info.dtype.bytes().expect("float types have whole bytes") as usize
    }

    fn push_stores(&mut self, bytes: &Bytes, start: u64) {
        for begin in (0..bytes.len()).step_by(COPY) {
            let bytes = bytes.slice(begin..(begin + COPY).min(bytes.len()));
            self.jobs.push(Job { offset: Some(start + begin as u64), work: Work::Store { bytes } });
        }
    }

    fn push_copies(&mut self, tensor: usize, start: u64) {
        if let Decision::Keep { is_weight: true, .. } = self.plan.decisions[tensor] {
            self.jobs.push(Job { offset: None, work: Work::CheckFinite { tensor } });
        }
        let len = self.model.tensor_bytes(tensor).len();
        for begin in (0..len).step_by(COPY) {
            let bytes = begin..(begin + COPY).min(len);
            self.jobs.push(Job { offset: Some(start + begin as u64), work: Work::Copy { tensor, bytes } });
        }
    }

    fn push_pieces(&mut self, tensor: usize, start: u64, store: Store) {
        let scheme = self.scheme(tensor);
        let elements = self.model.tensors()[tensor].info.elements();
        let width = self.width(tensor);
        let bytes_before = |element: usize| match store {
            Store::Values => element * width,
            Store::Codes | Store::Flipped(_) => packed_len(scheme.codes, element),
        };
        let step = self.step(tensor);
        let pieces = elements.div_ceil(step);
        for part in 0..pieces {
            let elements = part * step..((part + 1) * step).min(elements);
            let offset = start + bytes_before(elements.start) as u64;
            self.jobs.push(Job { offset: Some(offset), work: Work::Quantize { tensor, part, elements, store } });
        }
        self.add_state(tensor, pieces);
    }

    /// The pairs of a tensor that are checked piece by piece.
    fn pairs(&self, tensor: usize) -> Option<&'a PairCheck> {
        self.plan.pairs.get(&tensor).filter(|_| self.known.contains_key(&tensor) && !self.is_solved(tensor))
    }

    /// Elements of each piece but the last: with whole pairs, where they are checked.
    fn step(&self, tensor: usize) -> usize {
        match self.pairs(tensor).map(PairCheck::unit) {
            Some(unit) => unit * (PIECE / unit).max(1),
            None => piece_len(self.scheme(tensor)),
        }
    }

    fn add_state(&mut self, tensor: usize, pieces: usize) {
        if let Some(state) = self.states.get(&tensor) {
            state.readers.fetch_add(pieces, Ordering::Relaxed);
            return;
        }
        let state = TensorState {
            observed: OnceLock::new(),
            columns: OnceLock::new(),
            is_observed: Latch::new(1),
            is_quantized: Latch::new(pieces),
            parts: Mutex::new(BTreeMap::new()),
            codes: Mutex::default(),
            readers: AtomicUsize::new(pieces),
        };
        if let Some(params) = self.known.get(&tensor).filter(|_| !self.is_solved(tensor)) {
            drop(state.is_observed.guard());
            set_observed(&state, self.scheme(tensor), params.clone());
        }
        self.states.insert(tensor, state);
    }

    /// As many columns at a time as make a piece.
    fn push_transposed(&mut self, tensor: usize, start: u64) {
        let [matrices, rows, columns] = matrix_shape(&self.model.tensors()[tensor].info.shape);
        let step = (PIECE / rows.max(1)).next_multiple_of(2).clamp(2, columns.max(2));
        let mut pieces = 0;
        for matrix in 0..matrices {
            for first in (0..columns).step_by(step) {
                let columns_here = first..(first + step).min(columns);
                let offset = start + packed_len(self.scheme(tensor).codes, (matrix * columns + first) * rows) as u64;
                self.jobs.push(Job { offset: Some(offset), work: Work::Transpose { tensor, matrix, columns: columns_here } });
                pieces += 1;
            }
        }
        self.add_state(tensor, pieces);
    }

    /// Jobs that store the params of some pieces at a time.
    fn push_params(&mut self, tensor: usize, start: u64, width: u64, work: fn(usize, Range<usize>) -> Work) {
        let scheme = self.scheme(tensor);
        let elements = self.model.tensors()[tensor].info.elements();
        let step = piece_len(scheme);
        let pieces = elements.div_ceil(step);
        // Pieces hold whole rows of groups, apart from tensors that were observed as a whole: those go in one job.
        let at_a_time =
            if is_local(scheme) && !self.is_solved(tensor) && !self.known.contains_key(&tensor) { PARAM_PIECES } else { pieces };
        let groups_before = |piece: usize| scheme.layout.groups_before((piece * step).min(elements)) as u64;
        for first in (0..pieces).step_by(at_a_time) {
            let parts = first..(first + at_a_time).min(pieces);
            self.jobs.push(Job { offset: Some(start + groups_before(first) * width), work: work(tensor, parts) });
        }
    }

    fn observe(&self, tensor: usize) -> Result<()> {
        let state = &self.states[&tensor];
        let _done = state.is_observed.guard();
        let scheme = self.scheme(tensor);
        let ranges = observe::all_groups(self.model, tensor, scheme)?;
        let params: Vec<Params> = ranges.into_iter().map(|range| scheme.rule.choose_params(range)).collect();
        set_observed(state, scheme, params);
        Ok(())
    }

    fn solve(&self, tensor: usize) -> Result<()> {
        let state = &self.states[&tensor];
        let _done = state.is_observed.guard();
        let solver = self.solver.expect("there is one for every tensor that is solved");
        let solved = solver.solve(tensor, self.known.get(&tensor).map(Vec::as_slice))?;
        // The first piece has what is known of all of them.
        let part = Part { params: solved.params, sums: solved.sums, saturation: solved.saturation, stored: 0 };
        state.parts.lock().expect("no job panics while it holds this lock").insert(0, part);
        *state.codes.lock().expect("no job panics while it holds this lock") = Arc::new(solved.codes);
        Ok(())
    }

    /// All codes of a tensor that was solved; `None` if that failed. They are dropped when every reader has had them.
    fn solved_codes(&self, tensor: usize) -> Option<Arc<Vec<u8>>> {
        let state = &self.states[&tensor];
        state.is_observed.wait();
        let mut codes = state.codes.lock().expect("no job panics while it holds this lock");
        let is_last = state.readers.fetch_sub(1, Ordering::Relaxed) == 1;
        let codes = if is_last { std::mem::take(&mut *codes) } else { codes.clone() };
        (!codes.is_empty()).then_some(codes)
    }

    /// Bytes that `elements` values of a tensor take in the model.
    fn source_bytes(&self, tensor: usize, elements: usize) -> u64 {
        elements as u64 * self.model.tensors()[tensor].info.dtype.bits() / 8
    }

    /// Quantizes some columns of a matrix, whose params are known, and stores them as rows.
    fn transpose(&self, tensor: usize, matrix: usize, columns: &Range<usize>, codes: &mut Vec<u8>, scratch: &mut Scratch) {
        let scheme = self.scheme(tensor);
        let [_, rows, width] = matrix_shape(&self.model.tensors()[tensor].info.shape);
        codes.resize(rows * columns.len(), 0);
        if self.is_solved(tensor) {
            let Some(solved) = self.solved_codes(tensor) else { return };
            for (column, place) in columns.clone().zip(codes.chunks_exact_mut(rows)) {
                place.iter_mut().enumerate().for_each(|(row, code)| *code = solved[(matrix * rows + row) * width + column]);
            }
            if scheme.codes.bits() == 4 {
                pack_nibbles(codes);
            }
            return;
        }
        let params = &self.known[&tensor];
        let mut row_codes = vec![0; columns.len()];
        let mut part = Part::default();
        for row in 0..rows {
            let start = (matrix * rows + row) * width;
            let elements = start + columns.start..start + columns.end;
            let values = self.model.values(tensor, elements.clone(), &mut scratch.values);
            scheme.layout.for_each_run(elements.clone(), |group, run| {
                let run = run.start - elements.start..run.end - elements.start;
                let codes = &mut row_codes[run.clone()];
                part.sums.merge(&kernel::quantize(&values[run], params[group], scheme.arithmetic, scheme.clip, codes));
            });
            for (column, code) in row_codes.iter().enumerate() {
                codes[column * rows + row] = *code;
            }
        }
        if let Some(pairs) = self.pairs(tensor) {
            part.saturation = self.check_strip(tensor, pairs, [matrix * rows, rows], columns, codes, &mut part.sums);
        }
        if scheme.codes.bits() == 4 {
            pack_nibbles(codes);
        }
        // Behind those of the same tensor's codes that are not transposed, if there are any.
        let index = TRANSPOSED + matrix * width + columns.start;
        self.states[&tensor].parts.lock().expect("no job panics while it holds this lock").insert(index, part);
    }

    /// Checks the pairs of some columns of a matrix, whose codes are stored column by column.
    fn check_strip(
        &self,
        tensor: usize,
        pairs: &PairCheck,
        [first_row, rows]: [usize; 2],
        columns: &Range<usize>,
        codes: &mut [u8],
        errors: &mut ErrorSums,
    ) -> SaturationSums {
        let [_, _, width] = matrix_shape(&self.model.tensors()[tensor].info.shape);
        let (count, params) = (columns.len(), &self.known[&tensor]);
        let element = |place: usize| (first_row + place / count) * width + columns.start + place % count;
        let mut scratch = Vec::new();
        let row = |row: usize| element(row * count)..element(row * count) + count;
        let values: Vec<f32> = (0..rows).flat_map(|r| self.model.values(tensor, row(r), &mut scratch).to_vec()).collect();
        let mut by_row: Vec<u8> = (0..rows * count).map(|place| codes[place % count * rows + place / count]).collect();
        // Pairs lie in a row, whose columns come two by two, or in a column, which is here whole.
        let pairing = |pairing: &Pairing| match pairing {
            Pairing::Axis { len, inner: 1, .. } if *len == width => Pairing::along(&[rows, count], 1),
            _ => Pairing::along(&[rows, count], 0),
        };
        let check = PairCheck { pairings: pairs.pairings.iter().map(pairing).collect(), ..pairs.clone() };
        let params_of = |place: usize| params[self.scheme(tensor).layout.group_of(element(place))];
        let found = check.apply(0..by_row.len(), &values, &mut by_row, params_of, errors);
        by_row.iter().enumerate().for_each(|(place, code)| codes[place % count * rows + place / count] = *code);
        found
    }

    fn quantize(&self, tensor: usize, part: usize, elements: Range<usize>, codes: &mut Vec<u8>, scratch: &mut Scratch) -> Result<()> {
        let state = &self.states[&tensor];
        let _done = state.is_quantized.guard();
        let scheme = self.scheme(tensor);
        codes.resize(elements.len(), 0);
        let result = if self.is_solved(tensor) {
            if let Some(solved) = self.solved_codes(tensor) {
                codes.copy_from_slice(&solved[elements]);
            }
            None
        } else if is_local(scheme) && !self.known.contains_key(&tensor) {
            Some(self.quantize_local(tensor, scheme, elements, codes, scratch)?)
        } else {
            state.is_observed.wait();
            let Some(params) = state.observed.get() else {
                // Observing failed; its error is the one that is reported.
                return Ok(());
            };
            let mut sums = self.quantize_observed(tensor, scheme, params, state.columns.get(), elements.clone(), codes, scratch);
            let saturation = self.pairs(tensor).map(|pairs| {
                let values = self.model.values(tensor, elements.clone(), &mut scratch.values);
                pairs.apply(elements, values, codes, |element| params[scheme.layout.group_of(element)], &mut sums)
            });
            Some(Part { sums, saturation: saturation.unwrap_or_default(), ..Part::default() })
        };
        if let Some(result) = result {
            state.parts.lock().expect("no job panics while it holds this lock").insert(part, result);
        }
        Ok(())
    }

    /// Puts in the place of the codes of a piece, which were just chosen, the values that they stand for:
    /// `(code - zero_point) * scale` in f32, rounded to the tensor's type. A value that the type cannot hold becomes its
    /// largest, which its source did not exceed.
    fn codes_to_values(&self, tensor: usize, part: usize, elements: Range<usize>, bytes: &mut Vec<u8>, scratch: &mut Scratch) {
        let (state, scheme) = (&self.states[&tensor], self.scheme(tensor));
        let dtype = self.model.tensors()[tensor].info.dtype;
        let parts = state.parts.lock().expect("no job panics while it holds this lock");
        // Of all groups from the first one on, or from that of the piece on.
        let (params, first) = match state.observed.get() {
            Some(params) => (params.as_slice(), 0),
            None if self.is_solved(tensor) => (parts.get(&0).map_or(&[][..], |part| &part.params), 0),
            None => (parts.get(&part).map_or(&[][..], |part| &part.params), scheme.layout.groups_before(elements.start)),
        };
        scratch.values.clear();
        scratch.values.resize(bytes.len(), 0.0);
        let start = elements.start;
        scheme.layout.for_each_run(elements, |group, run| {
            let run = run.start - start..run.end - start;
            // There are none where observing failed; its error is the one that is reported.
            if let Some(params) = params.get(group - first) {
                kernel::dequantize(&bytes[run.clone()], scheme.codes.is_signed(), *params, &mut scratch.values[run]);
            }
        });
        let largest = dtype.largest();
        scratch.values.iter_mut().for_each(|value| *value = value.clamp(-largest, largest));
        bytes.resize(scratch.values.len() * self.width(tensor), 0);
        encode_f32(dtype, &scratch.values, bytes);
    }

    /// Observes, chooses and quantizes group by group.
    ///
    /// Extents come first, of as many rows as stay in cache: a long sequential pass lets the processor fetch ahead, and
    /// the second pass does not touch memory.
    fn quantize_local(
        &self,
        tensor: usize,
        scheme: &TensorScheme,
        elements: Range<usize>,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Part> {
        let mut part = Part::default();
        let (target, row, size) = (scheme.target(), scheme.layout.row_len(), scheme.layout.group_len());
        let as_stored = self.model.tensors()[tensor].info.dtype == Dtype::F32;
        let cached = row * (if as_stored { CACHED } else { CONVERTED } / row).max(1);
        let mut extents = Vec::with_capacity(cached.div_ceil(size.min(row)));
        for start in elements.clone().step_by(cached) {
            let end = (start + cached).min(elements.end);
            let values = self.model.values(tensor, start..end, &mut scratch.values);
            let groups = || values.chunks(row).flat_map(|row| row.chunks(size));
            extents.clear();
            extents.extend(groups().map(min_max));
            if extents.iter().any(|extent| !extent.finite) {
                return Err(observe::non_finite(self.model, tensor));
            }
            let mut next = end;
            let codes = codes[start - elements.start..end - elements.start].chunks_mut(row).flat_map(|row| row.chunks_mut(size));
            for ((values, codes), extent) in groups().zip(codes).zip(&extents) {
                let range = scheme.observer.observe_once(Batch { extent: extent.range(), values: &values }, &target);
                let params = scheme.rule.choose_params(range);
                let ahead = self.model.element_bytes(tensor, next..(next + values.len()).min(elements.end));
                next += values.len();
                part.sums.merge(&kernel::quantize_ahead(values, params, scheme.arithmetic, scheme.clip, codes, ahead));
                part.params.push(params);
            }
        }
        Ok(part)
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of the piece and of its tensor")]
    fn quantize_observed(
        &self,
        tensor: usize,
        scheme: &TensorScheme,
        params: &[Params],
        columns: Option<&ColumnParams>,
        elements: Range<usize>,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> ErrorSums {
        let mut sums = ErrorSums::default();
        let start = elements.start;
        let values = self.model.values(tensor, elements.clone(), &mut scratch.values);
        let columns = columns.zip(scheme.layout.column_groups(start));
        if let Some((columns, _)) = columns {
            let mut at = 0;
            while at < values.len() {
                let (first, left) = scheme.layout.column_groups(start + at).expect("the layout has columns");
                let run = left.min(values.len() - at);
                let codes = &mut codes[at..at + run];
                sums.merge(&kernel::quantize_columns(&values[at..at + run], columns, first, scheme.arithmetic, scheme.clip, codes));
                at += run;
            }
            return sums;
        }
        scheme.layout.for_each_run(elements, |group, run| {
            let run = run.start - start..run.end - start;
            sums.merge(&kernel::quantize(&values[run.clone()], params[group], scheme.arithmetic, scheme.clip, &mut codes[run]));
        });
        sums
    }

    /// Stores something of all params of some pieces; they are forgotten once everything of them is stored.
    fn store_params(&self, tensor: usize, parts: Range<usize>, bytes: &mut Vec<u8>, store: fn(&Params, &mut Vec<u8>)) {
        bytes.clear();
        let state = &self.states[&tensor];
        state.is_quantized.wait();
        if let Some(params) = state.observed.get() {
            params.iter().for_each(|params| store(params, bytes));
            return;
        }
        let mut done = state.parts.lock().expect("no job panics while it holds this lock");
        for (_, part) in done.range_mut(parts) {
            part.params.iter().for_each(|params| store(params, bytes));
            part.stored += 1;
            let all = if self.scheme(tensor).rule.symmetric { SCALES_ONLY } else { SCALES_AND_ZERO_POINTS };
            if self.stored_apart.contains(&tensor) && part.stored == all {
                part.params = Vec::new();
            }
        }
    }
}

/// Remembers the params of all groups, also in the form that a loop over interleaved channels takes.
fn set_observed(state: &TensorState, scheme: &TensorScheme, params: Vec<Params>) {
    let one_by_one = matches!(scheme.arithmetic, Arithmetic::AddThenRound(_));
    if scheme.layout.column_groups(0).is_some() && !one_by_one {
        state.columns.get_or_init(|| ColumnParams::new(&params));
    }
    state.observed.get_or_init(|| params);
}

/// A tensor as matrices of its last two dimensions: how many, rows, columns.
fn matrix_shape(shape: &[usize]) -> [usize; 3] {
    match shape {
        [outer @ .., rows, columns] => [outer.iter().product(), *rows, *columns],
        _ => [1, 1, shape.iter().product()],
    }
}

/// Pieces whose params one job stores.
const PARAM_PIECES: usize = 64;

/// Whether pieces hold whole groups, and groups do not depend on each other.
fn is_local(scheme: &TensorScheme) -> bool {
    matches!(scheme.layout, GroupLayout::Contiguous { row, .. } if row <= LONGEST_LOCAL) && scheme.observer.is_local()
}

/// Elements of each piece but the last: whole rows of groups where possible, and even, for codes of four bits.
fn piece_len(scheme: &TensorScheme) -> usize {
    if !is_local(scheme) {
        return PIECE;
    }
    let row = scheme.layout.row_len();
    let rows = (PIECE / row).max(1);
    row * if row % 2 == 1 { rows.next_multiple_of(2) } else { rows }
}

impl Jobs for QuantizeJobs<'_> {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn offset(&self, job: usize) -> Option<u64> {
        self.jobs[job].offset
    }

    fn run(&self, job: usize, bytes: &mut Vec<u8>, scratch: &mut Scratch) -> Result<()> {
        match &self.jobs[job].work {
            Work::Copy { tensor, bytes: range } => {
                bytes.clear();
                bytes.extend_from_slice(&self.model.tensor_bytes(*tensor)[range.clone()]);
            }
            Work::Store { bytes: known } => {
                bytes.clear();
                bytes.extend_from_slice(known);
            }
            Work::Transpose { tensor, matrix, columns } => self.transpose(*tensor, *matrix, columns, bytes, scratch),
            Work::CheckFinite { tensor } => observe::check_finite(self.model, *tensor)?,
            Work::Observe { tensor } => self.observe(*tensor)?,
            Work::Solve { tensor } => self.solve(*tensor)?,
            Work::Quantize { tensor, part, elements, store } => {
                self.quantize(*tensor, *part, elements.clone(), bytes, scratch)?;
                match store {
                    Store::Values => self.codes_to_values(*tensor, *part, elements.clone(), bytes, scratch),
                    Store::Codes | Store::Flipped(_) if self.scheme(*tensor).codes.bits() == 4 => pack_nibbles(bytes),
                    Store::Codes | Store::Flipped(_) => {}
                }
                if let Store::Flipped(bits) = store {
                    bytes.iter_mut().for_each(|byte| *byte ^= bits);
                }
            }
            Work::ScalesInType { tensor, parts } => {
                let dtype = self.model.tensors()[*tensor].info.dtype;
                let mut scales = Vec::new();
                self.store_params(*tensor, parts.clone(), &mut scales, |params, bytes| {
                    bytes.extend_from_slice(&params.scale.to_le_bytes())
                });
                let scales: Vec<f32> =
                    scales.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("there are four"))).collect();
                bytes.resize(scales.len() * self.width(*tensor), 0);
                encode_f32(dtype, &scales, bytes);
            }
            Work::PackedZeroPoints { tensor, parts } => {
                let (scheme, shape) = (self.scheme(*tensor), &self.model.tensors()[*tensor].info.shape);
                let mut zero_points = Vec::new();
                self.store_params(*tensor, parts.clone(), &mut zero_points, |params, bytes| bytes.push(params.zero_point as u8));
                let bits = scheme.codes.bits();
                let (half, all) = (1u32 << (bits - 1), (1u32 << bits) - 1);
                let unsigned: Vec<u32> = zero_points.iter().map(|zero_point| (u32::from(*zero_point) + half) & all).collect();
                let columns = unsigned.len() / shape[0].max(1);
                bytes.clear();
                pack_rows_to_words(&unsigned, columns, bits).iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            }
            Work::Scales { tensor, parts } => {
                self.store_params(*tensor, parts.clone(), bytes, |params, bytes| bytes.extend_from_slice(&params.scale.to_le_bytes()));
            }
            Work::ZeroPoints { tensor, parts } => {
                self.store_params(*tensor, parts.clone(), bytes, |params, bytes| bytes.push(params.zero_point as u8));
            }
        }
        Ok(())
    }

    fn weight(&self, job: usize) -> u64 {
        match &self.jobs[job].work {
            Work::Copy { bytes, .. } => bytes.len() as u64,
            Work::Store { bytes } => bytes.len() as u64,
            Work::Quantize { tensor, elements, .. } => self.source_bytes(*tensor, elements.len()),
            Work::Transpose { tensor, columns, .. } => {
                let [.., rows, _] = self.model.tensors()[*tensor].info.shape[..] else { return 0 };
                self.source_bytes(*tensor, columns.len() * rows)
            }
            _ => 0,
        }
    }
}
