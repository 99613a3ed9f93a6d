//! Control groups: found by looking at the real mounts, used by trying, and never assumed.
//!
//! Linux has them in two versions that can be mounted side by side, so memory, processor and process count are looked for one by one. Below the
//! service's own group we make `insula-<pid>-<start>-<launcher>` and in it one group per cell:
//!
//! ```text
//! /sys/fs/cgroup/memory/<own>/insula-411-98765-0/c7     version 1: the same path in each hierarchy
//! /sys/fs/cgroup/<own>/insula-411-98765-0/c7            version 2: one path for all
//! ```
//!
//! The start time in the name tells a dead predecessor's groups from a living neighbour's with a re-used process id: [`Groups::open`] removes
//! the former. Version 2 forbids processes in a group that hands controllers down, so there the service first moves into a leaf of its own.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use crate::{CgroupVersion, JailError, Limits};

/// Length of the scheduler period in which a processor quota is counted.
const PERIOD_MICROS: u64 = 100_000;
/// A cell is one process. It cannot make another one by the system call filter; this is the second wall.
const PROCESSES_MAX: u32 = 1;
/// A sandbox with a kernel of its own is several: its threads and the guest's, of which a bomb must end somewhere.
const SANDBOX_TASKS_MAX: u32 = 1_024;
/// How long a group of a dying cell may stay busy before it is left to the next start.
const REMOVE_WAIT_MILLIS_MAX: u64 = 2_000;
const PREFIX: &str = "insula-";
/// Launchers of this process so far: only to tell their folders apart.
static LAUNCHERS: AtomicU64 = AtomicU64::new(0);
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A resource that a control group can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
    /// Version 1 counts processor time apart from limiting it.
    Cpuacct,
}

/// All of them.
const ALL: [Controller; 4] = [Controller::Memory, Controller::Cpu, Controller::Pids, Controller::Cpuacct];

/// What lives in the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// One process, whose time the kernel counts as its own.
    Cell,
    /// A sandbox of many processes, whose time is the group's.
    Sandbox,
}

impl Content {
    /// Each hierarchy more is a wait more when a process joins, so only what is needed.
    fn controllers(self) -> &'static [Controller] {
        match self {
            Self::Cell => &[Controller::Memory, Controller::Cpu, Controller::Pids],
            Self::Sandbox => &ALL,
        }
    }

    fn tasks_max(self) -> u32 {
        match self {
            Self::Cell => PROCESSES_MAX,
            Self::Sandbox => SANDBOX_TASKS_MAX,
        }
    }
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Cpuacct => "cpuacct",
        }
    }
}

/// One mounted hierarchy that has at least one controller we want.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: CgroupVersion,
    /// The folder of the service's own group.
    own: PathBuf,
    controllers: Vec<Controller>,
}

/// The groups of one service process. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Groups {
    hierarchies: Vec<Hierarchy>,
    name: String,
    content: Content,
}

impl Groups {
    /// Finds hierarchies that can really be written to and cleans up after dead predecessors. No hierarchy at all is not an error.
    pub(crate) fn open(content: Content) -> Self {
        let pid = std::process::id();
        let name = format!("{PREFIX}{pid}-{}-{}", start_time(pid).unwrap_or(0), LAUNCHERS.fetch_add(1, Ordering::Relaxed));
        let found = detect(&ALL, &read(MOUNTINFO), &read("/proc/self/cgroup"), &|folder| read(folder.join("cgroup.controllers")));
        let mut hierarchies = Vec::new();
        for mut hierarchy in found {
            // Also where this content has no groups: a predecessor had the other one as well, and we may never have.
            remove_predecessors(&hierarchy.own);
            hierarchy.controllers.retain(|controller| content.controllers().contains(controller));
            if !hierarchy.controllers.is_empty() && prepare(&hierarchy, &name).is_ok() {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies, name, content }
    }

    /// No groups at all.
    pub(crate) fn none() -> Self {
        Self { hierarchies: Vec::new(), name: String::new(), content: Content::Cell }
    }

    /// The version that limits memory.
    pub(crate) fn version(&self) -> CgroupVersion {
        self.find(Controller::Memory).or(self.hierarchies.first()).map_or(CgroupVersion::None, |hierarchy| hierarchy.version)
    }

    /// Makes the group `cell` and sets its limits.
    pub(crate) fn create(&self, cell: u64, limits: &Limits) -> Result<Group, JailError> {
        let mut group = Group { places: Vec::new(), tasks_max: self.content.tasks_max() };
        for hierarchy in &self.hierarchies {
            let path = hierarchy.own.join(&self.name).join(format!("c{cell}"));
            fs::create_dir(&path).map_err(|source| JailError::Cgroup { path: path.clone(), source })?;
            group.places.push(Place { version: hierarchy.version, path, controllers: hierarchy.controllers.clone() });
        }
        group.set(limits)?;
        Ok(group)
    }

    fn find(&self, controller: Controller) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.own.join(&self.name));
        }
    }
}

