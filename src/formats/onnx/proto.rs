//! ONNX messages: those fields of [onnx.proto](https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) that this crate
//! looks at, each under its field's name and number. All other fields are kept as they were read and written back, after
//! the known ones.
//!
//! Texts are empty where a field is absent, as the specification treats both alike; that an empty text was written is
//! remembered only to write it again. Fields of a wrong wire type are refused, not skipped. A few bytes of a message can
//! stand for hundreds in memory, so reading is bounded by a [`Budget`].

use super::wire::{MAX_DEPTH, Out, Value, WireResult, next_field, read_varint};
use crate::error::show_name;
use bytes::Bytes;
use std::cell::Cell;

/// Memory that messages may take when they are read, in bytes, not counting what stays in the map; and how deep they may nest.
pub(crate) struct Budget {
    limit: u64,
    used: Cell<u64>,
    deepest: u64,
    is_too_deep: Cell<bool>,
}

impl Budget {
    /// Room for `limit` bytes in messages that nest `deepest` deep.
    pub(crate) fn new(limit: u64, deepest: u64) -> Self {
        Budget { limit, used: Cell::new(0), deepest, is_too_deep: Cell::new(false) }
    }

    /// Whether messages nest too deep.
    pub(crate) fn is_too_deep(&self) -> bool {
        self.is_too_deep.get()
    }

    /// What was asked for, if it was more than there is.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        Some(self.used.get()).filter(|used| *used > self.limit)
    }

    fn charge(&self, bytes: usize) -> WireResult<()> {
        self.used.set(self.used.get().saturating_add(bytes as u64));
        match self.exceeded() {
            None => Ok(()),
            Some(_) => Err(format!("expected messages that take at most {} bytes of memory, found more", self.limit)),
        }
    }
}

/// Default of the memory that messages may take: the graphs of the largest published models need a tenth.
pub(crate) const MAX_GRAPH_BYTES: u64 = 1 << 30;

/// Where in the tree of messages a field is, and what memory is left.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    depth: u64,
    budget: &'a Budget,
}

impl Place<'_> {
    fn inner(self) -> Self {
        Place { depth: self.depth + 1, ..self }
    }

    fn charge(self, bytes: usize) -> WireResult<()> {
        self.budget.charge(bytes)
    }
}

/// A message: fields are merged into it one by one.
pub(crate) trait Message: Default {
    /// Name in error messages.
    const NAME: &'static str;

    /// Takes in one field; false if it is unknown.
    fn merge_field(&mut self, number: u32, value: Value, place: Place<'_>) -> WireResult<bool>;

    /// Keeps a field as it was read.
    fn keep_unknown(&mut self, raw: Bytes);

    /// What must hold of every such message once it is complete.
    fn check(&self) -> WireResult<()> {
        Ok(())
    }

    /// Appends the message's fields.
    fn encode(&self, out: &mut Out);

    /// Merges all fields of `bytes`.
    fn merge(&mut self, mut bytes: Bytes, place: Place<'_>) -> WireResult<()> {
        if place.depth > place.budget.deepest {
            place.budget.is_too_deep.set(true);
            return Err(format!("expected messages to nest at most {} deep, found more", place.budget.deepest));
        }
        while let Some(field) = next_field(&mut bytes)? {
            if !self.merge_field(field.number, field.value, place)? {
                place.charge(size_of::<Bytes>())?;
                self.keep_unknown(field.raw);
            }
        }
        self.check()
    }

    /// Reads a message from its bytes, within the default budget.
    fn parse(bytes: Bytes) -> WireResult<Self> {
        Self::parse_within(bytes, &Budget::new(MAX_GRAPH_BYTES, MAX_DEPTH))
    }

    /// Reads a message from its bytes, within `budget`.
    fn parse_within(bytes: Bytes, budget: &Budget) -> WireResult<Self> {
        let mut message = Self::default();
        message.merge(bytes, Place { depth: 1, budget })?;
        Ok(message)
    }
}

/// A field of some Rust type: how occurrences are merged, and how it is written.
trait Field {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()>;
    fn encode(&self, number: u32, out: &mut Out);

