//! What is really enforced: cells that try.
//!
//! Two sources, neither of them configuration. A *standing* probe is confined like any cell and does nothing, while the service reads from `/proc` what
//! the kernel says about it. *Trying* probes do what must fail: a forbidden system call, opening a path, eating memory, spinning, forking. To see
//! whether a wall holds by itself, the walls in front of it are left out for that one probe, which never runs anything but the code below.

use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    CgroupVersion, Enforced, JailError, Layers, Limits, Report,
    report::NAMESPACES,
    stream,
    zygote::{Cell, Exit},
};

/// Longest wait for one probe; far beyond what any needs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory limit of probes, and what the eating one tries to take.
const MEMORY_BYTES: u64 = 8 << 20;
const EATEN_BYTES: usize = 64 << 20;
/// How long the spinning one keeps a processor busy: a few quota periods.
const SPIN: Duration = Duration::from_millis(250);
const SPIN_CPU_PERCENT: u32 = 5;
/// A weight that no group has by itself.
const PROBE_WEIGHT: u32 = 7;
/// Exit code of a probe that was refused, as it should be.
const REFUSED: i32 = 10;
/// Exit code of a probe that succeeded, which means that the wall is missing.
const SUCCEEDED: i32 = 11;

/// What a probe does instead of the program's own work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Attempt {
    /// Nothing but reading the clock, until hung up.
    Stand = 1,
    /// A system call off the list.
    Forbidden,
    /// Open the root folder for reading, which Landlock alone refuses.
    Open,
    /// Find an entry of the root, or something above it, or a root that can be written.
    Look,
    /// Take and touch memory beyond the limit.
    Eat,
    /// Compute for a while.
    Spin,
    /// Make a process.
    Fork,
}

impl Attempt {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Stand, Self::Forbidden, Self::Open, Self::Look, Self::Eat, Self::Spin, Self::Fork]
            .into_iter()
            .find(|attempt| *attempt as u8 == number)
    }

    /// In the probe, after confinement. Ends the process or returns for it to end with code 0.
    pub(crate) fn run(self, socket: OwnedFd) {
        use rustix::fs::{Mode, OFlags, open};
        let refused = match self {
            Self::Stand => {
                // Where the clock is a real system call the filter kills here, and the launcher says so instead of a tenant's first request.
                let _ = Instant::now();
                let _ = stream::send(socket.as_fd(), b"!", None);
                let _ = stream::recv(socket.as_fd(), &mut [0]);
                return;
            }
            Self::Forbidden => {
                let _ = rustix::process::getppid();
                false
            }
            Self::Open => open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).is_err(),
            Self::Look => root_is_empty(),
            Self::Eat => !eat(),
            Self::Spin => {
                let begin = Instant::now();
                while begin.elapsed() < SPIN {
                    std::hint::spin_loop();
                }
                return;
            }
            Self::Fork => !fork(),
        };
        crate::confine::exit(if refused { REFUSED } else { SUCCEEDED });
    }
}

/// What the zygote and the mounts say; checked against the probes.
pub(crate) struct Hello {
    pub(crate) cgroup: CgroupVersion,
    pub(crate) threads: u32,
    pub(crate) landlock_abi: u32,
}

