//! A strict JSON reader (RFC 8259) that walks over the text once and builds nothing.
//!
//! The caller says what it expects next and gets exactly that or an error with the byte where it stood. Numbers are
//! scanned and valued in the same pass, because a prediction is mostly numbers. Nesting is bounded by [`DEPTH_MAX`]
//! where values are skipped; everywhere else the caller's own structure bounds it.
//!
//! What is deliberately missing: a document tree, lenient forms (comments, `NaN`, trailing commas), and streaming.

use std::borrow::Cow;

use wire::{Fail, FailCode};

/// Deepest nesting of a value that is skipped.
pub const DEPTH_MAX: u32 = 32;
/// Longest piece of the text that an error message quotes, in bytes.
const QUOTE_BYTES_MAX: usize = 40;

/// A place in a JSON text.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// A number as written, with its value where that is exact.
#[derive(Debug, Clone, Copy)]
pub struct Number<'a> {
    /// As written.
    pub text: &'a str,
    /// All digits as one integer; meaningless unless `exact`.
    digits: u64,
    /// Power of ten that `digits` are multiplied by.
    exponent: i64,
    negative: bool,
    exact: bool,
    /// Written without fraction and exponent.
    whole: bool,
}

impl<'a> Reader<'a> {
    /// At the start of the text.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when the bytes are not UTF-8.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Fail> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self { text, at: 0 }),
            Err(error) => Err(invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to()))),
        }
    }

    /// The next byte that is not white space; it is not consumed.
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Consumes `byte` if it comes next.
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Byte offset of the next token.
    pub fn offset(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// The reader at another offset of the same text, as given by [`Reader::offset`].
    pub fn at(&self, offset: usize) -> Self {
        Self { text: self.text, at: offset }
    }

    /// A second reader where this one stands.
    pub fn at_here(&self) -> Self {
        self.at(self.at)
    }

    /// The error for "here should be …".
    #[cold]
    pub fn expected(&mut self, what: &str) -> Fail {
        match self.peek() {
            None => invalid(format!("the body is not valid JSON: expected {what} at its end (byte {})", self.at)),
            Some(_) => {
                let rest = self.text.get(self.at..).unwrap_or_default();
                let quote = rest.get(..rest.floor_char_boundary(12)).unwrap_or_default();
                // No escapes: the message travels inside JSON, which makes its own.
                let quote: String = quote.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                invalid(format!("expected {what} at byte {}, found `{quote}`", self.at))
            }
        }
    }

    /// Walks over an object; `field` gets each name and must read its value.
    ///
    /// # Errors
    /// On anything that is not an object, and what `field` returns.
    pub fn object(&mut self, what: &str, mut field: impl FnMut(&mut Self, &str) -> Result<(), Fail>) -> Result<(), Fail> {
        if !self.take(b'{') {
            return Err(self.expected(what));
        }
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string("a field name in quotes")?;
            if !self.take(b':') {
                return Err(self.expected("`:`"));
            }
            field(self, &name)?;
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.expected("`,` or `}`"));
            }
        }
    }

    /// Walks over an array; `item` must read each element.
    ///
    /// # Errors
    /// On anything that is not an array, and what `item` returns.
    pub fn array(&mut self, what: &str, mut item: impl FnMut(&mut Self) -> Result<(), Fail>) -> Result<(), Fail> {
        if !self.take(b'[') {
            return Err(self.expected(what));
        }
        if self.take(b']') {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.take(b',') {
                continue;
            }
            if self.take(b']') {
                return Ok(());
            }
            return Err(self.expected("`,` or `]`"));
        }
    }

    /// A string, unescaped.
    ///
    /// # Errors
    /// On anything that is not a string, raw control characters, bad escapes and lone surrogates.
    pub fn string(&mut self, what: &str) -> Result<Cow<'a, str>, Fail> {
        let raw = self.raw_string(what)?;
        let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        if !inner.as_bytes().contains(&b'\\') {
            return Ok(Cow::Borrowed(inner));
        }
        // Escapes are rare; the library knows all of them.
        serde_json::from_str(raw)
            .map(Cow::Owned)
            .map_err(|_| invalid(format!("the body is not valid JSON: bad escape in the string before byte {}", self.at)))
    }

    /// A string with its quotes, as written. Escapes are not checked.
    ///
    /// # Errors
    /// As [`Reader::string`].
    pub fn raw_string(&mut self, what: &str) -> Result<&'a str, Fail> {
        if self.peek() != Some(b'"') {
            return Err(self.expected(what));
        }
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut at = start + 1;
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                Some(0..=0x1f) => return Err(invalid(format!("the body is not valid JSON: control character in a string at byte {at}"))),
                Some(_) => at += 1,
                None => return Err(invalid(format!("the body is not valid JSON: the string at byte {start} has no end"))),
            }
        }
        self.at = at + 1;
        self.text.get(start..self.at).ok_or_else(|| invalid("the body is not valid JSON: bad string"))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// On anything else.
    pub fn boolean(&mut self) -> Result<bool, Fail> {
        let value = self.peek() == Some(b't');
        let word = if value { "true" } else { "false" };
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            return Ok(value);
        }
        Err(self.expected("`true` or `false`"))
    }

    /// A number.
    ///
    /// # Errors
    /// On anything that is not a JSON number, leading zeros, `+`, `NaN` and `Infinity` included.
    pub fn number(&mut self) -> Result<Number<'a>, Fail> {
        let what = "a number";
        self.peek();
        let (bytes, start) = (self.text.as_bytes(), self.at);
        let mut at = start;
        let digit = |at: usize| bytes.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10);
        let negative = bytes.get(at) == Some(&b'-');
        at += usize::from(negative);
        let (mut digits, mut count, mut exponent, mut whole) = (0u64, 0u32, 0i64, true);
        let first = digit(at).ok_or_else(|| self.expected(what))?;
        if first == 0 && digit(at + 1).is_some() {
            return Err(self.expected("a number without leading zeros"));
        }
        while let Some(d) = digit(at) {
            digits = digits.wrapping_mul(10).wrapping_add(d.into());
            count += u32::from(count > 0 || d != 0);
            at += 1;
        }
        if bytes.get(at) == Some(&b'.') {
            whole = false;
            at += 1;
            let fraction = at;
            while let Some(d) = digit(at) {
                digits = digits.wrapping_mul(10).wrapping_add(d.into());
                count += u32::from(count > 0 || d != 0);
                at += 1;
            }
            if at == fraction {
                return Err(self.expected("a number with digits after its point"));
            }
            exponent -= i64::try_from(at - fraction).unwrap_or(i64::MAX);
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            whole = false;
            at += 1;
            let minus = bytes.get(at) == Some(&b'-');
            at += usize::from(matches!(bytes.get(at), Some(b'-' | b'+')));
            let power = at;
            let mut value = 0i64;
            while let Some(d) = digit(at) {
                value = value.saturating_mul(10).saturating_add(d.into());
                at += 1;
            }
            if at == power {
                return Err(self.expected("a number with digits in its exponent"));
            }
            exponent = exponent.saturating_add(if minus { value.saturating_neg() } else { value });
        }
        self.at = at;
        let text = self.text.get(start..at).unwrap_or_default();
        // 19 digits always fit; one more may wrap and is left to the slow path.
        Ok(Number { text, digits, exponent, negative, exact: count <= 19, whole })
    }

    /// Skips any value and gives it as written.
    ///
    /// # Errors
    /// On malformed JSON or nesting over [`DEPTH_MAX`].
    pub fn skip(&mut self) -> Result<&'a str, Fail> {
        let start = self.offset();
        self.skip_value(DEPTH_MAX)?;
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    fn skip_value(&mut self, depth_left: u32) -> Result<(), Fail> {
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(invalid(format!("the body nests deeper than {DEPTH_MAX} at byte {}", self.at)));
        };
        match self.peek() {
            Some(b'{') => self.object("an object", |reader, _| reader.skip_value(depth_left)),
            Some(b'[') => self.array("an array", |reader| reader.skip_value(depth_left)),
            Some(b'"') => self.string("a string").map(|_| ()),
            Some(b't' | b'f') => self.boolean().map(|_| ()),
            Some(b'n') => self.null(),
            _ => self.number().map(|_| ()),
        }
    }

    /// `null`.
    ///
    /// # Errors
    /// On anything else.
    pub fn null(&mut self) -> Result<(), Fail> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with("null")) {
            self.at += 4;
            return Ok(());
        }
        Err(self.expected("a value"))
    }

    /// That nothing but white space is left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(&mut self) -> Result<(), Fail> {
        if self.peek().is_none() { Ok(()) } else { Err(self.expected("the end of the body")) }
    }
}

