//! The service's side of the zygote: start it, ask it, hear of deaths, replace it.

use std::{
    collections::HashMap,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rustix::process::Pid;

use super::{
    cell::{Cell, Held, Inside, Usage},
    control::{Reply, Request, Spawn},
};
use crate::{
    Enforced, Floor, JailError, Layers, Limits, Report,
    cgroup::{Content, Doors, Groups},
    confine::{self, Failed, Rlimits},
    gvisor,
    probe::{self, Attempt},
};

/// Cells forked from one zygote before the next ones come from a fresh one, because siblings share their address space layout.
pub const FORKS_PER_ZYGOTE_MAX: u64 = 1_024;

/// How long the program may take to load its engine and say hello.
const HELLO_SECONDS_MAX: u64 = 60;
/// How long the zygote may take to answer one spawn; longer than its own patience with the cell.
const SPAWN_SECONDS_MAX: u64 = 20;
/// Pause before the second restart in a row; doubles up to the next.
const BACK_OFF_MILLIS_MIN: u64 = 100;
const BACK_OFF_MILLIS_MAX: u64 = 10_000;
/// A zygote that lived longer than this ends a row of restarts.
const SETTLED_SECONDS: u64 = 10;

/// Outer user ids are given out from here on: above what containers use, below the sign bit.
const OUTER_UID_FIRST: u32 = 1_879_048_192;
/// How many of them each service process has, told apart by its process id.
const OUTER_UIDS_MAX: u32 = 8_192;

/// Makes cells. Cheap to clone; all clones share one zygote. Calls block for microseconds to a few milliseconds, and for as long as the engine
/// takes to load when a zygote is started. When the last clone and the last cell are gone, the zygote ends.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    layers: Layers,
    content: Content,
    report: Report,
    groups: Arc<Groups>,
    uids: Arc<Uids>,
    next_cell: AtomicU64,
    replaced: AtomicU64,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    zygote: Arc<Zygote>,
    started: Instant,
    restarts: u32,
    not_before: Instant,
}

impl Launcher {
    /// Starts `program` as the zygote, with exactly `env` as environment, and probes what the machine enforces.
    ///
    /// The program must call [`control`](super::control) and [`serve`](super::serve). Fails when it does not, and with
    /// [`JailError::BelowFloor`], naming what is missing, when the machine enforces less than `floor`.
    pub fn start(program: &Path, args: &[&str], env: &[(String, String)], floor: Floor) -> Result<Self, JailError> {
        let launcher = Self::make(program, args, env, Layers::ALL)?;
        launcher.0.report.check(floor)?;
        Ok(launcher)
    }

    /// As [`Launcher::start`], for cells under gVisor's kernel ([`gvisor`]). The program must call [`gvisor::serve`], and [`gvisor::enter`] inside.
    ///
    /// Their `cpu_seconds_max` and `descriptors_max` are not enforced from outside: a group has no such limits, and inside a fixed number of descriptors holds.
    pub fn start_gvisor(program: &Path, args: &[&str], env: &[(String, String)], runsc: &Path, floor: Floor) -> Result<Self, JailError> {
        let version = gvisor::version(runsc)?;
        let mut inner = Self::inner(program, args, &gvisor::environment(env, runsc), Layers::AROUND, Content::Sandbox)?;
        inner.report = gvisor::probe(&inner, version)?;
        inner.report.check(floor)?;
        Ok(Self(Arc::new(inner)))
    }

    /// What [`Launcher::start`] would find, without a floor and without keeping anything: for a command that explains a machine.
    pub fn probe(program: &Path, args: &[&str], env: &[(String, String)]) -> Result<Report, JailError> {
        Ok(Self::make(program, args, env, Layers::ALL)?.0.report.clone())
    }

    /// For tests of the walls only: a launcher with some of them left out and no floor. Refuses to leave out nothing, so that it is no way
    /// round [`Launcher::start`].
    #[doc(hidden)]
    pub fn start_weakened(program: &Path, args: &[&str], env: &[(String, String)], layers: Layers) -> Result<Self, JailError> {
        if layers == Layers::ALL {
            return Err(JailError::Limits("no layer is left out: use `start`, which knows a floor".to_owned()));
        }
        Self::make(program, args, env, layers)
    }

    fn make(program: &Path, args: &[&str], env: &[(String, String)], layers: Layers) -> Result<Self, JailError> {
        let mut inner = Self::inner(program, args, env, layers, Content::Cell)?;
        inner.report = probe::probe(&inner)?;
        Ok(Self(Arc::new(inner)))
    }