/// Something that can start probes.
pub(crate) trait Subject {
    fn attempt(&self, limits: &Limits, layers: Layers, attempt: Attempt) -> Result<Cell, JailError>;
    /// A sandbox that stands, and whose `runsc` says to `said` what it has to say.
    fn stand(&self, limits: &Limits, said: BorrowedFd<'_>) -> Result<Cell, JailError>;
    fn layers(&self) -> Layers;
    fn hello(&self) -> Hello;
}

/// Fills a report from facts. Takes about a third of a second, most of it the wait for the processor quota.
pub(crate) fn probe(subject: &impl Subject) -> Result<Report, JailError> {
    let hello = subject.hello();
    let mut report = Report::nothing(hello.cgroup, hello.threads);
    if hello.threads != 1 {
        return Ok(report);
    }
    let subject = &Timed { subject, starts: RefCell::default() };
    let all = subject.layers();
    stand(subject, all, &mut report)?;
    // By the signal alone: whether memory ran out too is a guess where the machine has no memory group.
    report.seccomp = matches!(tried(subject, all, Attempt::Forbidden)?, Exit::Signal { signal: libc::SIGSYS, .. });
    // The same without the filter, which would not let the probe get as far as the wall in question.
    let open = Layers { seccomp: false, ..all };
    let landlock = tried(subject, open, Attempt::Open)? == Exit::Code(REFUSED);
    report.landlock_abi = (landlock && hello.landlock_abi > 0).then_some(hello.landlock_abi);
    report.empty_root = tried(subject, Layers { landlock: false, ..open }, Attempt::Look)? == Exit::Code(REFUSED);
    report.memory = if matches!(tried(subject, Layers { rlimits: false, ..all }, Attempt::Eat)?, Exit::Signal { signal: libc::SIGKILL, .. })
    {
        Enforced::Cgroup
    } else if tried(subject, all, Attempt::Eat)? == Exit::Code(REFUSED) {
        Enforced::Rlimit
    } else {
        Enforced::No
    };
    report.cpu = if throttled(subject, all)? { Enforced::Cgroup } else { Enforced::No };
    report.processes = if tried(subject, Layers { rlimits: false, ..open }, Attempt::Fork)? == Exit::Code(REFUSED) {
        Enforced::Cgroup
    } else if tried(subject, open, Attempt::Fork)? == Exit::Code(REFUSED) {
        Enforced::Rlimit
    } else {
        Enforced::No
    };
    report.cell_start = subject.median();
    Ok(report)
}

/// A subject, and how long each probe took to start.
struct Timed<'s, S> {
    subject: &'s S,
    starts: RefCell<Vec<Duration>>,
}

impl<S: Subject> Subject for Timed<'_, S> {
    fn attempt(&self, limits: &Limits, layers: Layers, attempt: Attempt) -> Result<Cell, JailError> {
        let begin = Instant::now();
        let cell = self.subject.attempt(limits, layers, attempt)?;
        self.starts.borrow_mut().push(begin.elapsed());
        Ok(cell)
    }

    fn stand(&self, limits: &Limits, said: BorrowedFd<'_>) -> Result<Cell, JailError> {
        self.subject.stand(limits, said)
    }

    fn layers(&self) -> Layers {
        self.subject.layers()
    }

    fn hello(&self) -> Hello {
        self.subject.hello()
    }
}

impl<S> Timed<'_, S> {
    fn median(&self) -> Duration {
        let mut starts = self.starts.borrow_mut();
        starts.sort_unstable();
        starts.get(starts.len() / 2).copied().unwrap_or_default()
    }
}

impl Report {
    /// Before anything is measured nothing is believed.
    pub(crate) fn nothing(cgroup: CgroupVersion, engine_threads: u32) -> Self {
        Self {
            gvisor: None,
            cgroup,
            memory: Enforced::No,
            cpu: Enforced::No,
            cpu_weight: Enforced::No,
            processes: Enforced::No,
            namespaces: Vec::new(),
            landlock_abi: None,
            seccomp: false,
            no_new_privileges: false,
            own_uid: false,
            empty_root: false,
            no_capabilities: false,
            descriptors_closed: false,
            not_dumpable: false,
            engine_threads,
            cell_start: Duration::ZERO,
        }
    }
}

/// What the kernel says about a probe that stands still.
fn stand(subject: &impl Subject, all: Layers, report: &mut Report) -> Result<(), JailError> {
    let probe = standing(subject, all)?;
    report.cpu_weight = if probe.weighs(PROBE_WEIGHT) { Enforced::Cgroup } else { Enforced::No };
    let folder = format!("/proc/{}", probe.pid());
    let status = std::fs::read_to_string(format!("{folder}/status")).map_err(JailError::io("reading the status of a probe"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    report.no_new_privileges = field("NoNewPrivs:") == "1";
    report.no_capabilities =
        ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].into_iter().all(|set| u64::from_str_radix(field(set), 16) == Ok(0));
    let ids: Vec<&str> = field("Uid:").split_whitespace().collect();
    let own = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let service = own.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|line| line.split_whitespace().next()).unwrap_or("0");
    report.own_uid = ids.len() == 4
        && ids.iter().all(|id| Some(id) == ids.first() && *id != "0" && *id != service)
        && alone(ids.first().unwrap_or(&"0"), probe.pid());
    // The kernel gives the files of an unreadable process to root instead of its user.
    let user = std::fs::metadata(format!("{folder}/status")).map(|folder| std::os::unix::fs::MetadataExt::uid(&folder).to_string());
    report.not_dumpable = user.is_ok_and(|user| user == "0") && ids.first() != Some(&"0");
    let mut folder = folder;
    let mut readable = probe;
    if std::fs::read_link(format!("{folder}/ns/net")).is_err() {
        // Not root: such a process hides from us as well, so look at one that does not.
        readable = standing(subject, Layers { not_dumpable: false, ..all })?;
        folder = format!("/proc/{}", readable.pid());
    }
    let space = |folder: &str, name: &str| std::fs::read_link(Path::new(folder).join("ns").join(name)).ok();
    let apart = |name: &&str| space(&folder, name).is_some_and(|space_of| Some(space_of) != space("/proc/self", name));
    report.namespaces = NAMESPACES.into_iter().filter(apart).collect();
    let descriptors = std::fs::read_dir(format!("{folder}/fd")).map(|entries| entries.flatten().count());
    report.descriptors_closed = descriptors.is_ok_and(|count| count == 1);
    drop(readable);
    Ok(())
}