/// Powers of ten that an `f32` holds exactly.
const TENS_F32: [f32; 11] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];
/// Powers of ten that an `f64` holds exactly.
const TENS_F64: [f64; 23] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];

macro_rules! float {
    ($name:ident, $float:ident, $tens:ident, $doc:literal) => {
        #[doc = $doc]
        /// `None` when it is too large to be finite.
        #[must_use]
        pub fn $name(&self) -> Option<$float> {
            // Both operands exact and one rounding: the correctly rounded result.
            if self.exact && self.digits < 1 << $float::MANTISSA_DIGITS {
                let power = usize::try_from(self.exponent.unsigned_abs()).ok().and_then(|at| $tens.get(at));
                if let Some(power) = power {
                    #[expect(clippy::cast_precision_loss, reason = "below 2 to the mantissa digits")]
                    let digits = self.digits as $float;
                    let value = if self.exponent < 0 { digits / power } else { digits * power };
                    // The product may still overflow for f32: 2^24 * 1e10 does not, so this never does.
                    return Some(if self.negative { -value } else { value });
                }
            }
            self.text.parse().ok().filter(|value: &$float| value.is_finite())
        }
    };
}

impl Number<'_> {
    float!(f32, f32, TENS_F32, "The nearest `f32`, ties to even.");
    float!(f64, f64, TENS_F64, "The nearest `f64`, ties to even.");

    /// The value if it is a whole number, written as one, that fits.
    #[must_use]
    pub fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        if !self.whole {
            return None;
        }
        let value = if self.exact { i128::from(self.digits) } else { self.text.trim_start_matches('-').parse().ok()? };
        T::try_from(if self.negative { -value } else { value }).ok()
    }

    /// As written, cut for an error message.
    #[must_use]
    pub fn quote(&self) -> String {
        if self.text.len() <= QUOTE_BYTES_MAX {
            self.text.to_owned()
        } else {
            format!("{}…", self.text.get(..QUOTE_BYTES_MAX).unwrap_or_default())
        }
    }
}

