//! The prisoner: a zygote whose cells try to get out, one way each, as the test tells them over their socket.
//!
//! The test sends `name number number`; the cell answers with what the kernel returned as eight bytes (negative: an error number), if it still can.
//! Built for `tests/jail/` only. It runs through the real launcher like any other program.

#![allow(clippy::indexing_slicing, clippy::print_stdout, reason = "a test program; an out-of-bounds panic is one more way to die")]

use std::os::fd::{AsFd, OwnedFd};

use jail::{Floor, Layers, Limits, gvisor, memory::Room, stream, zygote};

/// The number of the cell's socket.
const SOCKET: usize = 3;
const PAGE_BYTES: usize = 4096;
const UNIX_ADDRESS: &[u8] = b"\x01\0/x";
const NOWHERE: &std::ffi::CStr = c"/etc/passwd";

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("service") => service(),
        Some("report") => report(),
        Some("keeper") => {
            if let Ok(control) = zygote::control() {
                let open = std::env::args().nth(2);
                gvisor::serve(control, &[open.as_deref().unwrap_or("inside")]);
            }
        }
        Some("open") => open(),
        Some("open-but-for-probes") if std::env::var_os("INSULA_PROBE").is_none() => open(),
        Some("inside" | "open-but-for-probes") => println!("{}", gvisor::enter(prisoner)),
        other => {
            if other == Some("threads") {
                std::thread::spawn(std::thread::park);
            }
            if let Ok(control) = zygote::control() {
                zygote::serve(control, prisoner);
            }
        }
    }
}

/// A guest that does not lock itself.
fn open() {
    if let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() {
        let _ = stream::send(socket.as_fd(), if std::env::var_os("INSULA_PROBE").is_some() { b"gvisor" } else { b"" }, None);
        prisoner(socket);
    }
}

/// A service of its own, for the test to kill: prints the ids of its zygote and its cell, then sleeps. Under gVisor when it is told where `runsc` is.
fn service() {
    let limits = Limits { memory_bytes: 256 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: None, descriptors_max: 16 };
    let program = std::env::current_exe().unwrap_or_default();
    let launcher = match std::env::args_os().nth(2) {
        None => zygote::Launcher::start(&program, &[], &[], Floor::Development),
        Some(runsc) => zygote::Launcher::start_gvisor(&program, &["keeper"], &[], runsc.as_ref(), Floor::Development),
    };
    let Ok(launcher) = launcher else { return };
    let Ok(cell) = launcher.spawn(&limits) else { return };
    println!("{} {}", launcher.pid(), cell.pid());
    std::thread::park();
}

/// Prints the report as somebody else than root sees it; a second argument leaves memory readable.
fn report() {
    let program = std::env::current_exe().unwrap_or_default();
    let report = match std::env::args().nth(2) {
        None => zygote::Launcher::probe(&program, &[], &[]),
        Some(_) => {
            let layers = Layers { not_dumpable: false, ..Layers::ALL };
            zygote::Launcher::start_weakened(&program, &[], &[], layers).map(|launcher| launcher.report().clone())
        }
    };
    match report {
        Ok(report) => println!("{report}\nstrict: {:?}\ndevelopment: {:?}", report.check(Floor::Strict), report.check(Floor::Development)),
        Err(error) => println!("{error}"),
    }
}

fn prisoner(socket: OwnedFd) {
    let mut order = [0; 128];
    let Ok((bytes, _attached)) = stream::recv(socket.as_fd(), &mut order) else { return };
    let order = String::from_utf8_lossy(&order[..bytes]);
    let mut words = order.split(' ');
    let name = words.next().unwrap_or("");
    let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let (first, second) = (number(), number());
    if name == "room" {
        return room(&socket, first);
    }
    let result = escape(name, first, second).or_else(|| plain(name, first)).unwrap_or(i64::MIN);
    let _ = stream::send(socket.as_fd(), &result.to_le_bytes(), None);
}

/// Says where a block lies that was allocated in a room, and again when the room is gone; waits for a word after each.
fn room(socket: &OwnedFd, bytes: usize) {
    let mut room = Some(Room::make(2 * bytes));
    let held = std::hint::black_box(vec![1_u8; bytes]);
    let inside = held.as_ptr().addr() + bytes / 2;
    for _ in 0..2 {
        let _ = stream::send(socket.as_fd(), &inside.to_le_bytes(), None);
        let _ = stream::recv(socket.as_fd(), &mut [0]);
        room = None;
    }
    drop((room, held));
}

