//! The conversation with a cell that works on one job: one request, then events until the result.
//!
//! The cell pulls its data set and pushes what it makes; the service takes the next frame only when it has dealt with the last one, so a cell
//! that floods waits at its own socket. All that it may ask for, and send, is counted against named bounds.

use std::time::Duration;

use bytes::Bytes;
use jail::memory::SealedFile;
use tenancy::BlobReader;
use tokio::net::UnixStream;
use tokio::time::Instant;
use wire::{BLOCK_BYTES_MAX, Fail, FailCode, FromCell, ModelInfo, Predicted, Progress, Rows, ToCell, Trained};

use super::socket::{Allowed, Attach, End, Inbox, Outbox};
use crate::error::Error;

/// Times a job may read its whole source; Parquet and a second pass need some, a cell that keeps the service busy does not get more.
const READ_PASSES_MAX: u64 = 64;
/// Reads a job may make beyond what its source needs in whole blocks.
const READS_EXTRA: u64 = 100_000;
/// Log lines and progress reports of one job.
const REPORTS_MAX: u64 = 200_000;
/// Pieces of output smaller than a block that one job may send.
const OUTPUTS_MAX: u64 = 1_000_000;
/// Largest frame of a job beside a block, in bytes: a preview or an inspection as JSON.
const RESULT_BYTES_MAX: usize = 8 << 20;
/// The id of a job's only request.
const ID: u64 = 1;

/// Where a job's cell reads from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A sealed object of the job's tenant.
    Blob(BlobReader),
    /// Bytes in memory.
    #[cfg(test)]
    Memory(Bytes),
}

impl Source {
    /// A sealed object.
    pub(crate) fn blob(reader: BlobReader) -> Self {
        Self::Blob(reader)
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Blob(reader) => reader.bytes(),
            #[cfg(test)]
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// At most `len` bytes from `offset`; shorter only at the end.
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> tenancy::Result<Bytes> {
        match self {
            Self::Blob(reader) => reader.read_at(offset, len).await,
            #[cfg(test)]
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap().min(bytes.len());
                Ok(bytes.slice(from..(from + len).min(bytes.len())))
            }
        }
    }
}

/// What a job says before its result, and the result.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The next piece of the produced file.
    Output(Bytes),
    /// How far it is.
    Progress(Progress),
    /// A log line.
    Log(String),
    /// The result; nothing comes after it.
    Done(FromCell),
}

/// Why a job has no result.
#[derive(Debug)]
pub(crate) enum JobError {
    /// The conversation is over.
    End(End),
    /// The tenant's input or the cell says no.
    Fail(Fail),
    /// The source cannot be read.
    Platform(Error),
}

impl From<End> for JobError {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<wire::WireError> for JobError {
    fn from(error: wire::WireError) -> Self {
        Self::End(error.into())
    }
}

/// One job's conversation.
pub(crate) struct JobLink {
    stream: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
    allowed: Allowed,
    source: Option<Source>,
    deadline: Instant,
    left: Budget,
}

/// What the cell may still do.
struct Budget {
    reads: u64,
    read_bytes: u64,
    reports: u64,
    outputs: u64,
    output_bytes: u64,
}

impl JobLink {
    /// Sends the request. `output_bytes_max` bounds what the job may produce.
    pub(crate) fn begin(
        (stream, attach): (UnixStream, Attach),
        request: &ToCell,
        model: Option<SealedFile>,
        source: Option<Source>,
        time: Duration,
        output_bytes_max: u64,
    ) -> Result<Self, JobError> {
        let source_bytes = source.as_ref().map_or(0, Source::bytes);
        let mut outbox = Outbox::new(attach);
        outbox.push(request, ID, model).map_err(|error| JobError::Fail(Fail::new(FailCode::TooLarge, error.to_string())))?;
        Ok(Self {
            stream,
            inbox: Inbox::new(RESULT_BYTES_MAX),
            outbox,
            allowed: allowed(request, source.is_some()),
            source,
            deadline: Instant::now() + time,
            left: Budget {
                reads: source_bytes / u64::from(BLOCK_BYTES_MAX) * READ_PASSES_MAX + READS_EXTRA,
                read_bytes: source_bytes.saturating_mul(READ_PASSES_MAX).saturating_add(READS_EXTRA),
                reports: REPORTS_MAX,
                outputs: OUTPUTS_MAX,
                output_bytes: output_bytes_max,
            },
        })
    }