    fn inner(program: &Path, args: &[&str], env: &[(String, String)], layers: Layers, content: Content) -> Result<Inner, JailError> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let groups = Arc::new(if layers.cgroup { Groups::open(content) } else { Groups::none() });
        let uids = Arc::clone(&UIDS);
        let zygote = Zygote::start(program, &args, env, layers, &uids)?;
        let now = Instant::now();
        Ok(Inner {
            program: program.to_owned(),
            args,
            env: env.to_owned(),
            layers,
            content,
            report: Report::nothing(groups.version(), zygote.threads),
            groups,
            uids,
            next_cell: AtomicU64::new(1),
            replaced: AtomicU64::new(0),
            current: Mutex::new(Current { zygote, started: now, restarts: 0, not_before: now }),
        })
    }

    /// What is really enforced here.
    pub fn report(&self) -> &Report {
        &self.0.report
    }

    /// Forks one cell, confined before this returns. Starts a fresh zygote first if the last one died or has forked often enough.
    pub fn spawn(&self, limits: &Limits) -> Result<Cell, JailError> {
        self.0.spawn(limits, self.0.layers, None, None)
    }

    /// Zygotes that followed another one, because it died or had forked often enough.
    pub fn zygotes_replaced(&self) -> u64 {
        self.0.replaced.load(Ordering::Relaxed)
    }

    /// Process id of the present zygote.
    pub fn pid(&self) -> u32 {
        self.0.current().zygote.pid
    }
}

impl probe::Subject for Inner {
    fn attempt(&self, limits: &Limits, layers: Layers, attempt: Attempt) -> Result<Cell, JailError> {
        self.spawn(limits, layers, Some(attempt), None)
    }

    fn stand(&self, limits: &Limits, said: BorrowedFd<'_>) -> Result<Cell, JailError> {
        self.spawn(limits, self.layers, Some(Attempt::Stand), Some(said))
    }

    fn layers(&self) -> Layers {
        self.layers
    }

    fn hello(&self) -> probe::Hello {
        let zygote = Arc::clone(&self.current().zygote);
        probe::Hello { cgroup: self.groups.version(), threads: zygote.threads, landlock_abi: zygote.landlock_abi }
    }
}

impl Inner {
    fn spawn(&self, limits: &Limits, layers: Layers, attempt: Option<Attempt>, said: Option<BorrowedFd<'_>>) -> Result<Cell, JailError> {
        limits.check()?;
        let zygote = self.zygote()?;
        let cell = self.next_cell.fetch_add(1, Ordering::Relaxed);
        let sandbox = self.content == Content::Sandbox;
        let memory_by_rlimit = !sandbox && self.report.memory != Enforced::Cgroup;
        let group = if layers.cgroup && self.layers.cgroup { Some(self.groups.create(cell, limits)?) } else { None };
        let doors = group.as_ref().map_or(Ok(Doors { born_into: None, join: Vec::new() }), |group| group.doors())?;
        let (ours, theirs) = UnixStream::pair().map_err(JailError::io("making a socket"))?;
        ours.set_nonblocking(true).map_err(JailError::io("making a socket"))?;
        let uid = if zygote.own_uid { Some(self.uids.take()?) } else { None };
        let spawn = Spawn {
            cell,
            layers: layers.bits(),
            outer: uid.as_ref().map_or(0, |uid| uid.id),
            limits: Rlimits {
                data_bytes: if memory_by_rlimit { limits.memory_bytes } else { u64::MAX },
                cpu_seconds: limits.cpu_seconds_max.unwrap_or(u64::MAX),
                descriptors: limits.descriptors_max,
            },
            born_into: doors.born_into.is_some(),
            attempt,
        };
        let attach: Vec<BorrowedFd<'_>> = std::iter::once(theirs.as_fd())
            .chain(doors.born_into.iter().map(AsFd::as_fd))
            .chain(doors.join.iter().map(AsFd::as_fd))
            .chain(said)
            .collect();
        let wish = Wish { group, groups: Arc::clone(&self.groups), uid, memory_by_rlimit, sandbox, limits: *limits };
        let (held, data_bytes) = zygote.spawn(&spawn, &attach, wish)?;
        Ok(Cell { held, zygote, socket: Some(ours.into()), data_bytes })
    }

