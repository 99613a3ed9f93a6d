//! Readers, table by table.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use serde_json::json;
use wire::{BLOCK_BYTES_MAX, FailCode};

use super::*;

/// A source in memory; counts what is read.
pub(crate) struct Memory {
    bytes: Bytes,
    pub(crate) read: u64,
}

impl Memory {
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), read: 0 }
    }
}

impl Source for Memory {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&mut self, offset: u64, bytes: u32) -> Result<Bytes, Fail> {
        assert!(bytes <= BLOCK_BYTES_MAX);
        let end = (offset + u64::from(bytes)).min(self.bytes());
        self.read += end - offset;
        Ok(self.bytes.slice(offset as usize..end as usize))
    }
}

fn inspected(bytes: impl Into<Bytes>) -> Result<wire::Inspection, Fail> {
    let mut source = Memory::new(bytes);
    let spec = wire::Inspect { source_bytes: source.bytes(), format: None, rows_max: 1_000_000, columns_max: 100 };
    inspect(&mut source, &spec)
}

fn batch() -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([
        ("whole", Arc::new(Int64Array::from(vec![Some(3), None, Some(-7), Some(3)])) as ArrayRef, true),
        ("number", Arc::new(Float64Array::from(vec![Some(0.5), Some(1.25), None, Some(-2.0)])), true),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(true), None])), true),
        ("text", Arc::new(StringArray::from(vec![Some("ä, b"), Some("c\"d"), None, Some("ä, b")])), true),
    ])
    .unwrap()
}

const CSV: &str = "whole,number,flag,text\n3,0.5,true,\"ä, b\"\nNA,1.25,false,\"c\"\"d\"\n-7,NaN,true,\n3,-2.0,,\"ä, b\"\n";
const NDJSON: &str = r#"{"whole":3,"number":0.5,"flag":true,"text":"ä, b"}
{"number":1.25,"whole":null,"flag":false,"text":"c\"d"}

{"whole":-7,"flag":true}
{"whole":3,"number":-2.0,"text":"ä, b"}
"#;

