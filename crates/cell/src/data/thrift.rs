//! The header of a Parquet page, as far as lengths go (Thrift compact protocol).

/// Deepest nesting of structures followed; a page header has three.
const DEPTH_MAX: u32 = 8;
/// Most fields of one structure or elements of one list.
const FIELDS_MAX: u64 = 4_096;

/// Lengths of one page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub(super) header_bytes: usize,
    pub(super) uncompressed_bytes: u64,
    pub(super) compressed_bytes: usize,
}

/// Reads the header at the start of `bytes`; `None` when it is damaged.
pub(super) fn page_header(bytes: &[u8]) -> Option<PageHeader> {
    let mut reader = Reader { rest: bytes };
    let (mut uncompressed, mut compressed) = (None, None);
    let mut field = 0_i64;
    for _ in 0..FIELDS_MAX {
        let byte = reader.byte()?;
        if byte == 0 {
            let header_bytes = bytes.len() - reader.rest.len();
            return Some(PageHeader { header_bytes, uncompressed_bytes: uncompressed?, compressed_bytes: compressed? });
        }
        field = match i64::from(byte >> 4) {
            0 => reader.signed()?,
            delta => field.checked_add(delta)?,
        };
        match (field, byte & 15) {
            (2, 5) => uncompressed = Some(u64::try_from(reader.signed()?).ok()?),
            (3, 5) => compressed = Some(usize::try_from(reader.signed()?).ok()?),
            (_, kind) => reader.skip(kind, DEPTH_MAX)?,
        }
    }
    None
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn advance(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Skips a value of this type of the compact protocol.
    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1 | 2 => Some(()),
            3 => self.advance(1),
            4..=6 => self.unsigned().map(|_| ()),
            7 => self.advance(8),
            8 => self.unsigned().and_then(|bytes| self.advance(bytes)),
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.unsigned()? } else { u64::from(byte >> 4) };
                let element = if matches!(byte & 15, 1 | 2) { 3 } else { byte & 15 };
                (count <= FIELDS_MAX).then_some(())?;
                (0..count).try_for_each(|_| self.skip(element, depth))
            }
            12 => {
                for _ in 0..FIELDS_MAX {
                    let byte = self.byte()?;
                    if byte == 0 {
                        return Some(());
                    }
                    if byte >> 4 == 0 {
                        self.signed()?;
                    }
                    self.skip(byte & 15, depth)?;
                }
                None
            }
            _ => None,
        }
    }
}