/// Ways that need more than one system call, or memory.
// Long because it is a table: a line an attack.
fn escape(name: &str, pid: usize, zygote: usize) -> Option<i64> {
    Some(match name {
        "echo" => echo(),
        "fexecve" => {
            let fd = call(libc::SYS_memfd_create, [at(c"x"), 0, 0]);
            if fd < 0 { fd } else { call(libc::SYS_execveat, [fd as usize, at(c""), 0, 0, libc::AT_EMPTY_PATH as usize]) }
        }
        "ptrace_zygote" => call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, zygote]),
        "process_vm_readv" => {
            let (mut word, local) = (0_u64, 8);
            let own = [&raw mut word as usize, local];
            call(libc::SYS_process_vm_readv, [pid, own.as_ptr() as usize, 1, own.as_ptr() as usize, 1])
        }
        "connect_loopback" => {
            let address: [u16; 8] = [libc::AF_INET as u16, (pid as u16).to_be(), 0x007f, 0x0100, 0, 0, 0, 0];
            let fd = call(libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_STREAM as usize]);
            if fd < 0 { fd } else { call(libc::SYS_connect, [fd as usize, address.as_ptr() as usize, 16]) }
        }
        "connect_abstract" => {
            let mut address = [0_u8; 32];
            address[0] = libc::AF_UNIX as u8;
            let text = format!("insula-escape-{pid}");
            address[3..3 + text.len()].copy_from_slice(text.as_bytes());
            let fd = call(libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_STREAM as usize]);
            if fd < 0 { fd } else { call(libc::SYS_connect, [fd as usize, address.as_ptr() as usize, 3 + text.len()]) }
        }
        "chroot_dance" => {
            let _ = call(libc::SYS_mkdir, [at(c"x"), 0o700]);
            let _ = call(libc::SYS_chroot, [at(c"x")]);
            for _ in 0..64 {
                let _ = call(libc::SYS_chdir, [at(c"..")]);
            }
            let out = call(libc::SYS_chroot, [at(c".")]);
            if out < 0 { out } else { call(libc::SYS_open, [at(NOWHERE), 0]) }
        }
        "write_descriptors" => (0..1024).filter(|fd| *fd != SOCKET).map(|fd| call(libc::SYS_write, [fd, at(c"x"), 1])).max().unwrap_or(-1),
        "send_descriptors" => {
            let part = [at(c"x"), 1];
            let message = [0, 0, part.as_ptr() as usize, 1, 0, 0, 0];
            (0..1024)
                .filter(|fd| *fd != SOCKET)
                .map(|fd| call(libc::SYS_sendmsg, [fd, message.as_ptr() as usize, libc::MSG_NOSIGNAL as usize]))
                .max()
                .unwrap_or(-1)
        }
        "send_elsewhere" => {
            let part = [at(c"x"), 1];
            let message = [UNIX_ADDRESS.as_ptr() as usize, UNIX_ADDRESS.len(), part.as_ptr() as usize, 1, 0, 0, 0];
            call(libc::SYS_sendmsg, [SOCKET, message.as_ptr() as usize, 0])
        }
        "forge_credentials" => {
            // One control message of 28 bytes: length, level and type, then pid, uid, gid.
            let level_and_type = (libc::SCM_CREDENTIALS as usize) << 32 | libc::SOL_SOCKET as usize;
            let control = [28_usize, level_and_type, 1, 0];
            let part = [at(c"x"), 1];
            let message = [0, 0, part.as_ptr() as usize, 1, control.as_ptr() as usize, 32, 0];
            call(libc::SYS_sendmsg, [SOCKET, message.as_ptr() as usize, 0])
        }
        "int80" => int80(),
        "memory" => eat(pid),
        "memory_by_brk" => {
            let start = call(libc::SYS_brk, [0]) as usize;
            let end = call(libc::SYS_brk, [start + pid]) as usize;
            touch(start, end - start)
        }
        "spin" => loop {
            std::hint::spin_loop();
        },
        "stack" => deeper(0) as i64,
        "null" => touch(0, 1),
        "flood" => loop {
            let sent = stream::send(borrowed(), &[0; 1 << 16], None);
            if let Err(error) = sent {
                return Some(-i64::from(error.raw_os_error().unwrap_or(1)));
            }
        },
        "gift" => (0..pid).map(|_| attach_twice()).min().unwrap_or(0),
        "hoard" => hoard(pid),
        "panic" => std::panic::resume_unwind(Box::new("out")),
        "abort" => std::process::abort(),
        _ => return None,
    })
}

