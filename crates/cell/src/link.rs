//! The cell's end of its one socket: requests in, answers out, nothing else.
//!
//! Blocking and in order. The service may send requests ahead; they wait in the socket, and while a job pulls its data set
//! ([`Pull`]) those that are met on the way wait in a queue of [`QUEUED_MAX`]. A memory file travels with the first bytes of its
//! frame and is matched to the frame by order, because the kernel may join that frame with earlier ones in one receive.
//!
//! A small answer leaves in one `sendmsg`; a large body is not copied behind its header but follows it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use jail::stream;
use wire::{BLOCK_BYTES_MAX, Decoder, Fail, FailCode, FromCell, HEADER_BYTES, Progress, ToCell, WireError};

use crate::data::Source;
use crate::train::Events;

/// Most requests that wait while a job runs.
pub const QUEUED_MAX: usize = 64;
/// Most memory files that came before their frames.
const DESCRIPTORS_MAX: usize = 4;
/// Bytes taken from the socket at once.
const RECEIVE_BYTES: usize = 64 << 10;
/// Largest body that is copied behind its header to leave in one call, in bytes.
const COALESCE_BYTES_MAX: usize = 64 << 10;

/// Why the conversation is over. The service closes the socket or kills the cell; there is nobody else to tell.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// The peer does not speak the protocol.
    #[error("protocol: {0}")]
    Wire(#[from] WireError),
    /// Frames and memory files do not match.
    #[error("protocol: {0}")]
    Descriptors(&'static str),
}

/// One request with what was attached.
#[derive(Debug)]
pub struct Request {
    /// Ties the answer to it.
    pub id: u64,
    /// What is asked.
    pub message: ToCell,
    /// The memory file, for the messages that carry one.
    pub file: Option<OwnedFd>,
}

/// The socket with its buffers.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    decoder: Decoder,
    received: Vec<u8>,
    files: VecDeque<OwnedFd>,
    queue: VecDeque<Request>,
    out: Vec<u8>,
}

impl Link {
    /// Over a connected, blocking stream socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::new(),
            received: vec![0; RECEIVE_BYTES],
            files: VecDeque::new(),
            queue: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// The next request, or `None` when the service has closed the socket between two frames.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn next(&mut self) -> Result<Option<Request>, LinkError> {
        match self.queue.pop_front() {
            Some(request) => Ok(Some(request)),
            None => self.receive(),
        }
    }

    /// Answers request `id`. An answer that does not fit into a frame becomes a failure that says so.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn answer(&mut self, id: u64, message: &FromCell) -> Result<(), LinkError> {
        let frame = match message.frame(id) {
            Ok(frame) => frame,
            Err(error) => FromCell::Fail(Fail::new(FailCode::TooLarge, format!("the answer does not fit: {error}"))).frame(id)?,
        };
        self.out.clear();
        self.out.extend_from_slice(&frame.header());
        self.out.extend_from_slice(&frame.meta);
        let coalesce = frame.body.len() <= COALESCE_BYTES_MAX;
        if coalesce {
            self.out.extend_from_slice(&frame.body);
        }
        stream::send(self.socket.as_fd(), &self.out, None)?;
        if !coalesce {
            stream::send(self.socket.as_fd(), &frame.body, None)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<Request>, LinkError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                let message = ToCell::parse(&frame)?;
                let file = if message.carries_descriptor() {
                    Some(self.files.pop_front().ok_or(LinkError::Descriptors("a model without its memory file"))?)
                } else {
                    None
                };
                return Ok(Some(Request { id: frame.id, message, file }));
            }
            let (bytes, file) = stream::recv(self.socket.as_fd(), &mut self.received)?;
            if bytes == 0 {
                // Whether a frame was cut short makes no difference: there is nobody left to answer.
                return Ok(None);
            }
            self.decoder.feed(self.received.get(..bytes).unwrap_or_default());
            if let Some(file) = file {
                if self.files.len() == DESCRIPTORS_MAX {
                    return Err(LinkError::Descriptors("memory files without their models"));
                }
                self.files.push_back(file);
            }
        }
    }

    /// Asks for a piece of the source of job `id` and waits for it. Other requests are queued, beyond the bound they are refused.
    fn pull(&mut self, id: u64, offset: u64, bytes: u32) -> Result<Bytes, Fail> {
        let broken = |error: LinkError| Fail::new(FailCode::Internal, format!("the data set cannot be read: {error}"));
        self.answer(id, &FromCell::Read { offset, bytes }).map_err(broken)?;
        loop {
            let Some(request) = self.receive().map_err(broken)? else {
                return Err(Fail::new(FailCode::Internal, "the data set cannot be read: the service is gone"));
            };
            match request.message {
                ToCell::Block(block) if request.id == id => return Ok(block),
                _ if self.queue.len() < QUEUED_MAX => self.queue.push_back(request),
                _ => {
                    let fail = Fail::new(FailCode::TooLarge, format!("the cell runs a job and {QUEUED_MAX} requests wait already"));
                    self.answer(request.id, &FromCell::Fail(fail)).map_err(broken)?;
                }
            }
        }
    }
}

/// A job's data set, pulled through the socket, and its way to report.
#[derive(Debug)]
pub struct Pull<'l> {
    link: &'l RefCell<Link>,
    id: u64,
    bytes: u64,
}

impl<'l> Pull<'l> {
    /// For job `id`, whose source is `bytes` bytes long.
    pub fn new(link: &'l RefCell<Link>, id: u64, bytes: u64) -> Self {
        Self { link, id, bytes }
    }
}

impl Source for Pull<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, bytes: u32) -> Result<Bytes, Fail> {
        let left = self.bytes.saturating_sub(offset);
        let wanted = bytes.min(BLOCK_BYTES_MAX).min(u32::try_from(left).unwrap_or(u32::MAX));
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let block = self.link.borrow_mut().pull(self.id, offset, wanted)?;
        if block.len() == wanted as usize {
            Ok(block)
        } else {
            Err(Fail::new(FailCode::Internal, "the service sent a block of another length than asked"))
        }
    }
}

impl Events for Pull<'_> {
    fn progress(&mut self, stage: &str, done: u64, total: u64) {
        // A broken socket shows at the next read or at the end.
        let _ = self.link.borrow_mut().answer(self.id, &FromCell::Progress(Progress { stage: stage.to_owned(), done, total }));
    }

    fn log(&mut self, line: &str) {
        let _ = self.link.borrow_mut().answer(self.id, &FromCell::Log(line.to_owned()));
    }
}

const _: () = assert!(RECEIVE_BYTES >= HEADER_BYTES, "a header fits");