    /// Whether it is a text without characters, which is written only if it was read.
    fn is_empty_text(&self) -> bool {
        false
    }
}

fn bytes_of(value: Value) -> WireResult<Bytes> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        other => Err(format!("expected a length, found {}", other.kind())),
    }
}

fn varint_of(value: Value) -> WireResult<i64> {
    match value {
        Value::Varint(value) => Ok(value.cast_signed()),
        other => Err(format!("expected a varint, found {}", other.kind())),
    }
}

fn text_of(value: Value, place: Place<'_>) -> WireResult<String> {
    let bytes = bytes_of(value)?;
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| format!("expected text in UTF-8, found {}", show_name(&String::from_utf8_lossy(&bytes))))?;
    place.charge(size_of::<String>() + text.len())?;
    Ok(text.to_owned())
}

impl Field for String {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        *self = text_of(value, place)?;
        Ok(())
    }

    fn is_empty_text(&self) -> bool {
        self.is_empty()
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if !self.is_empty() {
            out.field_bytes(number, self.as_bytes());
        }
    }
}

impl Field for Vec<String> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        self.push(text_of(value, place)?);
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        self.iter().for_each(|text| out.field_bytes(number, text.as_bytes()));
    }
}

impl Field for Option<i64> {
    fn merge(&mut self, value: Value, _place: Place<'_>) -> WireResult<()> {
        *self = Some(varint_of(value)?);
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if let Some(value) = self {
            out.tag(number, 0);
            out.varint(value.cast_unsigned());
        }
    }
}

impl Field for Option<f32> {
    fn merge(&mut self, value: Value, _place: Place<'_>) -> WireResult<()> {
        match value {
            Value::Fixed32(bytes) => *self = Some(f32::from_le_bytes(bytes)),
            other => return Err(format!("expected four bytes, found {}", other.kind())),
        }
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if let Some(value) = self {
            out.tag(number, 5);
            out.bytes(&value.to_le_bytes());
        }
    }
}

/// Packed or one by one; written one by one, as `onnx.proto` declares them.
impl Field for Vec<i64> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        match value {
            Value::Bytes(packed) => {
                let mut rest = &packed[..];
                while !rest.is_empty() {
                    let (value, len) = read_varint(rest)?;
                    place.charge(size_of::<i64>())?;
                    self.push(value.cast_signed());
                    rest = &rest[len..];
                }
            }
            value => {
                place.charge(size_of::<i64>())?;
                self.push(varint_of(value)?);
            }
        }
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        for value in self {
            out.tag(number, 0);
            out.varint(value.cast_unsigned());
        }
    }
}

/// Packed or one by one; written one by one, as `onnx.proto` declares them.
impl Field for Vec<f32> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        match value {
            Value::Fixed32(bytes) => {
                place.charge(size_of::<f32>())?;
                self.push(f32::from_le_bytes(bytes));
            }
            Value::Bytes(packed) => {
                let (values, rest) = packed.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(format!("expected packed floats of 4 bytes each, found {} bytes", packed.len()));
                }
                place.charge(packed.len())?;
                self.extend(values.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            other => return Err(format!("expected floats, found {}", other.kind())),
        }
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        for value in self {
            out.tag(number, 5);
            out.bytes(&value.to_le_bytes());
        }
    }
}

impl Field for Option<Bytes> {
    fn merge(&mut self, value: Value, _place: Place<'_>) -> WireResult<()> {
        *self = Some(bytes_of(value)?);
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if let Some(bytes) = self {
            out.field_shared(number, bytes);
        }
    }
}

impl Field for Vec<Bytes> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        place.charge(size_of::<Bytes>())?;
        self.push(bytes_of(value)?);
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        self.iter().for_each(|bytes| out.field_shared(number, bytes));
    }
}