/// Ways that are one system call. Arguments that make it succeed where nothing forbids it.
// Long because it is a table: a line an attack.
fn plain(name: &str, pid: usize) -> Option<i64> {
    use libc as c;
    let exec = c::PROT_READ as usize | c::PROT_EXEC as usize;
    let anonymous = (c::MAP_PRIVATE | c::MAP_ANONYMOUS) as usize;
    let (number, arguments): (i64, Vec<usize>) = match name {
        "open" => (c::SYS_open, vec![at(NOWHERE), 0]),
        "openat" => (c::SYS_openat, vec![here(), at(NOWHERE), 0]),
        "openat2" => (c::SYS_openat2, vec![here(), at(NOWHERE), [0_usize; 3].as_ptr() as usize, 24]),
        "open_proc" => (c::SYS_open, vec![at(c"/proc/self/status"), 0]),
        "open_root" => (c::SYS_open, vec![at(c"/"), c::O_DIRECTORY as usize]),
        "open_dev_null" => (c::SYS_open, vec![at(c"/dev/null"), 0]),
        "open_dev_mem" => (c::SYS_open, vec![at(c"/dev/mem"), 0]),
        "open_dev_vda" => (c::SYS_open, vec![at(c"/dev/vda"), 0]),
        "open_dev_shm" => (c::SYS_open, vec![at(c"/dev/shm/x"), (c::O_CREAT | c::O_RDWR) as usize, 0o600]),
        "open_cgroup" => (c::SYS_open, vec![at(c"/sys/fs/cgroup"), 0]),
        "creat" => (c::SYS_creat, vec![at(c"/x"), 0o600]),
        "o_tmpfile" => (c::SYS_open, vec![at(c"/"), (c::O_TMPFILE | c::O_RDWR) as usize, 0o600]),
        "unlink" => (c::SYS_unlink, vec![at(c"/x")]),
        "stat" => (c::SYS_access, vec![at(NOWHERE), 0]),
        "readlink" => (c::SYS_readlink, vec![at(c"/proc/self/exe"), scratch(), 64]),
        "socket_inet" => (c::SYS_socket, vec![c::AF_INET as usize, c::SOCK_STREAM as usize]),
        "socket_inet6" => (c::SYS_socket, vec![c::AF_INET6 as usize, c::SOCK_DGRAM as usize]),
        "socket_unix" => (c::SYS_socket, vec![c::AF_UNIX as usize, c::SOCK_STREAM as usize]),
        "socket_netlink" => (c::SYS_socket, vec![c::AF_NETLINK as usize, c::SOCK_RAW as usize]),
        "socket_packet" => (c::SYS_socket, vec![c::AF_PACKET as usize, c::SOCK_RAW as usize]),
        "socket_raw" => (c::SYS_socket, vec![c::AF_INET as usize, c::SOCK_RAW as usize, 1]),
        "socket_vsock" => (c::SYS_socket, vec![c::AF_VSOCK as usize, c::SOCK_STREAM as usize]),
        "socket_alg" => (c::SYS_socket, vec![c::AF_ALG as usize, c::SOCK_SEQPACKET as usize]),
        "socketpair" => (c::SYS_socketpair, vec![c::AF_UNIX as usize, c::SOCK_STREAM as usize, 0, scratch()]),
        "bind" => (c::SYS_bind, vec![SOCKET, UNIX_ADDRESS.as_ptr() as usize, UNIX_ADDRESS.len()]),
        "io_uring_setup" => (c::SYS_io_uring_setup, vec![1, scratch()]),
        "bpf" => (c::SYS_bpf, vec![0, scratch(), 48]),
        "ptrace_parent" => (c::SYS_ptrace, vec![c::PTRACE_SEIZE as usize, pid]),
        "ptrace_traceme" => (c::SYS_ptrace, vec![c::PTRACE_TRACEME as usize]),
        "kill_parent" => (c::SYS_kill, vec![pid, 0]),
        "kill_all" => (c::SYS_kill, vec![usize::MAX, 0]),
        "kill_group" => (c::SYS_kill, vec![0, 0]),
        "kill_init" => (c::SYS_kill, vec![1, c::SIGKILL as usize]),
        "tgkill" => (c::SYS_tgkill, vec![pid, pid, 0]),
        "pidfd_open" => (c::SYS_pidfd_open, vec![pid, 0]),
        "fork" => (c::SYS_fork, vec![]),
        "vfork" => (c::SYS_clone, vec![c::SIGCHLD as usize]),
        "clone3" => (c::SYS_clone3, vec![[0_usize, 0, 0, 0, 17, 0, 0, 0].as_ptr() as usize, 64]),
        "execve" => (c::SYS_execve, vec![at(c"/bin/true"), 0, 0]),
        "execve_self" => (c::SYS_execve, vec![at(c"/proc/self/exe"), 0, 0]),
        "memfd_create" => (c::SYS_memfd_create, vec![at(c"x"), 0]),
        "memfd_secret" => (c::SYS_memfd_secret, vec![0]),
        "mmap_exec" => (c::SYS_mmap, vec![0, PAGE_BYTES, exec, anonymous, usize::MAX, 0]),
        "mmap_write_exec" => (c::SYS_mmap, vec![0, PAGE_BYTES, exec | c::PROT_WRITE as usize, anonymous, usize::MAX, 0]),
        "mmap_null" => (c::SYS_mmap, vec![0, PAGE_BYTES, 3, anonymous | c::MAP_FIXED as usize, usize::MAX, 0]),
        "mmap_huge" => (c::SYS_mmap, vec![0, 2 << 20, 3, anonymous | c::MAP_HUGETLB as usize, usize::MAX, 0]),
        "mmap_locked" => (c::SYS_mmap, vec![0, 1 << 20, 3, anonymous | c::MAP_LOCKED as usize, usize::MAX, 0]),
        "mprotect_exec" => (c::SYS_mprotect, vec![page(), PAGE_BYTES, exec]),
        "pkey_mprotect" => (c::SYS_pkey_mprotect, vec![page(), PAGE_BYTES, exec, usize::MAX]),
        "madvise_poison" => (c::SYS_madvise, vec![page(), PAGE_BYTES, c::MADV_HWPOISON as usize]),
        "mlock" => (c::SYS_mlock, vec![page(), PAGE_BYTES]),
        "personality" => (c::SYS_personality, vec![c::READ_IMPLIES_EXEC as usize]),
        "setuid" => (c::SYS_setuid, vec![0]),
        "setgid" => (c::SYS_setgid, vec![0]),
        "setgroups" => (c::SYS_setgroups, vec![0, 0]),
        "capset" => (c::SYS_capset, vec![[0x2008_0522_u64].as_ptr() as usize, [u64::MAX; 3].as_ptr() as usize]),
        "unshare_user" => (c::SYS_unshare, vec![c::CLONE_NEWUSER as usize]),
        "unshare_net" => (c::SYS_unshare, vec![c::CLONE_NEWNET as usize]),
        "setns" => (c::SYS_setns, vec![SOCKET, 0]),
        "mount" => (c::SYS_mount, vec![at(c"x"), at(c"/"), at(c"proc"), 0, 0]),
        "remount" => (c::SYS_mount, vec![0, at(c"/"), 0, (c::MS_REMOUNT | c::MS_BIND) as usize, 0]),
        "umount" => (c::SYS_umount2, vec![at(c"/"), c::MNT_DETACH as usize]),
        "pivot_root" => (c::SYS_pivot_root, vec![at(c"/"), at(c"/")]),
        "chroot" => (c::SYS_chroot, vec![at(c"/")]),
        "fsopen" => (c::SYS_fsopen, vec![at(c"tmpfs"), 0]),
        "open_tree" => (c::SYS_open_tree, vec![here(), at(c"/"), 1]),
        "mknod" => (c::SYS_mknod, vec![at(c"/n"), (c::S_IFCHR | 0o600) as usize, 0x103]),
        "userfaultfd" => (c::SYS_userfaultfd, vec![1]),
        "perf_event_open" => (c::SYS_perf_event_open, vec![perf(), 0, usize::MAX, usize::MAX, 0]),
        "keyctl" => (c::SYS_keyctl, vec![0, usize::MAX - 3, 1]),
        "add_key" => (c::SYS_add_key, vec![at(c"user"), at(c"x"), at(c"x"), 1, usize::MAX - 3]),
        "kexec" => (c::SYS_kexec_load, vec![0, 0, 0, 0]),
        "init_module" => (c::SYS_init_module, vec![scratch(), 1, at(c"")]),
        "delete_module" => (c::SYS_delete_module, vec![at(c"x"), 0]),
        "reboot" => (c::SYS_reboot, vec![0xfee1_dead, 672_274_793, 0]),
        "syslog" => (c::SYS_syslog, vec![3, scratch(), 64]),
        "iopl" => (c::SYS_iopl, vec![3]),
        "modify_ldt" => (c::SYS_modify_ldt, vec![0, scratch(), 64]),
        "clock_settime" => (c::SYS_clock_settime, vec![0, [1_usize, 0].as_ptr() as usize]),
        "sethostname" => (c::SYS_sethostname, vec![at(c"x"), 1]),
        "shmget" => (c::SYS_shmget, vec![0x1234, PAGE_BYTES, (c::IPC_CREAT | 0o600) as usize]),
        "msgget" => (c::SYS_msgget, vec![0x1234, (c::IPC_CREAT | 0o600) as usize]),
        "semget" => (c::SYS_semget, vec![0x1234, 1, (c::IPC_CREAT | 0o600) as usize]),
        "mq_open" => (c::SYS_mq_open, vec![at(c"x"), (c::O_CREAT | c::O_RDWR) as usize, 0o600, 0]),
        "inotify" => (c::SYS_inotify_init1, vec![0]),
        "fanotify" => (c::SYS_fanotify_init, vec![0, 0]),
        "name_to_handle_at" => (c::SYS_name_to_handle_at, vec![here(), at(NOWHERE), scratch(), scratch(), 0]),
        "open_by_handle_at" => (c::SYS_open_by_handle_at, vec![SOCKET, handle(), 0]),
        "dumpable" => (c::SYS_prctl, vec![c::PR_SET_DUMPABLE as usize, 1]),
        "outlive" => (c::SYS_prctl, vec![c::PR_SET_PDEATHSIG as usize, 0]),
        "prctl_seccomp" => (c::SYS_prctl, vec![c::PR_SET_SECCOMP as usize, 0]),
        "prlimit" => (c::SYS_prlimit64, vec![0, c::RLIMIT_FSIZE as usize, [u64::MAX; 2].as_ptr() as usize, 0]),
        "prlimit_parent" => (c::SYS_prlimit64, vec![pid, c::RLIMIT_CPU as usize, [1_u64; 2].as_ptr() as usize, 0]),
        "setaffinity_parent" => (c::SYS_sched_setaffinity, vec![pid, 8, [1_u64].as_ptr() as usize]),
        "setpriority" => (c::SYS_setpriority, vec![0, 0, -20_isize as usize]),
        "tiocsti" => (c::SYS_ioctl, vec![0, c::TIOCSTI as usize, at(c"x")]),
        "fcntl_dup" => (c::SYS_fcntl, vec![SOCKET, c::F_DUPFD as usize, 900]),
        "fcntl_owner" => (c::SYS_fcntl, vec![SOCKET, c::F_SETOWN as usize, 1]),
        "dup" => (c::SYS_dup, vec![SOCKET]),
        "pipe" => (c::SYS_pipe, vec![scratch()]),
        "eventfd" => (c::SYS_eventfd2, vec![0, 0]),
        "read" => (c::SYS_read, vec![SOCKET, scratch(), 0]),
        "getpid" => (c::SYS_getpid, vec![]),
        "x32" => (0x4000_0000 | c::SYS_getpid, vec![]),
        "unknown" => (4_000, vec![]),
        _ => return None,
    };
    Some(call::<0>(number, arguments.as_slice()))
}

