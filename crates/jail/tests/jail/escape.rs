//! The evil cell: every way out we could think of, one process each, through the real launcher. All fail.
//!
//! Each row has two columns: what happens to a fully confined cell, and what happens when the system call filter alone is missing. The second column is
//! the negative control (the same attempt ends differently, so the first can go red) and shows the second wall: `OPEN` means that there is
//! none but the filter, for calls that reach nothing outside the cell's own namespaces and memory. A third test takes more walls down and sees
//! attempts succeed.

use std::{
    io::{Read, Write},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    time::Duration,
};

use jail::{Layers, Limits, stream, zygote::Launcher};

use super::{
    LIMITS,
    Outcome::{self, Answer, Code, OutOfMemory, Signal},
    answer, attempt, outcome, socket_of, start,
};

/// Killed by the system call filter.
pub(super) const FILTER: Outcome = Signal(libc::SIGSYS);
/// Nothing but the filter is in the way: any number that is no error.
const OPEN: Outcome = Answer(i64::MAX);

const fn refused(errno: i32) -> Outcome {
    Answer(-(errno as i64))
}

/// Name, what a cell meets, what it meets behind the filter.
#[rustfmt::skip]
pub(super) const WAYS_OUT: &[(&str, Outcome, Outcome)] = &[
    ("fexecve", FILTER, refused(libc::ENOEXEC)),
    ("ptrace_zygote", FILTER, refused(libc::ESRCH)),
    ("process_vm_readv", FILTER, refused(libc::ESRCH)),
    ("connect_loopback", FILTER, refused(libc::EACCES)),
    ("connect_abstract", FILTER, refused(libc::ECONNREFUSED)),
    ("chroot_dance", FILTER, refused(libc::EPERM)),
    ("write_descriptors", FILTER, refused(libc::EBADF)),
    ("send_descriptors", refused(libc::EBADF), refused(libc::EBADF)),
    ("send_elsewhere", refused(libc::EISCONN), refused(libc::EISCONN)),
    ("forge_credentials", refused(libc::EINVAL), refused(libc::EINVAL)),
    ("int80", FILTER, OPEN),
    ("memory", OutOfMemory, OutOfMemory),
    ("memory_by_brk", OutOfMemory, OutOfMemory),
    ("spin", Signal(libc::SIGKILL), Signal(libc::SIGKILL)),
    ("stack", Signal(libc::SIGSEGV), Signal(libc::SIGSEGV)),
    ("null", Signal(libc::SIGSEGV), Signal(libc::SIGSEGV)),
    ("panic", FILTER, Signal(libc::SIGSEGV)),
    ("abort", FILTER, Signal(libc::SIGSEGV)),
    ("open", FILTER, refused(libc::ENOENT)),
    ("openat", FILTER, refused(libc::ENOENT)),
    ("openat2", FILTER, refused(libc::ENOENT)),
    ("open_proc", FILTER, refused(libc::ENOENT)),
    ("open_root", FILTER, refused(libc::EACCES)),
    ("open_dev_null", FILTER, refused(libc::ENOENT)),
    ("open_dev_mem", FILTER, refused(libc::ENOENT)),
    ("open_dev_vda", FILTER, refused(libc::ENOENT)),
    ("open_dev_shm", FILTER, refused(libc::ENOENT)),
    ("open_cgroup", FILTER, refused(libc::ENOENT)),
    ("creat", FILTER, refused(libc::EROFS)),
    ("o_tmpfile", FILTER, refused(libc::EROFS)),
    ("unlink", FILTER, refused(libc::EROFS)),
    ("stat", FILTER, refused(libc::ENOENT)),
    ("readlink", FILTER, refused(libc::ENOENT)),
    ("socket_inet", FILTER, OPEN),
    ("socket_inet6", FILTER, OPEN),
    ("socket_unix", FILTER, OPEN),
    ("socket_netlink", FILTER, OPEN),
    ("socket_packet", FILTER, refused(libc::EPERM)),
    ("socket_raw", FILTER, refused(libc::EPERM)),
    ("socket_vsock", FILTER, OPEN),
    ("socket_alg", FILTER, refused(libc::EAFNOSUPPORT)),
    ("socketpair", FILTER, OPEN),
    ("bind", FILTER, refused(libc::EROFS)),
    ("io_uring_setup", FILTER, refused(libc::ENOMEM)),
    ("bpf", FILTER, refused(libc::EINVAL)),
    ("ptrace_parent", FILTER, refused(libc::ESRCH)),
    ("ptrace_traceme", FILTER, OPEN),
    ("kill_parent", FILTER, refused(libc::ESRCH)),
    ("kill_all", FILTER, refused(libc::ESRCH)),
    ("kill_group", FILTER, OPEN),
    ("kill_init", FILTER, OPEN),
    ("tgkill", FILTER, refused(libc::ESRCH)),
    ("pidfd_open", FILTER, refused(libc::ESRCH)),
    ("fork", FILTER, refused(libc::EAGAIN)),
    ("vfork", FILTER, refused(libc::EAGAIN)),
    ("clone3", FILTER, refused(libc::EAGAIN)),
    ("execve", FILTER, refused(libc::ENOENT)),
    ("execve_self", FILTER, refused(libc::ENOENT)),
    ("memfd_create", FILTER, OPEN),
    ("memfd_secret", FILTER, OPEN),
    ("mmap_exec", FILTER, OPEN),
    ("mmap_write_exec", FILTER, OPEN),
    ("mmap_null", refused(libc::EPERM), refused(libc::EPERM)),
    ("mmap_huge", refused(libc::ENOMEM), refused(libc::ENOMEM)),
    ("mmap_locked", refused(libc::EPERM), refused(libc::EPERM)),
    ("mprotect_exec", FILTER, OPEN),
    ("pkey_mprotect", FILTER, OPEN),
    ("madvise_poison", refused(libc::EINVAL), refused(libc::EINVAL)),
    ("mlock", FILTER, refused(libc::EPERM)),
    ("personality", FILTER, OPEN),
    ("setuid", FILTER, refused(libc::EINVAL)),
    ("setgid", FILTER, refused(libc::EINVAL)),
    ("setgroups", FILTER, refused(libc::EPERM)),
    ("capset", FILTER, refused(libc::EPERM)),
    ("unshare_user", FILTER, OPEN),
    ("unshare_net", FILTER, refused(libc::EPERM)),
    ("setns", FILTER, refused(libc::EINVAL)),
    ("mount", FILTER, refused(libc::EPERM)),
    ("remount", FILTER, refused(libc::EPERM)),
    ("umount", FILTER, refused(libc::EPERM)),
    ("pivot_root", FILTER, refused(libc::EPERM)),
    ("chroot", FILTER, refused(libc::EPERM)),
    ("fsopen", FILTER, refused(libc::EPERM)),
    ("open_tree", FILTER, refused(libc::EPERM)),
    ("mknod", FILTER, refused(libc::EROFS)),
    ("userfaultfd", FILTER, OPEN),
    ("perf_event_open", FILTER, refused(libc::EACCES)),
    ("keyctl", FILTER, OPEN),
    ("add_key", FILTER, OPEN),
    ("kexec", FILTER, refused(libc::ENOSYS)),
    ("init_module", FILTER, refused(libc::ENOSYS)),
    ("delete_module", FILTER, refused(libc::ENOSYS)),
    ("reboot", FILTER, refused(libc::EPERM)),
    ("syslog", FILTER, refused(libc::EPERM)),
    ("iopl", FILTER, refused(libc::ENOSYS)),
    ("modify_ldt", FILTER, OPEN),
    ("clock_settime", FILTER, refused(libc::EPERM)),
    ("sethostname", FILTER, refused(libc::EPERM)),
    ("shmget", FILTER, OPEN),
    ("msgget", FILTER, OPEN),
    ("semget", FILTER, OPEN),
    ("mq_open", FILTER, refused(libc::EMFILE)),
    ("inotify", FILTER, OPEN),
    ("fanotify", FILTER, refused(libc::EPERM)),
    ("name_to_handle_at", FILTER, refused(libc::ENOENT)),
    ("open_by_handle_at", FILTER, refused(libc::EPERM)),
    ("dumpable", FILTER, OPEN),
    ("outlive", FILTER, OPEN),
    ("prctl_seccomp", FILTER, refused(libc::EINVAL)),
    ("prlimit", FILTER, refused(libc::EPERM)),
    ("prlimit_parent", FILTER, refused(libc::ESRCH)),
    ("setaffinity_parent", FILTER, refused(libc::ESRCH)),
    ("setpriority", FILTER, refused(libc::EACCES)),
    ("tiocsti", FILTER, refused(libc::EBADF)),
    ("fcntl_dup", FILTER, refused(libc::EINVAL)),
    ("fcntl_owner", FILTER, OPEN),
    ("dup", FILTER, OPEN),
    ("pipe", FILTER, OPEN),
    ("eventfd", FILTER, OPEN),
    ("read", FILTER, OPEN),
    ("getpid", FILTER, OPEN),
    ("x32", FILTER, refused(libc::ENOSYS)),
    ("unknown", FILTER, refused(libc::ENOSYS)),
];

