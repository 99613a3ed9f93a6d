//! Datatypes of the Open Inference Protocol and the tensors that carry them between JSON and the engine.
//!
//! One table ties each datatype to its Rust type; reading, writing and handing to the engine follow from it. The buffers
//! live as long as the model and are used again by the next request.
//!
//! A tensor in binary form is little endian and row-major, which is what the engine wants: where it lies aligned, the engine gets it as
//! it came, else it is copied once, and no element is looked at but those that could be wrong (`BOOL`, `BYTES`).
//!
//! What is deliberately missing: floats smaller than 16 bits, which the protocol does not carry either.

use bytes::Bytes;
use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::TensorElementType;
use wire::protobuf::{Fields, Malformed, Value};
use wire::{BODY_BYTES_MAX, Fail, FailCode};

use crate::json::{Reader, invalid};
use crate::output::Part;

/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 16;
/// Most elements of one input.
pub const ELEMENTS_MAX: u64 = 1 << 24;
/// Most bytes of a buffer that are kept for the next request.
const KEPT_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(cfg!(target_endian = "little"), "the protocol's binary form is the machine's own");

/// What one datatype can do.
pub trait Element: Sized + Clone + Default {
    /// Its field of `InferTensorContents`; 0 where it has none.
    const FIELD: u32 = 0;
    /// Bytes of one in binary form; `None` where they differ.
    const BYTES: Option<usize>;
    /// Digits after the point that a classification shows.
    const DECIMALS: usize = 0;
    /// Reads one element.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when it is not one of this type.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Fail>;
    /// Appends it as JSON; `false` when JSON cannot carry it.
    fn write(&self, out: &mut Vec<u8>) -> bool;
    /// Borrowed by the engine.
    ///
    /// # Errors
    /// As the engine says.
    fn lend<'t>(shape: &[i64], data: &'t [Self]) -> ort::Result<SessionInputValue<'t>>;
    /// Calls `f` with all elements of an output, or with those of the rows that are meant.
    ///
    /// # Errors
    /// When the engine's value is of another type, and what `f` returns.
    fn with_all(value: Part<'_, '_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail>;
    /// The elements that these bytes are, where they can be used as they lie there.
    fn view(raw: &[u8]) -> Option<&[Self]> {
        let _ = raw;
        None
    }
    /// Reads all elements of the binary form.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when number or content of the bytes do not fit.
    fn read_raw(raw: &[u8], elements: usize, data: &mut Vec<Self>) -> Result<(), Fail>;
    /// Appends elements in binary form.
    fn write_raw(data: &[Self], out: &mut Vec<u8>);
    /// Reads one or several elements of a field of `InferTensorContents`; `None` when the value is not one of this type.
    ///
    /// # Errors
    /// [`Malformed`].
    fn read_value(value: Value<'_>, data: &mut Vec<Self>) -> Result<Option<()>, Malformed> {
        let _ = (value, data);
        Ok(None)
    }
    /// As a number that classes are ranked by.
    fn score(&self) -> Option<f64> {
        None
    }
    /// What stands for a missing value, where the type has something for it.
    fn missing() -> Option<Self> {
        None
    }
}