impl<M: Message> Field for Vec<M> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        let mut message = M::default();
        let index = self.len();
        place.charge(size_of::<M>())?;
        message.merge(bytes_of(value)?, place.inner()).map_err(|e| within(&format!("{} {index}", M::NAME), e))?;
        self.push(message);
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        self.iter().for_each(|message| out.field_message(number, |out| message.encode(out)));
    }
}

impl<M: Message> Field for Option<Box<M>> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        place.charge(size_of::<M>())?;
        self.get_or_insert_default().merge(bytes_of(value)?, place.inner())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if let Some(message) = self {
            out.field_message(number, |out| message.encode(out));
        }
    }
}

/// Says where an error is, unless it says so at length already or is about too deep a place.
fn within(place: &str, error: String) -> String {
    if error.len() > 400 || error.contains("nest at most") { error } else { format!("{place}: {error}") }
}

/// Stored bytes, or bytes that are known when the file is written.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Bytes(Bytes),
    Deferred { id: usize, len: u64 },
}

impl Field for Option<Payload> {
    fn merge(&mut self, value: Value, _place: Place<'_>) -> WireResult<()> {
        *self = Some(Payload::Bytes(bytes_of(value)?));
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        match self {
            None => {}
            Some(Payload::Bytes(bytes)) => out.field_shared(number, bytes),
            Some(Payload::Deferred { id, len }) => {
                out.tag(number, 2);
                out.varint(*len);
                out.deferred(*id, *len);
            }
        }
    }
}

/// Packed numbers as they are stored: `WIDTH` bytes each, or varints where it is 0. Usually a part of the map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed<const WIDTH: usize>(Bytes);

impl<const WIDTH: usize> Packed<WIDTH> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Little-endian numbers of `WIDTH` bytes.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Varints.
    pub(crate) fn varints(&self) -> impl Iterator<Item = WireResult<u64>> + '_ {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let read = read_varint(rest);
                rest = read.as_ref().map_or(&[], |(_, len)| &rest[*len..]);
                read.map(|(value, _)| value)
            })
        })
    }
}

impl<const WIDTH: usize> Field for Packed<WIDTH> {
    fn merge(&mut self, value: Value, place: Place<'_>) -> WireResult<()> {
        let more = match value {
            Value::Bytes(packed) if WIDTH == 0 || packed.len().is_multiple_of(WIDTH) => packed,
            Value::Bytes(packed) => return Err(format!("expected packed values of {WIDTH} bytes each, found {} bytes", packed.len())),
            Value::Varint(value) if WIDTH == 0 => {
                let mut out = Out::default();
                out.varint(value);
                out.into_vec().unwrap_or_default().into()
            }
            Value::Fixed32(bytes) if WIDTH == 4 => Bytes::copy_from_slice(&bytes),
            Value::Fixed64(bytes) if WIDTH == 8 => Bytes::copy_from_slice(&bytes),
            other => return Err(format!("expected packed values, found {}", other.kind())),
        };
        if self.0.is_empty() {
            place.charge(size_of::<Bytes>())?;
            self.0 = more;
        } else {
            // Only one unique owner grows in place, which is the case for values stored one by one.
            let mut all = match std::mem::take(&mut self.0).try_into_mut() {
                Ok(unique) => unique,
                Err(shared) => {
                    place.charge(shared.len())?;
                    bytes::BytesMut::from(&shared[..])
                }
            };
            place.charge(more.len())?;
            all.extend_from_slice(&more);
            self.0 = all.freeze();
        }
        Ok(())
    }

    fn encode(&self, number: u32, out: &mut Out) {
        if !self.0.is_empty() {
            out.field_shared(number, &self.0);
        }
    }
}

