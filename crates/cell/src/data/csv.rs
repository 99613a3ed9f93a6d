//! CSV by RFC 4180: commas, double quotes, a header; UTF-8 with or without a byte order mark; LF or CRLF.
//!
//! Read by hand and strictly, because a lenient reader turns a lost quote into one long cell without a word. Every error names its
//! line. Blank lines are skipped. A quote inside an unquoted field is text.

use std::ops::Range;

use wire::{Fail, FailCode};

use super::{Cell, Head, Limits, Sink, Source, TEXT_BYTES_MAX, check_names, pull::Stream};

/// Longest record in bytes.
const RECORD_BYTES_MAX: usize = 4 << 20;

/// Hands the records to the sink.
pub(super) fn read(source: &mut dyn Source, window: Range<u64>, limits: Limits, sink: &mut dyn Sink) -> Result<(), Fail> {
    let mut records = Records::new(source);
    records.skip_byte_order_mark()?;
    let Some(line) = records.next(limits.columns_max as usize)? else {
        return Err(invalid("the data set has no header"));
    };
    let heads = header(&records, line)?;
    limits.columns(heads.len())?;
    sink.columns(&heads)?;
    let mut row = 0_u64;
    while row < window.end {
        let Some(line) = records.next(heads.len())? else { break };
        limits.rows(row + 1)?;
        let text = records.text(line, &heads)?;
        if records.ends.len() != heads.len() {
            return Err(wrong_count(records.ends.len(), line, &heads));
        }
        if row >= window.start {
            let mut start = 0;
            for (column, (&end, head)) in records.ends.iter().zip(&heads).enumerate() {
                let field = text.get(start..end).unwrap_or_default();
                start = end;
                if field.len() > TEXT_BYTES_MAX {
                    return Err(Fail::new(FailCode::TooLarge, "a field is longer than 1 MiB").at_line(line).at_column(&head.name));
                }
                let cell = if field.is_empty() { Cell::Missing } else { Cell::Raw(field) };
                sink.cell(column, row, cell).map_err(|fail| fail.at_line(line))?;
            }
        }
        row += 1;
        sink.rows(row);
    }
    Ok(())
}

fn header(records: &Records<'_>, line: u64) -> Result<Vec<Head>, Fail> {
    let text = std::str::from_utf8(&records.data).map_err(|_| invalid("the header is not UTF-8").at_line(line))?;
    if text.contains('\0') {
        return Err(invalid("the header holds a NUL byte").at_line(line));
    }
    let mut start = 0;
    let mut heads = Vec::with_capacity(records.ends.len());
    for &end in &records.ends {
        heads.push(Head { name: text.get(start..end).unwrap_or_default().to_owned(), kind: None });
        start = end;
    }
    if let ([only], Some(found)) = (heads.as_slice(), [';', '\t', '|'].into_iter().find(|&found| text.contains(found))) {
        let message = format!("the header is one column with {found:?} in it: separate by commas");
        return Err(Fail::new(FailCode::Unsupported, message).at_line(line).at_column(&only.name));
    }
    check_names(heads.iter().map(|head| head.name.as_str()))?;
    Ok(heads)
}

fn wrong_count(fields: usize, line: u64, heads: &[Head]) -> Fail {
    let many = if fields > heads.len() { "more than " } else { "" };
    let count = fields.min(heads.len());
    let fail = invalid(format!("the row has {many}{count} fields, the header has {}", heads.len())).at_line(line);
    match heads.get(fields).or(heads.last()) {
        Some(head) => fail.at_column(&head.name),
        None => fail,
    }
}

fn invalid(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::Invalid, message)
}

/// One record at a time.
struct Records<'a> {
    stream: Stream<'a>,
    /// Lines begun.
    line: u64,
    /// Contents of all fields, one after the other.
    data: Vec<u8>,
    /// Where each field ends in `data`.
    ends: Vec<usize>,
}

/// Where in a record the reader is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or half of a doubled one.
    QuoteSeen,
    /// After the CR that follows a closing quote.
    ReturnSeen,
}

impl<'a> Records<'a> {
    fn new(source: &'a mut dyn Source) -> Self {
        Self { stream: Stream::new(source, 0), line: 1, data: Vec::new(), ends: Vec::new() }
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), Fail> {
        if self.stream.block()?.starts_with(b"\xef\xbb\xbf") {
            self.stream.consume(3);
        }
        Ok(())
    }

