//! What each Rust type does as an element of a tensor, in all forms of the protocol.

use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{Tensor as EngineTensor, TensorRef};
use serde::Serialize;
use wire::Fail;
use wire::protobuf::{Fields, Malformed, Value};
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

use crate::json::{Number, Reader, invalid};
use crate::output::Part;
use crate::tensor::{Element, unreadable};

/// JSON as the library writes it: shortest digits that read back as the same float.
fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> bool {
    serde_json::to_writer(out, value).is_ok()
}

/// Numbers of a field that may be packed. `None` when the wire has another kind of number or `of` refuses one.
fn read_varints<T>(value: Value<'_>, data: &mut Vec<T>, of: impl Fn(u64) -> Option<T>) -> Result<Option<()>, Malformed> {
    match value {
        Value::Varint(number) => Ok(of(number).map(|element| data.push(element))),
        Value::Bytes(packed) => {
            let mut packed = Fields::new(packed);
            while !packed.is_at_end() {
                let Some(element) = of(packed.varint()?) else { return Ok(None) };
                data.push(element);
            }
            Ok(Some(()))
        }
        _ => Ok(None),
    }
}

/// A signed number of up to 32 bits, which the wire has as one of 64.
fn signed<T: TryFrom<i64>>(value: u64) -> Option<T> {
    value.cast_signed().try_into().ok()
}

macro_rules! primitive {
    ($rust:ty, $read:expr, $write:expr, copy $copy:expr $(, missing $missing:expr)? $(, score $score:expr, $decimals:literal)? $(, field $field:literal $value:expr)?) => {
        impl Element for $rust {
            $(const FIELD: u32 = $field;)?
            $(const DECIMALS: usize = $decimals;)?
            const BYTES: Option<usize> = Some(size_of::<$rust>());
            fn view(raw: &[u8]) -> Option<&[Self]> {
                <[Self]>::try_ref_from_bytes(raw).ok()
            }
            fn read_raw(raw: &[u8], elements: usize, data: &mut Vec<Self>) -> Result<(), Fail> {
                // Bounded by the caller, who has compared the lengths.
                if raw.len() != elements.saturating_mul(size_of::<Self>()) {
                    return Err(wrong_length(raw.len(), elements.saturating_mul(size_of::<Self>())));
                }
                $copy(raw, elements, data)
            }
            fn write_raw(data: &[Self], out: &mut Vec<u8>) {
                out.extend_from_slice(data.as_bytes());
            }
            $(fn score(&self) -> Option<f64> {
                Some($score(*self))
            })?
            $(fn read_value(value: Value<'_>, data: &mut Vec<Self>) -> Result<Option<()>, Malformed> {
                $value(value, data)
            })?
            fn read(reader: &mut Reader<'_>) -> Result<Self, Fail> {
                $read(reader)
            }
            fn write(&self, out: &mut Vec<u8>) -> bool {
                $write(*self, out)
            }
            fn lend<'t>(shape: &[i64], data: &'t [Self]) -> ort::Result<SessionInputValue<'t>> {
                TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into)
            }
            fn with_all(value: Part<'_, '_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail> {
                let (_, data) = value.engine().try_extract_tensor::<$rust>().map_err(|e| unreadable(&e))?;
                f(value.cut(data)?)
            }
            $(fn missing() -> Option<Self> {
                Some($missing)
            })?
        }
    };
}

macro_rules! integer {
    ($($rust:ty: $field:literal $of:expr;)*) => {$(primitive!(
        $rust,
        |reader: &mut Reader<'_>| {
            let number = reader.number()?;
            number.integer::<$rust>().ok_or_else(|| {
                invalid(format!("`{}` is not a whole number from {} to {}", number.quote(), <$rust>::MIN, <$rust>::MAX))
            })
        },
        |value: $rust, out: &mut Vec<u8>| write_json(&value, out),
        copy copy_raw,
        score |value| value as f64, 0,
        field $field |value, data: &mut Vec<$rust>| read_varints(value, data, $of)
    );)*};
}

integer! {
    u8: 4 |v| v.try_into().ok();
    u16: 4 |v| v.try_into().ok();
    u32: 4 |v| v.try_into().ok();
    u64: 5 Some;
    i8: 2 signed;
    i16: 2 signed;
    i32: 2 signed;
    i64: 3 signed;
}
// An engine's BOOL tensor is read as `&[bool]`: a model that smuggles other bytes into one harms only its own cell.
primitive!(
    bool,
    |reader: &mut Reader<'_>| reader.boolean(),
    |value: bool, out: &mut Vec<u8>| {
        out.extend_from_slice(if value { b"true" } else { b"false" });
        true
    },
    copy |_, _, _| Err(invalid("a BOOL is a byte 0 or 1")), // any others are a view
    field 1 |value, data: &mut Vec<bool>| read_varints(value, data, |number| Some(number != 0))
);