fn parquet_bytes(batch: &RecordBatch, codec: ::parquet::basic::Compression) -> Vec<u8> {
    let properties =
        ::parquet::file::properties::WriterProperties::builder().set_compression(codec).set_max_row_group_row_count(Some(2)).build();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_file(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch.slice(0, 3)).unwrap();
    writer.write(&batch.slice(3, batch.num_rows() - 3)).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn arrow_stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn all_formats() -> Vec<(Format, Vec<u8>)> {
    use ::parquet::basic::{Compression, ZstdLevel};
    let batch = batch();
    let crlf = CSV.replace('\n', "\r\n");
    vec![
        (Format::Csv, CSV.into()),
        (Format::Csv, format!("\u{feff}{}", crlf.trim_end()).into()),
        (Format::Ndjson, NDJSON.into()),
        (Format::Parquet, parquet_bytes(&batch, Compression::UNCOMPRESSED)),
        (Format::Parquet, parquet_bytes(&batch, Compression::SNAPPY)),
        (Format::Parquet, parquet_bytes(&batch, Compression::ZSTD(ZstdLevel::default()))),
        (Format::Parquet, parquet_bytes(&batch, Compression::LZ4_RAW)),
        (Format::Arrow, arrow_file(&batch)),
        (Format::Arrow, arrow_stream(&batch)),
    ]
}

#[test]
fn every_format_of_one_table_gives_the_same_inspection_and_preview() {
    let expected = inspected(CSV).unwrap();
    assert_eq!(expected.rows, 4);
    let kinds: Vec<ColumnKind> = expected.columns.iter().map(|column| column.kind).collect();
    assert_eq!(kinds, [ColumnKind::Integer, ColumnKind::Number, ColumnKind::Boolean, ColumnKind::Text]);
    let whole = &expected.columns[0].statistics;
    assert_eq!((whole.missing, whole.distinct, whole.min, whole.max), (1, Some(2), Some(-7.0), Some(3.0)));
    assert!((whole.mean.unwrap() + 1.0 / 3.0).abs() < 1e-12 && (whole.standard_deviation.unwrap() - 5.773_502_691_896_257).abs() < 1e-12);
    assert_eq!(expected.columns[3].statistics.top, [("ä, b".to_owned(), 2), ("c\"d".to_owned(), 1)]);
    for (format, bytes) in all_formats() {
        let found = inspected(bytes.clone()).unwrap();
        assert_eq!((found.format, found.rows), (format, 4));
        assert_eq!(found.columns, expected.columns, "{format:?}");
        for (offset, rows, expected) in [
            (1, 2, json!([[null, 1.25, false, "c\"d"], [-7, null, true, null]])),
            (3, 9, json!([[3, -2.0, null, "ä, b"]])),
            (4, 1, json!([])),
        ] {
            let spec = wire::Preview { source_bytes: bytes.len() as u64, format, offset, rows };
            let found = preview(&mut Memory::new(bytes.clone()), &spec).unwrap();
            assert_eq!(found.columns, ["whole", "number", "flag", "text"]);
            assert_eq!(json!(found.rows), expected, "{format:?} from {offset}");
        }
    }
}

#[test]
fn bad_files_are_named_by_line_and_column() {
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    type Case<'a> = (&'a [u8], &'a str, Option<u64>, Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (b"a,b\n1,2\n3\n", "the row has 1 fields, the header has 2", Some(3), Some("b")),
        (b"a,b\n1,2\n3,4,5,6\n", "the row has more than 2 fields, the header has 2", Some(3), Some("b")),
        (b"a,b\n1,2\n\n3,\xff\xfe\n", "the field is not UTF-8", Some(4), Some("b")),
        (b"a,b\n1,x\0y\n", "the field holds a NUL byte", Some(2), Some("b")),
        (b"a,b\n\"one\ntwo\",2\n3,\"open\n4,5\n", "a quoted field is not closed", Some(4), None),
        (b"a,b\n\"x\"y,2\n", "text follows a closing quote", Some(2), None),
        (b"a,\n1,2\n", "column 2 has no name", Some(1), None),
        (b"a,b,a\n1,2,3\n", "two columns are called `a`", Some(1), Some("a")),
        (b"a;b\n1;2\n", "the header is one column with ';' in it: separate by commas", Some(1), Some("a;b")),
        (b"", "the data set is empty", None, None),
        (b" \n\n", "the data set holds nothing but blanks", None, None),
        (b"{\"a\":1}\n{\"a\":2,\n", "the line is not a JSON object: EOF while parsing a value at character 7", Some(2), None),
        (b"{\"a\":1}\n[1]\n", "the line is not a JSON object: invalid type: sequence, expected an object at character 0", Some(2), None),
        (
            b"{\"a\":1}\n{\"b\":2}\n",
            "the first line has no such key: write every key in the first line, null where there is no value",
            Some(2),
            Some("b"),
        ),
        (b"{\"a\":1}\n\n{\"a\":\"x\"}\n", "the value is text, in an earlier line it is a number", Some(3), Some("a")),
        (b"{\"a\":true}\n{\"a\":1}\n", "the value is a number, in an earlier line it is a boolean", Some(2), Some("a")),
        (b"{\"a\":[1]}\n", "the value is a list or an object; taken are numbers, texts, booleans and null", Some(1), Some("a")),
        (b"{\"a\":1,\"a\":2}\n", "two columns are called `a`", Some(1), Some("a")),
        (b"{\"a\":1}\n{\"a\":\"\xff\"}\n", "the line is not UTF-8", Some(2), None),
        (b"PAR1 and nothing", "the Parquet file is cut off: its end is missing", None, None),
        (b"PAR1xxxx\xff\0\0\0PAR1", "the Parquet file is damaged", None, None),
        (b"ARROW1\0\0\xff\xff\xff\xff\x10\0\0\0short", "the file is damaged: it points past its end", None, None),
    ];
    for (bytes, message, line, column) in cases {
        let fail = inspected(bytes.to_vec()).expect_err(message);
        assert_eq!(fail.code, if message.starts_with("the header is one") { FailCode::Unsupported } else { FailCode::Invalid });
        assert_eq!((fail.message.as_str(), fail.line, fail.column.as_deref()), (*message, *line, *column));
    }
    let fail = inspected(format!("a,b\n1,{long}\n")).unwrap_err();
    assert_eq!((fail.code, fail.line, fail.column.as_deref()), (FailCode::TooLarge, Some(2), Some("b")));
    assert_eq!(inspected(format!("a\n{}", "x".repeat(9 << 20))).unwrap_err().code, FailCode::TooLarge);
}