/// The cell at work with nothing but the list: memory of all sizes, a thread lock, randomness, a reply.
fn echo() -> i64 {
    let mut seen = std::collections::HashMap::new();
    for size in [10, 10_000, 1 << 20, 8 << 20] {
        let mut block = vec![1_u8; size];
        block.resize(size * 2, 2);
        seen.insert(size, block.len());
    }
    let lock = std::sync::Mutex::new(seen);
    let total = lock.lock().map(|seen| seen.values().sum::<usize>()).unwrap_or(0);
    let _ = std::time::Instant::now();
    let advised = call(libc::SYS_madvise, [page(), PAGE_BYTES, libc::MADV_DONTNEED as usize]);
    let flags = call(libc::SYS_mprotect, [page(), PAGE_BYTES, libc::PROT_READ as usize]);
    let woken = call(libc::SYS_futex, [page(), libc::FUTEX_WAKE as usize, 1]);
    if advised | flags | woken == 0 { total as i64 } else { -1 }
}

/// Takes `bytes` of fresh memory and touches every page.
fn eat(bytes: usize) -> i64 {
    let start = call(libc::SYS_mmap, [0, bytes, 3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, usize::MAX, 0]);
    if start < 0 { start } else { touch(start as usize, bytes) }
}

fn touch(start: usize, bytes: usize) -> i64 {
    for offset in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: none is claimed: writing where it may not is what this program is for, and the process is its own victim.
        unsafe { ((start + offset) as *mut u8).write_volatile(1) };
    }
    0
}

