//! What this machine really enforces, and whether that is enough.
//!
//! A [`Report`] is filled from what probe cells tried and what the kernel says about them (see `probe`); no field comes from configuration.
//! [`Report::check`] compares it with a [`Floor`] and names each missing layer with its remedy.

use std::{fmt, time::Duration};

use crate::{JailError, Missing};

/// All namespaces of a cell, in the order they are reported.
pub(crate) const NAMESPACES: [&str; 7] = ["user", "pid", "net", "mnt", "ipc", "uts", "cgroup"];

/// Which control groups carry the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// Controllers in hierarchies of their own.
    V1,
    /// The unified hierarchy.
    V2,
    /// None that we may use.
    None,
}

impl fmt::Display for CgroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "version 1",
            Self::V2 => "version 2",
            Self::None => "none",
        })
    }
}

/// What holds a limit, as a probe found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// The control group.
    Cgroup,
    /// A resource limit of the process: coarser.
    Rlimit,
    /// Nothing.
    No,
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "by control group",
            Self::Rlimit => "by resource limit",
            Self::No => "NOT ENFORCED",
        })
    }
}

/// The least that must hold before a cell may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// For tenants that do not trust each other: every layer, memory and processor by control group.
    Strict,
    /// For a developer's machine: system call filter, no new privileges, closed descriptors and some memory limit.
    Development,
}

/// What is really enforced on this machine, measured by probe cells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What `runsc` says it is, where cells have gVisor's kernel between them and this one's; a probe inside has proved that it answers.
    pub gvisor: Option<String>,
    /// Control groups in use.
    pub cgroup: CgroupVersion,
    /// What kills a cell that takes more memory than its limit.
    pub memory: Enforced,
    /// What slows or kills a cell that takes more processor than its limit.
    pub cpu: Enforced,
    /// What shares the processor among cells by their weights. Without it the service's own queue does so alone.
    pub cpu_weight: Enforced,
    /// What stops a cell from making processes, behind the system call filter.
    pub processes: Enforced,
    /// The namespaces a cell does not share with the service.
    pub namespaces: Vec<&'static str>,
    /// The Landlock interface version if opening a path was refused by it.
    pub landlock_abi: Option<u32>,
    /// A forbidden system call killed the probe.
    pub seccomp: bool,
    /// The kernel says that the probe cannot gain privileges.
    pub no_new_privileges: bool,
    /// The probe ran under a user id that no other process of the machine has.
    pub own_uid: bool,
    /// The probe's root had no entry and was read-only.
    pub empty_root: bool,
    /// All five capability sets of the probe were empty.
    pub no_capabilities: bool,
    /// The probe held its socket and nothing else.
    pub descriptors_closed: bool,
    /// The probe could not be read by others nor leave a core dump.
    pub not_dumpable: bool,
    /// Threads of the zygote; anything but one makes forking unsafe.
    pub engine_threads: u32,
    /// What the probes took from being asked for to being confined: the median. Nothing is refused for it.
    pub cell_start: Duration,
}

/// A start of a cell from here on is slow: the rest of a first prediction takes less.
const START_SLOW: Duration = Duration::from_millis(4);

impl Report {
    /// Refuses, naming everything that is missing and what to do about it, when the machine enforces less than `floor`.
    pub fn check(&self, floor: Floor) -> Result<(), JailError> {
        let missing = self.missing(floor);
        if missing.is_empty() { Ok(()) } else { Err(JailError::BelowFloor(missing)) }
    }

