//! Which format this is, from its first bytes; and what to do with one that is not taken.

use bytes::Bytes;
use wire::{Fail, FailCode, Format};

use super::{Source, pull};

/// Bytes looked at.
const SNIFF_BYTES: u64 = 512;
/// What a blank start may be long, before the first character of NDJSON.
const BLANKS: [u8; 4] = [b' ', b'\t', b'\r', b'\n'];

/// The public name of a format.
pub(super) fn name(format: Format) -> &'static str {
    match format {
        Format::Csv => "CSV",
        Format::Ndjson => "newline-delimited JSON",
        Format::Parquet => "Parquet",
        Format::Arrow => "Arrow IPC",
    }
}

/// The format of a source.
pub(super) fn format(source: &mut dyn Source) -> Result<Format, Fail> {
    let bytes = source.bytes();
    if bytes == 0 {
        return Err(Fail::new(FailCode::Invalid, "the data set is empty"));
    }
    let start: Bytes = pull::range(source, 0, bytes.min(SNIFF_BYTES))?;
    if start.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if start.starts_with(b"ARROW1") || start.starts_with(&[0xff; 4]) && start.get(8..12).is_some_and(|table| table != [0; 4]) {
        return Ok(Format::Arrow);
    }
    refuse(&start)?;
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start);
    match text.iter().find(|byte| !BLANKS.contains(byte)) {
        Some(b'<') if looks_like_markup(text) => Err(unsupported("HTML or XML, perhaps a sign-in page: download the file itself, as CSV")),
        Some(b'{') => Ok(Format::Ndjson),
        Some(b'[') if looks_like_json_array(text) => Err(unsupported("a JSON array: write one object a line (newline-delimited JSON)")),
        Some(_) => Ok(Format::Csv),
        None => Err(Fail::new(FailCode::Invalid, "the data set holds nothing but blanks")),
    }
}

/// A table's first column is hardly called so.
fn looks_like_markup(text: &[u8]) -> bool {
    let tag = text.trim_ascii_start();
    [&b"<!doctype"[..], b"<html", b"<?xml"].iter().any(|start| tag.get(..start.len()).is_some_and(|tag| tag.eq_ignore_ascii_case(start)))
}

fn looks_like_json_array(text: &[u8]) -> bool {
    let mut bytes = text.iter().filter(|byte| !BLANKS.contains(byte)).skip(1);
    matches!(bytes.next(), Some(b'{' | b'[' | b'"'))
}

/// Known formats that are not taken, by their first bytes, with what to do instead.
const REFUSED: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip: send it uncompressed, or as Parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook: export it as CSV"),
    (b"PK\x05\x06", "a zip archive: export it as CSV"),
    (b"\x28\xb5\x2f\xfd", "zstd: send it uncompressed, or as Parquet"),
    (b"BZh", "bzip2: send it uncompressed, or as Parquet"),
    (b"\xfd7zXZ", "xz: send it uncompressed, or as Parquet"),
    (b"\x04\x22\x4d\x18", "lz4: send it uncompressed, or as Parquet"),
    (b"7z\xbc\xaf", "a 7z archive: export it as CSV"),
    (b"Rar!", "a rar archive: export it as CSV"),
    (b"\x80\x02", "a pickle, which can run code: write it as Parquet"),
    (b"\x80\x03", "a pickle, which can run code: write it as Parquet"),
    (b"\x80\x04", "a pickle, which can run code: write it as Parquet"),
    (b"\x80\x05", "a pickle, which can run code: write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array: write it as Parquet with named columns"),
    (b"\x89HDF", "HDF5: write it as Parquet"),
    (b"Obj\x01", "Avro: write it as Parquet"),
    (b"ORC", "ORC: write it as Parquet"),
    (b"FEA1", "Feather version 1: write it as Arrow IPC or Parquet"),
    (b"SQLite format 3\0", "a SQLite database: export a table as CSV or Parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: export it as CSV"),
    (b"%PDF", "a PDF: export the table as CSV"),
    (b"\x7fELF", "a program"),
    (b"\xff\xfe", "UTF-16: write it as UTF-8"),
    (b"\xfe\xff", "UTF-16: write it as UTF-8"),
    (b"PARE", "encrypted Parquet: write it without encryption, it is sealed here under your own key"),
];

fn refuse(start: &[u8]) -> Result<(), Fail> {
    match REFUSED.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, what)) => Err(unsupported(what)),
        None => Ok(()),
    }
}

fn unsupported(what: &str) -> Fail {
    Fail::new(FailCode::Unsupported, format!("this is {what}; taken are CSV, newline-delimited JSON, Parquet and Arrow IPC"))
}