macro_rules! datatypes {
    ($($variant:ident $rust:ty, $name:literal, $engine:ident;)*) => {
        /// A datatype by its name in the protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Datatype { $(#[doc = $name] $variant),* }

        impl Datatype {
            /// `FP32`, `INT64`, `BYTES`, …
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// From the engine's type; `None` when the protocol has none for it.
            #[must_use]
            pub fn of(element: TensorElementType) -> Option<Self> {
                match element { $(TensorElementType::$engine => Some(Self::$variant),)* _ => None }
            }

            /// Appends all elements of an output as a JSON array.
            ///
            /// # Errors
            /// When the engine's value is of another type, is not finite, or the answer gets too long.
            pub fn write_all(self, value: Part<'_, '_>, out: &mut Vec<u8>) -> Result<(), Fail> {
                match self { $(Self::$variant => <$rust>::with_all(value, |data| write_slice(data, out))),* }
            }

            /// Appends each row of an output, nested as the dimensions after the first say; `ends` gets the end of each.
            ///
            /// # Errors
            /// As [`Datatype::write_all`].
            pub fn write_rows(self, value: Part<'_, '_>, row: &[i64], out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<(), Fail> {
                match self { $(Self::$variant => <$rust>::with_all(value, |data| write_rows(data, row, out, ends))),* }
            }

            /// Bytes of one element; `None` where they differ.
            #[must_use]
            pub fn element_bytes(self) -> Option<usize> {
                match self { $(Self::$variant => <$rust>::BYTES),* }
            }

            /// Appends all elements of an output in binary form.
            ///
            /// # Errors
            /// When the engine's value is of another type, or the answer gets too long.
            pub fn write_raw(self, value: Part<'_, '_>, out: &mut Vec<u8>) -> Result<(), Fail> {
                match self { $(Self::$variant => <$rust>::with_all(value, |data| write_raw(data, out))),* }
            }

            /// The best classes of each row, `k` at most, as in `0.912000:2`.
            ///
            /// # Errors
            /// When the elements are no numbers, or the engine's value is of another type.
            pub fn best(self, value: Part<'_, '_>, width: usize, k: usize) -> Result<Vec<String>, Fail> {
                let mut best = Vec::new();
                match self { $(Self::$variant => <$rust>::with_all(value, |data| rank(data, width, k, &mut best))),* }?;
                Ok(best)
            }

            fn buffer(self) -> Data {
                match self { $(Self::$variant => Data::$variant(Vec::new())),* }
            }
        }

        /// Elements in row-major order.
        #[derive(Debug)]
        enum Data { $($variant(Vec<$rust>)),* }

        impl Data {
            fn read(&mut self, reader: &mut Reader<'_>, shape: &[i64], elements: usize) -> Result<(), Fail> {
                match self { $(Self::$variant(data) => read_all(reader, shape, elements, data)),* }
            }

            fn read_raw(&mut self, raw: &[u8], elements: usize) -> Result<bool, Fail> {
                match self { $(Self::$variant(data) => take_raw(raw, elements, data)),* }
            }

            fn read_contents(&mut self, contents: &[u8], elements: usize) -> Result<(), Fail> {
                match self { $(Self::$variant(data) => read_contents(contents, elements, data, $name)),* }
            }

            fn push(&mut self, reader: &mut Reader<'_>) -> Result<(), Fail> {
                match self { $(Self::$variant(data) => push_or_missing(reader, data)),* }
            }

            fn len(&self) -> usize {
                match self { $(Self::$variant(data) => data.len()),* }
            }

            fn clear(&mut self) {
                match self { $(Self::$variant(data) => data.clear()),* }
            }

            /// Adds the elements of another one behind its own; each may have them as they came.
            fn append(&mut self, own: Option<Bytes>, other: &Self, raw: Option<&[u8]>) {
                match (self, other) {
                    $((Self::$variant(data), Self::$variant(more)) => {
                        if let Some(view) = own.as_deref().and_then(<$rust>::view) {
                            data.extend_from_slice(view);
                        }
                        data.extend_from_slice(raw.and_then(<$rust>::view).unwrap_or(more));
                    })*
                    // Both are of one input.
                    _ => {}
                }
            }

            fn zeros(&mut self, elements: usize) {
                match self { $(Self::$variant(data) => { data.clear(); data.resize(elements, Default::default()); }),* }
            }

            fn lend<'t>(&'t self, shape: &[i64], raw: Option<&'t [u8]>) -> ort::Result<SessionInputValue<'t>> {
                match self { $(Self::$variant(data) => <$rust>::lend(shape, raw.and_then(<$rust>::view).unwrap_or(data))),* }
            }

            fn trim(&mut self) {
                match self { $(Self::$variant(data) => {
                    data.clear();
                    data.shrink_to(KEPT_BYTES_MAX / size_of::<$rust>());
                }),* }
            }
        }
    };
}

datatypes! {
    Bool bool, "BOOL", Bool;
    Uint8 u8, "UINT8", Uint8;
    Uint16 u16, "UINT16", Uint16;
    Uint32 u32, "UINT32", Uint32;
    Uint64 u64, "UINT64", Uint64;
    Int8 i8, "INT8", Int8;
    Int16 i16, "INT16", Int16;
    Int32 i32, "INT32", Int32;
    Int64 i64, "INT64", Int64;
    Fp16 f16, "FP16", Float16;
    Bf16 bf16, "BF16", Bfloat16;
    Fp32 f32, "FP32", Float32;
    Fp64 f64, "FP64", Float64;
    Bytes String, "BYTES", String;
}

/// One input's buffer.
#[derive(Debug)]
pub struct Tensor {
    shape: Vec<i64>,
    data: Data,
    /// The elements as they came, in place of `data`.
    raw: Option<Bytes>,
}

impl Tensor {
    /// An empty buffer for this datatype.
    #[must_use]
    pub fn new(datatype: Datatype) -> Self {
        Self { shape: Vec::new(), data: datatype.buffer(), raw: None }
    }

    /// Reads the elements for `shape`, flat or nested as the shape says.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when number or type of the elements do not fit.
    pub fn read(&mut self, reader: &mut Reader<'_>, shape: &[i64], elements: usize) -> Result<(), Fail> {
        self.raw = None;
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        self.data.read(reader, shape, elements)
    }

    /// Takes the elements for `shape` in binary form.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when number or content of the bytes do not fit.
    pub fn read_raw(&mut self, raw: Bytes, shape: &[i64], elements: usize) -> Result<(), Fail> {
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        let as_it_lies = self.data.read_raw(&raw, elements)?;
        self.raw = Some(raw).filter(|_| as_it_lies);
        Ok(())
    }

    /// Reads the elements for `shape` out of an `InferTensorContents`.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when number or type of the elements do not fit.
    pub fn read_contents(&mut self, contents: &[u8], shape: &[i64], elements: usize) -> Result<(), Fail> {
        self.raw = None;
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        self.data.read_contents(contents, elements)
    }

    /// Begins a tensor whose elements come one by one.
    pub fn begin(&mut self) {
        self.raw = None;
        self.shape.clear();
        self.data.clear();
    }

    /// Reads one more element; `null` is not-a-number where the type has that.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when it is not one of this type, or one too many.
    pub fn push(&mut self, reader: &mut Reader<'_>) -> Result<(), Fail> {
        self.data.push(reader)
    }

    /// Ends a tensor that [`Tensor::begin`] began.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when the shape is for another number of elements.
    pub fn shaped(&mut self, shape: &[i64]) -> Result<(), Fail> {
        let asked = elements(shape).map_err(|why| invalid(format!("shape {shape:?}: {why}")))?;
        if asked != self.data.len() {
            return Err(invalid(format!("{} elements where shape {shape:?} asks for {asked}", self.data.len())));
        }
        self.shape.extend_from_slice(shape);
        Ok(())
    }

    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Adds the rows of another tensor of the same input behind its own.
    pub fn append(&mut self, other: &Self) {
        self.data.append(self.raw.take(), &other.data, other.raw.as_deref());
        if let (Some(rows), Some(more)) = (self.shape.first_mut(), other.shape.first()) {
            *rows = rows.saturating_add(*more);
        }
    }

    /// Fills with zeros, `false` or empty strings.
    pub fn zeros(&mut self, shape: &[i64], elements: usize) {
        self.raw = None;
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        self.data.zeros(elements);
    }

    /// Borrowed by the engine for one run.
    ///
    /// # Errors
    /// As the engine says.
    pub fn lend(&self) -> ort::Result<SessionInputValue<'_>> {
        self.data.lend(&self.shape, self.raw.as_deref())
    }

    /// Forgets the content and gives back what is too large to keep.
    pub fn trim(&mut self) {
        self.raw = None;
        self.data.trim();
    }
}

