//! A model as files: its messages in segments, and the values of constants beside them where one file would be too large.

use crate::formats::onnx::proto::{Message, ModelProto, Payload, StringStringEntryProto, TensorProto};
use crate::formats::onnx::tensor::EXTERNAL;
use crate::formats::onnx::wire::{Out, Segment};
use crate::graph::scopes;
use crate::outputs::{Content, FileKind, FileLayout};
use bytes::Bytes;

/// Most bytes of a message that protocol buffers can hold.
const LARGEST_MESSAGE: u64 = i32::MAX as u64;

/// Constants shorter than this stay in the model, in bytes: as in the reference implementation.
const SMALL: u64 = 1024;

/// Where values of external constants begin: at multiples of a page, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

/// The files of a model: the model `name` and, if values are to be external or the model would be too large, `name.data`.
/// `deferred` says what the deferred payloads are.
pub(crate) fn lay_out(mut proto: ModelProto, deferred: &[Content], name: &str, external: bool) -> Vec<FileLayout> {
    let whole = encode(&proto);
    if !external && whole.len <= LARGEST_MESSAGE {
        return vec![layout(name, whole.segments, deferred, FileKind::Onnx)];
    }
    let data_name = format!("{name}.data");
    let mut data = Out::default();
    scopes::for_each_mut(&mut proto, &mut |_, graph| {
        let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
        let of_nodes = attributes.flat_map(|attribute| attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors));
        graph.initializer.iter_mut().chain(of_nodes).for_each(|tensor| move_out(tensor, &mut data, &data_name));
    });
    if data.len == 0 {
        return vec![layout(name, encode(&proto).segments, deferred, FileKind::Onnx)];
    }
    // Values first: a model without them would not load.
    vec![layout(&data_name, data.segments, deferred, FileKind::Data), layout(name, encode(&proto).segments, deferred, FileKind::Onnx)]
}

fn encode(proto: &ModelProto) -> Out {
    let mut out = Out::default();
    proto.encode(&mut out);
    out
}

/// Moves the values of a constant to the file of data.
fn move_out(tensor: &mut TensorProto, data: &mut Out, location: &str) {
    let Some(payload) = &tensor.raw_data else { return };
    let len = match payload {
        Payload::Bytes(bytes) => bytes.len() as u64,
        Payload::Deferred { len, .. } => *len,
    };
    if len < SMALL {
        return;
    }
    let padding = data.len.next_multiple_of(ALIGNMENT) - data.len;
    data.bytes(&vec![0; padding as usize]);
    let offset = data.len;
    match payload {
        Payload::Bytes(bytes) => data.shared(bytes),
        Payload::Deferred { id, len } => data.deferred(*id, *len),
    }
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
    tensor.external_data = vec![entry("location", location.into()), entry("offset", offset.to_string()), entry("length", len.to_string())];
    tensor.data_location = Some(EXTERNAL);
    tensor.raw_data = None;
}

fn layout(name: &str, segments: Vec<Segment>, deferred: &[Content], kind: FileKind) -> FileLayout {
    let (mut contents, mut end) = (Vec::with_capacity(segments.len()), 0);
    for segment in segments {
        let place = end..end + segment.len();
        end = place.end;
        let content = match segment {
            Segment::Owned(bytes) => Content::Literal(Bytes::from(bytes)),
            Segment::Shared(bytes) => Content::Literal(bytes),
            Segment::Deferred { id, .. } => deferred[id].clone(),
        };
        contents.push((content, place));
    }
    FileLayout { name: name.to_owned(), header: Vec::new(), contents, len: end, kind }
}
