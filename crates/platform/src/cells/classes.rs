//! The launchers of this node, one for each isolation class.
//!
//! The jail's is there from the start. The one for gVisor is started when a tenant of that class first needs a cell, or is to become one, because it
//! costs half a second and a node without such tenants has no use for it. Where it does not start the answer is an error with a remedy, and
//! never a cell of another class.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jail::zygote::{Cell, Launcher};
use parking_lot::Mutex;
use tenancy::IsolationClass;

use crate::config::PlatformConfig;
use crate::error::CellFailure;

/// Whoever needs it while another one starts it waits so long.
const STARTING_WAIT_MAX: Duration = Duration::from_secs(10);
/// For so long a failure is remembered before the launcher is tried again.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// Makes cells of every class. Calls block.
pub(super) struct Classes {
    jail: Launcher,
    gvisor: Arc<Mutex<Gvisor>>,
    config: PlatformConfig,
}

enum Gvisor {
    Untried,
    Started(Launcher),
    Failed { reason: String, at: Instant },
}

impl Classes {
    pub(super) fn start(config: &PlatformConfig) -> Result<Self, jail::JailError> {
        let jail = Launcher::start(&config.cell_program, &["zygote"], &environment(config), config.floor)?;
        Ok(Self { jail, gvisor: Arc::new(Mutex::new(Gvisor::Untried)), config: config.clone() })
    }

    pub(super) fn jail(&self) -> &Launcher {
        &self.jail
    }

    pub(super) fn spawn(&self, isolation: IsolationClass, limits: &jail::Limits) -> Result<Cell, CellFailure> {
        let launcher = match isolation {
            IsolationClass::Jail => self.jail.clone(),
            IsolationClass::Gvisor => self.gvisor().map_err(|reason| CellFailure::NoIsolation { class: isolation.name(), reason })?,
        };
        launcher.spawn(limits).map_err(|error| CellFailure::NotStarted(error.to_string()))
    }

    /// The launcher for gVisor, started if it is not; or why there is none and what to do.
    pub(super) fn gvisor(&self) -> Result<Launcher, String> {
        let waited = self.gvisor.try_lock_for(STARTING_WAIT_MAX);
        let mut gvisor = waited.ok_or("cells under gVisor are only just being made possible here: try again")?;
        match &*gvisor {
            Gvisor::Started(launcher) => return Ok(launcher.clone()),
            Gvisor::Failed { reason, at } if at.elapsed() < FAILED_FOR => return Err(reason.clone()),
            Gvisor::Failed { .. } | Gvisor::Untried => {}
        }
        let started = start_gvisor(&self.config);
        *gvisor = match &started {
            Ok(launcher) => Gvisor::Started(launcher.clone()),
            Err(reason) => Gvisor::Failed { reason: reason.clone(), at: Instant::now() },
        };
        started
    }

    /// What holds around and inside of cells under gVisor, if they have been needed.
    pub(super) fn gvisor_report(&self) -> Option<jail::Report> {
        match self.gvisor.try_lock().as_deref() {
            Some(Gvisor::Started(launcher)) => Some(launcher.report().clone()),
            Some(Gvisor::Failed { .. } | Gvisor::Untried) | None => None,
        }
    }

    pub(super) fn zygotes_replaced(&self) -> u64 {
        // Not waited for: whoever starts it has it for long, and none was replaced then.
        let gvisor = match self.gvisor.try_lock().as_deref() {
            Some(Gvisor::Started(launcher)) => launcher.zygotes_replaced(),
            Some(Gvisor::Failed { .. } | Gvisor::Untried) | None => 0,
        };
        self.jail.zygotes_replaced() + gvisor
    }
}

/// Starts cells under gVisor as a node with this configuration does; or says why it cannot, and what to do. Blocks for about half a second.
///
/// # Errors
/// The reason with its remedy, in the operator's words.
pub fn start_gvisor(config: &PlatformConfig) -> Result<Launcher, String> {
    let runsc = config.runsc.clone().or_else(|| jail::gvisor::find(std::env::var_os("PATH").as_deref())).ok_or(
        "there is no `runsc` here; install gVisor (on Debian and Ubuntu: `apt-get install runsc`), or set `cells.runsc` to where it is",
    )?;
    let started = Launcher::start_gvisor(&config.cell_program, &["keeper"], &environment(config), &runsc, config.floor);
    started.map_err(|error| {
        format!(
            "cells do not start under `{}`: {error}; install a gVisor that runs on this machine (`runsc --rootless do true` must work), and run \
             the service as root",
            runsc.display()
        )
    })
}

fn environment(config: &PlatformConfig) -> [(String, String); 2] {
    [
        ("ORT_DYLIB_PATH".to_owned(), config.engine_library.to_string_lossy().into_owned()),
        ("ORT_DISABLE_TELEMETRY".to_owned(), "1".to_owned()),
    ]
}