macro_rules! message {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty = $number:literal,)* } $(each $each:expr;)? $(check $check:expr;)?) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        pub(crate) struct $name {
            $(pub $field: $type,)*
            /// All other fields, as they were read.
            pub unknown: Vec<Bytes>,
            /// Fields, as bits by their number, that were read as an empty text.
            pub written_empty: u32,
        }

        impl Message for $name {
            const NAME: &'static str = stringify!($name);

            fn merge_field(&mut self, number: u32, value: Value, place: Place<'_>) -> WireResult<bool> {
                match number {
                    $($number => {
                        self.$field.merge(value, place).map_err(|e| within(stringify!($field), e))?;
                        // Of a field that is written twice the last one counts.
                        let is_empty = u32::from(self.$field.is_empty_text());
                        self.written_empty = self.written_empty & !(1 << $number) | is_empty << $number;
                    })*
                    _ => return Ok(false),
                }
                $(
                    let each: fn(&Self, u32) -> WireResult<()> = $each;
                    each(self, number)?;
                )?
                Ok(true)
            }

            fn keep_unknown(&mut self, raw: Bytes) {
                self.unknown.push(raw);
            }

            $(fn check(&self) -> WireResult<()> {
                let check: fn(&Self) -> WireResult<()> = $check;
                check(self)
            })?

            fn encode(&self, out: &mut Out) {
                $(
                    self.$field.encode($number, out);
                    if self.$field.is_empty_text() && self.written_empty & 1 << $number != 0 {
                        out.field_bytes($number, b"");
                    }
                )*
                self.unknown.iter().for_each(|raw| out.shared(raw));
            }
        }
    };
}

message! {
    /// The file.
    ModelProto {
        ir_version: Option<i64> = 1,
        graph: Option<Box<GraphProto>> = 7,
        opset_import: Vec<OperatorSetIdProto> = 8,
        functions: Vec<FunctionProto> = 25,
    }
}

message! {
    /// Which version of which operators.
    OperatorSetIdProto {
        domain: String = 1,
        version: Option<i64> = 2,
    }
}

message! {
    /// Nodes in topological order, and the constants they start from.
    GraphProto {
        node: Vec<NodeProto> = 1,
        name: String = 2,
        initializer: Vec<TensorProto> = 5,
        input: Vec<ValueInfoProto> = 11,
        output: Vec<ValueInfoProto> = 12,
        value_info: Vec<ValueInfoProto> = 13,
    }
    each |graph, number| match graph.initializer.last() {
        // At once, because each empty one takes two bytes of the file and hundreds of memory.
        Some(tensor) if number == 5 && tensor.name.is_empty() => {
            Err(format!("initializer: TensorProto {}: name: expected one, found none", graph.initializer.len() - 1))
        }
        _ => Ok(()),
    };
}

message! {
    /// One operator. An empty name among inputs or outputs stands for one that is left out.
    NodeProto {
        input: Vec<String> = 1,
        output: Vec<String> = 2,
        name: String = 3,
        op_type: String = 4,
        attribute: Vec<AttributeProto> = 5,
        domain: String = 7,
    }
    check |node| if node.op_type.is_empty() { Err("op_type: expected a name, found none".into()) } else { Ok(()) };
}

message! {
    /// A parameter of an operator.
    AttributeProto {
        name: String = 1,
        f: Option<f32> = 2,
        i: Option<i64> = 3,
        s: Option<Bytes> = 4,
        t: Option<Box<TensorProto>> = 5,
        g: Option<Box<GraphProto>> = 6,
        floats: Vec<f32> = 7,
        ints: Vec<i64> = 8,
        strings: Vec<Bytes> = 9,
        tensors: Vec<TensorProto> = 10,
        graphs: Vec<GraphProto> = 11,
        kind: Option<i64> = 20,
        ref_attr_name: String = 21,
    }
}

