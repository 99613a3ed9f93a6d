//! A command in, a confined child out.
//!
//! A *cell* is the process in which one tenant's models and data are parsed and run. This crate makes cells and holds them:
//! it knows nothing of tenants, models or async, and it is the only crate of the workspace that contains `unsafe`.
//!
//! ```text
//! service ── Launcher::start ──► zygote: your program, engine loaded, one thread, then zygote::serve(control, child)
//!    │                             │ clone3 into seven new namespaces, cgroup joined, confined, confirmed
//!    ├── Launcher::spawn ────────► │──► cell: child(socket), then death
//!    └── Cell::take_socket ◄═══════╪══► one stream socket, nothing else
//! ```
//!
//! The service starts the zygote once ([`zygote::Launcher::start`]), which probes what this machine really enforces and refuses to go below
//! the configured [`Floor`]. Each [`zygote::Launcher::spawn`] forks one cell out of the warmed zygote. When the cell is dropped it is killed; when the
//! service or the zygote dies, all its cells die.
//!
//! What is confined, and by which two walls: `confine` has the recipe, `cell.syscalls` the system calls left over.
//! Deliberately missing: exec into another image (the filter has no `execve`), and any way to loosen a cell after it was made.

mod cgroup;
mod confine;
mod error;
mod layers;
mod probe;
mod report;
mod seccomp;
mod turns;

pub mod gvisor;
pub mod memory;
pub mod stream;
pub mod zygote;

pub use error::{JailError, Missing};
#[doc(hidden)]
pub use layers::Layers;
pub use report::{CgroupVersion, Enforced, Floor, Report};
pub use turns::{Turns, take_turns};

/// What one cell may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the cell in bytes, swap included; more than that and it is killed.
    pub memory_bytes: u64,
    /// Processor share by cgroup quota; 100 is one core.
    pub cpu_percent: u32,
    /// Share of the processor among cells that want it at once, by cgroup: a cell of weight 2 gets twice as much as one of weight 1.
    pub cpu_weight: u32,
    /// Processor time in seconds from start to forced death, or none.
    pub cpu_seconds_max: Option<u64>,
    /// Descriptors the cell may hold at once, its socket included. Can be lowered later, never raised.
    pub descriptors_max: u32,
}

impl Limits {
    /// The smallest memory limit that is accepted: below it a fork cannot even confine itself.
    pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
    /// The largest weight: above it the kernel's own scale ends.
    pub const CPU_WEIGHT_MAX: u32 = 100;
    /// The smallest number of descriptors: socket, confirmation channel, and one to receive.
    pub const DESCRIPTORS_MIN: u32 = 8;

    fn check(&self) -> Result<(), JailError> {
        let wrong = |what: &str| Err(JailError::Limits(what.to_owned()));
        if self.memory_bytes < Self::MEMORY_BYTES_MIN || self.memory_bytes > i64::MAX as u64 {
            return wrong("`memory_bytes` must be at least 1 MiB");
        }
        if self.cpu_percent == 0 || self.cpu_percent > 100_000 {
            return wrong("`cpu_percent` must be between 1 and 100000");
        }
        if self.cpu_weight == 0 || self.cpu_weight > Self::CPU_WEIGHT_MAX {
            return wrong("`cpu_weight` must be between 1 and 100");
        }
        if self.cpu_seconds_max == Some(0) {
            return wrong("`cpu_seconds_max` must be at least 1");
        }
        if self.descriptors_max < Self::DESCRIPTORS_MIN {
            return wrong("`descriptors_max` must be at least 8");
        }
        Ok(())
    }
}

/// For the service itself: no core dumps, and other processes of the same user cannot attach to it or read its memory.
pub fn harden_self() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