    /// The next event. Reads are answered inside.
    pub(crate) async fn next(&mut self) -> Result<Event, JobError> {
        let deadline = self.deadline;
        tokio::time::timeout_at(deadline, self.step()).await.unwrap_or(Err(JobError::End(End::Deadline)))
    }

    async fn step(&mut self) -> Result<Event, JobError> {
        loop {
            self.outbox.drain(&self.stream).await.map_err(End::from)?;
            let frame = self.inbox.next(&self.stream).await?;
            if frame.id != ID {
                return Err(JobError::End(End::Protocol(format!("an answer to request {}, of which there is none", frame.id))));
            }
            match self.allowed.parse(&frame)? {
                FromCell::Read { offset, bytes } => self.read(offset, bytes).await?,
                FromCell::Output(piece) => {
                    spend(&mut self.left.outputs, 1, "pieces of output")?;
                    spend(&mut self.left.output_bytes, piece.len() as u64, "bytes of output")?;
                    return Ok(Event::Output(piece));
                }
                FromCell::Progress(progress) => {
                    spend(&mut self.left.reports, 1, "reports")?;
                    return Ok(Event::Progress(Progress { stage: line(&progress.stage, STAGE_BYTES_MAX), ..progress }));
                }
                FromCell::Log(text) => {
                    spend(&mut self.left.reports, 1, "reports")?;
                    return Ok(Event::Log(line(&text, wire::LOG_BYTES_MAX)));
                }
                FromCell::Fail(fail) => return Err(JobError::Fail(clean(fail))),
                result => return Ok(Event::Done(result)),
            }
        }
    }

    async fn read(&mut self, offset: u64, bytes: u32) -> Result<(), JobError> {
        let source = self.source.as_ref().ok_or_else(|| End::Protocol("a read without a source".to_owned()))?;
        if offset > source.bytes() {
            return Err(JobError::End(End::Protocol(format!("a read at {offset} of {} bytes", source.bytes()))));
        }
        spend(&mut self.left.reads, 1, "reads")?;
        spend(&mut self.left.read_bytes, u64::from(bytes), "bytes read")?;
        let block = source.read_at(offset, bytes as usize).await.map_err(|error| JobError::Platform(error.into()))?;
        self.outbox.push(&ToCell::Block(block), ID, None)?;
        Ok(())
    }
}

/// Longest stage name kept, in bytes.
const STAGE_BYTES_MAX: usize = 64;
/// Longest failure message kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 2000;

fn spend(left: &mut u64, n: u64, what: &str) -> Result<(), End> {
    *left = left.checked_sub(n).ok_or_else(|| End::Protocol(format!("more {what} than a job may have")))?;
    Ok(())
}

/// A cell's text as one line without control characters, cut to `bytes_max`.
pub(crate) fn line(text: &str, bytes_max: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(bytes_max));
    line
}

/// A cell's failure, with texts that are safe to show.
pub(crate) fn clean(fail: Fail) -> Fail {
    Fail { message: line(&fail.message, MESSAGE_BYTES_MAX), column: fail.column.map(|column| line(&column, MESSAGE_BYTES_MAX)), ..fail }
}