message! {
    /// A constant. Its values are in exactly one place.
    TensorProto {
        dims: Vec<i64> = 1,
        data_type: Option<i64> = 2,
        float_data: Packed<4> = 4,
        int32_data: Packed<0> = 5,
        string_data: Vec<Bytes> = 6,
        int64_data: Packed<0> = 7,
        name: String = 8,
        raw_data: Option<Payload> = 9,
        double_data: Packed<8> = 10,
        uint64_data: Packed<0> = 11,
        external_data: Vec<StringStringEntryProto> = 13,
        data_location: Option<i64> = 14,
    }
}

message! {
    /// A key and its text.
    StringStringEntryProto {
        key: String = 1,
        value: String = 2,
    }
}

message! {
    /// A value's name and type.
    ValueInfoProto {
        name: String = 1,
        r#type: Option<Box<TypeProto>> = 2,
    }
}

message! {
    /// A tensor's type; sequences, maps and the like are kept unread.
    TypeProto {
        tensor_type: Option<Box<TensorTypeProto>> = 1,
    }
    check |kind| match kind.tensor_type.is_some() && OTHER_TYPES.iter().any(|number| unknown_field(&kind.unknown, *number).is_some()) {
        true => Err("expected one type, found several".into()),
        false => Ok(()),
    };
}

/// Fields of TypeProto that say the same as `tensor_type` of other types.
const OTHER_TYPES: &[u32] = &[4, 5, 7, 8, 9];

message! {
    /// Element type and shape.
    TensorTypeProto {
        elem_type: Option<i64> = 1,
        shape: Option<Box<TensorShapeProto>> = 2,
    }
}

message! {
    /// Dimensions, outermost first.
    TensorShapeProto {
        dim: Vec<DimensionProto> = 1,
    }
}

message! {
    /// A number, or a name for one that is known when the model runs.
    DimensionProto {
        dim_value: Option<i64> = 1,
        dim_param: String = 2,
    }
    check |dim| match dim.dim_value.is_some() && (!dim.dim_param.is_empty() || dim.written_empty != 0) {
        true => Err("expected a number or a name, found both".into()),
        false => Ok(()),
    };
}

message! {
    /// A constant of few values other than zero. Where other messages hold one, it stays unread.
    SparseTensorProto {
        values: Option<Box<TensorProto>> = 1,
        indices: Option<Box<TensorProto>> = 2,
        dims: Vec<i64> = 3,
    }
}

message! {
    /// Graphs for training. Where ModelProto holds one, it stays unread.
    TrainingInfoProto {
        initialization: Option<Box<GraphProto>> = 1,
        algorithm: Option<Box<GraphProto>> = 2,
    }
}

/// Contents of all fields of a number, among those that are kept as they were read.
pub(crate) fn unknown_fields(unknown: &[Bytes], number: u32) -> impl Iterator<Item = Value> + '_ {
    let field = |raw: &Bytes| next_field(&mut raw.clone()).ok().flatten();
    unknown.iter().filter_map(field).filter(move |field| field.number == number).map(|field| field.value)
}

/// Content of the last field of a number, among those that are kept as they were read.
pub(crate) fn unknown_field(unknown: &[Bytes], number: u32) -> Option<Value> {
    unknown_fields(unknown, number).last()
}

message! {
    /// An operator made of others.
    FunctionProto {
        name: String = 1,
        input: Vec<String> = 4,
        output: Vec<String> = 5,
        attribute: Vec<String> = 6,
        node: Vec<NodeProto> = 7,
        opset_import: Vec<OperatorSetIdProto> = 9,
        domain: String = 10,
    }
}

/// `AttributeProto.AttributeType`.
pub(crate) mod attribute_kind {
    pub(crate) const FLOAT: i64 = 1;
    pub(crate) const INT: i64 = 2;
    pub(crate) const STRING: i64 = 3;
    pub(crate) const TENSOR: i64 = 4;
    pub(crate) const INTS: i64 = 7;
}

impl AttributeProto {
    pub(crate) fn int(name: &str, value: i64) -> Self {
        AttributeProto { name: name.into(), i: Some(value), kind: Some(attribute_kind::INT), ..Self::default() }
    }

