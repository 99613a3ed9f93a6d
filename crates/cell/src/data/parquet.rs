//! Apache Parquet, one column of one row group at a time.
//!
//! The compressed bytes of one column chunk are pulled, the headers of its pages are read and their claimed lengths checked, and
//! only then is it decoded, in batches. The codecs taken (none, Snappy, Zstandard, LZ4 raw) stop at the length that the page
//! header claims; gzip, Brotli and the old LZ4 do not, and are refused. Texts are decoded as views into the pages, so that a long
//! text repeated by a dictionary is there once.

use std::ops::Range;
use std::sync::Arc;

use ::parquet::DecodeResult;
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use ::parquet::arrow::push_decoder::ParquetPushDecoderBuilder;
use ::parquet::basic::Compression;
use ::parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use wire::{ColumnKind, Fail, FailCode};

use super::{Limits, Sink, Source, batch, pull, thrift};

/// Longest index at the end of the file in bytes.
const FOOTER_BYTES_MAX: u32 = 16 << 20;
/// Largest column of one row group, compressed, in bytes.
const CHUNK_BYTES_MAX: u64 = 256 << 20;
/// Largest page in bytes, uncompressed.
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// Rows decoded at once.
const BATCH_ROWS: usize = 8_192;

/// Hands the row groups to the sink.
pub(super) fn read(source: &mut dyn Source, window: Range<u64>, limits: Limits, sink: &mut dyn Sink) -> Result<(), Fail> {
    let metadata = footer(source)?;
    let file_rows = u64::try_from(metadata.file_metadata().num_rows()).map_err(|_| damaged())?;
    limits.rows(file_rows)?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let plain = batch::guarded("Parquet", || ArrowReaderMetadata::try_new(Arc::clone(&metadata), options))?;
    let schema = views(plain.schema());
    limits.columns(schema.fields().len())?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_schema(Arc::new(schema.clone()));
    let reader = batch::guarded("Parquet", || ArrowReaderMetadata::try_new(Arc::clone(&metadata), options))?;
    let kinds = batch::announce(&schema, sink)?;

    let mut row = 0_u64;
    for (group, row_group) in metadata.row_groups().iter().enumerate() {
        let rows = u64::try_from(row_group.num_rows()).map_err(|_| damaged())?;
        limits.rows(row.saturating_add(rows))?;
        if row >= window.end {
            break;
        }
        if row + rows > window.start {
            let skip = window.start.saturating_sub(row);
            let take = rows.min(window.end - row) - skip;
            for (column, kind) in kinds.iter().enumerate() {
                if *kind != ColumnKind::Other && sink.wants(column) {
                    let chunk = Chunk { reader: &reader, group, column, row: row + skip, skip, take };
                    chunk.read(source, sink)?;
                }
            }
        }
        row += rows;
        sink.rows(row);
    }
    if row < window.end && row != file_rows {
        return Err(damaged());
    }
    Ok(())
}

/// The same schema with texts as views.
fn views(schema: &Schema) -> Schema {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 => field.as_ref().clone().with_data_type(DataType::Utf8View),
            _ => field.as_ref().clone(),
        })
        .collect();
    Schema::new(fields)
}

fn footer(source: &mut dyn Source) -> Result<Arc<ParquetMetaData>, Fail> {
    let bytes = source.bytes();
    let end = pull::range(source, bytes.saturating_sub(8), 8.min(bytes))?;
    let length = end.get(..4).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes).ok_or_else(damaged)?;
    match end.get(4..) {
        Some(b"PAR1") => {}
        Some(b"PARE") => return Err(Fail::new(FailCode::Unsupported, "the Parquet file is encrypted: write it without encryption")),
        _ => return Err(Fail::new(FailCode::Invalid, "the Parquet file is cut off: its end is missing")),
    }
    if length > FOOTER_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, "the index of the Parquet file is longer than 16 MiB: write larger row groups"));
    }
    let footer_bytes = u64::from(length) + 8;
    let start = bytes.checked_sub(footer_bytes).ok_or_else(damaged)?;
    let footer = pull::range(source, start, footer_bytes)?;
    batch::guarded("Parquet", || {
        let mut decoder = ParquetMetaDataPushDecoder::try_new(bytes)?.with_page_index_policy(PageIndexPolicy::Skip);
        decoder.push_range(start..bytes, footer)?;
        match decoder.try_decode()? {
            DecodeResult::Data(metadata) => Ok(Arc::new(metadata)),
            _ => Err(::parquet::errors::ParquetError::General("incomplete index".to_owned())),
        }
    })
}