    /// The present zygote, or a fresh one.
    fn zygote(&self) -> Result<Arc<Zygote>, JailError> {
        let mut current = self.current();
        let dead = !current.zygote.alive.load(Ordering::Acquire);
        if !dead && current.zygote.forks.fetch_add(1, Ordering::Relaxed) < FORKS_PER_ZYGOTE_MAX {
            return Ok(Arc::clone(&current.zygote));
        }
        let now = Instant::now();
        if dead {
            if current.started.elapsed() > Duration::from_secs(SETTLED_SECONDS) {
                current.restarts = 0;
            } else if let Some(left) = current.not_before.checked_duration_since(now) {
                return Err(JailError::BackOff { retry_after_ms: left.as_millis().max(1).try_into().unwrap_or(BACK_OFF_MILLIS_MAX) });
            }
            let pause = BACK_OFF_MILLIS_MIN.saturating_mul(1 << current.restarts.min(16)).min(BACK_OFF_MILLIS_MAX);
            current.restarts += 1;
            current.not_before = now + Duration::from_millis(pause);
        }
        let fresh = Zygote::start(&self.program, &self.args, &self.env, self.layers, &self.uids)?;
        // What the probe found must hold for the successor as well.
        if (fresh.threads, fresh.landlock_abi, fresh.own_uid)
            != (current.zygote.threads, current.zygote.landlock_abi, current.zygote.own_uid)
        {
            return Err(JailError::Gone("its successor is less confined than it was"));
        }
        fresh.forks.store(1, Ordering::Relaxed);
        self.replaced.fetch_add(1, Ordering::Relaxed);
        current.started = now;
        current.zygote = Arc::clone(&fresh);
        Ok(fresh)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One zygote process. Dropping it hangs up, at which it exits and its cells die.
#[derive(Debug)]
pub(super) struct Zygote {
    pub(super) layers: Layers,
    /// The hard limit of private memory the zygote inherited, and so its cells.
    pub(super) data_maximum: Option<u64>,
    pid: u32,
    threads: u32,
    landlock_abi: u32,
    own_uid: bool,
    control: OwnedFd,
    alive: Arc<AtomicBool>,
    forks: AtomicU64,
    table: Arc<Mutex<Table>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

/// Everything a spawn needs to keep while the cell lives, and to give back when it ends.
#[derive(Debug)]
struct Wish {
    group: Option<crate::cgroup::Group>,
    groups: Arc<Groups>,
    uid: Option<Uid>,
    memory_by_rlimit: bool,
    sandbox: bool,
    limits: Limits,
}

type Answer = Result<(Arc<Held>, u64), Failed>;

/// Cells by id: asked for, and alive.
#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u64, (Wish, mpsc::SyncSender<Answer>)>,
    alive: HashMap<u64, Living>,
}

/// A living cell, and what is given back after its end.
#[derive(Debug)]
struct Living {
    held: Arc<Held>,
    _groups: Arc<Groups>,
    _uid: Option<Uid>,
}

impl Zygote {
    fn start(program: &Path, args: &[String], env: &[(String, String)], layers: Layers, uids: &Uids) -> Result<Arc<Self>, JailError> {
        let failed = |reason: String| JailError::Start { program: program.to_owned(), reason };
        let (control, theirs) = confine::socket_pair().map_err(JailError::io("making a control socket"))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env.iter().cloned()).stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        // The command still holds the other end; without it the zygote's death is an end of file.
        drop(command);
        let hello = greet(control.as_fd(), layers, uids);
        let (threads, landlock_abi, own_uid) = match hello {
            Ok(Reply::Hello { threads, landlock_abi, own_uid }) => (threads, landlock_abi, own_uid),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(match other {
                    Ok(Reply::Unable(Failed { step, errno })) => format!("{}: {}", step.words(), std::io::Error::from_raw_os_error(errno)),
                    Ok(_) => "it answered out of turn".to_owned(),
                    Err(reason) => reason,
                }));
            }
        };
        let (table, alive) = (Arc::new(Mutex::new(Table::default())), Arc::new(AtomicBool::new(true)));
        let pid = child.id();
        let ear = control.try_clone().map_err(JailError::io("copying the control socket"))?;
        let listener = {
            let (table, alive) = (Arc::clone(&table), Arc::clone(&alive));
            std::thread::Builder::new().name("jail-zygote".to_owned()).spawn(move || listen(&ear, &table, &alive, child))
        };
        let listener = Some(listener.map_err(JailError::io("starting the launcher's thread"))?);
        let data_maximum = rustix::process::getrlimit(rustix::process::Resource::Data).maximum;
        let forks = AtomicU64::new(0);
        Ok(Arc::new(Self { layers, data_maximum, pid, threads, landlock_abi, own_uid, control, alive, forks, table, listener }))
    }

    /// Harmless when the cell or the zygote is dead.
    pub(super) fn kill(&self, cell: u64) {
        let _ = Request::Kill { cell }.send(self.control.as_fd(), &[]);
    }

    fn spawn(&self, spawn: &Spawn, attach: &[BorrowedFd<'_>], wish: Wish) -> Result<(Arc<Held>, u64), JailError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        lock(&self.table).waiting.insert(spawn.cell, (wish, sender));
        if let Err(error) = Request::Spawn(*spawn).send(self.control.as_fd(), attach) {
            lock(&self.table).waiting.remove(&spawn.cell);
            let died = matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset);
            return Err(if died { JailError::Gone("it has just died") } else { JailError::io("asking the cell launcher")(error) });
        }
        match receiver.recv_timeout(Duration::from_secs(SPAWN_SECONDS_MAX)) {
            Ok(Ok(cell)) => Ok(cell),
            Ok(Err(Failed { step, errno })) => {
                Err(JailError::Confine { step: step.words(), source: std::io::Error::from_raw_os_error(errno) })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(JailError::Gone("it died during the spawn")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // Nobody waits for this answer any more: if the cell comes after all, the listener drops it and it is killed below.
                lock(&self.table).waiting.remove(&spawn.cell);
                self.kill(spawn.cell);
                Err(JailError::Gone("it did not answer in time"))
            }
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        if let Some(listener) = self.listener.take()
            && listener.thread().id() != std::thread::current().id()
        {
            let _ = listener.join();
        }
    }
}

/// Sends the setup and waits for the first word.
fn greet(control: BorrowedFd<'_>, layers: Layers, uids: &Uids) -> Result<Reply, String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let setup = Request::Setup { layers: layers.bits(), outer: uids.first };
    // A program that has ended already is noticed below, by the end of the stream.
    let _ = setup.send(control, &[]);
    let patience = Timespec { tv_sec: HELLO_SECONDS_MAX as i64, tv_nsec: 0 };
    let mut ready = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
    match poll(&mut ready, Some(&patience)) {
        Ok(0) => return Err(format!("it did not say hello within {HELLO_SECONDS_MAX} s")),
        Ok(_) => {}
        Err(error) => return Err(error.to_string()),
    }
    match Reply::recv(control) {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err("it ended before it said hello".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The launcher's thread: answers and deaths, until the zygote is gone.
fn listen(control: &OwnedFd, table: &Mutex<Table>, alive: &AtomicBool, mut zygote: Child) {
    while let Ok(Some(reply)) = Reply::recv(control.as_fd()) {
        match reply {
            Reply::Hello { .. } | Reply::Unable(_) => break,
            Reply::Spawned { cell, pid, data_bytes } => spawned(table, cell, pid, data_bytes),
            Reply::Failed { cell, failed } => {
                let waiting = lock(table).waiting.remove(&cell);
                if let Some((_, sender)) = waiting {
                    let _ = sender.send(Err(failed));
                }
            }
            Reply::Exited { cell, code, signal, cpu_micros, memory_peak_bytes } => {
                let ended = lock(table).alive.remove(&cell);
                if let Some(living) = ended {
                    living.held.end(signal, code, Some(Usage { cpu_micros, memory_bytes: 0, memory_peak_bytes }));
                }
            }
        }
    }
    alive.store(false, Ordering::Release);
    let _ = zygote.kill();
    let _ = zygote.wait();
    let Table { waiting, alive } = std::mem::take(&mut *lock(table));
    drop(waiting);
    for living in alive.values() {
        living.held.kill_orphan();
    }
    for living in alive.into_values() {
        living.held.end(libc::SIGKILL, 0, None);
    }
}

fn spawned(table: &Mutex<Table>, cell: u64, pid: u32, data_bytes: u64) {
    let mut guard = lock(table);
    let Some((wish, sender)) = guard.waiting.remove(&cell) else { return };
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let held = Arc::new(Held {
        id: cell,
        pid,
        memory_by_rlimit: wish.memory_by_rlimit,
        sandbox: wish.sandbox,
        descriptors_max: wish.limits.descriptors_max.into(),
        memory_bytes_max: wish.limits.memory_bytes,
        inside: Mutex::new(Inside { group: wish.group, ..Inside::default() }),
        ended: std::sync::Condvar::new(),
    });
    guard.alive.insert(cell, Living { held: Arc::clone(&held), _groups: wish.groups, _uid: wish.uid });
    drop(guard);
    let _ = sender.send(Ok((held, data_bytes)));
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All launchers of this process take from one range, so that no two cells share an id, of whatever class they are.
static UIDS: LazyLock<Arc<Uids>> = LazyLock::new(Arc::default);

/// The outer user ids of this service process; each belongs to one living cell at most.
#[derive(Debug)]
struct Uids {
    first: u32,
    free: Mutex<std::collections::VecDeque<u32>>,
}

/// One outer user id, given back on drop, which is after the cell is reaped.
#[derive(Debug)]
struct Uid {
    id: u32,
    pool: std::sync::Weak<Uids>,
}

impl Default for Uids {
    fn default() -> Self {
        const BLOCKS: u32 = 1 << 15;
        let first = OUTER_UID_FIRST + std::process::id() % BLOCKS * OUTER_UIDS_MAX;
        Self { first, free: Mutex::new((first..first + OUTER_UIDS_MAX).collect()) }
    }
}

impl Uids {
    /// The one that has been free for longest.
    fn take(self: &Arc<Self>) -> Result<Uid, JailError> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let id = id.ok_or(JailError::Full(OUTER_UIDS_MAX as usize))?;
        Ok(Uid { id, pool: Arc::downgrade(self) })
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
        }
    }
}