/// Whether no other process of the machine runs under this user id.
fn alone(uid: &str, pid: u32) -> bool {
    let uid: u32 = uid.parse().unwrap_or(0);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes
        .filter(|process| process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()).is_some_and(|other| other != pid));
    others.map(|other| other.path().join("status")).all(|status| {
        let text = std::fs::read_to_string(status).unwrap_or_default();
        let real = text.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|line| line.split_whitespace().next());
        real.and_then(|real| real.parse::<u32>().ok()) != Some(uid)
    })
}

fn standing(subject: &impl Subject, layers: Layers) -> Result<Cell, JailError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut probe = subject.attempt(&limits(100), layers, Attempt::Stand)?;
    let socket = probe.take_socket().ok_or(JailError::Gone("a probe without a socket"))?;
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&patience));
    if !matches!(stream::recv(socket.as_fd(), &mut [0]), Ok((1, _))) {
        return Err(JailError::Gone(
            "a confined probe could not read the clock without a system call (see the kernel's clock source) or died",
        ));
    }
    probe.socket_back(socket);
    Ok(probe)
}

fn tried(subject: &impl Subject, layers: Layers, attempt: Attempt) -> Result<Exit, JailError> {
    let probe = subject.attempt(&limits(100), layers, attempt)?;
    probe.wait(PATIENCE).ok_or(JailError::Gone("a probe did not end"))
}

fn throttled(subject: &impl Subject, layers: Layers) -> Result<bool, JailError> {
    let probe = subject.attempt(&limits(SPIN_CPU_PERCENT), layers, Attempt::Spin)?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if probe.throttled() > 0 {
            return Ok(true);
        }
        if probe.wait(Duration::from_millis(5)).is_some() {
            return Ok(false);
        }
    }
    Ok(false)
}

fn limits(cpu_percent: u32) -> Limits {
    Limits { memory_bytes: MEMORY_BYTES, cpu_percent, cpu_weight: PROBE_WEIGHT, cpu_seconds_max: None, descriptors_max: 16 }
}

/// The root has no entry, is mounted read-only, and nothing is above it. Looked at without Landlock in the way.
fn root_is_empty() -> bool {
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, open};
    let Ok(root) = open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else { return false };
    let Ok(entries) = rustix::fs::Dir::read_from(&root) else { return false };
    let entries = entries.flatten().filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")).count();
    let above = open("/../proc", OFlags::PATH, Mode::empty()).is_ok();
    let fixed = fstatvfs(&root).is_ok_and(|root| root.f_flag.contains(StatVfsMountFlags::RDONLY));
    entries == 0 && !above && fixed
}

/// Takes more memory than allowed and touches all of it; whether that went well.
fn eat() -> bool {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    const PAGE_BYTES: usize = 4096;
    // SAFETY: the kernel picks a fresh address range, nothing existing is touched.
    let Ok(start) = (unsafe { mmap_anonymous(std::ptr::null_mut(), EATEN_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) })
    else {
        return false;
    };
    for offset in (0..EATEN_BYTES).step_by(PAGE_BYTES) {
        // SAFETY: `offset` is inside the range that was just mapped writable.
        unsafe { start.cast::<u8>().add(offset).write_volatile(1) };
    }
    true
}

/// Whether a process can be made.
fn fork() -> bool {
    // SAFETY: the probe has one thread and the child leaves at once.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => false,
        0 => crate::confine::exit(0),
        _ => true,
    }
}