#[test]
fn known_formats_are_refused_with_a_remedy() {
    for (bytes, word) in [
        (&b"\x1f\x8b\x08"[..], "gzip: send it uncompressed"),
        (b"PK\x03\x04", "Excel workbook: export it as CSV"),
        (b"\x80\x04\x95", "a pickle, which can run code: write it as Parquet"),
        (b"[{\"a\":1}]", "a JSON array: write one object a line"),
        (b"\xff\xfea\0", "UTF-16: write it as UTF-8"),
    ] {
        let fail = inspected(bytes).unwrap_err();
        assert!(fail.code == FailCode::Unsupported && fail.message.contains(word), "{}", fail.message);
    }
    let mut source = Memory::new(CSV);
    let spec = wire::Inspect { source_bytes: 0, format: Some(Format::Parquet), rows_max: 9, columns_max: 9 };
    assert_eq!(inspect(&mut source, &spec).unwrap_err().message, "this is CSV, not Parquet");
}

#[test]
fn limits_on_rows_and_columns_hold_in_every_format() {
    for (format, bytes) in all_formats() {
        for (rows_max, columns_max, message) in [(3, 9, "more than 3 rows"), (9, 3, "more than 3 columns")] {
            let mut source = Memory::new(bytes.clone());
            let fail = inspect(&mut source, &wire::Inspect { source_bytes: 0, format: None, rows_max, columns_max }).unwrap_err();
            assert_eq!((fail.code, fail.message.as_str()), (FailCode::TooLarge, message), "{format:?}");
        }
    }
}

/// A report must fit one frame, however many columns with long texts there are.
#[test]
fn a_wide_report_gives_up_its_texts_first() {
    let of = |columns: usize| {
        let row = |cell: &dyn Fn(usize) -> String| (0..columns).map(cell).collect::<Vec<_>>().join(",") + "\n";
        let mut data = row(&|column| format!("column{column}"));
        for number in 0..10 {
            data += &row(&|_| format!("{number}{}", "z".repeat(60)));
        }
        let spec = wire::Inspect { source_bytes: 0, format: None, rows_max: 100, columns_max: 10_000 };
        inspect(&mut Memory::new(data), &spec)
    };
    assert_eq!(of(1_000).unwrap().columns[0].statistics.top.len(), 10);
    assert_eq!(of(3_000).unwrap().columns[0].statistics.top.len(), 0);
    assert_eq!(of(9_000).unwrap_err().code, FailCode::TooLarge);
}