    pub(crate) fn float(name: &str, value: f32) -> Self {
        AttributeProto { name: name.into(), f: Some(value), kind: Some(attribute_kind::FLOAT), ..Self::default() }
    }

    pub(crate) fn ints(name: &str, values: &[i64]) -> Self {
        AttributeProto { name: name.into(), ints: values.to_vec(), kind: Some(attribute_kind::INTS), ..Self::default() }
    }

    pub(crate) fn string(name: &str, value: &str) -> Self {
        let s = Some(Bytes::copy_from_slice(value.as_bytes()));
        AttributeProto { name: name.into(), s, kind: Some(attribute_kind::STRING), ..Self::default() }
    }

    pub(crate) fn tensor(name: &str, value: TensorProto) -> Self {
        AttributeProto { name: name.into(), t: Some(Box::new(value)), kind: Some(attribute_kind::TENSOR), ..Self::default() }
    }
}

impl ValueInfoProto {
    /// A tensor; dimensions that are `None` are known when the model runs.
    pub(crate) fn tensor(name: String, elem_type: i64, shape: &[Option<i64>]) -> Self {
        let dim = shape.iter().map(|dim| DimensionProto { dim_value: *dim, ..DimensionProto::default() }).collect();
        let shape = Some(Box::new(TensorShapeProto { dim, ..TensorShapeProto::default() }));
        let tensor_type = Some(Box::new(TensorTypeProto { elem_type: Some(elem_type), shape, ..TensorTypeProto::default() }));
        let r#type = Some(Box::new(TypeProto { tensor_type, ..TypeProto::default() }));
        ValueInfoProto { name, r#type, ..ValueInfoProto::default() }
    }
}

impl NodeProto {
    /// A node of the standard operators.
    pub(crate) fn new(op_type: &str, name: String, input: Vec<String>, output: Vec<String>) -> Self {
        NodeProto { op_type: op_type.into(), name, input, output, ..Self::default() }
    }

    /// What it is called: its name, or its output's if it has none.
    pub(crate) fn label(&self) -> &str {
        [&self.name].into_iter().chain(&self.output).find(|name| !name.is_empty()).map_or("", |name| name)
    }

    /// The attribute of this name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// The integer attribute of this name, or its default.
    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|attribute| attribute.i).unwrap_or(default)
    }

    /// The float attribute of this name, or its default.
    pub(crate) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|attribute| attribute.f).unwrap_or(default)
    }

    /// Whether it is a standard operator (`ai.onnx`) of this type.
    pub(crate) fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && self.is_standard()
    }

    /// Whether its operator is one of ONNX itself.
    pub(crate) fn is_standard(&self) -> bool {
        self.domain.is_empty() || self.domain == "ai.onnx"
    }

    /// The input at `index`, unless it is left out.
    pub(crate) fn input(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The bodies of control flow: If, Loop, Scan.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute.iter().flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
    }

    /// The bodies of control flow.
    pub(crate) fn bodies_mut(&mut self) -> impl Iterator<Item = &mut GraphProto> {
        self.attribute.iter_mut().flat_map(|attribute| attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs))
    }
}

impl ModelProto {
    /// The version of the standard operators, 1 if the model does not say.
    pub(crate) fn opset(&self) -> i64 {
        self.opset_of("")
    }

    /// The version of the operators of `domain`, 1 if the model does not say.
    pub(crate) fn opset_of(&self, domain: &str) -> i64 {
        let same = |import: &&OperatorSetIdProto| import.domain == domain || (domain.is_empty() && import.domain == "ai.onnx");
        self.opset_import.iter().find(same).and_then(|import| import.version).unwrap_or(1)
    }

    /// The whole file in memory, if no payload is deferred.
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut out = Out::default();
        self.encode(&mut out);
        out.into_vec()
    }
}
