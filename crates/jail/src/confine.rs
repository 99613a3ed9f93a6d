//! The recipe: what the zygote prepares once, and what each fresh fork does to itself before anything else of ours runs in it.
//!
//! | wall | made by |
//! |---|---|
//! | user, process, network, mount, ipc, host name and control group namespaces | `clone3` |
//! | an outer user id of its own | the zygote writes the map; the cell switches |
//! | empty, read-only root | the zygote moved into it once; the cell's mount namespace is a copy of that one mount |
//! | no descriptor but the socket, 0 to 2 included | the cell, by `close_range` |
//! | resource limits, no core dump, memory not readable by others | the cell |
//! | death with the zygote | the cell, by `PR_SET_PDEATHSIG`, and a look whether the zygote still lives |
//! | no capability, none to be gained (securebits, no_new_privs) | the cell |
//! | Landlock: no path, no port, no abstract socket, no signal outwards | the cell |
//! | system call filter | the cell, last |
//!
//! What the machine cannot do is found out by trying, once, in [`Ground::prepare`]; from then on every step is required and a cell in which one
//! fails is killed. Whether the walls stand is not believed from here: `probe` measures it.

use std::{
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, Scope};
use rustix::{
    fs::{Mode, OFlags, openat},
    process::{DumpableBehavior, Pid, Resource, Rlimit, Signal},
};
use seccompiler::BpfProgram;

use crate::{Layers, seccomp};

/// The user and group id a cell sees itself under.
pub(crate) const INNER_ID: u32 = 1000;
/// The cell's socket, always.
pub(crate) const SOCKET: i32 = 3;
/// The channel on which a fresh cell confirms; closed before the cell's own code runs.
const CONFIRM: i32 = 4;
/// The newest Landlock interface we know how to deny everything in.
const LANDLOCK: ABI = ABI::V7;
/// In the order of `report::NAMESPACES`.
const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// `linux/sched.h`; the constant of `libc` is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A step that failed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) step: Step,
    pub(crate) errno: i32,
}

/// The steps of a spawn, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Threads = 1,
    Clone,
    Map,
    Cgroup,
    Ids,
    HostName,
    Landlock,
    Descriptors,
    Rlimits,
    Zygote,
    Capabilities,
    Privileges,
    Dumpable,
    Signals,
    Seccomp,
    Confirm,
    Full,
    Root,
    Exec,
}

impl Step {
    const ALL: [(Self, &'static str); 19] = [
        (Self::Threads, "the zygote must have exactly one thread"),
        (Self::Clone, "making namespaces"),
        (Self::Map, "mapping user ids"),
        (Self::Cgroup, "joining the control group"),
        (Self::Ids, "switching user id"),
        (Self::HostName, "hiding the host name"),
        (Self::Landlock, "denying all paths by landlock"),
        (Self::Descriptors, "closing descriptors"),
        (Self::Rlimits, "setting resource limits"),
        (Self::Zygote, "binding its life to the zygote"),
        (Self::Capabilities, "dropping capabilities"),
        (Self::Privileges, "setting no_new_privs"),
        (Self::Dumpable, "making its memory unreadable"),
        (Self::Signals, "resetting signals"),
        (Self::Seccomp, "installing the system call filter"),
        (Self::Confirm, "confirming in time"),
        (Self::Full, "finding room for another cell"),
        (Self::Root, "making the sandbox's file system"),
        (Self::Exec, "starting `runsc`"),
    ];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().map(|(step, _)| *step).find(|step| *step as u8 == number)
    }