#[expect(unconditional_recursion, reason = "the point of it")]
fn deeper(depth: usize) -> usize {
    let frame = std::hint::black_box([depth; 512]);
    deeper(frame[0] + 1) + frame[511]
}

/// Sends its own socket twice in one message.
fn attach_twice() -> i64 {
    let level_and_type = (libc::SCM_RIGHTS as usize) << 32 | libc::SOL_SOCKET as usize;
    let control = [24_usize, level_and_type, SOCKET << 32 | SOCKET];
    let part = [at(c"x"), 1];
    let message = [0, 0, part.as_ptr() as usize, 1, control.as_ptr() as usize, 24, 0];
    call(libc::SYS_sendmsg, [SOCKET, message.as_ptr() as usize, 0])
}

/// Keeps every descriptor it is sent; how many there were of `offered`.
fn hoard(offered: usize) -> i64 {
    let mut kept = Vec::new();
    // So that the first descriptor is not sent before the order has been read: a stream would glue the two together.
    let _ = stream::send(borrowed(), b"r", None);
    for _ in 0..offered {
        match stream::recv(borrowed(), &mut [0]) {
            Ok((1, Some(fd))) => kept.push(fd),
            Ok((1, None)) => {}
            _ => return -1,
        }
    }
    kept.len() as i64
}

