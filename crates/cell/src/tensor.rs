//! Datatypes of the Open Inference Protocol and the tensors that carry them between JSON and the engine.
//!
//! One table ties each datatype to its Rust type; reading, writing and handing to the engine follow from it. The buffers
//! live as long as the model and are used again by the next request.
//!
//! What is deliberately missing: `BF16` and the smaller floats, which the protocol's JSON form does not carry either.

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Tensor as EngineTensor, TensorElementType, TensorRef, ValueRef};
use serde::Serialize;
use wire::{BODY_BYTES_MAX, Fail, FailCode};

use crate::json::{Reader, invalid};

/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 16;
/// Most elements of one input.
pub const ELEMENTS_MAX: u64 = 1 << 24;
/// Most bytes of a buffer that are kept for the next request.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// What one datatype can do.
pub trait Element: Sized + Clone + Default {
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
    /// Calls `f` with all elements of an output.
    ///
    /// # Errors
    /// When the engine's value is of another type, and what `f` returns.
    fn with_all(value: &ValueRef<'_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail>;
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
            pub fn write_all(self, value: &ValueRef<'_>, out: &mut Vec<u8>) -> Result<(), Fail> {
                match self { $(Self::$variant => <$rust>::with_all(value, |data| write_slice(data, out))),* }
            }

            /// Appends each row of an output, nested as the dimensions after the first say; `ends` gets the end of each.
            ///
            /// # Errors
            /// As [`Datatype::write_all`].
            pub fn write_rows(self, value: &ValueRef<'_>, row: &[i64], out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<(), Fail> {
                match self { $(Self::$variant => <$rust>::with_all(value, |data| write_rows(data, row, out, ends))),* }
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

            fn push(&mut self, reader: &mut Reader<'_>) -> Result<(), Fail> {
                match self { $(Self::$variant(data) => push_or_missing(reader, data)),* }
            }

            fn len(&self) -> usize {
                match self { $(Self::$variant(data) => data.len()),* }
            }

            fn clear(&mut self) {
                match self { $(Self::$variant(data) => data.clear()),* }
            }

            fn zeros(&mut self, elements: usize) {
                match self { $(Self::$variant(data) => { data.clear(); data.resize(elements, Default::default()); }),* }
            }

            fn lend(&self, shape: &[i64]) -> ort::Result<SessionInputValue<'_>> {
                match self { $(Self::$variant(data) => <$rust>::lend(shape, data)),* }
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
    Fp32 f32, "FP32", Float32;
    Fp64 f64, "FP64", Float64;
    Bytes String, "BYTES", String;
}

/// One input's buffer.
#[derive(Debug)]
pub struct Tensor {
    shape: Vec<i64>,
    data: Data,
}

impl Tensor {
    /// An empty buffer for this datatype.
    #[must_use]
    pub fn new(datatype: Datatype) -> Self {
        Self { shape: Vec::new(), data: datatype.buffer() }
    }

    /// Reads the elements for `shape`, flat or nested as the shape says.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when number or type of the elements do not fit.
    pub fn read(&mut self, reader: &mut Reader<'_>, shape: &[i64], elements: usize) -> Result<(), Fail> {
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        self.data.read(reader, shape, elements)
    }

    /// Begins a tensor whose elements come one by one.
    pub fn begin(&mut self) {
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

    /// Fills with zeros, `false` or empty strings.
    pub fn zeros(&mut self, shape: &[i64], elements: usize) {
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        self.data.zeros(elements);
    }

    /// Borrowed by the engine for one run.
    ///
    /// # Errors
    /// As the engine says.
    pub fn lend(&self) -> ort::Result<SessionInputValue<'_>> {
        self.data.lend(&self.shape)
    }

    /// Forgets the content and gives back what is too large to keep.
    pub fn trim(&mut self) {
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

#[cold]
fn not_finite(what: &str) -> Fail {
    Fail::new(FailCode::ModelFailed, format!("{what} is not a finite number, which JSON cannot carry"))
}

fn write_slice<T: Element>(data: &[T], out: &mut Vec<u8>) -> Result<(), Fail> {
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
fn unreadable(error: &ort::Error) -> Fail {
    Fail::new(FailCode::ModelFailed, format!("the engine's output cannot be read: {}", crate::engine::words(error)))
}

/// JSON as the library writes it: shortest digits that read back as the same float.
fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> bool {
    serde_json::to_writer(out, value).is_ok()
}

macro_rules! primitive {
    ($rust:ty, $read:expr, $write:expr $(, missing $missing:expr)?) => {
        impl Element for $rust {
            fn read(reader: &mut Reader<'_>) -> Result<Self, Fail> {
                $read(reader)
            }
            fn write(&self, out: &mut Vec<u8>) -> bool {
                $write(*self, out)
            }
            fn lend<'t>(shape: &[i64], data: &'t [Self]) -> ort::Result<SessionInputValue<'t>> {
                TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into)
            }
            fn with_all(value: &ValueRef<'_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail> {
                let (_, data) = value.try_extract_tensor::<$rust>().map_err(|e| unreadable(&e))?;
                f(data)
            }
            $(fn missing() -> Option<Self> {
                Some($missing)
            })?
        }
    };
}

macro_rules! integer {
    ($($rust:ty),*) => {$(primitive!(
        $rust,
        |reader: &mut Reader<'_>| {
            let number = reader.number()?;
            number.integer::<$rust>().ok_or_else(|| {
                invalid(format!("`{}` is not a whole number from {} to {}", number.quote(), <$rust>::MIN, <$rust>::MAX))
            })
        },
        |value: $rust, out: &mut Vec<u8>| write_json(&value, out)
    );)*};
}

integer!(u8, u16, u32, u64, i8, i16, i32, i64);
// An engine's BOOL tensor is read as `&[bool]`: a model that smuggles other bytes into one harms only its own cell.
primitive!(bool, |reader: &mut Reader<'_>| reader.boolean(), |value: bool, out: &mut Vec<u8>| {
    out.extend_from_slice(if value { b"true" } else { b"false" });
    true
});
primitive!(
    f32,
    |reader: &mut Reader<'_>| {
        let number = reader.number()?;
        number.f32().ok_or_else(|| invalid(format!("`{}` is too large for FP32", number.quote())))
    },
    |value: f32, out: &mut Vec<u8>| value.is_finite() && write_json(&value, out),
    missing Self::NAN
);
primitive!(
    f64,
    |reader: &mut Reader<'_>| {
        let number = reader.number()?;
        number.f64().ok_or_else(|| invalid(format!("`{}` is too large for FP64", number.quote())))
    },
    |value: f64, out: &mut Vec<u8>| value.is_finite() && write_json(&value, out),
    missing Self::NAN
);
primitive!(
    f16,
    |reader: &mut Reader<'_>| {
        let number = reader.number()?;
        number
            .f64()
            .map(f16::from_f64)
            .filter(|v| v.is_finite())
            .ok_or_else(|| invalid(format!("`{}` is too large for FP16", number.quote())))
    },
    |value: f16, out: &mut Vec<u8>| value.is_finite() && write_json(&value.to_f32(), out),
    missing Self::NAN
);

