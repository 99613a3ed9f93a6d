//! Protocol buffers field by field (<https://protobuf.dev/programming-guides/encoding/>), without building anything.
//!
//! A reader that is handed somebody's message takes the fields it needs and skips the rest by their lengths: what is never built costs
//! no memory, whatever the message promises. Groups, which no message of ours has, are refused.
//!
//! ```
//! use wire::protobuf::{Fields, Value, Writer};
//! let mut message = Writer::default();
//! message.text(1, "gate");
//! message.number(2, 7);
//! let bytes = message.into_bytes();
//! let mut fields = Fields::new(&bytes);
//! assert_eq!(fields.next()?, Some((1, Value::Bytes(b"gate"))));
//! assert_eq!(fields.next()?, Some((2, Value::Varint(7))));
//! assert_eq!(fields.next()?, None);
//! # Ok::<(), wire::protobuf::Malformed>(())
//! ```

/// Largest field number.
const NUMBER_MAX: u64 = (1 << 29) - 1;

/// The bytes are no message: where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a protobuf message: {what} at byte {at}")]
pub struct Malformed {
    what: &'static str,
    at: usize,
}

/// A field's value as it lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers, booleans, enumerations.
    Varint(u64),
    /// `double`, `fixed64`.
    Fixed64(u64),
    /// Text, bytes, messages, packed numbers.
    Bytes(&'a [u8]),
    /// `float`, `fixed32`.
    Fixed32(u32),
}

/// Number and kind of the field that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Field number.
    pub number: u32,
    kind: u8,
}

/// The fields of a message, in the order in which they lie there.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Of a message.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next field; `None` at the end.
    ///
    /// # Errors
    /// [`Malformed`]; nothing that follows means anything then.
    #[expect(clippy::should_implement_trait, reason = "fallible, and an iterator would suggest that None is the end")]
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        let Some(key) = self.key()? else { return Ok(None) };
        Ok(Some((key.number, self.value(key)?)))
    }

    /// What comes next, without its value, which must be read with [`Fields::value`].
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn key(&mut self) -> Result<Option<Key>, Malformed> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let at = self.at;
        let key = self.varint()?;
        let (number, kind) = (key >> 3, u8::try_from(key & 7).unwrap_or(7));
        if number == 0 || number > NUMBER_MAX {
            return Err(Malformed { what: "no such field number", at });
        }
        Ok(Some(Key { number: u32::try_from(number).unwrap_or(u32::MAX), kind }))
    }

    /// The value of the field whose key was just read.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn value(&mut self, key: Key) -> Result<Value<'a>, Malformed> {
        Ok(match key.kind {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let at = self.at;
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed { what: "a length past the end", at })?;
                Value::Bytes(self.take(length).ok_or(Malformed { what: "a length past the end", at })?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Malformed { what: "no such kind of field", at: self.at }),
        })
    }

    /// One number of a packed field.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let (start, mut value) = (self.at, 0u64);
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Malformed { what: "a number without an end", at: start })?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed { what: "a number over 64 bits", at: start })
    }

    /// Bytes of a packed field.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let at = self.at;
        let bytes = self.take(N).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(Malformed { what: "a number past the end", at })
    }

    /// Whether all of it is read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }
}

/// A message being written. Fields of the default value are left out where the format says so.
#[derive(Debug, Clone, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Behind what is there already.
    #[must_use]
    pub fn after(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Where bytes that [`Writer::begin`] announced are appended.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// What was written so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A number, a boolean or an enumeration.
    pub fn number(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.key(number, 0);
            self.varint(value);
        }
    }

    /// A text.
    pub fn text(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.item(number, value.as_bytes());
        }
    }

    /// A message, or an element of a repeated field: there even when it is empty.
    pub fn item(&mut self, number: u32, value: &[u8]) {
        self.begin(number, value.len());
        self.0.extend_from_slice(value);
    }

    /// The key and length of bytes that the caller appends itself.
    pub fn begin(&mut self, number: u32, length: usize) {
        self.key(number, 2);
        self.varint(length as u64);
    }

    /// Signed numbers, packed.
    pub fn packed(&mut self, number: u32, values: &[i64]) {
        if !values.is_empty() {
            let mut packed = Self(Vec::with_capacity(values.len()));
            values.iter().for_each(|value| packed.varint(value.cast_unsigned()));
            self.item(number, &packed.0);
        }
    }

    fn key(&mut self, number: u32, kind: u8) {
        self.varint(u64::from(number) << 3 | u64::from(kind));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One of each kind, written by hand after the specification.
    const SAMPLE: &[u8] = &[0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x19, 1, 0, 0, 0, 0, 0, 0, 0, 0x25, 2, 0, 0, 0];

    fn all(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
        let mut fields = Fields::new(bytes);
        std::iter::from_fn(|| fields.next().transpose()).collect()
    }

    #[test]
    fn each_kind_is_read_and_no_prefix_is_a_whole() {
        let expected = vec![(1, Value::Varint(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed64(1)), (4, Value::Fixed32(2))];
        assert_eq!(all(SAMPLE).unwrap(), expected);
        let ends = [0, 3, 7, 16, SAMPLE.len()];
        for cut in 0..=SAMPLE.len() {
            assert_eq!(all(&SAMPLE[..cut]).is_ok(), ends.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &[0x00, 0x00][..],                                                         // field 0
            &[0x0b],                                                                   // a group
            &[0x0f, 0],                                                                // no such kind
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],       // 65 bits
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0],    // eleven bytes
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, b'a'], // a length of 2^64 - 1
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0],                                  // a field number over its bound
        ] {
            assert!(all(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(all(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).unwrap(), [(1, Value::Varint(u64::MAX))]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_never_read_past_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut fields = Fields::new(&bytes);
            let mut read = 0;
            while let Ok(Some((_, value))) = fields.next() {
                if let Value::Bytes(part) = value { read += part.len(); }
            }
            prop_assert!(read <= bytes.len());
        }

        #[test]
        fn what_is_written_is_read(number in 1u32..(1 << 29), value in 1u64.., text in "\\PC{1,40}", packed in proptest::collection::vec(any::<i64>(), 1..9)) {
            let mut writer = Writer::default();
            writer.number(number, value);
            writer.text(number, &text);
            writer.packed(number, &packed);
            let bytes = writer.into_bytes();
            let fields = all(&bytes).unwrap();
            prop_assert_eq!(&fields[..2], &[(number, Value::Varint(value)), (number, Value::Bytes(text.as_bytes()))]);
            let Value::Bytes(inner) = fields[2].1 else { panic!("packed") };
            let mut inner = Fields::new(inner);
            for expected in packed {
                prop_assert_eq!(inner.varint().unwrap().cast_signed(), expected);
            }
            prop_assert!(inner.is_at_end());
        }
    }
}