/// What the answer to this request may consist of.
fn allowed(request: &ToCell, reads: bool) -> Allowed {
    let mut kinds = vec![FromCell::Fail(Fail::new(FailCode::Internal, ""))];
    if reads {
        kinds.push(FromCell::Read { offset: 0, bytes: 0 });
    }
    match request {
        ToCell::Admit(_) => {
            let (inputs, outputs, opsets, producer) = (vec![], vec![], vec![], String::new());
            kinds.push(FromCell::Model(ModelInfo { inputs, outputs, opsets, nodes: 0, producer, resident_bytes: 0, smoke_run: false }));
        }
        ToCell::Inspect(_) => kinds.push(FromCell::Inspected(wire::Inspection { format: wire::Format::Csv, rows: 0, columns: vec![] })),
        ToCell::Preview(_) => kinds.push(FromCell::Previewed(Rows { columns: vec![], rows: vec![] })),
        ToCell::Train(_) => kinds.extend([
            FromCell::Output(Bytes::new()),
            FromCell::Progress(Progress { stage: String::new(), done: 0, total: 0 }),
            FromCell::Log(String::new()),
            FromCell::Trained(Trained {
                parameters: std::collections::BTreeMap::new(),
                metrics: vec![],
                features: vec![],
                classes: vec![],
                rows_train: 0,
                rows_test: 0,
                fit_ms: 0,
                model_bytes: 0,
            }),
        ]),
        ToCell::Predict(_) => kinds.extend([
            FromCell::Output(Bytes::new()),
            FromCell::Progress(Progress { stage: String::new(), done: 0, total: 0 }),
            FromCell::Predicted(Predicted { rows: 0, output_bytes: 0 }),
        ]),
        _ => {}
    }
    Allowed::of(&kinds)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Peer;

    use super::*;
    use wire::{Decoder, Format, Inspect, Inspection};

    fn begin(source: &'static [u8], time: Duration) -> (JobLink, Peer) {
        let (ours, theirs) = Peer::pair().unwrap();
        let stream = super::super::socket::stream(ours.into()).unwrap();
        let request = ToCell::Inspect(Inspect { source_bytes: source.len() as u64, format: None, rows_max: 10, columns_max: 10 });
        (
            JobLink::begin((stream, Attach::File), &request, None, Some(Source::Memory(Bytes::from_static(source))), time, 10).unwrap(),
            theirs,
        )
    }

    fn begin_training(output_bytes_max: u64) -> (JobLink, Peer) {
        let (ours, theirs) = Peer::pair().unwrap();
        let stream = super::super::socket::stream(ours.into()).unwrap();
        let train = wire::Train {
            source_bytes: 3,
            format: Format::Csv,
            target: "y".into(),
            exclude: vec![],
            task: wire::Task::Regression,
            algorithm: wire::Algorithm::Linear,
            parameters: std::collections::BTreeMap::new(),
            split: wire::Split { test_share: 0.5, seed: 0 },
        };
        let source = Some(Source::Memory(Bytes::from_static(b"abc")));
        let time = Duration::from_secs(10);
        (JobLink::begin((stream, Attach::File), &ToCell::Train(train), None, source, time, output_bytes_max).unwrap(), theirs)
    }

    fn frames(messages: &[FromCell]) -> Vec<u8> {
        messages.iter().flat_map(|message| message.frame(ID).unwrap().encode()).collect()
    }

    fn read(offset: u64, bytes: u32) -> FromCell {
        FromCell::Read { offset, bytes }
    }

    fn inspected() -> FromCell {
        FromCell::Inspected(Inspection { format: Format::Csv, rows: 1, columns: vec![] })
    }

    #[tokio::test]
    async fn a_source_is_pulled_piece_by_piece() {
        let (mut job, mut peer) = begin(b"hello", Duration::from_secs(10));
        let cell = std::thread::spawn(move || {
            let (mut decoder, mut piece, mut got) = (Decoder::new(), [0u8; 1024], vec![]);
            peer.write_all(&frames(&[read(3, 100), read(5, 1), read(0, 2)])).unwrap();
            while got.len() < 4 {
                let bytes = peer.read(&mut piece).unwrap();
                decoder.feed(&piece[..bytes]);
                while let Some(frame) = decoder.next().unwrap() {
                    got.push(ToCell::parse(&frame).unwrap());
                }
            }
            peer.write_all(&frames(&[inspected()])).unwrap();
            got.split_off(1)
        });
        assert_eq!(job.next().await.unwrap(), Event::Done(inspected()));
        let block = |text: &'static str| ToCell::Block(Bytes::from_static(text.as_bytes()));
        assert_eq!(cell.join().unwrap(), [block("lo"), block(""), block("he")]);
    }

    #[tokio::test]
    async fn hostile_frames_end_the_job() {
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("garbage", vec![1; 100]),
            ("read out of range", frames(&[read(6, 1)])),
            ("read of too much", {
                let mut frame = read(0, 1).frame(ID).unwrap();
                frame.meta = [&0u64.to_le_bytes()[..], &(BLOCK_BYTES_MAX + 1).to_le_bytes()[..]].concat().into();
                frame.encode()
            }),
            ("another id", inspected().frame(2).unwrap().encode()),
            ("an output of an inspection", frames(&[FromCell::Output(Bytes::from_static(b"x"))])),
            ("a result of another job", frames(&[FromCell::Previewed(Rows { columns: vec![], rows: vec![] })])),
            ("a log of an inspection", frames(&[FromCell::Log("x".into())])),
        ];
        for (case, bytes) in cases {
            let (mut job, mut peer) = begin(b"hello", Duration::from_secs(10));
            peer.write_all(&bytes).unwrap();
            let error = job.next().await.unwrap_err();
            assert!(matches!(error, JobError::End(End::Protocol(_))), "{case}: {error:?}");
        }
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let (mut job, mut peer) = begin_training(5);
        peer.write_all(&frames(&[FromCell::Output(Bytes::from_static(b"abc")), FromCell::Output(Bytes::from_static(b"def"))])).unwrap();
        assert!(matches!(job.next().await, Ok(Event::Output(_))));
        assert!(matches!(job.next().await, Err(JobError::End(End::Protocol(_)))));
    }

    #[tokio::test]
    async fn a_flood_of_reports_ends_the_job() {
        let (mut job, mut peer) = begin_training(5);
        let flood = std::thread::spawn(move || while peer.write_all(&frames(&vec![FromCell::Log("\u{1b}[2Jx".into()); 1000])).is_ok() {});
        let mut lines = 0;
        let error = loop {
            match job.next().await {
                Ok(Event::Log(line)) => {
                    assert_eq!(line, " [2Jx");
                    lines += 1;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, JobError::End(End::Protocol(_))) && lines == REPORTS_MAX, "{lines}");
        drop(job);
        flood.join().unwrap();
    }

    #[tokio::test]
    async fn endless_reads_end_the_job() {
        let (mut job, mut peer) = begin(b"hello", Duration::from_secs(60));
        let mut taken = peer.try_clone().unwrap();
        let sink = std::thread::spawn(move || std::io::copy(&mut taken, &mut std::io::sink()));
        let flood = std::thread::spawn(move || while peer.write_all(&frames(&vec![read(0, 5); 1000])).is_ok() {});
        let error = job.next().await.unwrap_err();
        assert!(matches!(&error, JobError::End(End::Protocol(what)) if what.contains("read")), "{error:?}");
        drop(job);
        flood.join().unwrap();
        let _ = sink.join();
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline_and_death_at_once() {
        let (mut job, peer) = begin(b"hello", Duration::from_millis(50));
        assert!(matches!(job.next().await, Err(JobError::End(End::Deadline))));
        drop(job);
        drop(peer);
        let (mut job, peer) = begin(b"hello", Duration::from_secs(60));
        drop(peer);
        assert!(matches!(job.next().await, Err(JobError::End(End::Closed))));
    }
}
