//! The control protocol between launcher and zygote: one message a packet, little-endian numbers of fixed width, a first byte that says which.
//!
//! Both ends are ours, but the zygote's memory is what cells are forked from, so the launcher's decoder treats it like any peer: bounded, exact in
//! length, and an unknown byte ends the conversation.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{
    confine::{Failed, Rlimits, Step},
    probe::Attempt,
    stream,
};

/// No message is longer.
const MESSAGE_BYTES_MAX: usize = 64;
/// Descriptors that travel with a request: the cell's socket, the doors of its control groups, and where a probe's `runsc` says what it has to say.
pub(crate) const DESCRIPTORS_MAX: usize = 8;

/// What the launcher asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// First and once: which layers, and the first outer user id of the range (0: none).
    Setup {
        layers: u32,
        outer: u32,
    },
    Spawn(Spawn),
    Kill {
        cell: u64,
    },
}

/// The wish for one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spawn {
    pub(crate) cell: u64,
    pub(crate) layers: u32,
    /// Outer user id; 0 for none.
    pub(crate) outer: u32,
    pub(crate) limits: Rlimits,
    /// The second descriptor is a version 2 group to be born into.
    pub(crate) born_into: bool,
    pub(crate) attempt: Option<Attempt>,
}

/// What the zygote says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Ready to fork.
    Hello { threads: u32, landlock_abi: u32, own_uid: bool },
    /// Setup failed; the zygote exits.
    Unable(Failed),
    /// The cell is confined and runs.
    Spawned { cell: u64, pid: u32, data_bytes: u64 },
    /// There is no such cell; it was killed if it had begun.
    Failed { cell: u64, failed: Failed },
    /// The cell is dead and reaped.
    Exited { cell: u64, code: i32, signal: i32, cpu_micros: u64, memory_peak_bytes: u64 },
}

impl Request {
    /// Sends it with its descriptors.
    pub(crate) fn send(&self, control: BorrowedFd<'_>, attach: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut out = Out::default();
        match *self {
            Self::Setup { layers, outer } => out.u8(1).u32(layers).u32(outer),
            Self::Kill { cell } => out.u8(3).u64(cell),
            Self::Spawn(spawn) => {
                let attempt = spawn.attempt.map_or(0, |attempt| attempt as u8);
                let limits = spawn.limits;
                let out = out.u8(2).u64(spawn.cell).u32(spawn.layers).u32(spawn.outer).u8(spawn.born_into.into()).u8(attempt);
                out.u64(limits.data_bytes).u64(limits.cpu_seconds).u32(limits.descriptors)
            }
        };
        out.send(control, attach)
    }

    /// The next request and its descriptors; none when the launcher has hung up.
    pub(crate) fn recv(control: BorrowedFd<'_>) -> io::Result<Option<(Self, Vec<OwnedFd>)>> {
        let mut buf = [0; MESSAGE_BYTES_MAX];
        let Some((mut from, descriptors)) = In::recv(control, &mut buf)? else { return Ok(None) };
        let request = match from.u8()? {
            1 => Self::Setup { layers: from.u32()?, outer: from.u32()? },
            2 => {
                let (cell, layers, outer, born_into) = (from.u64()?, from.u32()?, from.u32()?, from.u8()? != 0);
                let attempt = match from.u8()? {
                    0 => None,
                    number => Some(Attempt::from_number(number).ok_or_else(malformed)?),
                };
                let limits = Rlimits { data_bytes: from.u64()?, cpu_seconds: from.u64()?, descriptors: from.u32()? };
                Self::Spawn(Spawn { cell, layers, outer, limits, born_into, attempt })
            }
            3 => Self::Kill { cell: from.u64()? },
            _ => return Err(malformed()),
        };
        from.end()?;
        Ok(Some((request, descriptors)))
    }
}

impl Reply {
    pub(crate) fn send(&self, control: BorrowedFd<'_>) -> io::Result<()> {
        let mut out = Out::default();
        match *self {
            Self::Hello { threads, landlock_abi, own_uid } => out.u8(1).u32(threads).u32(landlock_abi).u8(own_uid.into()),
            Self::Unable(failed) => out.u8(2).failed(failed),
            Self::Spawned { cell, pid, data_bytes } => out.u8(3).u64(cell).u32(pid).u64(data_bytes),
            Self::Failed { cell, failed } => out.u8(4).u64(cell).failed(failed),
            Self::Exited { cell, code, signal, cpu_micros, memory_peak_bytes } => {
                out.u8(5).u64(cell).i32(code).i32(signal).u64(cpu_micros).u64(memory_peak_bytes)
            }
        };
        out.send(control, &[])
    }