/// The group of one cell: a folder per hierarchy. Removed when dropped, which waits a little for the cell to be gone.
#[derive(Debug)]
pub(crate) struct Group {
    places: Vec<Place>,
    tasks_max: u32,
}

#[derive(Debug)]
struct Place {
    version: CgroupVersion,
    path: PathBuf,
    controllers: Vec<Controller>,
}

/// How the zygote puts a new process into its group.
pub(crate) struct Doors {
    /// Version 2: the folder, for `clone3` to be born into.
    pub(crate) born_into: Option<OwnedFd>,
    /// Version 1: `cgroup.procs`, to be written before the process runs anything of its own.
    pub(crate) join: Vec<OwnedFd>,
}

impl Group {
    /// Sets (or changes) the limits.
    pub(crate) fn set(&self, limits: &Limits) -> Result<(), JailError> {
        for place in &self.places {
            for controller in &place.controllers {
                place.set(*controller, limits, self.tasks_max)?;
            }
        }
        Ok(())
    }

    /// Opens the ways in.
    pub(crate) fn doors(&self) -> Result<Doors, JailError> {
        let mut doors = Doors { born_into: None, join: Vec::new() };
        for place in &self.places {
            let open = |path: &Path, flags| {
                rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|source| JailError::Cgroup { path: path.into(), source: source.into() })
            };
            match place.version {
                CgroupVersion::V2 => doors.born_into = Some(open(&place.path, OFlags::DIRECTORY | OFlags::RDONLY)?),
                _ => doors.join.push(open(&place.path.join("cgroup.procs"), OFlags::WRONLY)?),
            }
        }
        Ok(doors)
    }

    /// Whether the kernel killed somebody in this group for want of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let Some(place) = self.place(Controller::Memory) else { return false };
        let file = if place.version == CgroupVersion::V2 { "memory.events" } else { "memory.oom_control" };
        field(&read(place.path.join(file)), "oom_kill").is_some_and(|kills| kills > 0)
    }

    /// Bytes charged now and at most, if this group counts memory.
    pub(crate) fn memory_bytes(&self) -> Option<(u64, u64)> {
        let place = self.place(Controller::Memory)?;
        let (now, peak) = match place.version {
            CgroupVersion::V2 => ("memory.current", "memory.peak"),
            _ => ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
        };
        let now = number(&place.path.join(now))?;
        Some((now, number(&place.path.join(peak)).unwrap_or(now).max(now)))
    }

    /// Processor time in microseconds, if this group counts it.
    pub(crate) fn cpu_micros(&self) -> Option<u64> {
        let place = self.place(Controller::Cpu)?;
        match place.version {
            CgroupVersion::V2 => field(&read(place.path.join("cpu.stat")), "usage_usec"),
            _ => {
                let place = self.place(Controller::Cpuacct).unwrap_or(place);
                number(&place.path.join("cpuacct.usage")).map(|nanos| nanos / 1_000)
            }
        }
    }

    /// Processes in it, as the service sees them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Some(place) = self.places.first() else { return Vec::new() };
        read(place.path.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether the kernel shares the processor by this weight.
    pub(crate) fn weighs(&self, weight: u32) -> bool {
        self.place(Controller::Cpu).is_some_and(|place| match place.version {
            CgroupVersion::V2 => number(&place.path.join("cpu.weight")) == Some(weight_v2(weight)),
            _ => number(&place.path.join("cpu.shares")) == Some(shares_v1(weight)),
        })
    }

    /// How often the processor quota stopped this group.
    pub(crate) fn throttled(&self) -> u64 {
        self.place(Controller::Cpu).and_then(|place| field(&read(place.path.join("cpu.stat")), "nr_throttled")).unwrap_or(0)
    }

    fn place(&self, controller: Controller) -> Option<&Place> {
        self.places.iter().find(|place| place.controllers.contains(&controller))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for place in &self.places {
            remove_leaf(&place.path);
        }
    }
}

impl Place {
    fn set(&self, controller: Controller, limits: &Limits, tasks_max: u32) -> Result<(), JailError> {
        let quota = u64::from(limits.cpu_percent) * PERIOD_MICROS / 100;
        match (self.version, controller) {
            (CgroupVersion::V2, Controller::Memory) => {
                self.write("memory.max", limits.memory_bytes)?;
                self.write_if_there("memory.swap.max", 0)?;
                self.write_if_there("memory.oom.group", 1)
            }
            (CgroupVersion::V2, Controller::Cpu) => {
                self.write_if_there("cpu.weight", weight_v2(limits.cpu_weight))?;
                self.write("cpu.max", format!("{quota} {PERIOD_MICROS}"))
            }
            (_, Controller::Memory) => self.set_memory_v1(limits.memory_bytes),
            (_, Controller::Cpu) => {
                self.write_if_there("cpu.shares", shares_v1(limits.cpu_weight))?;
                self.write("cpu.cfs_period_us", PERIOD_MICROS)?;
                self.write("cpu.cfs_quota_us", quota)
            }
            (_, Controller::Pids) => self.write("pids.max", tasks_max),
            (_, Controller::Cpuacct) => Ok(()),
        }
    }

