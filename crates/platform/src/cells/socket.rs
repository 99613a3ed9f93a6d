//! Frames over a cell's socket, from the service's side: never blocking, one `sendmsg` for a small frame, nothing believed that comes back.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use bytes::{Buf, Bytes};
use jail::memory::SealedFile;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use wire::{BLOCK_BYTES_MAX, Decoder, Frame, FromCell, HEADER_BYTES, ToCell, WireError};

/// Bytes taken from a socket at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes moved in one go; then others have their turn on the thread.
const UNBROKEN_BYTES_MAX: usize = 256 << 10;

/// Why a conversation is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The cell closed it: it exited or was killed.
    Closed,
    /// The cell broke the protocol; the text is ours.
    Protocol(String),
    /// A deadline passed.
    Deadline,
    /// The service ended it.
    Stopped,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        // A reset or a broken pipe says no more than the end of the stream: the process's exit tells why.
        Self::Closed
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// A tokio stream over the descriptor that the jail hands out.
pub(crate) fn stream(socket: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// How a model gets into a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// As a memory file with its frame.
    File,
    /// As bytes before it: a kernel of its own is between.
    Pieces,
}

/// Frames on their way out.
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
    attach: Attach,
}

struct Outgoing {
    head: Bytes,
    body: Bytes,
    attach: Option<SealedFile>,
}

impl Outbox {
    pub(crate) fn new(attach: Attach) -> Self {
        Self { waiting: VecDeque::new(), attach }
    }

    /// Adds a frame behind those that wait.
    pub(crate) fn push(&mut self, message: &ToCell, id: u64, attach: Option<SealedFile>) -> Result<(), WireError> {
        // First of all: a frame that is refused must leave nothing behind.
        let frame = message.frame(id)?;
        let attach = match attach {
            Some(file) if self.attach == Attach::Pieces => {
                self.push_pieces(&file, id)?;
                None
            }
            attach => attach,
        };
        self.push_frame(frame, attach);
        Ok(())
    }

    /// The model's bytes as frames, each of which refers to the one mapping.
    fn push_pieces(&mut self, file: &SealedFile, id: u64) -> Result<(), WireError> {
        let mapped = file.map().map_err(|_| WireError::Malformed("memory file"))?;
        let mut rest = Bytes::from_owner(mapped);
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(BLOCK_BYTES_MAX as usize));
            self.push_frame(ToCell::Piece(piece).frame(id)?, None);
        }
        Ok(())
    }

    fn push_frame(&mut self, frame: Frame, attach: Option<SealedFile>) {
        let mut head = Vec::with_capacity(HEADER_BYTES + frame.meta.len());
        head.extend_from_slice(&frame.header());
        head.extend_from_slice(&frame.meta);
        self.waiting.push_back(Outgoing { head: head.into(), body: frame.body, attach });
    }

    /// Adds what waits in another one.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.waiting.append(&mut other.waiting);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what the socket takes now, within bounds; `true` when nothing is left.
    pub(crate) fn flush(&mut self, stream: &UnixStream) -> io::Result<bool> {
        let mut moved = 0;
        while let Some(next) = self.waiting.front_mut() {
            if moved >= UNBROKEN_BYTES_MAX {
                return Ok(false);
            }
            match stream.try_io(Interest::WRITABLE, || next.send(stream)) {
                Ok(sent) => {
                    next.advance(sent);
                    moved += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if next.head.is_empty() && next.body.is_empty() {
                self.waiting.pop_front();
            }
        }
        Ok(true)
    }

    /// Sends everything, waiting for room.
    pub(crate) async fn drain(&mut self, stream: &UnixStream) -> io::Result<()> {
        while !self.flush(stream)? {
            more(stream).await?;
        }
        Ok(())
    }
}

/// Waits for room, and lets others have their turn.
pub(crate) async fn more(stream: &UnixStream) -> io::Result<()> {
    stream.writable().await?;
    tokio::task::yield_now().await;
    Ok(())
}

impl Outgoing {
    fn send(&self, stream: &UnixStream) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let file = self.attach.as_ref().map(|file| [file.as_fd()]);
        if let Some(file) = &file {
            control.push(SendAncillaryMessage::ScmRights(file));
        }
        let body = self.body.get(..UNBROKEN_BYTES_MAX).unwrap_or(&self.body);
        let parts = [IoSlice::new(&self.head), IoSlice::new(body)];
        Ok(sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    /// The descriptor left with the first byte.
    fn advance(&mut self, sent: usize) {
        if sent > 0 {
            self.attach = None;
        }
        let head = sent.min(self.head.len());
        self.head.advance(head);
        self.body.advance((sent - head).min(self.body.len()));
    }
}

/// Frames on their way in. A frame longer than the bound is refused by its header, before anything is allocated for it.
///
/// Plain reads: descriptors that a cell might attach are closed by the kernel.
pub(crate) struct Inbox {
    decoder: Decoder,
    frame_bytes_max: usize,
    /// Bytes since others had their turn.
    unbroken: usize,
}

impl Inbox {
    pub(crate) fn new(frame_bytes_max: usize) -> Self {
        Self { decoder: Decoder::new(), frame_bytes_max, unbroken: 0 }
    }

    /// The next frame.
    pub(crate) async fn next(&mut self, stream: &UnixStream) -> Result<Frame, End> {
        loop {
            // The length is judged before the frame is taken, so that the bound holds however the bytes arrived.
            let missing = self.decoder.missing()?;
            let held = self.decoder.buffer_mut().len();
            if held.saturating_add(missing) > self.frame_bytes_max.saturating_add(READ_BYTES) {
                return Err(End::Protocol(format!("a frame of more than {} bytes", self.frame_bytes_max)));
            }
            if let Some(frame) = self.decoder.next()? {
                if frame.meta.len() + frame.body.len() > self.frame_bytes_max {
                    return Err(End::Protocol(format!("a frame of more than {} bytes", self.frame_bytes_max)));
                }
                return Ok(frame);
            }
            self.decoder.buffer_mut().reserve(missing.clamp(HEADER_BYTES, READ_BYTES));
            match stream.try_read_buf(self.decoder.buffer_mut()) {
                Ok(0) => return Err(End::Closed),
                Ok(read) => {
                    self.unbroken += read;
                    if self.unbroken >= UNBROKEN_BYTES_MAX {
                        self.unbroken = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unbroken = 0;
                    stream.readable().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Kinds that a conversation allows, so that nothing else is even parsed.
pub(crate) struct Allowed(Vec<u8>);

impl Allowed {
    /// The kinds of these messages.
    pub(crate) fn of(examples: &[FromCell]) -> Self {
        Self(examples.iter().filter_map(|example| example.frame(0).ok()).map(|frame| frame.kind).collect())
    }

    /// The message in the frame, if it is of an allowed kind.
    pub(crate) fn parse(&self, frame: &Frame) -> Result<FromCell, End> {
        if !self.0.contains(&frame.kind) {
            return Err(End::Protocol(format!("a frame of kind {} that nobody asked for", frame.kind)));
        }
        Ok(FromCell::parse(frame)?)
    }
}