    pub(crate) fn words(self) -> &'static str {
        Self::ALL.iter().find(|(step, _)| *step == self).map_or("", |(_, words)| words)
    }

    pub(crate) fn failed(self) -> impl FnOnce(rustix::io::Errno) -> Failed {
        move |errno| Failed { step: self, errno: errno.raw_os_error() }
    }

    pub(crate) fn failed_io(self) -> impl FnOnce(io::Error) -> Failed {
        move |error| Failed { step: self, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

/// Resource limits of one cell, as the launcher asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimits {
    /// Bytes the cell may add to the zygote's private memory; `u64::MAX` when a control group counts.
    pub(crate) data_bytes: u64,
    /// Processor seconds; `u64::MAX` for no limit.
    pub(crate) cpu_seconds: u64,
    pub(crate) descriptors: u32,
}

/// What the zygote prepared, and what it found this machine to allow.
pub(crate) struct Ground {
    layers: Layers,
    namespaces: i32,
    /// Outer user ids can be given out.
    pub(crate) own_uid: bool,
    pub(crate) landlock_abi: u32,
    ruleset: Option<RulesetCreated>,
    filter: BpfProgram,
    proc: OwnedFd,
    /// The id that a cell's outer one is mapped to.
    inner: u32,
}

impl Ground {
    /// Called once, while the zygote still sees the file system. `outer` is the first user id of the range to give out.
    pub(crate) fn prepare(layers: Layers, outer: Option<u32>) -> Result<Self, Failed> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let proc = openat(rustix::fs::CWD, "/proc", flags, Mode::empty()).map_err(Step::Map.failed())?;
        if layers.empty_root {
            // Refused on some machines; the probe will see the root that is left and the report will say so.
            let _ = enter_empty_root(&proc);
        }
        let ruleset = if layers.landlock { deny_all_paths() } else { None };
        let filter = seccomp::program(seccomp::Kernel::Host).map_err(|_| Failed { step: Step::Seccomp, errno: libc::ENOSYS })?;
        let (namespaces, own_uid, landlock_abi, inner) = (0, false, landlock_abi(), INNER_ID);
        let mut ground = Self { layers, namespaces, own_uid, landlock_abi, ruleset, filter, proc, inner };
        ground.try_namespaces(outer.filter(|_| layers.own_uid));
        Ok(ground)
    }

    /// As [`Ground::prepare`], for processes that are root in a user namespace of their own and bring the rest of their walls along. `enter` moves
    /// the zygote into the root that they start from.
    pub(crate) fn prepare_for_root(layers: Layers, outer: Option<u32>, enter: impl FnOnce() -> Result<(), Failed>) -> Result<Self, Failed> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let proc = openat(rustix::fs::CWD, "/proc", flags, Mode::empty()).map_err(Step::Map.failed())?;
        enter()?;
        let namespaces = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
        let ground = Self { layers, namespaces, own_uid: true, landlock_abi: 0, ruleset: None, filter: BpfProgram::new(), proc, inner: 0 };
        if outer.is_some() && ground.try_fork(outer) { Ok(ground) } else { Err(Failed { step: Step::Clone, errno: libc::EPERM }) }
    }

    /// Threads and private writable bytes of the zygote.
    pub(crate) fn threads_and_data(&self) -> (u32, u64) {
        let status = self.read("self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
        };
        (u32::try_from(field("Threads:")).unwrap_or(0), field("VmData:") << 10)
    }

    /// Forks. In the parent this is the child's id; the child gets none and waits for [`Ground::admit`] to be done with it.
    pub(crate) fn fork(&self, born_into: Option<BorrowedFd<'_>>) -> Result<Option<Pid>, Failed> {
        clone(self.namespaces, born_into).map_err(Step::Clone.failed_io())
    }

    /// The parent's part: user id map and control groups of the new process.
    pub(crate) fn admit(&self, pid: Pid, outer: Option<u32>, join: &[OwnedFd]) -> Result<(), Failed> {
        if self.namespaces & libc::CLONE_NEWUSER != 0 {
            self.map_ids(pid, outer.filter(|_| self.own_uid)).map_err(Step::Map.failed_io())?;
        }
        let text = pid.as_raw_nonzero().to_string();
        for door in join {
            rustix::io::write(door, text.as_bytes()).map_err(Step::Cgroup.failed())?;
        }
        Ok(())
    }

    /// The child's part, all of it. What comes back is its socket and the channel to confirm on.
    pub(crate) fn confine(
        &self,
        layers: Layers,
        outer: Option<u32>,
        limits: &Rlimits,
        data_bytes: u64,
        ends: Ends<'_>,
    ) -> Result<(OwnedFd, OwnedFd), Failed> {
        if layers.no_capabilities {
            // Before the switch of ids, which may take the right to do it.
            forbid_capabilities().map_err(Step::Capabilities.failed_io())?;
        }
        if let Some(outer) = outer.filter(|_| self.own_uid) {
            let _ = rustix::thread::set_thread_groups(&[]);
            switch_ids(if self.namespaces & libc::CLONE_NEWUSER == 0 { outer } else { self.inner }).map_err(Step::Ids.failed())?;
        }
        if self.namespaces & libc::CLONE_NEWUTS != 0 {
            rustix::system::sethostname(b"cell").map_err(Step::HostName.failed())?;
        }
        if layers.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(Step::Privileges.failed())?;
        }
        if let (true, Some(ruleset)) = (layers.landlock, &self.ruleset) {
            let own = ruleset.try_clone().map_err(Step::Landlock.failed_io())?;
            own.restrict_self().map_err(|_| Failed { step: Step::Landlock, errno: libc::EPERM })?;
        }
        let (socket, confirm) = close_descriptors(ends, layers.close_descriptors).map_err(Step::Descriptors.failed_io())?;
        if layers.rlimits {
            set_rlimits(limits, data_bytes).map_err(Step::Rlimits.failed())?;
        }
        if layers.no_capabilities {
            drop_capabilities().map_err(Step::Capabilities.failed())?;
        }
        // After every change of identity, because such a change takes it back.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Step::Zygote.failed())?;
        if layers.not_dumpable {
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Step::Dumpable.failed())?;
        }
        reset_signals().map_err(Step::Signals.failed_io())?;
        if layers.close_descriptors && hung_up(confirm.as_fd()) {
            return Err(Failed { step: Step::Zygote, errno: libc::ESRCH });
        }
        if layers.seccomp {
            seccomp::lock(&self.filter).map_err(Step::Seccomp.failed_io())?;
        }
        Ok((socket, confirm))
    }

    /// Finds the most that `clone3` and the id map allow here: everything, or without ids of our own, or one namespace at a time.
    fn try_namespaces(&mut self, outer: Option<u32>) {
        let root = rustix::process::geteuid().is_root() && outer.is_some();
        let all = if self.layers.namespaces { NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag) } else { 0 };
        for (flags, own_uid) in [(all, root), (all, false)] {
            (self.namespaces, self.own_uid) = (flags, own_uid);
            if self.try_fork(outer) {
                return;
            }
        }
        let mut kept = 0;
        for flag in NAMESPACE_FLAGS.into_iter().filter(|flag| all & flag != 0) {
            (self.namespaces, self.own_uid) = (kept | flag, false);
            if self.try_fork(outer) {
                kept |= flag;
            }
        }
        (self.namespaces, self.own_uid) = (kept, root);
        if !self.try_fork(outer) {
            self.own_uid = false;
        }
    }

    fn try_fork(&self, outer: Option<u32>) -> bool {
        let Ok((ours, theirs)) = socket_pair() else { return false };
        match self.fork(None) {
            Err(_) => false,
            Ok(None) => {
                drop(ours);
                let _ = crate::stream::recv(theirs.as_fd(), &mut [0]);
                let switched = self.own_uid && outer.is_some();
                let id = outer.filter(|_| self.namespaces & libc::CLONE_NEWUSER == 0).unwrap_or(self.inner);
                exit(if switched && switch_ids(id).is_err() { 1 } else { 0 })
            }
            Ok(Some(pid)) => {
                drop(theirs);
                let admitted = self.admit(pid, outer, &[]).is_ok();
                drop(ours);
                let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                admitted && matches!(ended, Ok(Some((_, status))) if status.exit_status() == Some(0))
            }
        }
    }

    /// One inner id, mapped to `outer`, or to whoever the zygote is.
    fn map_ids(&self, pid: Pid, outer: Option<u32>) -> io::Result<()> {
        let folder = pid.as_raw_nonzero();
        if outer.is_none() {
            write_at(&self.proc, &format!("{folder}/setgroups"), "deny")?;
        }
        let uid = outer.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let gid = outer.unwrap_or_else(|| rustix::process::getegid().as_raw());
        let inner = self.inner;
        write_at(&self.proc, &format!("{folder}/uid_map"), &format!("{inner} {uid} 1"))?;
        write_at(&self.proc, &format!("{folder}/gid_map"), &format!("{inner} {gid} 1"))
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        std::fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }
}