    /// Memory may never exceed memory plus swap, so growing starts with the sum and shrinking with the part.
    fn set_memory_v1(&self, bytes: u64) -> Result<(), JailError> {
        let grows = number(&self.path.join("memory.limit_in_bytes")).is_some_and(|now| bytes > now);
        if grows {
            self.write_if_there("memory.memsw.limit_in_bytes", bytes)?;
        }
        self.write("memory.limit_in_bytes", bytes)?;
        self.write_if_there("memory.memsw.limit_in_bytes", bytes)
    }

    fn write(&self, file: &str, value: impl ToString) -> Result<(), JailError> {
        let path = self.path.join(file);
        write(&path, &value.to_string()).map_err(|source| JailError::Cgroup { path, source })
    }

    fn write_if_there(&self, file: &str, value: u64) -> Result<(), JailError> {
        match self.write(file, value) {
            Err(JailError::Cgroup { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The kernel's own unit is 100 for a weight of 1, and at most 10,000.
fn weight_v2(weight: u32) -> u64 {
    u64::from(weight).saturating_mul(100).clamp(100, 10_000)
}

/// The kernel's own unit is 1024 for a weight of 1, and at most 262,144.
fn shares_v1(weight: u32) -> u64 {
    u64::from(weight).saturating_mul(1024).clamp(1024, 262_144)
}

/// Which hierarchy has which controller, from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn detect(all: &[Controller], mountinfo: &str, own: &str, controllers_of: &dyn Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some(hierarchy) = hierarchy(all, line, own, controllers_of) else { continue };
        let taken = |controller: &Controller| found.iter().any(|other| other.controllers.contains(controller));
        let controllers: Vec<_> = hierarchy.controllers.iter().copied().filter(|controller| !taken(controller)).collect();
        if !controllers.is_empty() {
            found.push(Hierarchy { controllers, ..hierarchy });
        }
    }
    found
}

fn hierarchy(all: &[Controller], line: &str, own: &str, controllers_of: &dyn Fn(&Path) -> String) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
    let (root, mount) = (left.next()?, PathBuf::from(left.next()?));
    let (kind, options) = (right.next()?, right.nth(1)?);
    let wanted = |has: &dyn Fn(&str) -> bool| all.iter().copied().filter(|controller| has(controller.name())).collect::<Vec<_>>();
    let (version, controllers, path) = match kind {
        "cgroup" => {
            let controllers = wanted(&|name| options.split(',').any(|option| option == name));
            let first = controllers.first()?.name();
            (CgroupVersion::V1, controllers, own_path(own, |names| names.split(',').any(|name| name == first))?)
        }
        "cgroup2" => (CgroupVersion::V2, Vec::new(), own_path(own, str::is_empty)?),
        _ => return None,
    };
    // The mount may show only a part of the hierarchy, as it does in containers.
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("").trim_start_matches('/');
    let own = if below.is_empty() { mount } else { mount.join(below) };
    let controllers = match version {
        CgroupVersion::V2 => {
            let there = controllers_of(&own);
            wanted(&|name| there.split_whitespace().any(|word| word == name))
        }
        _ => controllers,
    };
    (!controllers.is_empty()).then_some(Hierarchy { version, own, controllers })
}

/// The service's path in the hierarchy whose controller field satisfies `wanted`.
fn own_path(own: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        wanted(names).then_some(path)
    })
}

/// Makes the service's folder for cells and hands the controllers down to it.
fn prepare(hierarchy: &Hierarchy, name: &str) -> io::Result<()> {
    let home = hierarchy.own.join(name);
    fs::create_dir(&home)?;
    let handed = if hierarchy.version == CgroupVersion::V2 { hand_down(hierarchy, &home) } else { Ok(()) };
    // A folder that cannot hold a limited cell is worse than none: try it before it is believed.
    let tried = handed.and_then(|()| try_group(hierarchy, &home));
    if tried.is_err() {
        remove_tree(&home);
    }
    tried
}