    /// The next reply; none when the zygote is gone. Descriptors are not expected and closed.
    pub(crate) fn recv(control: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let mut buf = [0; MESSAGE_BYTES_MAX];
        let Some((mut from, _)) = In::recv(control, &mut buf)? else { return Ok(None) };
        let reply = match from.u8()? {
            1 => Self::Hello { threads: from.u32()?, landlock_abi: from.u32()?, own_uid: from.u8()? != 0 },
            2 => Self::Unable(from.failed()?),
            3 => Self::Spawned { cell: from.u64()?, pid: from.u32()?, data_bytes: from.u64()? },
            4 => Self::Failed { cell: from.u64()?, failed: from.failed()? },
            5 => Self::Exited {
                cell: from.u64()?,
                code: from.i32()?,
                signal: from.i32()?,
                cpu_micros: from.u64()?,
                memory_peak_bytes: from.u64()?,
            },
            _ => return Err(malformed()),
        };
        from.end()?;
        Ok(Some(reply))
    }
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u8(&mut self, number: u8) -> &mut Self {
        self.0.push(number);
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn i32(&mut self, number: i32) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn failed(&mut self, failed: Failed) -> &mut Self {
        self.u8(failed.step as u8).i32(failed.errno)
    }

    fn send(&self, control: BorrowedFd<'_>, attach: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match stream::send_some(control, &self.0, attach) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(drop).map_err(io::Error::from),
            }
        }
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn recv(control: BorrowedFd<'_>, buf: &'a mut [u8]) -> io::Result<Option<(Self, Vec<OwnedFd>)>> {
        let (bytes, descriptors, cut) =
            match stream::recv_some::<{ stream::space(DESCRIPTORS_MAX) }>(control, buf, rustix::net::RecvFlags::empty()) {
                // The other side ended without having read everything.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
        if cut {
            return Err(malformed());
        }
        Ok((bytes > 0).then(|| (Self(buf.get(..bytes).unwrap_or_default()), descriptors)))
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> io::Result<u8> {
        self.take::<1>().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> io::Result<i32> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn failed(&mut self) -> io::Result<Failed> {
        let step = Step::from_number(self.u8()?).ok_or_else(malformed)?;
        Ok(Failed { step, errno: self.i32()? })
    }

    fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed()) }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed control message")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::confine::socket_pair;

    #[test]
    fn requests_and_replies_survive_the_journey() {
        let (a, b) = socket_pair().unwrap();
        let limits = Rlimits { data_bytes: 1 << 40, cpu_seconds: u64::MAX, descriptors: 64 };
        let spawn = Spawn { cell: 7, layers: 0x7ff, outer: 3, limits, born_into: true, attempt: Some(Attempt::Open) };
        for request in [Request::Setup { layers: 5, outer: 9 }, Request::Spawn(spawn), Request::Kill { cell: u64::MAX }] {
            request.send(a.as_fd(), &[a.as_fd(), b.as_fd()]).unwrap();
            let (got, descriptors) = Request::recv(b.as_fd()).unwrap().unwrap();
            assert_eq!((got, descriptors.len()), (request, 2));
        }
        let failed = Failed { step: Step::Seccomp, errno: -3 };
        for reply in [
            Reply::Hello { threads: 1, landlock_abi: 7, own_uid: true },
            Reply::Unable(failed),
            Reply::Spawned { cell: 1, pid: 2, data_bytes: 3 },
            Reply::Failed { cell: 4, failed },
            Reply::Exited { cell: 5, code: -1, signal: 31, cpu_micros: 6, memory_peak_bytes: 7 },
        ] {
            reply.send(b.as_fd()).unwrap();
            assert_eq!(Reply::recv(a.as_fd()).unwrap(), Some(reply));
        }
        drop(b);
        assert_eq!(Reply::recv(a.as_fd()).unwrap(), None);
    }

    #[test]
    fn nonsense_is_an_error() {
        let (a, b) = socket_pair().unwrap();
        let cases: [&[u8]; 6] = [&[0], &[99; 20], &[1; 3], &[5; 64], &[3; 200], &[2, 200, 0, 0, 0, 0]];
        for case in cases {
            stream::send_some(a.as_fd(), case, &[]).unwrap();
            assert!(Reply::recv(b.as_fd()).is_err(), "{case:?}");
        }
    }
}