fn call<const N: usize>(number: i64, arguments: impl Into<Arguments<N>>) -> i64 {
    let Arguments(a) = arguments.into();
    // SAFETY: none is claimed: these are attacks. Where one succeeds the test fails.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result == -1 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(1)) } else { result }
}

struct Arguments<const N: usize>([usize; 6]);

impl<const N: usize> From<[usize; N]> for Arguments<N> {
    fn from(given: [usize; N]) -> Self {
        Self(std::array::from_fn(|place| given.get(place).copied().unwrap_or(0)))
    }
}

impl From<&[usize]> for Arguments<0> {
    fn from(given: &[usize]) -> Self {
        Self(std::array::from_fn(|place| given.get(place).copied().unwrap_or(0)))
    }
}

#[cfg(target_arch = "x86_64")]
fn int80() -> i64 {
    let result: i64;
    // SAFETY: `getpid` of the 32-bit table takes no argument and changes nothing.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _) };
    result
}

#[cfg(not(target_arch = "x86_64"))]
fn int80() -> i64 {
    call(4_000, [])
}

fn at(text: &std::ffi::CStr) -> usize {
    text.as_ptr() as usize
}

fn here() -> usize {
    libc::AT_FDCWD as usize
}

/// Memory the kernel may write to.
fn scratch() -> usize {
    Box::leak(Box::new([0_u64; 64])).as_mut_ptr() as usize
}

fn page() -> usize {
    call(libc::SYS_mmap, [0, PAGE_BYTES, 3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, usize::MAX, 0]) as usize
}

/// A software clock event.
fn perf() -> usize {
    let event = Box::leak(Box::new([0_u64; 16]));
    event[0] = 128 << 32 | 1;
    event.as_ptr() as usize
}

/// The handle of the root inode of most file systems.
fn handle() -> usize {
    let handle = Box::leak(Box::new([0_u64; 8]));
    (handle[0], handle[1]) = (1 << 32 | 8, 2);
    handle.as_ptr() as usize
}

fn borrowed() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the cell's socket is open under this number for as long as the cell lives.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(SOCKET as i32) }
}
