//! Spans as OpenTelemetry sends them: OTLP over HTTP, protobuf. Read here by hand, because a decoder that trusts the message could be made
//! to build gigabytes out of a small body: an empty span takes two bytes. Everything that becomes an object in memory is counted first.
//!
//! Message and field numbers: opentelemetry-proto, `trace/v1/trace.proto` and `common/v1/common.proto`. What clients read back is the same
//! span in protobuf's JSON form.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use flate2::read::GzDecoder;
use platform::Span;
use serde_json::{Map, Number, Value, json};

use crate::error::{Fail, Result};

/// Largest export in bytes, after decompression too.
pub(crate) const EXPORT_BYTES_MAX: u64 = 16 << 20;
/// Spans of one export at most.
const SPANS_MAX: usize = 4096;
/// Attributes, values, events, links and spans of one export together.
const NODES_MAX: usize = 200_000;
/// Depth of a value: clients cannot read deeper ones back.
const DEPTH_MAX: usize = 24;
const TRACE_ID_BYTES: usize = 16;
const SPAN_ID_BYTES: usize = 8;

/// Undoes gzip, within bounds.
pub(crate) fn unzipped(body: &[u8]) -> Result<Bytes> {
    let mut plain = Vec::new();
    let mut unzip = GzDecoder::new(body).take(EXPORT_BYTES_MAX + 1);
    unzip.read_to_end(&mut plain).map_err(|_| Fail::new("invalid", "Failed to decompress gzip payload"))?;
    if plain.len() as u64 > EXPORT_BYTES_MAX {
        return Err(Fail::new("too_large", format!("the body is larger than {EXPORT_BYTES_MAX} bytes when it is decompressed")));
    }
    Ok(plain.into())
}

/// The spans of an export.
///
/// # Errors
/// `invalid` for what is no export, `too_large` over the bounds above.
pub(crate) fn spans(body: &[u8]) -> Result<Vec<Span>> {
    let mut decoder = Decoder { nodes: 0, spans: Vec::new() };
    let mut export = Message(body);
    let mut resources = 0;
    while let Some((number, field)) = export.next()? {
        if number == 1 {
            resources += 1;
            decoder.resource_spans(field.message()?)?;
        }
    }
    match resources {
        0 => Err(Fail::new("invalid", "Invalid OpenTelemetry format - no spans found")),
        _ => Ok(decoder.spans),
    }
}

struct Decoder {
    nodes: usize,
    spans: Vec<Span>,
}

impl Decoder {
    fn count(&mut self) -> Result<()> {
        self.nodes += 1;
        match self.nodes > NODES_MAX {
            true => {
                Err(Fail::new("too_large", format!("the export has more than {NODES_MAX} attributes, events and spans: send it in parts")))
            }
            false => Ok(()),
        }
    }

    fn resource_spans(&mut self, message: Message<'_>) -> Result<()> {
        self.count()?;
        let mut resource = BTreeMap::new();
        let mut look = message;
        while let Some((number, field)) = look.next()? {
            if number == 1 {
                resource = self.resource(field.message()?)?;
            }
        }
        let resource = Arc::new(resource);
        let mut scopes = message;
        while let Some((number, field)) = scopes.next()? {
            if number != 2 {
                continue;
            }
            self.count()?;
            let mut scope = field.message()?;
            while let Some((number, field)) = scope.next()? {
                if number == 2 {
                    let span = self.span(field.message()?, &resource)?;
                    if self.spans.len() == SPANS_MAX {
                        return Err(Fail::new("too_large", format!("the export has more than {SPANS_MAX} spans: send it in parts")));
                    }
                    self.spans.push(span);
                }
            }
        }
        Ok(())
    }

    fn resource(&mut self, mut message: Message<'_>) -> Result<BTreeMap<String, Value>> {
        let mut attributes = BTreeMap::new();
        while let Some((number, field)) = message.next()? {
            if number == 1 {
                let (key, value) = self.attribute(field.message()?, 0)?;
                attributes.insert(key, value);
            }
        }
        Ok(attributes)
    }