/// Number of elements of a shape.
///
/// # Errors
/// In words, when a dimension is negative or the product is over [`ELEMENTS_MAX`].
pub fn elements(shape: &[i64]) -> Result<usize, String> {
    let mut product = 1u64;
    for dimension in shape {
        let dimension = u64::try_from(*dimension).map_err(|_| format!("dimension `{dimension}` is negative"))?;
        product = product.checked_mul(dimension).ok_or_else(|| "the product of its dimensions overflows".to_owned())?;
    }
    if product > ELEMENTS_MAX {
        return Err(format!("{product} elements are more than the {ELEMENTS_MAX} that one input may carry"));
    }
    usize::try_from(product).map_err(|_| "too many elements".to_owned())
}

fn read_all<T: Element>(reader: &mut Reader<'_>, shape: &[i64], elements: usize, data: &mut Vec<T>) -> Result<(), Fail> {
    data.clear();
    // Bounded by the caller: `elements` is at most the number of bytes left in the body.
    data.reserve(elements);
    let start = reader.offset();
    if !reader.take(b'[') {
        return Err(reader.expected("an array of elements"));
    }
    let nested = reader.peek() == Some(b'[');
    let mut reader_at_start = reader.at(start);
    if nested {
        read_nested(&mut reader_at_start, shape, 0, data)?;
    } else {
        reader_at_start.array("an array of elements", |reader| {
            if data.len() == elements {
                return Err(invalid(format!("more elements than the {elements} of shape {shape:?}")));
            }
            push(reader, data)
        })?;
    }
    *reader = reader_at_start;
    if data.len() == elements { Ok(()) } else { Err(invalid(format!("{} elements where shape {shape:?} asks for {elements}", data.len()))) }
}

