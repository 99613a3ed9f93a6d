//! The cell's end of its one socket: requests in, answers out, nothing else.
//!
//! Blocking, and answers leave in the order of their requests. The service may send requests ahead; they wait in the socket, and in a queue
//! of [`QUEUED_MAX`] where somebody looks for them: while a job pulls its data set ([`Pull`]), and when requests for one model are taken together
//! ([`Link::behind`]). Those may overtake others; their answers are held until it is their turn. A memory file travels with the first bytes of its
//! frame and is matched to the frame by order, because the kernel may join that frame with earlier ones in one receive. Where the socket passes none
//! (under gVisor's kernel), the model's bytes come in pieces before its frame.
//!
//! Small answers that are ready together leave in one `sendmsg`; a large body is not copied behind its header but follows it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use jail::stream;
use wire::{BLOCK_BYTES_MAX, Decoder, Fail, FailCode, FromCell, HEADER_BYTES, Progress, ToCell, WireError};

use crate::data::Source;
use crate::serve::MODEL_BYTES_MAX;
use crate::train::Events;

/// Most requests that wait here.
pub const QUEUED_MAX: usize = 64;
/// Bytes of waiting requests beyond which no more are taken out of the socket, and of joined ones beyond which no more are joined.
const QUEUED_BYTES_MAX: usize = 4 << 20;
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

/// What came with a request: a model.
#[derive(Debug)]
pub enum Attached {
    /// A sealed memory file.
    File(OwnedFd),
    /// Its bytes.
    Bytes(Vec<u8>),
}

/// One request with what was attached.
#[derive(Debug)]
pub struct Request {
    /// Ties the answer to it.
    pub id: u64,
    /// What is asked.
    pub message: ToCell,
    /// The model, for the messages that carry one.
    pub model: Option<Attached>,
}

