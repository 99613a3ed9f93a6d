//! Inside the zygote: wait for requests and for deaths, fork, confirm.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal},
};

use super::control::{Reply, Request, Spawn};
use crate::{
    Layers,
    confine::{self, Ends, Failed, Ground, Step},
    gvisor::Keeper,
    stream, turns,
};

/// How long a fresh cell may take to confine itself before it is killed.
const CONFIRM_SECONDS_MAX: i64 = 10;
/// Live cells of one zygote.
const CELLS_MAX: usize = 8_192;
/// Exit code of a cell whose confinement failed.
const EXIT_UNCONFINED: i32 = 113;

/// The control socket that [`Launcher::start`](super::Launcher::start) put on standard input; null takes its place.
///
/// Fails if the program was started by hand.
pub fn control() -> io::Result<OwnedFd> {
    use rustix::net::{SocketType, sockopt::socket_type};
    let stdin = io::stdin();
    if socket_type(&stdin).ok() != Some(SocketType::SEQPACKET) {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "this program is started by the service, not by hand"));
    }
    let control = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(control)
}

/// Serves forks until the launcher hangs up, then exits; all cells die with the zygote.
///
/// Never returns in the zygote. In each fork it confines the process, confirms it to the launcher, runs `child` with the cell's socket and exits
/// with code 0 when that returns. Refuses to fork while the program has more than one thread.
pub fn serve(control: OwnedFd, child: impl Fn(OwnedFd) + Copy) -> ! {
    run(control, |layers, outer| Ground::prepare(layers, outer).map(Yard::Cells), child)
}

/// As [`serve`], for sandboxes: what a fork becomes is another program.
pub(crate) fn keep(control: OwnedFd, prepare: impl FnOnce(Layers, Option<u32>) -> Result<Keeper, Failed>) -> ! {
    run(control, |layers, outer| prepare(layers, outer).map(Yard::Sandboxes), drop)
}

fn run(control: OwnedFd, prepare: impl FnOnce(Layers, Option<u32>) -> Result<Yard, Failed>, child: impl Fn(OwnedFd) + Copy) -> ! {
    // The service's turns are short; what a cell's are is seen from its requests. Where they cannot be set, they were not shortened either.
    let _ = turns::set(0, turns::Turns::Usual);
    let code = match Zygote::prepare(control, prepare).and_then(|mut zygote| zygote.run(child)) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    confine::exit(code)
}

/// What was prepared for forks, by what becomes of them.
enum Yard {
    Cells(Ground),
    Sandboxes(Keeper),
}

impl Yard {
    fn ground(&self) -> &Ground {
        match self {
            Self::Cells(ground) => ground,
            Self::Sandboxes(keeper) => &keeper.ground,
        }
    }
}

struct Zygote {
    control: OwnedFd,
    deaths: OwnedFd,
    yard: Yard,
    cells: BTreeMap<u64, Pid>,
}

impl Zygote {
    /// Reads the setup, prepares the ground and says hello.
    fn prepare(control: OwnedFd, prepare: impl FnOnce(Layers, Option<u32>) -> Result<Yard, Failed>) -> io::Result<Self> {
        // A terminal's interrupt is for the service, which then ends us in order.
        let _ = rustix::process::setsid();
        let Some((Request::Setup { layers, outer }, _)) = Request::recv(control.as_fd())? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let yard = match prepare(Layers::from_bits(layers), Some(outer).filter(|outer| *outer != 0)) {
            Ok(yard) => yard,
            Err(failed) => {
                Reply::Unable(failed).send(control.as_fd())?;
                return Err(io::Error::from_raw_os_error(failed.errno));
            }
        };
        let deaths = child_deaths()?;
        let ground = yard.ground();
        let hello = Reply::Hello { threads: ground.threads_and_data().0, landlock_abi: ground.landlock_abi, own_uid: ground.own_uid };
        hello.send(control.as_fd())?;
        Ok(Self { control, deaths, yard, cells: BTreeMap::new() })
    }