/// A failure that is the sender's fault.
#[cold]
pub fn invalid(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::Invalid, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Result<Number<'_>, Fail> {
        let mut reader = Reader::new(text.as_bytes())?;
        let number = reader.number()?;
        reader.end()?;
        Ok(number)
    }

    /// What serde_json says. It refuses numbers that overflow; here that is a question of the tensor's type, so they are only skipped.
    fn reference(text: &str) -> bool {
        match serde_json::from_str::<serde_json::Value>(text) {
            Err(error) if error.to_string().contains("out of range") => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
            other => other.is_ok(),
        }
    }

    fn accepts(text: &str) -> bool {
        Reader::new(text.as_bytes()).and_then(|mut r| r.skip().map(|_| r)).and_then(|mut r| r.end()).is_ok()
    }

    #[test]
    fn numbers_outside_the_grammar_are_refused() {
        for bad in
            ["", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "NaN", "Infinity", "-Infinity", "0x10", "1_000", "1 2", "--1", "1.e5"]
        {
            assert!(number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn floats_are_the_nearest_ones() {
        for text in [
            "0",
            "-0",
            "-0.0",
            "0.1",
            "16777217",
            "16777216",
            "3.4028235e38",
            "1.4e-45",
            "7e-46",
            "1e-50",
            "0.000000000000000000000000000000000000000000001",
            "123456789012345678901234567890",
            "9007199254740993",
            "1e22",
            "1e23",
            "2.2250738585072014e-308",
            "5e-324",
            "1.7976931348623157e308",
            "0.30000001192092896",
            "8388608.5",
            "33554433e3",
            "1e10",
            "16777215e10",
            "18446744073709551615",
            "18446744073709551616",
            "0e999999999999999999999",
        ] {
            let number = number(text).unwrap();
            let (f32, f64): (f32, f64) = (text.parse().unwrap(), text.parse().unwrap());
            assert_eq!(number.f32().map(f32::to_bits), Some(f32).filter(|v| v.is_finite()).map(f32::to_bits), "{text}");
            assert_eq!(number.f64().map(f64::to_bits), Some(f64).filter(|v| v.is_finite()).map(f64::to_bits), "{text}");
        }
        assert!(number("3.5e38").unwrap().f32().is_none() && number("1e309").unwrap().f64().is_none());
    }

    #[test]
    fn integers_fit_or_are_refused() {
        assert_eq!(number("-128").unwrap().integer::<i8>(), Some(-128));
        assert_eq!(number("128").unwrap().integer::<i8>(), None);
        assert_eq!(number("18446744073709551615").unwrap().integer::<u64>(), Some(u64::MAX));
        assert_eq!(number("18446744073709551616").unwrap().integer::<u64>(), None);
        assert_eq!(number("-9223372036854775808").unwrap().integer::<i64>(), Some(i64::MIN));
        assert_eq!(number("99999999999999999999999999999999999999999999").unwrap().integer::<i64>(), None);
        assert_eq!(number("1.0").unwrap().integer::<i64>(), None);
        assert_eq!(number("1e2").unwrap().integer::<i64>(), None);
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(accepts(&deep(DEPTH_MAX as usize)));
        assert!(!accepts(&deep(DEPTH_MAX as usize + 1)));
        assert!(!accepts(&"[".repeat(1 << 20)));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into)
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                proptest::collection::btree_map(".{0,5}", inner, 0..6).prop_map(|map| serde_json::Value::Object(map.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_the_reference_writes_is_read(value in json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert!(accepts(&text), "{}", text);
        }

        #[test]
        fn damaged_text_is_judged_as_the_reference_does(value in json(), at in any::<prop::sample::Index>(), to in prop::sample::select(&b"{}[]\",:\\ 0123456789.-+eEtfnu\n\t\x01\x7f"[..]), cut in any::<bool>()) {
            let mut bytes = serde_json::to_vec(&value).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at); } else { bytes[at] = to; }
            if let Ok(text) = std::str::from_utf8(&bytes) {
                prop_assert_eq!(accepts(text), reference(text), "{}", text);
            }
        }

        #[test]
        fn strings_are_read_as_the_reference_does(value in any::<String>()) {
            let text = serde_json::to_string(&value).unwrap();
            let mut reader = Reader::new(text.as_bytes()).unwrap();
            prop_assert_eq!(reader.string("a string").unwrap(), value);
        }

        #[test]
        fn any_float_survives(bits in any::<u64>()) {
            let (f64, f32) = (f64::from_bits(bits), f32::from_bits(bits as u32));
            if f64.is_finite() { prop_assert_eq!(number(&serde_json::to_string(&f64).unwrap()).unwrap().f64().unwrap().to_bits(), f64.to_bits()); }
            if f32.is_finite() { prop_assert_eq!(number(&serde_json::to_string(&f32).unwrap()).unwrap().f32().unwrap().to_bits(), f32.to_bits()); }
        }

        #[test]
        fn decimals_are_the_nearest_floats(text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][-+]?[0-9]{1,2})?") {
            let n = number(&text).unwrap();
            prop_assert_eq!(n.f32().map(f32::to_bits), text.parse::<f32>().ok().filter(|v| v.is_finite()).map(f32::to_bits));
            prop_assert_eq!(n.f64().map(f64::to_bits), text.parse::<f64>().ok().filter(|v| v.is_finite()).map(f64::to_bits));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(mut reader) = Reader::new(&bytes) { let _ = reader.skip(); }
        }
    }
}