fn damaged() -> Fail {
    Fail::new(FailCode::Invalid, "the Parquet file is damaged")
}

/// One column of one row group, and the rows of it that are wanted.
struct Chunk<'a> {
    reader: &'a ArrowReaderMetadata,
    group: usize,
    column: usize,
    /// Number of the first wanted row in the file.
    row: u64,
    skip: u64,
    take: u64,
}

impl Chunk<'_> {
    fn read(&self, source: &mut dyn Source, sink: &mut dyn Sink) -> Result<(), Fail> {
        let metadata = self.reader.metadata();
        let projection = ProjectionMask::roots(metadata.file_metadata().schema_descr(), [self.column]);
        let leaf = metadata.file_metadata().schema_descr().columns().iter().enumerate().map(|(leaf, _)| leaf);
        let mut leaves = leaf.filter(|&leaf| projection.leaf_included(leaf));
        let row_group = metadata.row_groups().get(self.group).ok_or_else(damaged)?;
        let chunk = leaves.next().and_then(|leaf| row_group.columns().get(leaf)).ok_or_else(damaged)?;
        let (start, bytes) = self.pull(source, chunk)?;
        let usize_of = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let mut decoder = batch::guarded("Parquet", || {
            ParquetPushDecoderBuilder::new_with_metadata(self.reader.clone())
                .with_row_groups(vec![self.group])
                .with_projection(projection.clone())
                .with_batch_size(BATCH_ROWS)
                .with_offset(usize_of(self.skip))
                .with_limit(usize_of(self.take))
                .build()
        })?;
        let mut row = self.row;
        let mut fed = false;
        loop {
            match batch::guarded("Parquet", || decoder.try_decode())? {
                DecodeResult::NeedsData(ranges) if !fed => {
                    let part = |range: &Range<u64>| {
                        let from = usize_of(range.start.checked_sub(start)?);
                        let to = usize_of(range.end.checked_sub(start)?);
                        (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
                    };
                    let parts: Vec<Bytes> = ranges.iter().map(part).collect::<Option<_>>().ok_or_else(damaged)?;
                    batch::guarded("Parquet", || decoder.push_ranges(ranges, parts))?;
                    fed = true;
                }
                DecodeResult::NeedsData(_) => return Err(damaged()),
                DecodeResult::Data(decoded) => {
                    if let Some(array) = decoded.columns().first() {
                        batch::deliver(sink, self.column, row, array)?;
                    }
                    row += decoded.num_rows() as u64;
                }
                DecodeResult::Finished => break,
            }
        }
        if row - self.row != self.take {
            return Err(damaged());
        }
        Ok(())
    }

    /// The bytes of the chunk, its pages checked.
    fn pull(&self, source: &mut dyn Source, chunk: &ColumnChunkMetaData) -> Result<(u64, Bytes), Fail> {
        let column = || self.reader.schema().fields().get(self.column).map(|field| field.name().clone()).unwrap_or_default();
        match chunk.compression() {
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) | Compression::LZ4_RAW => {}
            other => {
                let name = format!("{other:?}");
                let name = name.split('(').next().unwrap_or_default().to_lowercase();
                let message = format!("the Parquet file is compressed by {name}: write it with snappy, zstd, lz4_raw or none");
                return Err(Fail::new(FailCode::Unsupported, message).at_column(column()));
            }
        }
        let offset = chunk.dictionary_page_offset().filter(|&offset| offset > 0).unwrap_or(chunk.data_page_offset());
        let start = u64::try_from(offset).map_err(|_| damaged())?;
        let length = u64::try_from(chunk.compressed_size()).map_err(|_| damaged())?;
        if length > CHUNK_BYTES_MAX {
            let message = "a column of one row group is larger than 256 MiB: write smaller row groups";
            return Err(Fail::new(FailCode::TooLarge, message).at_column(column()));
        }
        let bytes = pull::range(source, start, length)?;
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let page = thrift::page_header(rest).ok_or_else(damaged)?;
            if page.uncompressed_bytes > PAGE_BYTES_MAX {
                let message = "a page of the Parquet file claims more than 64 MiB: write smaller pages";
                return Err(Fail::new(FailCode::TooLarge, message).at_column(column()));
            }
            rest = rest.get(page.header_bytes..).and_then(|rest| rest.get(page.compressed_bytes..)).ok_or_else(damaged)?;
        }
        Ok((start, bytes))
    }
}