/// The socket with its buffers.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    decoder: Decoder,
    received: Vec<u8>,
    files: VecDeque<OwnedFd>,
    /// The model that arrives in pieces, where no file can.
    pieces: Option<Vec<u8>>,
    queue: VecDeque<Request>,
    /// Answers to requests that others wait in front of.
    held: BTreeMap<u64, FromCell>,
    out: Vec<u8>,
    idle: bool,
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
            pieces: None,
            queue: VecDeque::new(),
            held: BTreeMap::new(),
            out: Vec::new(),
            idle: true,
        }
    }

    /// As [`Link::new`], over a socket that passes no descriptors.
    #[must_use]
    pub fn in_pieces(socket: OwnedFd) -> Self {
        Self { pieces: Some(Vec::new()), ..Self::new(socket) }
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

    /// Notes whether requests wait while others are about to be answered: only those surely come from somebody else than who is answered.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn note(&mut self) -> Result<(), LinkError> {
        self.fill()?;
        self.idle = self.queue.is_empty();
        Ok(())
    }

    /// Whether nothing waited when [`Link::note`] was last asked.
    #[must_use]
    pub fn was_idle(&self) -> bool {
        self.idle
    }

    /// Whether requests wait here.
    #[must_use]
    pub fn others_wait(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes predictions of this slot that wait already, until there are `most`. They overtake predictions of other slots and nothing else.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn behind(&mut self, slot: u32, most: usize, taken: &mut Vec<Request>) -> Result<(), LinkError> {
        self.fill()?;
        let (mut at, mut bytes) = (0, taken.iter().map(|request| request.message.body_bytes()).sum::<usize>());
        while taken.len() < most && bytes < QUEUED_BYTES_MAX {
            match self.queue.get(at).map(|request| request.message.asks()) {
                Some(Some(asked)) if asked == slot => {
                    let request = self.queue.remove(at);
                    bytes = bytes.saturating_add(request.as_ref().map_or(0, |request| request.message.body_bytes()));
                    taken.extend(request);
                }
                Some(Some(_)) => at += 1,
                Some(None) | None => break,
            }
        }
        Ok(())
    }

    /// Sends these answers as soon as no request waits in front of theirs, with those that were held for that.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn settle(&mut self, answers: impl IntoIterator<Item = (u64, FromCell)>) -> Result<(), LinkError> {
        self.held.extend(answers);
        while let Some(first) = self.held.first_entry() {
            if self.queue.front().is_some_and(|waits| waits.id < *first.key()) {
                break;
            }
            let (id, message) = first.remove_entry();
            self.push(id, &message)?;
        }
        self.flush()
    }

    /// Sends an answer, or what comes before it, at once. An answer that does not fit into a frame becomes a failure that says so.
    ///
    /// # Errors
    /// [`LinkError`]: the conversation is over.
    pub fn answer(&mut self, id: u64, message: &FromCell) -> Result<(), LinkError> {
        self.push(id, message)?;
        self.flush()
    }

    fn push(&mut self, id: u64, message: &FromCell) -> Result<(), LinkError> {
        let frame = match message.frame(id) {
            Ok(frame) => frame,
            Err(error) => FromCell::Fail(Fail::new(FailCode::TooLarge, format!("the answer does not fit: {error}"))).frame(id)?,
        };
        self.out.extend_from_slice(&frame.header());
        self.out.extend_from_slice(&frame.meta);
        if frame.body.len() <= COALESCE_BYTES_MAX {
            self.out.extend_from_slice(&frame.body);
        } else {
            self.flush()?;
            stream::send(self.socket.as_fd(), &frame.body, None)?;
        }
        if self.out.len() > COALESCE_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        if !self.out.is_empty() {
            stream::send(self.socket.as_fd(), &self.out, None)?;
            self.out.clear();
        }
        Ok(())
    }

    /// The next request of which all has arrived.
    fn arrived(&mut self) -> Result<Option<Request>, LinkError> {
        loop {
            let Some(frame) = self.decoder.next()? else { return Ok(None) };
            let message = ToCell::parse(&frame)?;
            let attached = match (message, &mut self.pieces) {
                (ToCell::Piece(piece), Some(pieces)) if pieces.len() as u64 + piece.len() as u64 <= MODEL_BYTES_MAX => {
                    pieces.extend_from_slice(&piece);
                    continue;
                }
                (ToCell::Piece(_), _) => return Err(LinkError::Descriptors("a piece of a model that does not belong here")),
                (message, None) if message.carries_descriptor() => (message, self.files.pop_front().map(Attached::File)),
                (message, Some(pieces)) if message.carries_descriptor() => (message, Some(Attached::Bytes(std::mem::take(pieces)))),
                (message, _) => return Ok(Some(Request { id: frame.id, message, model: None })),
            };
            let (message, model) = attached;
            let model = Some(model.ok_or(LinkError::Descriptors("a model without its memory file"))?);
            return Ok(Some(Request { id: frame.id, message, model }));
        }
    }

    fn feed(&mut self, bytes: usize, file: Option<OwnedFd>) -> Result<(), LinkError> {
        self.decoder.feed(self.received.get(..bytes).unwrap_or_default());
        if let Some(file) = file {
            if self.files.len() == DESCRIPTORS_MAX {
                return Err(LinkError::Descriptors("memory files without their models"));
            }
            self.files.push_back(file);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<Request>, LinkError> {
        loop {
            if let Some(request) = self.arrived()? {
                return Ok(Some(request));
            }
            let (bytes, file) = stream::recv(self.socket.as_fd(), &mut self.received)?;
            if bytes == 0 {
                // Whether a frame was cut short makes no difference: there is nobody left to answer.
                return Ok(None);
            }
            self.feed(bytes, file)?;
        }
    }

    /// Queues what has arrived, within the bounds, and waits for nothing.
    fn fill(&mut self) -> Result<(), LinkError> {
        let mut bytes: usize = self.queue.iter().map(|request| request.message.body_bytes()).sum();
        loop {
            while self.queue.len() < QUEUED_MAX && bytes < QUEUED_BYTES_MAX {
                let Some(request) = self.arrived()? else { break };
                bytes = bytes.saturating_add(request.message.body_bytes());
                self.queue.push_back(request);
            }
            if self.queue.len() >= QUEUED_MAX || bytes >= QUEUED_BYTES_MAX {
                return Ok(());
            }
            match stream::recv_waiting(self.socket.as_fd(), &mut self.received)? {
                // An end is met again by whoever waits.
                None | Some((0, _)) => return Ok(()),
                Some((bytes, file)) => self.feed(bytes, file)?,
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