    fn span(&mut self, mut message: Message<'_>, resource: &Arc<BTreeMap<String, Value>>) -> Result<Span> {
        self.count()?;
        let (mut trace_id, mut span_id, mut parent): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut start_ns, mut end_ns, mut failed) = (0, 0, false);
        let (mut attributes, mut events, mut links) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut body = Map::new();
        while let Some((number, field)) = message.next()? {
            match number {
                1 => trace_id = field.bytes()?,
                2 => span_id = field.bytes()?,
                3 => drop(body.insert("trace_state".to_owned(), field.text()?.into())),
                4 => parent = field.bytes()?,
                5 => drop(body.insert("name".to_owned(), field.text()?.into())),
                6 => drop(body.insert("kind".to_owned(), field.enumeration()?.into())),
                7 => start_ns = field.fixed64()?,
                8 => end_ns = field.fixed64()?,
                9 => {
                    let (key, value) = self.attribute(field.message()?, 0)?;
                    let value = self.unwrapped(value);
                    attributes.insert(key, value);
                }
                11 => events.push(self.event(field.message()?)?),
                13 => links.push(self.link(field.message()?)?),
                15 => {
                    let (status, error) = status(field.message()?)?;
                    failed = error;
                    body.insert("status".to_owned(), status);
                }
                _ => {}
            }
        }
        if trace_id.len() != TRACE_ID_BYTES || span_id.len() != SPAN_ID_BYTES || trace_id.iter().all(|b| *b == 0) {
            return Err(Fail::new("invalid", "Cannot convert OpenTelemetry span to MLflow span: `trace_id` has 16 bytes and `span_id` 8"));
        }
        let id = format!("tr-{}", hex(trace_id));
        attributes.insert("mlflow.traceRequestId".to_owned(), id.clone().into());
        body.insert("trace_id".to_owned(), BASE64.encode(trace_id).into());
        body.insert("span_id".to_owned(), BASE64.encode(span_id).into());
        if !parent.is_empty() {
            body.insert("parent_span_id".to_owned(), BASE64.encode(parent).into());
        }
        body.insert("start_time_unix_nano".to_owned(), start_ns.into());
        body.insert("end_time_unix_nano".to_owned(), end_ns.into());
        body.insert("attributes".to_owned(), pairs(attributes.iter()));
        body.insert("events".to_owned(), events.into());
        body.insert("links".to_owned(), links.into());
        Ok(Span {
            trace_id: id,
            id: hex(span_id),
            root: parent.is_empty(),
            failed,
            start_ns,
            end_ns: (end_ns > 0).then_some(end_ns),
            attributes,
            body: Value::Object(body),
            resource: resource.clone(),
        })
    }

    /// MLflow's clients, and some others, send structures as JSON text: they are read back as structures, unless they would become more
    /// objects in memory than one export may. Bare numbers stay texts.
    fn unwrapped(&mut self, value: Value) -> Value {
        if let Value::String(text) = &value
            && text.starts_with(['{', '[', '"'])
        {
            // Each value but the first follows one of these.
            let nodes = text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{' | b':')).count();
            if self.nodes + nodes <= NODES_MAX
                && let Ok(inner) = serde_json::from_str::<Value>(text)
                && depth_fits(&inner, DEPTH_MAX)
            {
                self.nodes += nodes;
                return inner;
            }
        }
        value
    }

    fn event(&mut self, mut message: Message<'_>) -> Result<Value> {
        self.count()?;
        let (mut time, mut name, mut attributes) = (0, String::new(), Vec::new());
        while let Some((number, field)) = message.next()? {
            match number {
                1 => time = field.fixed64()?,
                2 => name = field.text()?,
                3 => attributes.push(self.attribute(field.message()?, 0)?),
                _ => {}
            }
        }
        Ok(json!({"time_unix_nano": time, "name": name, "attributes": pairs(attributes.iter().map(|(key, value)| (key, value)))}))
    }

    fn link(&mut self, mut message: Message<'_>) -> Result<Value> {
        self.count()?;
        let (mut trace_id, mut span_id, mut attributes): (&[u8], &[u8], _) = (&[], &[], Vec::new());
        while let Some((number, field)) = message.next()? {
            match number {
                1 => trace_id = field.bytes()?,
                2 => span_id = field.bytes()?,
                4 => attributes.push(self.attribute(field.message()?, 0)?),
                _ => {}
            }
        }
        Ok(json!({
            "trace_id": BASE64.encode(trace_id),
            "span_id": BASE64.encode(span_id),
            "attributes": pairs(attributes.iter().map(|(key, value)| (key, value))),
        }))
    }

    /// A key with its value as plain JSON.
    fn attribute(&mut self, mut message: Message<'_>, depth: usize) -> Result<(String, Value)> {
        self.count()?;
        let (mut key, mut value) = (String::new(), Value::Null);
        while let Some((number, field)) = message.next()? {
            match number {
                1 => key = field.text()?,
                2 => value = self.value(field.message()?, depth)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn value(&mut self, mut message: Message<'_>, depth: usize) -> Result<Value> {
        self.count()?;
        if depth == DEPTH_MAX {
            return Err(Fail::new("invalid", format!("an attribute is nested deeper than {DEPTH_MAX}: send it as JSON text")));
        }
        let mut value = Value::Null;
        while let Some((number, field)) = message.next()? {
            value = match number {
                1 => field.text()?.into(),
                2 => (field.varint()? != 0).into(),
                3 => field.varint()?.cast_signed().into(),
                4 => real(f64::from_bits(field.fixed64()?)),
                5 => {
                    let (mut items, mut list) = (Vec::new(), field.message()?);
                    while let Some((number, field)) = list.next()? {
                        if number == 1 {
                            items.push(self.value(field.message()?, depth + 1)?);
                        }
                    }
                    items.into()
                }
                6 => {
                    let (mut map, mut list) = (Map::new(), field.message()?);
                    while let Some((number, field)) = list.next()? {
                        if number == 1 {
                            map.extend([self.attribute(field.message()?, depth + 1)?]);
                        }
                    }
                    map.into()
                }
                7 => BASE64.encode(field.bytes()?).into(),
                _ => value,
            };
        }
        Ok(value)
    }
}

/// The status as JSON, and whether it is an error.
fn status(mut message: Message<'_>) -> Result<(Value, bool)> {
    let (mut text, mut code) = (String::new(), 0);
    while let Some((number, field)) = message.next()? {
        match number {
            2 => text = field.text()?,
            3 => code = field.enumeration()?,
            _ => {}
        }
    }
    let word = match code {
        1 => "STATUS_CODE_OK",
        2 => "STATUS_CODE_ERROR",
        _ => "STATUS_CODE_UNSET",
    };
    Ok((json!({"message": text, "code": word}), code == 2))
}

/// What JSON cannot say as a number is a text.
fn real(number: f64) -> Value {
    Number::from_f64(number).map_or_else(
        || match number {
            number if number.is_nan() => "NaN".into(),
            number if number > 0.0 => "Infinity".into(),
            _ => "-Infinity".into(),
        },
        Value::Number,
    )
}

fn depth_fits(value: &Value, left: usize) -> bool {
    match value {
        Value::Array(items) => left > 0 && items.iter().all(|item| depth_fits(item, left - 1)),
        Value::Object(map) => left > 0 && map.values().all(|item| depth_fits(item, left - 1)),
        _ => true,
    }
}

/// Attributes in protobuf's JSON form.
fn pairs<'a>(attributes: impl Iterator<Item = (&'a String, &'a Value)>) -> Value {
    attributes.map(|(key, value)| json!({"key": key, "value": any(value)})).collect()
}

/// A value in protobuf's JSON form. Its depth is bounded before.
fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(value) => json!({"bool_value": value}),
        Value::Number(number) if number.is_i64() => json!({"int_value": number}),
        Value::Number(number) => json!({"double_value": number.as_f64()}),
        Value::String(text) => json!({"string_value": text}),
        Value::Array(items) => json!({"array_value": {"values": items.iter().map(any).collect::<Vec<_>>()}}),
        Value::Object(map) => json!({"kvlist_value": {"values": pairs(map.iter())}}),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// A protobuf message that is being read field by field.
#[derive(Clone, Copy)]
struct Message<'a>(&'a [u8]);

/// A field's value as it lies there.
enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Message<'a> {
    /// The next field with its number.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| malformed())?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed())?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Field::Fixed32
            }
            _ => return Err(malformed()),
        };
        Ok(Some((key >> 3, field)))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied().ok_or_else(malformed)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }
}