impl Element for String {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Fail> {
        let text = reader.string("a string")?;
        // The engine takes strings as C does.
        if text.contains('\0') { Err(invalid("a string with a NUL character")) } else { Ok(text.into_owned()) }
    }
    fn write(&self, out: &mut Vec<u8>) -> bool {
        write_json(self, out)
    }
    fn lend<'t>(shape: &[i64], data: &'t [Self]) -> ort::Result<SessionInputValue<'t>> {
        EngineTensor::from_string_array((shape.to_vec(), data)).map(Into::into)
    }
    fn with_all(value: &ValueRef<'_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail> {
        let (_, data) = value.try_extract_strings().map_err(|e| unreadable(&e))?;
        f(&data)
    }
}

/// A sequence of maps, as a classifier with ZipMap gives it, as a table.
#[derive(Debug)]
pub struct Table {
    /// Keys of the maps, as JSON, in ascending order: the columns.
    pub labels: Vec<String>,
    /// Number of maps.
    pub rows: usize,
    /// Values, row-major.
    values: Vec<f32>,
}

impl Table {
    /// Lays the maps out in rows.
    ///
    /// # Errors
    /// When the maps do not all have the same keys, or are of other types than ZipMap makes.
    pub fn of(value: &ValueRef<'_>, key: TensorElementType) -> Result<Self, Fail> {
        match key {
            TensorElementType::Int64 => Self::read(value, |map| map.try_extract_key_values::<i64, f32>()),
            TensorElementType::String => Self::read(value, |map| map.try_extract_key_values::<String, f32>()),
            other => Err(Fail::new(FailCode::ModelFailed, format!("maps with keys of type {other} are not supported"))),
        }
    }

    /// Appends each row as an object of its keys; `ends` gets the end of each.
    ///
    /// # Errors
    /// As [`Datatype::write_all`].
    pub fn write_rows(&self, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<(), Fail> {
        for values in self.values.chunks(self.labels.len().max(1)) {
            for (at, (label, value)) in self.labels.iter().zip(values).enumerate() {
                out.push(if at == 0 { b'{' } else { b',' });
                // A name is a text in JSON, also where the key is a number.
                let quote: &[u8] = if label.starts_with('"') { b"" } else { b"\"" };
                out.extend([quote, label.as_bytes(), quote, b":"].concat());
                if !value.write(out) {
                    return Err(not_finite("a value"));
                }
            }
            out.push(b'}');
            ends.push(out.len());
        }
        Ok(())
    }

    /// Appends all values as a flat JSON array.
    ///
    /// # Errors
    /// As [`Datatype::write_all`].
    pub fn write_all(&self, out: &mut Vec<u8>) -> Result<(), Fail> {
        write_slice(&self.values, out)
    }

    fn read<K: Serialize>(value: &ValueRef<'_>, rows: impl Fn(&DynValue) -> ort::Result<Vec<(K, f32)>>) -> Result<Self, Fail> {
        let maps = value.try_extract_sequence::<ort::value::DynValueTypeMarker>().map_err(|e| unreadable(&e))?;
        let mut table = Self { labels: Vec::new(), rows: maps.len(), values: Vec::new() };
        for (row, map) in maps.iter().enumerate() {
            let (keys, values): (Vec<K>, Vec<f32>) = rows(map).map_err(|e| unreadable(&e))?.into_iter().unzip();
            let labels: Vec<String> = keys.iter().filter_map(|key| serde_json::to_string(key).ok()).collect();
            if row == 0 {
                table.labels = labels;
            } else if table.labels != labels {
                return Err(Fail::new(FailCode::ModelFailed, format!("row {row} has other keys than row 0")));
            }
            table.values.extend(values);
        }
        Ok(table)
    }
}
