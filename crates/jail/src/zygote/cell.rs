//! The service's hold on one cell.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::launcher::Zygote;
use crate::{JailError, Limits, Turns, cgroup::Group};

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal. `SIGSYS` (31) is the system call filter.
    Signal {
        /// The signal's number.
        signal: i32,
        /// It was killed for taking more memory than its limit.
        out_of_memory: bool,
    },
}

/// What a cell has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time in microseconds.
    pub cpu_micros: u64,
    /// Memory charged to it now, in bytes; 0 after its death.
    pub memory_bytes: u64,
    /// The most it was charged, in bytes.
    pub memory_peak_bytes: u64,
}

/// A confined process. Dropping it kills it; reaping and the removal of its control group follow within milliseconds.
#[derive(Debug)]
pub struct Cell {
    pub(super) held: Arc<Held>,
    pub(super) zygote: Arc<Zygote>,
    pub(super) socket: Option<OwnedFd>,
    pub(super) data_bytes: u64,
}

impl Cell {
    /// The service's end of the cell's only socket: a stream, non-blocking. Once.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// Process id, as the service sees it.
    pub fn pid(&self) -> u32 {
        self.held.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sets for how long the cell wants a core at a time. Under gVisor it is its kernel that wants the core, and nothing is set.
    ///
    /// # Errors
    /// The cell is dead, or this process may not.
    pub fn set_turns(&self, turns: Turns) -> Result<(), JailError> {
        let inside = self.held.inside();
        if inside.exit.is_some() {
            return Err(JailError::Gone("the cell is dead"));
        }
        // The lock is held, so its id cannot have become another process's.
        crate::turns::set(self.held.pid.as_raw_nonzero().get(), turns).map_err(JailError::io("setting a cell's turns"))
    }

    /// Changes the limits of a living cell: a pooled one gets its tenant's when it is handed out.
    ///
    /// Memory and processor share move both ways. Descriptors and processor seconds were fixed by the kernel at spawn and can only be lowered
    /// (spawn blank cells with `cpu_seconds_max: None`).
    pub fn set_limits(&self, limits: &Limits) -> Result<(), JailError> {
        limits.check()?;
        let inside = self.held.inside();
        if inside.exit.is_some() {
            return Err(JailError::Gone("the cell is dead"));
        }
        if let Some(group) = &inside.group {
            group.set(limits)?;
        }
        // The lock is held, so the cell is not reported dead and its id cannot have become another process's unnoticed.
        let set = |resource, current: u64, maximum: Option<u64>| {
            let wanted = Rlimit { current: Some(current), maximum };
            rustix::process::prlimit(Some(self.held.pid), resource, wanted)
                .map_err(|error| JailError::io("changing a resource limit")(error.into()))
        };
        if self.zygote.layers.rlimits {
            let most = u64::from(limits.descriptors_max).min(self.held.descriptors_max);
            set(Resource::Nofile, most, Some(most))?;
            if let Some(seconds) = limits.cpu_seconds_max {
                set(Resource::Cpu, seconds, Some(seconds))?;
            }
            if self.held.memory_by_rlimit {
                set(Resource::Data, self.data_bytes.saturating_add(limits.memory_bytes), self.zygote.data_maximum)?;
            }
        }
        Ok(())
    }

    /// Kills it without waiting. Harmless when it is dead.
    pub fn kill(&self) {
        self.zygote.kill(self.held.id);
    }

    /// Calls `f` once with the reason when the cell has ended, reaped, its group removed; at once if it already has.
    ///
    /// `f` runs on the launcher's own thread and must be quick: send to a channel.
    pub fn on_exit(&self, f: impl FnOnce(Exit) + Send + 'static) {
        let mut inside = self.held.inside();
        match inside.exit {
            Some(exit) => {
                drop(inside);
                f(exit);
            }
            None => inside.on_exit.push(Box::new(f)),
        }
    }

    /// Waits at most `patience` for the end; none if the cell still lives.
    pub fn wait(&self, patience: Duration) -> Option<Exit> {
        let end = Instant::now() + patience;
        let mut inside = self.held.inside();
        while inside.exit.is_none() {
            let left = end.checked_duration_since(Instant::now())?;
            inside = self.held.ended.wait_timeout(inside, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        inside.exit
    }

    /// What it has used so far, or in all when it is dead; from its control group, else from `/proc`.
    pub fn usage(&self) -> Usage {
        self.held.inside().usage(self.held.pid)
    }

    /// The other way of [`Cell::take_socket`], so that a probe lives as long as its socket.
    pub(crate) fn socket_back(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }

    /// Whether the kernel shares the processor by this weight.
    pub(crate) fn weighs(&self, weight: u32) -> bool {
        self.held.inside().group.as_ref().is_some_and(|group| group.weighs(weight))
    }

    /// Its processes as the service sees them, if it has a group.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.held.inside().group.as_ref().map(Group::processes).unwrap_or_default()
    }

    /// How often the processor quota stopped it.
    pub(crate) fn throttled(&self) -> u64 {
        self.held.inside().group.as_ref().map_or(0, Group::throttled)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the launcher's thread and the cell's owner share.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: u64,
    pub(super) pid: Pid,
    pub(super) memory_by_rlimit: bool,
    /// It is the first process of a sandbox: what its group counts is what it has used, and its exit code tells of the guest's end.
    pub(super) sandbox: bool,
    pub(super) descriptors_max: u64,
    pub(super) memory_bytes_max: u64,
    pub(super) inside: Mutex<Inside>,
    pub(super) ended: Condvar,
}

#[derive(Default)]
pub(super) struct Inside {
    pub(super) group: Option<Group>,
    pub(super) exit: Option<Exit>,
    pub(super) last: Usage,
    pub(super) on_exit: Vec<Box<dyn FnOnce(Exit) + Send>>,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").field("group", &self.group).field("exit", &self.exit).finish_non_exhaustive()
    }
}

impl Held {
    /// Called once, when the process is reaped (or died with its zygote, of which `reaped` knows nothing).
    pub(super) fn end(&self, signal: i32, code: i32, reaped: Option<Usage>) {
        let mut inside = self.inside();
        if inside.exit.is_some() {
            return;
        }
        let reaped = reaped.unwrap_or_default();
        let counted = inside.group.as_ref().and_then(Group::memory_bytes);
        let time = inside.group.as_ref().filter(|_| self.sandbox).and_then(Group::cpu_micros);
        inside.last = Usage {
            cpu_micros: reaped.cpu_micros.max(time.unwrap_or(0)),
            memory_bytes: 0,
            memory_peak_bytes: counted.map_or(reaped.memory_peak_bytes, |(_, peak)| peak),
        };
        let out_of_memory = if self.memory_by_rlimit {
            // An allocation was refused and the program gave up: recognised by how near it was.
            reaped.memory_peak_bytes >= self.memory_bytes_max - self.memory_bytes_max / 8
        } else {
            inside.group.as_ref().is_some_and(Group::out_of_memory)
        };
        let signal = match (signal, code) {
            (0, _) if self.sandbox && out_of_memory => libc::SIGKILL,
            // As a shell has it.
            (0, 129..=192) if self.sandbox => code - 128,
            _ => signal,
        };
        let exit = if signal == 0 { Exit::Code(code) } else { Exit::Signal { signal, out_of_memory } };
        let group = inside.group.take();
        drop(inside);
        drop(group);
        let mut inside = self.inside();
        inside.exit = Some(exit);
        let calls = std::mem::take(&mut inside.on_exit);
        drop(inside);
        self.ended.notify_all();
        for call in calls {
            call(exit);
        }
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a cell whose zygote has died: the kernel kills it too, this makes sure and does not wait for it.
    pub(super) fn kill_orphan(&self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }
}

impl Inside {
    fn usage(&self, pid: Pid) -> Usage {
        if self.exit.is_some() {
            return self.last;
        }
        let pid = pid.as_raw_nonzero();
        let (memory_bytes, memory_peak_bytes) =
            self.group.as_ref().and_then(Group::memory_bytes).unwrap_or_else(|| resident_bytes(pid.get()));
        let cpu_micros = self.group.as_ref().and_then(Group::cpu_micros).unwrap_or_else(|| cpu_micros(pid.get()));
        Usage { cpu_micros, memory_bytes, memory_peak_bytes }
    }
}

/// Time on a processor: the first number is nanoseconds. A cell has one thread.
fn cpu_micros(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0) / 1_000
}

fn resident_bytes(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    (field("RssAnon:"), field("VmHWM:"))
}