impl<'a> Field<'a> {
    fn bytes(&self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(malformed()),
        }
    }

    fn message(&self) -> Result<Message<'a>> {
        self.bytes().map(Message)
    }

    fn text(&self) -> Result<String> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| malformed())
    }

    fn varint(&self) -> Result<u64> {
        match self {
            Self::Varint(value) => Ok(*value),
            _ => Err(malformed()),
        }
    }

    /// Small numbers that name something; others name nothing.
    fn enumeration(&self) -> Result<u8> {
        Ok(u8::try_from(self.varint()?).ok().filter(|value| *value <= 5).unwrap_or(0))
    }

    fn fixed64(&self) -> Result<u64> {
        match self {
            Self::Fixed64(value) => Ok(*value),
            _ => Err(malformed()),
        }
    }
}

fn malformed() -> Fail {
    Fail::new("invalid", "Invalid OpenTelemetry format")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with bytes.
    fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        bytes.push(u8::try_from(value).unwrap());
        bytes
    }

    fn number(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    fn fixed(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3 | 1), value.to_le_bytes().to_vec()].concat()
    }

    fn attribute(key: &str, value: &[u8]) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value)].concat()
    }

    fn export(span: &[u8]) -> Vec<u8> {
        let resource = field(1, &field(1, &attribute("service.name", &field(1, b"shop"))));
        field(1, &[field(2, &field(2, span)), resource].concat())
    }

    fn ids() -> Vec<u8> {
        [field(1, &[7; 16]), field(2, &[9; 8])].concat()
    }

    #[test]
    fn a_span_is_read() {
        let attributes = [
            attribute("text", &field(1, b"plain")),
            attribute("json", &field(1, br#"{"a": [1, "x"]}"#)),
            attribute("digits", &field(1, b"17")),
            attribute("whole", &number(3, (-5i64).cast_unsigned())),
            attribute("real", &fixed(4, 0.5f64.to_bits())),
            attribute("nan", &fixed(4, f64::NAN.to_bits())),
            attribute("list", &field(5, &[field(1, &number(2, 1)), field(1, &[])].concat())),
            attribute("map", &field(6, &field(1, &attribute("k", &field(1, b"v"))))),
        ];
        let attributes: Vec<u8> = attributes.iter().flat_map(|attribute| field(9, attribute)).collect();
        let status = field(15, &[field(2, b"bad"), number(3, 2)].concat());
        let event = field(11, &[fixed(1, 5), field(2, b"exception")].concat());
        let flags = [varint(16 << 3 | 5), vec![0; 4]].concat();
        let rest = [field(4, &[1; 8]), field(5, b"step"), number(6, 1), fixed(7, 10), fixed(8, 20)].concat();
        let spans = spans(&export(&[ids(), rest, attributes, status, event, flags].concat())).unwrap();
        let [span] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((span.trace_id.as_str(), span.id.as_str()), ("tr-07070707070707070707070707070707", "0909090909090909"));
        assert_eq!((span.root, span.failed, span.start_ns, span.end_ns), (false, true, 10, Some(20)));
        assert_eq!(span.resource["service.name"], "shop");
        let expected = json!({"text": "plain", "json": {"a": [1, "x"]}, "digits": "17", "whole": -5, "real": 0.5, "nan": "NaN", "list": [true, null],
            "map": {"k": "v"}, "mlflow.traceRequestId": span.trace_id});
        assert_eq!(json!(span.attributes), expected);
        let in_body = span.body["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == "json").unwrap();
        let list = json!({"array_value": {"values": [{"int_value": 1}, {"string_value": "x"}]}});
        assert_eq!(in_body["value"], json!({"kvlist_value": {"values": [{"key": "a", "value": list}]}}));
        assert_eq!(span.body["status"], json!({"message": "bad", "code": "STATUS_CODE_ERROR"}));
        assert_eq!(span.body["events"][0]["name"], "exception");
        assert_eq!(span.body["trace_id"], BASE64.encode([7; 16]));
    }

    #[test]
    fn what_is_no_export_is_refused() {
        let deep = (0..=DEPTH_MAX).fold(field(1, b"x"), |inner, _| field(5, &field(1, &inner)));
        let table: [(&str, Vec<u8>); 8] = [
            ("nothing", vec![]),
            ("cut", export(&ids())[..10].to_vec()),
            ("a length beyond the end", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            ("a varint without end", vec![0xff; 11]),
            ("a group", vec![0x0b]),
            ("no ids", export(&field(5, b"step"))),
            ("bad text", export(&[ids(), field(5, &[0xff])].concat())),
            ("too deep", export(&[ids(), field(9, &attribute("deep", &deep))].concat())),
        ];
        for (what, bytes) in table {
            assert_eq!(spans(&bytes).err().map(|fail| fail.code()), Some("invalid"), "{what}");
        }
        assert!(spans(&export(&ids())).is_ok());
    }

    #[test]
    fn json_in_a_text_counts_as_what_it_becomes() {
        let said = |items: usize| format!("[{}0]", "0,".repeat(items));
        let sent = |texts: &[String]| {
            let attributes = texts.iter().enumerate().map(|(at, text)| field(9, &attribute(&at.to_string(), &field(1, text.as_bytes()))));
            let span = [ids(), attributes.flatten().collect()].concat();
            spans(&export(&span)).unwrap().remove(0).attributes
        };
        assert_eq!(sent(&[said(10)])["0"].as_array().unwrap().len(), 11);
        assert!(sent(&[said(NODES_MAX)])["0"].is_string(), "it stays the text that it is");
        let both = sent(&[said(NODES_MAX / 2), said(NODES_MAX / 2)]);
        assert!(both["0"].is_array() && both["1"].is_string(), "all of an export together");
    }

    #[test]
    fn small_bodies_do_not_become_large_ones() {
        let many: Vec<u8> = (0..=NODES_MAX).flat_map(|_| field(9, &[])).collect();
        assert_eq!(spans(&export(&[ids(), many].concat())).err().map(|fail| fail.code()), Some("too_large"));
        let one = field(2, &ids());
        let many: Vec<u8> = (0..=SPANS_MAX).flat_map(|_| one.clone()).collect();
        assert_eq!(spans(&field(1, &field(2, &many))).err().map(|fail| fail.code()), Some("too_large"));
    }

    #[test]
    fn gzip_is_bounded() {
        use std::io::Write;
        let zip = |plain: &[u8]| {
            let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            zip.write_all(plain).unwrap();
            zip.finish().unwrap()
        };
        assert_eq!(unzipped(&zip(b"plain")).unwrap(), "plain");
        assert!(unzipped(b"not gzip").is_err());
        let bomb = zip(&vec![0; usize::try_from(EXPORT_BYTES_MAX).unwrap() + 1]);
        assert_eq!(unzipped(&bomb).err().map(|fail| fail.code()), Some("too_large"));
    }
}