fn hand_down(hierarchy: &Hierarchy, home: &Path) -> io::Result<()> {
    let wanted: Vec<_> = hierarchy.controllers.iter().map(|controller| format!("+{}", controller.name())).collect();
    let wanted = wanted.join(" ");
    let control = hierarchy.own.join("cgroup.subtree_control");
    if write(&control, &wanted).is_err() {
        // Busy: processes live in this very group. Ours moves into a leaf; if others stay, the next write fails for good.
        let leaf = hierarchy.own.join(format!("{PREFIX}service"));
        fs::create_dir(&leaf).or_else(|error| if leaf.is_dir() { Ok(()) } else { Err(error) })?;
        write(&leaf.join("cgroup.procs"), &std::process::id().to_string())?;
        write(&control, &wanted)?;
    }
    write(&home.join("cgroup.subtree_control"), &wanted)
}

fn try_group(hierarchy: &Hierarchy, home: &Path) -> io::Result<()> {
    let limits = Limits {
        memory_bytes: Limits::MEMORY_BYTES_MIN,
        cpu_percent: 1,
        cpu_weight: 1,
        cpu_seconds_max: None,
        descriptors_max: Limits::DESCRIPTORS_MIN,
    };
    let path = home.join("try");
    fs::create_dir(&path)?;
    let place = Place { version: hierarchy.version, path, controllers: hierarchy.controllers.clone() };
    let group = Group { places: vec![place], tasks_max: PROCESSES_MAX };
    group.set(&limits).map_err(|error| io::Error::other(error.to_string()))
}

/// Removes what services that are no longer alive left below `own`.
fn remove_predecessors(own: &Path) {
    for folder in folders(own) {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-').map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(start)), Some(Ok(_)), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if start_time(u32::try_from(pid).unwrap_or(0)) != Some(start) {
            remove_tree(&folder);
        }
    }
}

/// Removes a service's folder with its cells; a member that is still alive belongs to a dead service and is killed.
fn remove_tree(home: &Path) {
    for leaf in folders(home) {
        for pid in read(leaf.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        remove_leaf(&leaf);
    }
    let _ = fs::remove_dir(home);
}

/// Removes one group; it stays busy until its last process is really gone.
fn remove_leaf(path: &Path) {
    let end = Instant::now() + Duration::from_millis(REMOVE_WAIT_MILLIS_MAX);
    let mut pause = Duration::from_micros(100);
    while let Err(error) = fs::remove_dir(path) {
        if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() > end {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// When the process started, in clock ticks since boot; none if there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    read(path).trim().parse().ok()
}

/// The number after `name` in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Kernel files want one write and must not be created.
fn write(path: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, own: &str, there: &str, expected: &[(CgroupVersion, &str, &[Controller])]) {
        let found = detect(Content::Cell.controllers(), mountinfo, own, &|_| there.to_owned());
        let found: Vec<_> =
            found.iter().map(|hierarchy| (hierarchy.version, hierarchy.own.to_str().unwrap(), &hierarchy.controllers[..])).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn version_1_in_separate_hierarchies() {
        check(
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            "9:name=systemd:/\n8:pids:/\n4:memory:/a/b\n1:cpu:/\n0::/",
            "hugetlb",
            &[
                (CgroupVersion::V1, "/sys/fs/cgroup/cpu", &[Controller::Cpu]),
                (CgroupVersion::V1, "/sys/fs/cgroup/memory/a/b", &[Controller::Memory]),
                (CgroupVersion::V1, "/sys/fs/cgroup/pids", &[Controller::Pids]),
            ],
        );
    }

    #[test]
    fn version_1_with_processor_and_accounting_together() {
        check(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
            "1:cpu,cpuacct:/user.slice",
            "",
            &[(CgroupVersion::V1, "/sys/fs/cgroup/cpu,cpuacct/user.slice", &[Controller::Cpu])],
        );
    }

    #[test]
    fn version_2() {
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
            "0::/system.slice/insula.service",
            "cpuset cpu io memory pids",
            &[(CgroupVersion::V2, "/sys/fs/cgroup/system.slice/insula.service", Content::Cell.controllers())],
        );
    }

    #[test]
    fn version_2_seen_from_a_container() {
        check(
            "30 23 0:26 /docker/4711 /sys/fs/cgroup rw - cgroup2 cgroup rw",
            "0::/docker/4711/service",
            "memory",
            &[(CgroupVersion::V2, "/sys/fs/cgroup/service", &[Controller::Memory])],
        );
    }

    #[test]
    fn both_versions_share_the_controllers() {
        check(
            "35 31 0:32 / /c/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw",
            "4:memory:/\n0::/",
            "cpu pids",
            &[
                (CgroupVersion::V1, "/c/memory", &[Controller::Memory]),
                (CgroupVersion::V2, "/c/unified", &[Controller::Cpu, Controller::Pids]),
            ],
        );
    }

    #[test]
    fn none_and_nonsense() {
        check("", "", "", &[]);
        check("36 35 98:0 / /mnt rw - ext3 /dev/root rw\n- cgroup\nx - cgroup2", "0::/", "memory", &[]);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("oom 7\n", "oom_kill"), None);
    }
}