    fn run(&mut self, child: impl Fn(OwnedFd) + Copy) -> io::Result<()> {
        loop {
            let mut ready = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.deaths, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let [asked, died] = ready.map(|fd| !fd.revents().is_empty());
            if died {
                self.reap()?;
            }
            if asked {
                let Some((request, descriptors)) = Request::recv(self.control.as_fd())? else { return Ok(()) };
                self.answer(request, &descriptors, child)?;
            }
        }
    }

    fn answer(&mut self, request: Request, descriptors: &[OwnedFd], child: impl Fn(OwnedFd) + Copy) -> io::Result<()> {
        match request {
            Request::Setup { .. } => Err(io::ErrorKind::InvalidData.into()),
            Request::Kill { cell } => {
                // Not reaped yet, or it would not be in the list: the id cannot mean anybody else.
                if let Some(pid) = self.cells.get(&cell) {
                    let _ = rustix::process::kill_process(*pid, Signal::KILL);
                }
                Ok(())
            }
            Request::Spawn(spawn) => {
                let reply = match self.spawn(&spawn, descriptors, child) {
                    Ok((pid, data_bytes)) => {
                        self.cells.insert(spawn.cell, pid);
                        Reply::Spawned { cell: spawn.cell, pid: pid.as_raw_nonzero().get().unsigned_abs(), data_bytes }
                    }
                    Err(failed) => Reply::Failed { cell: spawn.cell, failed },
                };
                reply.send(self.control.as_fd())
            }
        }
    }

    fn spawn(&self, spawn: &Spawn, descriptors: &[OwnedFd], child: impl Fn(OwnedFd) + Copy) -> Result<(Pid, u64), Failed> {
        let (threads, data_bytes) = self.yard.ground().threads_and_data();
        if threads != 1 {
            return Err(Failed { step: Step::Threads, errno: libc::EBUSY });
        }
        if self.cells.len() >= CELLS_MAX {
            return Err(Failed { step: Step::Full, errno: libc::EAGAIN });
        }
        let malformed = Failed { step: Step::Clone, errno: libc::EINVAL };
        let (socket, doors) = descriptors.split_first().ok_or(malformed)?;
        let (said, doors) = match (&self.yard, spawn.attempt, doors) {
            (Yard::Sandboxes(_), Some(_), [doors @ .., said]) => (Some(said.as_fd()), doors),
            (_, _, doors) => (None, doors),
        };
        let (born_into, join) = match doors.split_first() {
            Some((group, join)) if spawn.born_into => (Some(group.as_fd()), join),
            _ => (None, doors),
        };
        let pair = confine::socket_pair().map_err(|_| Failed { step: Step::Confirm, errno: libc::EMFILE })?;
        let outer = Some(spawn.outer).filter(|outer| *outer != 0);
        let ground = self.yard.ground();
        let Some(pid) = ground.fork(born_into)? else {
            drop(pair.0);
            self.become_cell(spawn, outer, data_bytes, Ends { socket: socket.as_fd(), confirm: pair.1.as_fd(), said }, child)
        };
        let (confirm, theirs) = pair;
        drop(theirs);
        let outcome =
            ground.admit(pid, outer, join).and_then(|()| confirmed(confirm.as_fd(), Layers::from_bits(spawn.layers).close_descriptors));
        if let Err(failed) = outcome {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            return Err(failed);
        }
        Ok((pid, data_bytes))
    }

    /// In the fork, to its end.
    fn become_cell(&self, spawn: &Spawn, outer: Option<u32>, data_bytes: u64, ends: Ends<'_>, child: impl Fn(OwnedFd) + Copy) -> ! {
        // Nothing happens before the zygote has mapped our ids and put us into our group; an end of file means that it died.
        if !matches!(stream::recv(ends.confirm, &mut [0]), Ok((1, _))) {
            confine::exit(EXIT_UNCONFINED);
        }
        let confirm = ends.confirm;
        let ground = match &self.yard {
            Yard::Cells(ground) => ground,
            Yard::Sandboxes(keeper) => unconfined(confirm, keeper.become_sandbox(ends)),
        };
        match ground.confine(Layers::from_bits(spawn.layers), outer, &spawn.limits, data_bytes, ends) {
            Err(failed) => unconfined(confirm, failed),
            Ok((socket, confirm)) => {
                if stream::send(confirm.as_fd(), &[0; 5], None).is_err() {
                    confine::exit(EXIT_UNCONFINED);
                }
                drop(confirm);
                match spawn.attempt {
                    Some(attempt) => attempt.run(socket),
                    None => child(socket),
                }
                confine::exit(0)
            }
        }
    }