macro_rules! floating {
    ($rust:ty, $name:literal, $read:expr, $json:expr, $wide:expr $(, field $field:literal $value:expr)?) => {
        primitive!(
            $rust,
            |reader: &mut Reader<'_>| {
                let number = reader.number()?;
                $read(&number).ok_or_else(|| invalid(format!("`{}` is too large for {}", number.quote(), $name)))
            },
            |value: $rust, out: &mut Vec<u8>| value.is_finite() && write_json(&$json(value), out),
            copy copy_raw,
            missing Self::NAN,
            score $wide, 6
            $(, field $field $value)?
        );
    };
}

floating!(f32, "FP32", |number: &Number<'_>| number.f32(), |value: f32| value, f64::from, field 6 |value, data: &mut Vec<f32>| {
    match value {
        Value::Fixed32(bits) => data.push(f32::from_bits(bits)),
        Value::Bytes(packed) => read_packed(packed, data, f32::from_le_bytes)?,
        _ => return Ok(None),
    }
    Ok(Some(()))
});
floating!(f64, "FP64", |number: &Number<'_>| number.f64(), |value: f64| value, |value: f64| value, field 7 |value, data: &mut Vec<f64>| {
    match value {
        Value::Fixed64(bits) => data.push(f64::from_bits(bits)),
        Value::Bytes(packed) => read_packed(packed, data, f64::from_le_bytes)?,
        _ => return Ok(None),
    }
    Ok(Some(()))
});
floating!(f16, "FP16", |number: &Number<'_>| number.f64().map(f16::from_f64).filter(|value| value.is_finite()), f16::to_f32, f64::from);
floating!(bf16, "BF16", |number: &Number<'_>| number.f64().map(bf16::from_f64).filter(|value| value.is_finite()), bf16::to_f32, f64::from);

/// Packed numbers of a fixed length.
fn read_packed<T, const N: usize>(packed: &[u8], data: &mut Vec<T>, of: impl Fn([u8; N]) -> T) -> Result<(), Malformed> {
    let mut packed = Fields::new(packed);
    while !packed.is_at_end() {
        data.push(of(packed.array()?));
    }
    Ok(())
}

/// The bytes, of the right length, as numbers.
fn copy_raw<T: Clone + Default + FromBytes + IntoBytes>(raw: &[u8], elements: usize, data: &mut Vec<T>) -> Result<(), Fail> {
    data.resize(elements, T::default());
    data.as_mut_slice().as_mut_bytes().copy_from_slice(raw);
    Ok(())
}

#[cold]
fn wrong_length(got: usize, expected: usize) -> Fail {
    invalid(format!("{got} bytes of binary data where its shape asks for {expected}"))
}

/// A string as the engine takes it: UTF-8, and as in C.
fn text(bytes: &[u8]) -> Result<&str, Fail> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("a string that is not UTF-8: the engine takes no others"))?;
    if text.contains('\0') { Err(invalid("a string with a NUL character")) } else { Ok(text) }
}

impl Element for String {
    const FIELD: u32 = 8;
    const BYTES: Option<usize> = None;
    fn read_raw(raw: &[u8], elements: usize, data: &mut Vec<Self>) -> Result<(), Fail> {
        // Each has four bytes of length before it.
        if raw.len() / 4 < elements {
            return Err(invalid(format!("{} bytes of binary data cannot hold {elements} strings", raw.len())));
        }
        data.reserve(elements);
        let mut rest = raw;
        for element in 0..elements {
            let short = || invalid(format!("element {element}: its length is past the end of the binary data"));
            let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            let (string, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
            data.push(text(string).map_err(|fail| invalid(format!("element {element}: {}", fail.message)))?.to_owned());
            rest = behind;
        }
        if rest.is_empty() { Ok(()) } else { Err(invalid(format!("{} bytes of binary data are left behind its last string", rest.len()))) }
    }
    fn write_raw(data: &[Self], out: &mut Vec<u8>) {
        for string in data {
            out.extend_from_slice(&u32::try_from(string.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(string.as_bytes());
        }
    }
    fn read_value(value: Value<'_>, data: &mut Vec<Self>) -> Result<Option<()>, Malformed> {
        let Value::Bytes(bytes) = value else { return Ok(None) };
        Ok(text(bytes).ok().map(|string| data.push(string.to_owned())))
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Fail> {
        let string = reader.string("a string")?;
        text(string.as_bytes())?;
        Ok(string.into_owned())
    }
    fn write(&self, out: &mut Vec<u8>) -> bool {
        write_json(self, out)
    }
    fn lend<'t>(shape: &[i64], data: &'t [Self]) -> ort::Result<SessionInputValue<'t>> {
        EngineTensor::from_string_array((shape.to_vec(), data)).map(Into::into)
    }
    fn with_all(value: Part<'_, '_>, f: impl FnOnce(&[Self]) -> Result<(), Fail>) -> Result<(), Fail> {
        f(value.cut(value.texts()?)?)
    }
}