/// Lists in lists: each must be as long as its dimension says.
fn read_nested<T: Element>(reader: &mut Reader<'_>, shape: &[i64], level: usize, data: &mut Vec<T>) -> Result<(), Fail> {
    let Some(dimension) = shape.get(level) else {
        return Err(invalid(format!("lists nest deeper than the {} dimensions of shape {shape:?}", shape.len())));
    };
    let (mut count, last) = (0i64, level + 1 == shape.len());
    reader.array("an array as deep as the shape says", |reader| {
        count += 1;
        if count > *dimension {
            return Err(invalid(format!("a list of dimension {level} is longer than the {dimension} of shape {shape:?}")));
        }
        if last && reader.peek() != Some(b'[') { push(reader, data) } else { read_nested(reader, shape, level + 1, data) }
    })?;
    if count == *dimension {
        Ok(())
    } else {
        Err(invalid(format!("a list of dimension {level} has {count} elements where shape {shape:?} asks for {dimension}")))
    }
}

fn push<T: Element>(reader: &mut Reader<'_>, data: &mut Vec<T>) -> Result<(), Fail> {
    match T::read(reader) {
        Ok(element) => {
            data.push(element);
            Ok(())
        }
        Err(fail) => Err(invalid(format!("element {}: {}", data.len(), fail.message))),
    }
}

fn push_or_missing<T: Element>(reader: &mut Reader<'_>, data: &mut Vec<T>) -> Result<(), Fail> {
    if data.len() as u64 >= ELEMENTS_MAX {
        return Err(invalid(format!("more than the {ELEMENTS_MAX} elements that one input may carry")));
    }
    let element = match reader.peek() {
        Some(b'n') => {
            reader.null()?;
            T::missing().ok_or_else(|| invalid("`null` where the model needs a value"))?
        }
        _ => T::read(reader)?,
    };
    data.push(element);
    Ok(())
}

/// Whether the bytes can be used as they lie there; else they are in `data` now.
fn take_raw<T: Element>(raw: &[u8], elements: usize, data: &mut Vec<T>) -> Result<bool, Fail> {
    data.clear();
    if T::view(raw).is_some_and(|view| view.len() == elements) {
        return Ok(true);
    }
    T::read_raw(raw, elements, data)?;
    Ok(false)
}

/// Reads the one field that belongs to the type, in one piece or several.
fn read_contents<T: Element>(contents: &[u8], elements: usize, data: &mut Vec<T>, name: &str) -> Result<(), Fail> {
    data.clear();
    if T::FIELD == 0 {
        return Err(invalid(format!("{name} has no typed contents: send it in `raw_input_contents`")));
    }
    // Bounded by the caller: each element takes at least one byte of the body.
    data.reserve(elements);
    let mut fields = Fields::new(contents);
    while let Some((number, value)) = fields.next().map_err(malformed)? {
        let read = if number == T::FIELD { T::read_value(value, data).map_err(malformed)? } else { None };
        read.ok_or_else(|| invalid(format!("contents of another type than {name}, or out of its range")))?;
        if data.len() > elements {
            break;
        }
    }
    match data.len() {
        count if count == elements => Ok(()),
        count if count > elements => Err(invalid(format!("more than the {elements} elements of its shape"))),
        count => Err(invalid(format!("{count} elements where its shape asks for {elements}"))),
    }
}

/// What is no protobuf message, as a refusal.
#[cold]
pub fn malformed(error: Malformed) -> Fail {
    invalid(error.to_string())
}

