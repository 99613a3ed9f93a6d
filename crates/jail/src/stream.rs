//! Bytes and at most one descriptor over a connected socket, by `sendmsg` and `recvmsg` alone: the two calls a cell still has.
//!
//! Works on blocking sockets (the cell's end) and on non-blocking ones (the service's end: `WouldBlock`). Descriptors beyond the first are
//! closed on arrival, so that a hostile peer cannot fill the receiver's table.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};

/// Descriptors the kernel may hand over in one message; all but the first are closed at once.
const DESCRIPTORS_PER_MESSAGE_MAX: usize = 2;

/// Sends all of `bytes`; `attach` travels with the first of them, so `bytes` must not be empty when it is given.
///
/// On a non-blocking socket `WouldBlock` is only returned when nothing was sent; after the first byte the call waits for room.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], attach: Option<BorrowedFd<'_>>) -> io::Result<()> {
    if bytes.is_empty() && attach.is_some() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor needs at least one byte to travel with"));
    }
    let mut rest = bytes;
    let mut attach = attach;
    while !rest.is_empty() {
        match send_some(fd, rest, attach.as_slice()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => {
                attach = None;
                rest = rest.get(sent..).unwrap_or_default();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) if rest.len() < bytes.len() => wait_writable(fd)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives up to `buf.len()` bytes, zero at the end of the stream, and the descriptor that came with them, close-on-exec.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    recv_one(fd, buf, RecvFlags::empty())
}

/// As [`recv`], without waiting on a blocking socket either: `None` when nothing has arrived.
pub fn recv_waiting(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    match recv_one(fd, buf, RecvFlags::DONTWAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        received => received.map(Some),
    }
}

fn recv_one(fd: BorrowedFd<'_>, buf: &mut [u8], flags: RecvFlags) -> io::Result<(usize, Option<OwnedFd>)> {
    let (bytes, mut descriptors, _) = recv_some::<{ space(DESCRIPTORS_PER_MESSAGE_MAX) }>(fd, buf, flags)?;
    descriptors.truncate(1);
    Ok((bytes, descriptors.pop()))
}

/// One `sendmsg` with any number of descriptors.
pub(crate) fn send_some(fd: BorrowedFd<'_>, bytes: &[u8], attach: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); space(crate::zygote::DESCRIPTORS_MAX)];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !attach.is_empty() && !control.push(SendAncillaryMessage::ScmRights(attach)) {
        return Err(rustix::io::Errno::TOOBIG);
    }
    sendmsg(fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// One `recvmsg` that keeps every descriptor there was room for; the flag says whether the message was longer than `buf`.
pub(crate) fn recv_some<const SPACE: usize>(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    loop {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(fd, &mut [IoSliceMut::new(buf)], &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(got) => {
                let rights = |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None };
                let descriptors = control.drain().filter_map(rights).flatten().collect();
                return Ok((got.bytes, descriptors, got.flags.contains(ReturnFlags::TRUNC)));
            }
        }
    }
}

/// Room for a control message with `descriptors` descriptors.
pub(crate) const fn space(descriptors: usize) -> usize {
    rustix::cmsg_space!(ScmRights(descriptors))
}

fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use super::*;

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn bytes_and_one_descriptor_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"inside").unwrap();
        send(a.as_fd(), b"hello", Some(file.as_fd())).unwrap();
        let mut buf = [0; 64];
        let (got, fd) = recv(b.as_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..got], b"hello");
        let mut text = String::new();
        let mut arrived = std::fs::File::from(fd.unwrap());
        std::io::Seek::rewind(&mut arrived).unwrap();
        arrived.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
    }

    #[test]
    fn what_has_not_arrived_is_not_waited_for() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut buf = [0; 8];
        assert!(recv_waiting(b.as_fd(), &mut buf).unwrap().is_none());
        send(a.as_fd(), b"now", None).unwrap();
        assert!(matches!(recv_waiting(b.as_fd(), &mut buf), Ok(Some((3, None)))));
        drop(a);
        assert!(matches!(recv_waiting(b.as_fd(), &mut buf), Ok(Some((0, None)))), "an end is no silence");
    }

    #[test]
    fn a_long_message_is_sent_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        let long = vec![7_u8; 3 << 20];
        let sent = long.clone();
        let sender = std::thread::spawn(move || send(a.as_fd(), &sent, None));
        let mut all = Vec::new();
        let mut buf = vec![0; 64 << 10];
        loop {
            let (got, _) = recv(b.as_fd(), &mut buf).unwrap();
            if got == 0 {
                break;
            }
            all.extend_from_slice(&buf[..got]);
        }
        sender.join().unwrap().unwrap();
        assert_eq!(all, long);
    }

    #[test]
    fn a_non_blocking_socket_says_so() {
        let (a, b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        assert_eq!(recv(b.as_fd(), &mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut [0; 8]).unwrap().0, 0);
    }

    /// Nextest runs each test in a process of its own, so the count is this test's alone.
    #[test]
    fn surplus_descriptors_are_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let flood = [file.as_fd(); 8];
        let before = open_descriptors();
        for _ in 0..100 {
            send_some(a.as_fd(), b"x", &flood).unwrap();
            let (got, fd) = recv(b.as_fd(), &mut [0; 8]).unwrap();
            assert_eq!((got, fd.is_some()), (1, true));
        }
        assert_eq!(open_descriptors(), before);
    }
}
