//! Inside: what the program does to itself before it takes the first byte of a tenant.

use std::{
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
};

use rustix::process::{Resource, Rlimit};

use super::PROBE;
use crate::{confine, seccomp, stream};

/// What a probe says when it is ready.
pub(super) const READY: &[u8] = b"gvisor";
/// Descriptors the guest may hold: its socket, and what gVisor's files need while the engine loads.
const DESCRIPTORS_MAX: u64 = 16;
/// Room for the kernel's log.
const LOG_BYTES: usize = 64 << 10;

/// Locks the program, runs `cell` with its socket, and exits with code 0 when that returns. Comes back only with an error: before any byte of a
/// tenant was read, when the kernel is not gVisor's or a step failed.
///
/// Call it with the engine loaded and warmed: afterwards the calls of `cell.syscalls` are left, as in the jail.
#[must_use]
pub fn enter(cell: impl FnOnce(OwnedFd)) -> io::Error {
    let probe = std::env::var_os(PROBE).is_some();
    match lock() {
        Ok(socket) if probe => {
            // What must end it here is the filter.
            let _ = stream::send(socket.as_fd(), READY, None);
            let _ = stream::recv(socket.as_fd(), &mut [0]);
            let _ = rustix::process::getppid();
        }
        Ok(socket) => cell(socket),
        Err(error) => return error,
    }
    confine::exit(0)
}

fn lock() -> io::Result<OwnedFd> {
    if !is_gvisor() {
        return Err(io::Error::other("the kernel here is not gVisor's"));
    }
    let filter = seccomp::program(seccomp::Kernel::Gvisor).map_err(io::Error::other)?;
    for (resource, most) in
        [(Resource::Core, 0), (Resource::Fsize, 0), (Resource::Nproc, 0), (Resource::Memlock, 0), (Resource::Nofile, DESCRIPTORS_MAX)]
    {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    rustix::thread::set_no_new_privs(true)?;
    confine::reset_signals()?;
    let socket = keep_socket()?;
    seccomp::lock(&filter)?;
    Ok(socket)
}

/// gVisor's kernel begins its log with its name, and shows it to everybody.
fn is_gvisor() -> bool {
    const READ_ALL: i32 = 3;
    let mut log = vec![0_u8; LOG_BYTES];
    // SAFETY: the kernel writes at most `LOG_BYTES` bytes to a live buffer of that length.
    let bytes = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), LOG_BYTES as i32) };
    let log = log.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
    String::from_utf8_lossy(log).contains("Starting gVisor")
}

/// Standard input is the socket; it gets its number, and everything else goes.
fn keep_socket() -> io::Result<OwnedFd> {
    // gVisor takes these for signed numbers.
    const LAST: i32 = i32::MAX;
    let socket = confine::SOCKET;
    // SAFETY: the program's own descriptors below and above are not used again: it continues in the cell's function alone.
    unsafe {
        if libc::dup3(0, socket, libc::O_CLOEXEC) == -1
            || libc::syscall(libc::SYS_close_range, 0, socket as u32 - 1, 0) == -1
            || libc::syscall(libc::SYS_close_range, socket as u32 + 1, LAST, 0) == -1
        {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(socket))
    }
}
