//! Outside: the root that every sandbox starts from, and the steps from a fresh fork to `runsc`.
//!
//! ```text
//! /runsc            the program                                    all files are the host's, bound read-only;
//! /rootfs           the guest's root: the cell's program, the      what the guest sees is exactly what the keeper
//!                   engine, and the libraries the keeper has       has mapped itself
//!                   mapped, under the names it has them by
//! /guest, /probe    a bundle each: config.json
//! /dev/null         for what `runsc` does not pass on
//! /proc             so that a fork may mount its own
//! /new              where a fork makes the root of its own
//! ```

use std::{
    ffi::{CStr, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount, unmount,
};
use rustix::process::{Resource, Rlimit, Signal};

use super::{PROBE, RUNSC};
use crate::{
    Layers,
    confine::{self, Ends, Failed, Ground, INNER_ID, Step},
    stream,
};

/// Largest of the file systems in memory that hold the keeper's tree and a sandbox's own files, by the kernel's words.
const TREE: &CStr = c"size=1m,nr_inodes=512,mode=0755";
const SANDBOX: &CStr = c"size=8m,nr_inodes=512,mode=0755";
/// Descriptors each process of a sandbox may hold.
const DESCRIPTORS_MAX: u64 = 1_024;
/// What of root `runsc` needs in its own user namespace; everything else is out of reach for good.
const CAPABILITIES: [u32; 13] = [
    0,  // CHOWN: the gofer
    1,  // DAC_OVERRIDE: the gofer
    2,  // DAC_READ_SEARCH: the gofer
    3,  // FOWNER: the gofer
    4,  // FSETID: the gofer
    5,  // KILL: ends its own processes
    6,  // SETGID: enters user namespaces
    7,  // SETUID: the same
    8,  // SETPCAP: gives capabilities up
    18, // SYS_CHROOT: the gofer and the sandbox leave the root
    19, // SYS_PTRACE: the sandbox runs the guest by it
    21, // SYS_ADMIN: mounts in its own namespace
    31, // SETFCAP: the kernel asks for it where user 0 is mapped into another namespace
];

/// Serves sandboxes until the launcher hangs up, then exits; all of them die with the keeper.
///
/// As [`zygote::serve`](crate::zygote::serve), but for what a fork becomes: `runsc`, and in it this same program with `arguments`, which must call
/// [`enter`](super::enter). The guest sees this program, and the libraries that are loaded now.
pub fn serve(control: OwnedFd, arguments: &[&str]) -> ! {
    crate::zygote::keep(control, |layers, outer| Keeper::prepare(layers, outer, arguments))
}

/// What a fork needs to become a sandbox.
pub(crate) struct Keeper {
    pub(crate) ground: Ground,
    null: OwnedFd,
}

impl Keeper {
    fn prepare(layers: Layers, outer: Option<u32>, arguments: &[&str]) -> Result<Self, Failed> {
        let tree = Tree::look(arguments).map_err(Step::Root.failed_io())?;
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Step::Root.failed_io())?;
        let ground = Ground::prepare_for_root(layers, outer, || tree.enter().map_err(Step::Root.failed_io()))?;
        Ok(Self { ground, null: null.into() })
    }

    /// In the fork, once it may go ahead: becomes `runsc`. Comes back only when a step fails.
    pub(crate) fn become_sandbox(&self, ends: Ends<'_>) -> Failed {
        match self.steps(ends) {
            Ok(never) => match never {},
            Err(failed) => failed,
        }
    }

    fn steps(&self, ends: Ends<'_>) -> Result<std::convert::Infallible, Failed> {
        let _ = rustix::thread::set_thread_groups(&[]);
        confine::switch_ids(0).map_err(Step::Ids.failed())?;
        rustix::system::sethostname(b"cell").map_err(Step::HostName.failed())?;
        enter_own_root().map_err(Step::Root.failed_io())?;
        rustix::thread::set_no_new_privs(true).map_err(Step::Privileges.failed())?;
        confine::bound_capabilities(&CAPABILITIES).map_err(Step::Capabilities.failed_io())?;
        for (resource, most) in
            [(Resource::Core, 0), (Resource::Msgqueue, 0), (Resource::Nice, 0), (Resource::Rtprio, 0), (Resource::Nofile, DESCRIPTORS_MAX)]
        {
            rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(Step::Rlimits.failed())?;
        }
        // After every change of identity, because such a change takes it back; `runsc` does the same for its own.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Step::Zygote.failed())?;
        confine::reset_signals().map_err(Step::Signals.failed_io())?;
        if confine::hung_up(ends.confirm) {
            return Err(Failed { step: Step::Zygote, errno: libc::ESRCH });
        }
        let error = self.exec(ends).err().unwrap_or_else(|| io::ErrorKind::InvalidInput.into());
        Err(Step::Exec.failed_io()(error))
    }

    fn exec(&self, ends: Ends<'_>) -> io::Result<std::convert::Infallible> {
        let bundle = if ends.said.is_some() { c"--bundle=/probe" } else { c"--bundle=/guest" };
        let arguments =
            [c"runsc", c"--root=/state", c"--rootless", c"--network=none", c"--ignore-cgroups", c"run", bundle, c"cell"].map(CStr::as_ptr);
        let arguments: Vec<_> = arguments.into_iter().chain([std::ptr::null()]).collect();
        let environment = [std::ptr::null()];
        // What `runsc` has to say is for whoever probes; a tenant's must not reach a log. Never the socket: gVisor shuts down what its guest closes.
        let said = ends.said.map_or(self.null.as_raw_fd(), |said| said.as_raw_fd());
        for (from, to) in [(ends.socket.as_raw_fd(), 0), (self.null.as_raw_fd(), 1), (said, 2)] {
            // SAFETY: nothing that owns 0 to 2 is used again in this process, which becomes another program or exits.
            if unsafe { libc::dup2(from, to) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: marks descriptors only: all others close when the program starts, the confirmation channel too, which is what it waits for.
        if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
        stream::send(ends.confirm, &[0; 5], None)?;
        // SAFETY: path and both lists are terminated and live; on success nothing of this process is left.
        unsafe { libc::execve(c"/runsc".as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

/// From the keeper's tree into a copy that is this sandbox's own, with a view of its own processes and of no others.
fn enter_own_root() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("sandbox", "/new", "tmpfs", flags, SANDBOX)?;
    for folder in ["proc", "state", "tmp", "dev", "rootfs", "guest", "probe"] {
        fs::create_dir(Path::new("/new").join(folder))?;
    }
    fs::write("/new/runsc", "")?;
    for part in ["runsc", "dev", "rootfs", "guest", "probe"] {
        mount_bind_recursive(Path::new("/").join(part), Path::new("/new").join(part))?;
    }
    mount("proc", "/new/proc", "proc", flags | MountFlags::NOEXEC, None)?;
    rustix::process::chdir("/new")?;
    swap_root()
}

/// The working folder, which is a mount, becomes the root; the old one goes with all that is below it.
fn swap_root() -> io::Result<()> {
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// What the keeper's root will be made of.
struct Tree {
    runsc: PathBuf,
    /// Files of the guest by the path that they have inside.
    files: Vec<PathBuf>,
    guest: String,
    probe: String,
}

impl Tree {
    fn look(arguments: &[&str]) -> io::Result<Self> {
        let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
        let runsc = std::env::var_os(RUNSC).map(PathBuf::from).ok_or_else(|| missing(RUNSC))?;
        let program = std::env::current_exe()?;
        let files: Vec<_> = std::iter::once(program.clone()).chain(loaded_libraries()).collect();
        let folders: std::collections::BTreeSet<_> = files.iter().skip(1).filter_map(|file| file.parent()).collect();
        let libraries = folders.iter().map(|folder| folder.as_os_str().as_bytes()).collect::<Vec<_>>().join(&b':');
        let mut environment: Vec<OsString> = std::env::vars_os()
            .filter(|(name, _)| name != RUNSC)
            .map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'='))
            .map(OsString::from_vec)
            .collect();
        environment.push(OsString::from_vec([b"LD_LIBRARY_PATH=", libraries.as_slice()].concat()));
        let words: Vec<OsString> = std::iter::once(program.into_os_string()).chain(arguments.iter().map(OsString::from)).collect();
        let guest = config(&words, &environment)?;
        environment.push(format!("{PROBE}=1").into());
        Ok(Self { runsc, files, guest, probe: config(&words, &environment)? })
    }

    /// Moves the calling process for good into a root with this in it. Mounted where `/proc` was, of which the caller holds a descriptor.
    fn enter(&self) -> io::Result<()> {
        use rustix::thread::{UnshareFlags, unshare_unsafe};
        let root = Path::new("/proc");
        // Sandboxes have other ids than we, whatever the service's own files are like.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        // SAFETY: a new mount namespace leaves descriptors and memory alone; the process has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // Without `nosuid` and `nodev`: `runsc` mounts the guest's root once more, says neither, and may not take back what we say. There is neither
        // such a file nor such a device in it, the keeper's files carry both, and no process here can gain a privilege.
        mount("keeper", root, "tmpfs", MountFlags::empty(), TREE)?;
        for folder in ["proc", "new", "dev", "rootfs", "rootfs/proc", "rootfs/dev", "rootfs/sys", "rootfs/tmp"] {
            fs::create_dir(root.join(folder))?;
        }
        for (folder, config) in [("guest", &self.guest), ("probe", &self.probe)] {
            fs::create_dir(root.join(folder))?;
            fs::write(root.join(folder).join("config.json"), config)?;
        }
        show(&self.runsc, &root.join("runsc"), MountFlags::NODEV)?;
        show("/dev/null".as_ref(), &root.join("dev/null"), MountFlags::NOEXEC)?;
        for file in &self.files {
            let inside: PathBuf = file.components().filter(|part| matches!(part, Component::Normal(_))).collect();
            let place = root.join("rootfs").join(inside);
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder)?;
            }
            show(file, &place, MountFlags::NODEV)?;
        }
        mount("proc", root.join("proc"), "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
        mount_remount(root, MountFlags::RDONLY, TREE)?;
        rustix::process::chdir(root)?;
        swap_root()
    }
}

/// A file of the host at another place, and not to be written there.
fn show(file: &Path, place: &Path, flags: MountFlags) -> io::Result<()> {
    if place.exists() {
        return Ok(());
    }
    fs::write(place, "")?;
    mount_bind(file, place)?;
    Ok(mount_remount(place, flags | MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, c"")?)
}

/// Files of the libraries that this process has loaded, by the names it loaded them by.
fn loaded_libraries() -> Vec<PathBuf> {
    unsafe extern "C" fn note(library: *mut libc::dl_phdr_info, _: libc::size_t, list: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the linker hands over a live record, and `list` is what the call below gave it.
        let (name, list) = unsafe { ((*library).dlpi_name, &mut *list.cast::<Vec<PathBuf>>()) };
        if !name.is_null() {
            // SAFETY: the linker's names are terminated and live as long as the library.
            let name = unsafe { CStr::from_ptr(name) };
            list.push(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())));
        }
        0
    }
    let mut list: Vec<PathBuf> = Vec::new();
    // SAFETY: the function above only reads the record and pushes to `list`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut list).cast()) };
    // The program has no name in this list, and the kernel's own library no path.
    list.retain(|name| name.is_absolute() && name.is_file());
    list
}

/// An OCI configuration: no capability, no mount, nothing that can be written, no network.
fn config(words: &[OsString], environment: &[OsString]) -> io::Result<String> {
    let list = |texts: &[OsString]| texts.iter().map(quoted).collect::<io::Result<Vec<_>>>().map(|texts| texts.join(","));
    let (words, environment) = (list(words)?, list(environment)?);
    Ok(format!(
        r#"{{"ociVersion":"1.0.0","hostname":"cell","root":{{"path":"/rootfs","readonly":true}},"mounts":[],
"process":{{"terminal":false,"cwd":"/","user":{{"uid":{INNER_ID},"gid":{INNER_ID}}},"noNewPrivileges":true,"capabilities":{{}},
"args":[{words}],"env":[{environment}]}},
"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"network"}},{{"type":"ipc"}},{{"type":"uts"}},{{"type":"mount"}}]}}}}"#
    ))
}

/// A text as JSON has it.
fn quoted(text: &OsString) -> io::Result<String> {
    let text = text.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path or variable is no text"))?;
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        for (text, expected) in [("a b", r#""a b""#), (r#"a"b\"#, r#""a\"b\\""#), ("a\n\u{1}ä", "\"a\\u000a\\u0001ä\"")] {
            assert_eq!(quoted(&text.into()).unwrap(), expected);
        }
        assert!(quoted(&OsString::from_vec(vec![0xff])).is_err());
    }

    #[test]
    fn what_is_loaded_is_found() {
        let libraries = loaded_libraries();
        assert!(libraries.iter().any(|name| name.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }
}