/// The two descriptors a cell may keep through its confinement, and for a sandbox that is a probe where its words go.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) confirm: BorrowedFd<'a>,
    pub(crate) said: Option<BorrowedFd<'a>>,
}

/// A pair of message sockets.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Ends the process without running anything of the image it was forked from.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return; it is the one call that is right in a forked child.
    unsafe { libc::_exit(code) }
}

/// `fork` with namespaces. Sound only in a process with one thread, which the callers have just checked.
fn clone(namespaces: i32, born_into: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    // SAFETY: all fields are integers, for which zero is valid and means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = born_into {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: the pointer and size describe a live `clone_args`. Without CLONE_VM and with stack 0 the child continues on a private copy of
    // this stack, as after fork; the zygote has one thread, so no lock can be held by a thread that does not exist in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

/// Moves the calling process for good into a root without entries, on a mount that cannot be written. `proc` stays reachable by descriptor only.
fn enter_empty_root(proc: &OwnedFd) -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        // SAFETY: a new mount namespace leaves descriptors and memory alone; the process has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    } else {
        // SAFETY: as above; the user namespace is what allows somebody else than root to have a mount namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)? };
        write_at(proc, "self/setgroups", "deny")?;
        write_at(proc, "self/uid_map", &format!("0 {} 1", uid.as_raw()))?;
        write_at(proc, "self/gid_map", &format!("0 {} 1", gid.as_raw()))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cell", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=2,mode=0555")?;
    rustix::process::chdir("/proc")?;
    // The old root ends up stacked on the new one, from where it is taken off.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn deny_all_paths() -> Option<RulesetCreated> {
    let all = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let all = all.handle_access(AccessFs::from_all(LANDLOCK)).ok()?;
    let all = all.handle_access(AccessNet::from_all(LANDLOCK)).ok()?;
    all.scope(Scope::from_all(LANDLOCK)).ok()?.create().ok()
}