/// The other end of what some rows try to reach: a listener in the abstract namespace and one on the loopback interface.
struct Outside {
    _abstract: UnixListener,
    tcp: std::net::TcpListener,
}

impl Outside {
    fn new() -> Self {
        let name = SocketAddr::from_abstract_name(format!("insula-escape-{}", std::process::id())).unwrap();
        Self { _abstract: UnixListener::bind_addr(&name).unwrap(), tcp: std::net::TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    /// The order for a row: its name, the number it needs, the zygote's id.
    fn order(&self, launcher: &Launcher, name: &str) -> String {
        let number = match name {
            "memory" | "memory_by_brk" => 64 << 20,
            "connect_loopback" => u32::from(self.tcp.local_addr().unwrap().port()),
            _ => std::process::id(),
        };
        format!("{name} {number} {}", launcher.pid())
    }
}

/// Runs one column of the table and lists every row that came out differently.
fn check(launcher: &Launcher, column: impl Fn(&(&str, Outcome, Outcome)) -> Outcome) {
    let outside = Outside::new();
    let mut wrong = Vec::new();
    for row in WAYS_OUT {
        let (expected, got) = (column(row), attempt(launcher, &LIMITS, &outside.order(launcher, row.0)));
        let same = if expected == OPEN { matches!(got, Answer(0..)) } else { got == expected };
        if !same {
            wrong.push(format!("{}: {got:?} instead of {expected:?}", row.0));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_way_out() {
    assert!(WAYS_OUT.len() >= 40);
    check(&start(Layers::ALL), |row| row.1);
}

#[test]
fn behind_the_filter_stands_a_second_wall() {
    check(&start(Layers { seccomp: false, ..Layers::ALL }), |row| row.2);
}

/// The negative control of the second column: what it sees refused succeeds when those walls are down too.
#[test]
fn with_the_walls_down_they_get_out() {
    let launcher = start(Layers { close_descriptors: true, ..Layers::NONE });
    let outside = Outside::new();
    for name in [
        "open",
        "openat",
        "openat2",
        "open_proc",
        "open_root",
        "open_dev_null",
        "open_cgroup",
        "stat",
        "readlink",
        "connect_loopback",
        "connect_abstract",
        "kill_parent",
        "tgkill",
        "pidfd_open",
        "setuid",
        "chroot",
        "fsopen",
        "open_tree",
        "unshare_net",
        "prlimit",
        "mlock",
        "perf_event_open",
        "memory",
        "memory_by_brk",
        "forge_credentials",
        "fcntl_dup",
    ] {
        let got = attempt(&launcher, &LIMITS, &outside.order(&launcher, name));
        assert!(matches!(got, Answer(0..)), "{name}: {got:?}");
    }
    assert_eq!(attempt(&launcher, &LIMITS, "execve"), Code(0));
}

#[test]
fn the_list_is_enough_to_work_with() {
    assert_eq!(
        attempt(&start(Layers::ALL), &Limits { memory_bytes: 64 << 20, ..LIMITS }, "echo"),
        Answer(2 * (10 + 10_000 + (1 << 20) + (8 << 20)))
    );
}

/// A cell that sends without end is stopped by its full socket; the service takes in only what it has room for.
#[test]
fn a_flood_is_held_back() {
    let launcher = start(Layers::ALL);
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"flood").unwrap();
    let mut room = [0; 1000];
    assert!((1..=room.len()).contains(&stream::recv(socket.as_fd(), &mut room).unwrap().0));
    assert_eq!(cell.wait(Duration::from_millis(300)), None, "it waits for the reader");
    // Far less than one processor second was spent on it, so it really slept.
    let held_back = cell.usage().cpu_micros;
    assert!(held_back < 200_000, "{held_back} µs");
    drop(cell);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(rest.len() < 4 << 20, "{} bytes were queued", rest.len());
}

/// Two descriptors in each message: one is handed to the caller, the other is closed.
#[test]
fn gifts_do_not_pile_up() {
    let launcher = start(Layers::ALL);
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"gift 5").unwrap();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for _ in 0..5 {
        let (bytes, gift) = stream::recv(socket.as_fd(), &mut [0]).unwrap();
        assert_eq!((bytes, gift.is_some()), (1, true));
    }
    assert_eq!(answer(&mut socket), Some(Answer(1)));
    assert_eq!(std::fs::read_dir("/proc/self/fd").unwrap().count(), before);
    // And no more than its own limit of descriptors can be on the way at once.
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"gift 100").unwrap();
    assert_eq!(outcome(&cell), Code(0));
    while stream::recv(socket.as_fd(), &mut [0]).unwrap().1.is_some() {}
    let mut rest = [0; 7];
    socket.read_exact(&mut rest).unwrap();
    assert_eq!(rest, (-i64::from(libc::ETOOMANYREFS)).to_le_bytes()[1..]);
}

#[test]
fn a_hoarder_of_descriptors_has_its_limit() {
    let launcher = start(Layers::ALL);
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"hoard 50").unwrap();
    socket.read_exact(&mut [0]).unwrap();
    for _ in 0..50 {
        stream::send(socket.as_fd(), b"x", Some(socket.as_fd())).unwrap();
    }
    let Some(Answer(kept)) = answer(&mut socket) else { panic!("{:?}", outcome(&cell)) };
    assert!(kept > 0 && kept < i64::from(LIMITS.descriptors_max), "kept {kept}");
}