#[test]
fn a_column_widens_and_its_statistics_stay_right() {
    let of = |values: &[&str]| {
        let text = values.iter().map(|value| format!("{value},0\n")).collect::<String>();
        inspected(format!("a,b\n{text}")).unwrap().columns.remove(0)
    };
    let column = of(&["1", "1.0", " 2 ", "NA", "null", ""]);
    assert_eq!((column.kind, column.statistics.missing, column.statistics.distinct), (ColumnKind::Number, 3, Some(2)));
    let column = of(&["1", "NA", "", "x", "NA"]);
    assert_eq!((column.kind, column.statistics.missing, column.statistics.distinct), (ColumnKind::Text, 1, Some(3)));
    assert_eq!((column.statistics.mean, column.statistics.top[0].clone()), (None, ("NA".to_owned(), 2)));
    assert_eq!(of(&["true", "False", ""]).kind, ColumnKind::Boolean);
    assert_eq!(of(&["true", "1"]).kind, ColumnKind::Text);
    assert_eq!(of(&["NA", ""]).kind, ColumnKind::Empty);
    let many: Vec<String> = (0..1_001).map(|i| i.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(of(&many).statistics.distinct, None);
    assert_eq!(of(&many[..1_000]).statistics.distinct, Some(1_000));
    let spellings: Vec<String> = (0..2_000).map(|i| format!("{}.{}", i % 2, "0".repeat(1 + i / 2))).collect();
    let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
    assert_eq!(of(&spellings).statistics.distinct, Some(2));
}

/// A source that makes its bytes up.
struct Endless {
    bytes: u64,
}

impl Source for Endless {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn read_at(&mut self, offset: u64, bytes: u32) -> Result<Bytes, Fail> {
        const LINE: &[u8] = b"123456,0.25,word\n";
        let header = b"a______,b___,c__\n";
        assert_eq!(header.len(), LINE.len());
        let block = (offset..(offset + u64::from(bytes)).min(self.bytes)).map(|at| {
            let column = (at % LINE.len() as u64) as usize;
            if at < LINE.len() as u64 { header[column] } else { LINE[column] }
        });
        Ok(block.collect())
    }
}

fn resident_bytes_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_large_source_is_read_in_bounded_memory() {
    let rows = (200 << 20) / 17;
    let before = resident_bytes_peak();
    let mut source = Endless { bytes: rows * 17 };
    let spec = wire::Inspect { source_bytes: source.bytes, format: None, rows_max: u64::MAX, columns_max: 3 };
    let found = inspect(&mut source, &spec).unwrap();
    assert_eq!((found.rows, found.columns[1].statistics.mean), (rows - 1, Some(0.25)));
    let grown = resident_bytes_peak() - before;
    assert!(grown < 64 << 20, "grew by {grown} bytes");
}

/// A Parquet column of zeros: small in the file, large in memory.
#[test]
fn bombs_in_columnar_files_end_in_clear_errors() {
    use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
    let zeros: ArrayRef = Arc::new(StringArray::from(vec!["0".repeat(100 << 20)]));
    let bomb = RecordBatch::try_from_iter([("a", zeros)]).unwrap();
    let properties = ::parquet::file::properties::WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(::parquet::file::properties::EnabledStatistics::None)
        .build();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(Vec::new(), bomb.schema(), Some(properties)).unwrap();
    writer.write(&bomb).unwrap();
    let bytes = writer.into_inner().unwrap();
    assert!(bytes.len() < 1 << 20);
    let fail = inspected(bytes).unwrap_err();
    assert_eq!(fail.code, FailCode::TooLarge);
    assert_eq!(fail.message, "a page of the Parquet file claims more than 64 MiB: write smaller pages");

    let fail = inspected(parquet_bytes(&batch(), Compression::GZIP(GzipLevel::default()))).unwrap_err();
    assert_eq!(fail.message, "the Parquet file is compressed by gzip: write it with snappy, zstd, lz4_raw or none");
    assert_eq!((fail.code, fail.column.as_deref()), (FailCode::Unsupported, Some("whole")));
}

/// One long text that a dictionary repeats in every row is held once.
#[test]
fn a_dictionary_cannot_multiply_a_long_text() {
    let text = "y".repeat(TEXT_BYTES_MAX);
    let column: ArrayRef = Arc::new(StringArray::from(vec![text.as_str(); 2]));
    let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
    let properties = ::parquet::file::properties::WriterProperties::builder()
        .set_dictionary_page_size_limit(4 << 20)
        .set_statistics_enabled(::parquet::file::properties::EnabledStatistics::None)
        .build();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    for _ in 0..300 {
        writer.write(&batch).unwrap();
    }
    let bytes = writer.into_inner().unwrap();
    assert!(bytes.len() < 8 << 20, "{}", bytes.len());
    let before = resident_bytes_peak();
    let found = inspected(bytes).unwrap();
    assert_eq!((found.rows, found.columns[0].statistics.distinct), (600, Some(1)));
    assert!(resident_bytes_peak() - before < 256 << 20);
}

/// Damaged files of every format end in an error or a result, never in a panic.
#[test]
fn damage_anywhere_is_survived() {
    for (_, bytes) in all_formats() {
        for position in 0..bytes.len() {
            for change in [0xff_u8, 0x01, 0x80] {
                let mut damaged = bytes.clone();
                damaged[position] ^= change;
                let _ = inspected(damaged);
            }
            if position % 7 == 0 {
                let _ = inspected(bytes[..position].to_vec());
            }
        }
    }
}