    /// What to do about slow starts of cells, if they are slow here and something is known that helps.
    ///
    /// Putting a process into a version 1 group waits for a grace period of the kernel, some 5 to 20 ms, unless the kernel was told that groups
    /// change often: the mount option `favordynmods`, which holds for all hierarchies of the machine (Linux, Documentation/admin-guide/cgroup-v2.rst).
    pub fn start_remedy(&self) -> Option<&'static str> {
        (self.cgroup == CgroupVersion::V1 && self.cell_start >= START_SLOW).then_some(
            "tell the kernel that control groups change often, as root and after each boot: \
             mount -o remount,favordynmods -t cgroup2 none FOLDER (where /proc/mounts says cgroup2; /sys/fs/cgroup/unified in most places)",
        )
    }

    /// What `floor` asks for and the machine does not enforce.
    pub fn missing(&self, floor: Floor) -> Vec<Missing> {
        let strict = floor == Floor::Strict;
        // A sandbox's first process needs root in its own user namespace, where it mounts: what it is walled in by is another kernel.
        let jail = self.gvisor.is_none();
        let mut missing = Vec::new();
        let mut need = |holds: bool, what, remedy| {
            if !holds {
                missing.push(Missing { what, remedy });
            }
        };
        need(self.seccomp, "system call filter", "use a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64");
        need(self.no_new_privileges, "no_new_privs", "use a kernel from 3.5 on and a container runtime that does not filter prctl");
        need(
            self.engine_threads == 1,
            "single-threaded zygote",
            "keep the engine from starting threads before it serves (for ONNX Runtime set ORT_DISABLE_TELEMETRY=1)",
        );
        if jail {
            need(self.descriptors_closed, "closing of descriptors", "use a kernel from 5.9 on, which has close_range");
        }
        if strict {
            need(
                self.memory == Enforced::Cgroup,
                "memory limit by control group",
                "run as root, or delegate the memory controller to the service (systemd: Delegate=yes)",
            );
            need(
                self.cpu == Enforced::Cgroup,
                "processor limit by control group",
                "run as root, or delegate the cpu controller to the service (systemd: Delegate=yes)",
            );
            need(
                self.processes != Enforced::No,
                "limit of processes",
                "run as root, or delegate the pids controller to the service (systemd: Delegate=yes)",
            );
            for (name, what) in NAMESPACES.iter().zip(NAMESPACE_NAMES) {
                need(
                    self.namespaces.contains(name),
                    what,
                    "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or run as root",
                );
            }
            need(self.own_uid, "own user id per cell", "run the service as root, so that each cell gets a user id of its own");
            if jail {
                need(self.landlock_abi.is_some(), "landlock", "use a kernel from 5.13 on and put landlock in its lsm= list");
                need(self.empty_root, "empty root", "allow user namespaces and pivot_root, or run as root; not from an initramfs");
                need(self.no_capabilities, "dropping of capabilities", "run as root or allow user namespaces");
                need(self.not_dumpable, "protection of memory from others", "use a kernel whose prctl has PR_SET_DUMPABLE");
            }
        } else {
            need(
                self.memory != Enforced::No,
                "memory limit",
                "delegate the memory controller to the service, or allow it to set resource limits",
            );
        }
        missing
    }
}

const NAMESPACE_NAMES: [&str; 7] = [
    "user namespace",
    "process namespace",
    "network namespace",
    "mount namespace",
    "ipc namespace",
    "host name namespace",
    "control group namespace",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |holds: bool| if holds { "yes" } else { "NO" };
        let namespaces = if self.namespaces.is_empty() { "NONE".to_owned() } else { self.namespaces.join(" ") };
        let landlock = self.landlock_abi.map_or("NO".to_owned(), |abi| format!("yes, interface version {abi}"));
        if let Some(version) = &self.gvisor {
            writeln!(f, "kernel of the cells   gVisor ({version})")?;
        }
        writeln!(f, "control groups        {}", self.cgroup)?;
        writeln!(f, "memory limit          {}", self.memory)?;
        writeln!(f, "processor limit       {}", self.cpu)?;
        writeln!(f, "processor weights     {}", self.cpu_weight)?;
        writeln!(f, "process limit         {}", self.processes)?;
        writeln!(f, "namespaces            {namespaces}")?;
        writeln!(f, "own user id           {}", yes(self.own_uid))?;
        writeln!(f, "no new privileges     {}", yes(self.no_new_privileges))?;
        writeln!(f, "system call filter    {}", yes(self.seccomp))?;
        if self.gvisor.is_none() {
            writeln!(f, "empty root            {}", yes(self.empty_root))?;
            writeln!(f, "no capabilities       {}", yes(self.no_capabilities))?;
            writeln!(f, "landlock              {landlock}")?;
            writeln!(f, "descriptors closed    {}", yes(self.descriptors_closed))?;
            writeln!(f, "memory unreadable     {}", yes(self.not_dumpable))?;
        }
        writeln!(f, "threads of the zygote {}", self.engine_threads)?;
        write!(f, "start of a cell       {:.1} ms", self.cell_start.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_start_is_told_where_something_helps() {
        let report = |cgroup, cell_start| Report { cell_start, ..Report::nothing(cgroup, 1) };
        assert!(report(CgroupVersion::V1, START_SLOW).start_remedy().is_some_and(|remedy| remedy.contains("favordynmods")));
        assert_eq!(report(CgroupVersion::V1, START_SLOW / 2).start_remedy(), None);
        assert_eq!(report(CgroupVersion::V2, START_SLOW).start_remedy(), None, "such cells are born in their group");
        assert!(report(CgroupVersion::V1, START_SLOW).to_string().ends_with("start of a cell       4.0 ms"));
    }
}