/// Appends elements in binary form.
///
/// # Errors
/// [`FailCode::TooLarge`] when the answer gets too long.
pub fn write_raw<T: Element>(data: &[T], out: &mut Vec<u8>) -> Result<(), Fail> {
    T::write_raw(data, out);
    if out.len() > BODY_BYTES_MAX as usize { Err(too_long()) } else { Ok(()) }
}

/// Appends the best `k` of each row of `width`; of equal ones the first.
///
/// # Errors
/// [`FailCode::Invalid`] when the elements are no numbers.
pub fn rank<T: Element>(data: &[T], width: usize, k: usize, best: &mut Vec<String>) -> Result<(), Fail> {
    for row in data.chunks(width.max(1)) {
        let scores = row.iter().map(Element::score).collect::<Option<Vec<f64>>>();
        let scores = scores.ok_or_else(|| invalid("its elements are no numbers, so they cannot be ranked as classes"))?;
        let mut order: Vec<(usize, f64)> = scores.into_iter().enumerate().collect();
        order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        best.extend(order.into_iter().take(k).map(|(class, score)| format!("{score:.0$}:{class}", T::DECIMALS)));
    }
    Ok(())
}

fn write_rows<T: Element>(data: &[T], row: &[i64], out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<(), Fail> {
    let length = elements(row).map_err(|why| Fail::new(FailCode::ModelFailed, why))?;
    if length > 0 {
        for elements in data.chunks(length) {
            write_nested(elements, row, out)?;
            ends.push(out.len());
        }
    }
    Ok(())
}

/// Lists in lists, one level a dimension; their number is bounded by the engine.
fn write_nested<T: Element>(data: &[T], shape: &[i64], out: &mut Vec<u8>) -> Result<(), Fail> {
    let Some((_, inner)) = shape.split_first() else {
        let written = data.first().is_some_and(|element| element.write(out));
        return if written { Ok(()) } else { Err(not_finite("a value")) };
    };
    if inner.is_empty() {
        return write_slice(data, out);
    }
    let length = elements(inner).map_err(|why| Fail::new(FailCode::ModelFailed, why))?;
    out.push(b'[');
    for (index, elements) in data.chunks(length.max(1)).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_nested(elements, inner, out)?;
    }
    out.push(b']');
    Ok(())
}

/// JSON has neither infinity nor not-a-number.
#[cold]
pub fn not_finite(what: &str) -> Fail {
    Fail::new(FailCode::ModelFailed, format!("{what} is not a finite number, which JSON cannot carry"))
}

/// Appends elements as a JSON array.
///
/// # Errors
/// [`FailCode::ModelFailed`] for what JSON cannot carry, [`FailCode::TooLarge`].
pub fn write_slice<T: Element>(data: &[T], out: &mut Vec<u8>) -> Result<(), Fail> {
    out.push(b'[');
    for (index, element) in data.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if !element.write(out) {
            return Err(not_finite(&format!("element {index}")));
        }
        if out.len() > BODY_BYTES_MAX as usize {
            return Err(too_long());
        }
    }
    out.push(b']');
    Ok(())
}

/// The answer does not fit into one frame.
#[cold]
pub fn too_long() -> Fail {
    Fail::new(FailCode::TooLarge, format!("the answer is longer than {} MiB", BODY_BYTES_MAX >> 20))
}

/// What the engine said of its own values, which we asked for by their own type.
#[cold]
pub fn unreadable(error: &ort::Error) -> Fail {
    Fail::new(FailCode::ModelFailed, format!("the engine's output cannot be read: {}", crate::engine::words(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that ended before it was tidied up must not be answered by the next one's.
    #[test]
    fn what_lay_in_a_buffer_is_gone_when_it_is_filled_again() {
        let raw = || Bytes::from_static(&[7, 7]);
        let fill: [fn(&mut Tensor); 4] = [
            |tensor| tensor.read(&mut Reader::new(b"[1,2]").unwrap(), &[2], 2).unwrap(),
            |tensor| tensor.read_contents(&[0x20, 1, 0x20, 2], &[2], 2).unwrap(),
            Tensor::begin,
            |tensor| tensor.zeros(&[2], 2),
        ];
        for fill in fill {
            let mut tensor = Tensor::new(Datatype::Uint8);
            tensor.read_raw(raw(), &[2], 2).unwrap();
            assert_eq!(tensor.raw, Some(raw()), "it lies there as it came");
            fill(&mut tensor);
            assert_eq!(tensor.raw, None);
        }
    }
}