/// The kernel's Landlock interface version, 0 for none.
fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with the version flag the kernel reads no pointer and returns a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

pub(crate) fn switch_ids(id: u32) -> rustix::io::Result<()> {
    use rustix::fs::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Puts socket and confirmation channel on their numbers and closes everything else, standard input, output and error included.
fn close_descriptors(ends: Ends<'_>, close: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let socket = rustix::io::fcntl_dupfd_cloexec(ends.socket, CONFIRM + 1)?;
    let confirm = rustix::io::fcntl_dupfd_cloexec(ends.confirm, CONFIRM + 1)?;
    if !close {
        return Ok((socket, confirm));
    }
    for (from, to) in [(socket, SOCKET), (confirm, CONFIRM)] {
        // SAFETY: whatever `to` was is not used any more: no value that owns a descriptor is touched or dropped in this process again,
        // it only ever continues in the cell's function or exits.
        if unsafe { libc::dup3(std::os::fd::IntoRawFd::into_raw_fd(from), to, libc::O_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    for (first, last) in [(0, SOCKET as u32 - 1), (CONFIRM as u32 + 1, u32::MAX)] {
        // SAFETY: closes descriptors only; see above for why nobody misses them.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: both numbers were made by `dup3` just now and belong to nobody else.
    unsafe { Ok((OwnedFd::from_raw_fd(SOCKET), OwnedFd::from_raw_fd(CONFIRM))) }
}

/// `data_bytes` is what the zygote's image already takes, which the limit counts too.
fn set_rlimits(limits: &Rlimits, data_bytes: u64) -> rustix::io::Result<()> {
    let set = |resource, most: u64| rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    for resource in
        [Resource::Core, Resource::Fsize, Resource::Nproc, Resource::Memlock, Resource::Msgqueue, Resource::Nice, Resource::Rtprio]
    {
        set(resource, 0)?;
    }
    // Never above what we were given ourselves.
    let own = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    set(Resource::Nofile, own.min(limits.descriptors.into()))?;
    if limits.cpu_seconds != u64::MAX {
        set(Resource::Cpu, limits.cpu_seconds)?;
    }
    if limits.data_bytes != u64::MAX {
        // The soft limit alone: a pooled cell's may have to grow, and the cell has no call left to move it.
        let maximum = rustix::process::getrlimit(Resource::Data).maximum;
        let current = Some(data_bytes.saturating_add(limits.data_bytes).min(maximum.unwrap_or(u64::MAX)));
        rustix::process::setrlimit(Resource::Data, Rlimit { current, maximum })?;
    }
    Ok(())
}

/// Empties the bounding set and locks the ways in which a user id could bring capabilities back.
fn forbid_capabilities() -> io::Result<()> {
    const LOCKED: i32 = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    if !rustix::thread::capabilities(None)?.effective.contains(rustix::thread::CapabilitySet::SETPCAP) {
        // Without user namespaces and not root: there is nothing to lose, and no_new_privs keeps it so.
        return Ok(());
    }
    prctl(libc::PR_SET_SECUREBITS, LOCKED as u64)?;
    bound_capabilities(&[])
}

/// Takes everything but these out of the bounding set.
pub(crate) fn bound_capabilities(kept: &[u32]) -> io::Result<()> {
    const CAPABILITIES_MAX: u32 = 64;
    for capability in (0..CAPABILITIES_MAX).filter(|capability| !kept.contains(capability)) {
        match prctl(libc::PR_CAPBSET_DROP, capability.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn prctl(option: i32, argument: u64) -> io::Result<()> {
    // SAFETY: the two options used above take integers only.
    if unsafe { libc::prctl(option, argument, 0, 0, 0) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Empties the other four capability sets.
fn drop_capabilities() -> rustix::io::Result<()> {
    let none = rustix::thread::CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Default action for the faults the runtime handles by printing (a cell cannot print), and nothing blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: installs the default action, no handler address is involved.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    set_blocked(&[]).map(drop)
}

/// Blocks exactly these signals; returns the set that was asked for, as `signalfd` wants it.
pub(crate) fn set_blocked(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: an all-zero set is valid memory for `sigemptyset` to fill.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live set for all these calls; the old mask is not asked for.
    let outcome = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(set) }
}

pub(crate) fn hung_up(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn write_at(folder: &OwnedFd, path: &str, text: &str) -> io::Result<()> {
    let file = openat(folder, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 2 groups are entered at birth. The kernel's own answer, in whatever version 2 hierarchy is mounted here.
    #[test]
    fn a_fork_is_born_into_its_group() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(line) = mounts.lines().find(|line| line.contains(" - cgroup2 ")) else {
            println!("SKIPPED: no version 2 control groups are mounted here");
            return;
        };
        let name = format!("insula-test-{}", std::process::id());
        let path = std::path::Path::new(line.split(' ').nth(4).unwrap()).join(&name);
        std::fs::create_dir(&path).unwrap();
        let group = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        let (ours, theirs) = socket_pair().unwrap();
        let Some(pid) = clone(0, Some(group.as_fd())).unwrap() else {
            drop(ours);
            let _ = crate::stream::recv(theirs.as_fd(), &mut [0]);
            exit(0)
        };
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap();
        drop(ours);
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert!(groups.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{groups}");
    }

    #[test]
    fn every_step_has_its_words() {
        for (step, words) in Step::ALL {
            assert_eq!((Step::from_number(step as u8), step.words()), (Some(step), words));
        }
        assert_eq!(Step::from_number(0), None);
    }
}