    /// Buries all children that have died and says so.
    fn reap(&mut self) -> io::Result<()> {
        let mut signals = [0; 1024];
        let _ = rustix::io::read(&self.deaths, &mut signals);
        while let Some((pid, status, usage)) = wait_any() {
            let Some(cell) = self.cells.iter().find(|(_, other)| **other == pid).map(|(cell, _)| *cell) else { continue };
            self.cells.remove(&cell);
            let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
            let reply = Reply::Exited {
                cell,
                code: if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 0 },
                signal: if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 },
                cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
                memory_peak_bytes: (usage.ru_maxrss as u64) << 10,
            };
            reply.send(self.control.as_fd())?;
        }
        Ok(())
    }
}

/// Says which step failed, and ends.
fn unconfined(confirm: BorrowedFd<'_>, failed: Failed) -> ! {
    let [a, b, c, d] = failed.errno.to_le_bytes();
    let _ = stream::send(confirm, &[failed.step as u8, a, b, c, d], None);
    confine::exit(EXIT_UNCONFINED)
}

/// Lets the cell go ahead and waits until it says that all walls stand, and then until it has closed this last channel as well.
fn confirmed(confirm: BorrowedFd<'_>, closes: bool) -> Result<(), Failed> {
    stream::send(confirm, &[1], None).map_err(|_| Failed { step: Step::Confirm, errno: libc::EPIPE })?;
    match word(confirm)? {
        Some(0) if !closes => return Ok(()),
        Some(0) => {}
        _ => return Err(Failed { step: Step::Confirm, errno: libc::EPIPE }),
    }
    match word(confirm)? {
        None => Ok(()),
        Some(_) => Err(Failed { step: Step::Descriptors, errno: libc::EPROTO }),
    }
}

/// What a fresh cell says: nothing more, that all is well, or which step failed.
fn word(confirm: BorrowedFd<'_>) -> Result<Option<u8>, Failed> {
    let mut said = [0; 5];
    match heard(confirm, &mut said)? {
        0 => return Ok(None),
        bytes if bytes != said.len() => return Err(Failed { step: Step::Confirm, errno: libc::EPROTO }),
        _ => {}
    }
    let [step, a, b, c, d] = said;
    match Step::from_number(step) {
        Some(step) => Err(Failed { step, errno: i32::from_le_bytes([a, b, c, d]) }),
        None => Ok(Some(step)),
    }
}

/// One message, or nothing at the end, within bounded time.
fn heard(confirm: BorrowedFd<'_>, said: &mut [u8]) -> Result<usize, Failed> {
    let patience = Timespec { tv_sec: CONFIRM_SECONDS_MAX, tv_nsec: 0 };
    let mut ready = [PollFd::from_borrowed_fd(confirm, PollFlags::IN)];
    if !poll(&mut ready, Some(&patience)).is_ok_and(|ready| ready == 1) {
        return Err(Failed { step: Step::Confirm, errno: libc::ETIMEDOUT });
    }
    stream::recv(confirm, said).map(|(bytes, _)| bytes).map_err(|_| Failed { step: Step::Confirm, errno: libc::EPIPE })
}

/// A descriptor that becomes readable when a child has died.
fn child_deaths() -> io::Result<OwnedFd> {
    let set = confine::set_blocked(&[libc::SIGCHLD])?;
    // SAFETY: `set` is a live signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One dead child with what it used, if there is one.
fn wait_any() -> Option<(Pid, i32, libc::rusage)> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is valid; the kernel fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right type.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    Pid::from_raw(pid.max(0)).map(|pid| (pid, status, usage))
}