    /// Reads the next record that is not blank; gives its line. Stops early past `fields_max` fields.
    fn next(&mut self, fields_max: usize) -> Result<Option<u64>, Fail> {
        loop {
            let line = self.line;
            let Some(quoted) = self.record(fields_max)? else { return Ok(None) };
            if quoted || !self.data.is_empty() || self.ends.len() > 1 {
                return Ok(Some(line));
            }
        }
    }

    /// Reads one record; gives whether a field was quoted.
    // Long because it is one state machine over bytes, and its states are easiest to check side by side.
    fn record(&mut self, fields_max: usize) -> Result<Option<bool>, Fail> {
        self.data.clear();
        self.ends.clear();
        let first_line = self.line;
        let mut state = State::FieldStart;
        let mut quoted = false;
        let mut field_start = 0;
        loop {
            let block = self.stream.block()?;
            let mut rest = block;
            let mut done = rest.is_empty();
            if done {
                match state {
                    State::FieldStart if self.ends.is_empty() => return Ok(None),
                    State::Quoted => return Err(invalid("a quoted field is not closed").at_line(first_line)),
                    _ => self.ends.push(self.data.len()),
                }
            }
            while let Some((&byte, tail)) = rest.split_first() {
                let mut end_field = false;
                match state {
                    State::FieldStart if byte == b'"' => {
                        quoted = true;
                        state = State::Quoted;
                        rest = tail;
                    }
                    State::FieldStart | State::Plain => {
                        let run = rest.iter().position(|&byte| byte == b',' || byte == b'\n').unwrap_or(rest.len());
                        let (field, after) = rest.split_at(run);
                        self.data.extend_from_slice(field);
                        state = State::Plain;
                        rest = after;
                        if let Some((&byte, tail)) = after.split_first() {
                            rest = tail;
                            end_field = true;
                            done = byte == b'\n';
                            if done && self.data.len() > field_start && self.data.last() == Some(&b'\r') {
                                self.data.pop();
                            }
                        }
                    }
                    State::Quoted => {
                        let run = rest.iter().position(|&byte| byte == b'"').unwrap_or(rest.len());
                        let (field, after) = rest.split_at(run);
                        self.line += field.iter().filter(|&&byte| byte == b'\n').count() as u64;
                        self.data.extend_from_slice(field);
                        rest = after;
                        if let Some((_, tail)) = after.split_first() {
                            rest = tail;
                            state = State::QuoteSeen;
                        }
                    }
                    State::QuoteSeen if byte == b'"' => {
                        self.data.push(b'"');
                        state = State::Quoted;
                        rest = tail;
                    }
                    State::QuoteSeen if byte == b'\r' => {
                        state = State::ReturnSeen;
                        rest = tail;
                    }
                    State::QuoteSeen | State::ReturnSeen if byte == b'\n' || byte == b',' && state == State::QuoteSeen => {
                        end_field = true;
                        done = byte == b'\n';
                        rest = tail;
                    }
                    State::QuoteSeen | State::ReturnSeen => {
                        return Err(invalid("text follows a closing quote").at_line(self.line));
                    }
                }
                if end_field {
                    self.ends.push(self.data.len());
                    field_start = self.data.len();
                    state = State::FieldStart;
                }
                if done || self.ends.len() > fields_max {
                    break;
                }
            }
            let used = block.len() - rest.len();
            self.stream.consume(used);
            if self.data.len() > RECORD_BYTES_MAX {
                return Err(Fail::new(FailCode::TooLarge, "a row is longer than 4 MiB: is a quote not closed?").at_line(first_line));
            }
            if done {
                self.line += 1;
                return Ok(Some(quoted));
            }
            if self.ends.len() > fields_max {
                return Ok(Some(quoted));
            }
        }
    }

    /// The record as text.
    fn text(&self, line: u64, heads: &[Head]) -> Result<&str, Fail> {
        let (position, message) = match std::str::from_utf8(&self.data) {
            Ok(text) => match self.data.contains(&0).then(|| text.find('\0')).flatten() {
                Some(position) => (position, "the field holds a NUL byte"),
                None => return Ok(text),
            },
            Err(error) => (error.valid_up_to(), "the field is not UTF-8"),
        };
        let fail = invalid(message).at_line(line);
        let column = self.ends.iter().position(|&end| position < end).and_then(|column| heads.get(column));
        Err(match column {
            Some(head) => fail.at_column(&head.name),
            None => fail,
        })
    }
}
