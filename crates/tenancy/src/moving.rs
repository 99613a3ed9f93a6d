//! Moving house: a tenant goes from one storage tier to another while it works.
//!
//! ```text
//! noted      the control row says where it is about to go; the place is made
//! copying    passes over both places write to the new one what differs, while the tenant reads and writes
//! paused     writers wait; a last pass finds no difference, by count and by SHA-256 over everything
//! cut over   one change of the control row; the open tenant goes on at the new place, nobody notices
//! moved      the old place stays as it was left, until the move is finished, or taken back
//! ```
//! Dead before the cut-over, the half-made copy is destroyed when the tenant is next opened or moved; dead after it, the move is
//! done. Taking it back is a move onto the place that was kept: only what differs is written, nothing that was written since is lost.
//!
//! Keys stay what they are, and with them objects, names, versions and the ledger. An object's sealed bytes move as they are.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::anchor::Anchor;
use crate::clock::now_micros;
use crate::cluster::Hold;
use crate::control::{TenantRow, TenantState};
use crate::error::{Error, Result};
use crate::island::Island;
use crate::kernel::Kernel;
use crate::ledger::Outcome;
use crate::name::{Name, TenantId, hex, unhex};
use crate::operator::{Operator, resource};
use crate::place::{Left, Moved, Placement, RowsPlace, Tier};
use crate::rows::contents::{Amount, Pass};
use crate::rows::db::blocking;
use crate::rows::{Home, ROWS_FILES};
use crate::tenant::RequestId;

/// Moves under way at once.
const MOVES_MAX: usize = 4;
/// Passes while the tenant works, at most.
const PASSES_MAX: u32 = 8;
/// So few differences are left to the pause.
const DIFFERENCES_FEW: u64 = 50;
/// Passes during the pause until one must have found no difference.
const PROOFS_MAX: u32 = 3;
/// How long the cut-over waits for who opens or closes the tenant just then.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(2);
const OVERWRITE_BYTES: usize = 1 << 20;

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveState {
    /// No move is under way, and nothing of one is kept.
    Settled,
    /// On its way; the tenant works at the old place.
    Copying,
    /// The tenant works at the new place; the old one is kept.
    Moved,
    /// The last move did not come about; the tenant works where it was.
    Failed,
}

impl MoveState {
    /// The word as shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Copying => "copying",
            Self::Moved => "moved",
            Self::Failed => "failed",
        }
    }
}

/// A move as shown. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MoveInfo {
    /// How far it is.
    pub state: MoveState,
    /// Where it lived before the last move; where it lives now when it never moved.
    pub from: Tier,
    /// Where it lives, or is going.
    pub to: Tier,
    /// Records in the last pass.
    pub records: u64,
    /// Objects in the last pass.
    pub objects: u64,
    /// Of these objects, in bytes.
    pub bytes: u64,
    /// Passes so far, the proof included.
    pub passes: u32,
    /// How long writers waited.
    pub pause_micros: Option<u64>,
    /// SHA-256 (hex) over the whole content, the same at both places when it was cut over.
    pub sha256: Option<String>,
    /// When it was ordered; 0 when it never was.
    pub started_at: i64,
    /// When something last became known.
    pub updated_at: i64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Moves that this process does, and those that failed in it.
#[derive(Default)]
pub(crate) struct Moves(Mutex<HashMap<TenantId, MoveInfo>>);

impl Moves {
    fn begin(&self, id: TenantId, from: Tier, to: Tier) -> Result<MoveInfo> {
        let mut moves = self.0.lock();
        if moves.get(&id).is_some_and(|info| info.state == MoveState::Copying) {
            return Err(Error::Conflict("the tenant is moving already".to_owned()));
        }
        if moves.values().filter(|info| info.state == MoveState::Copying).count() >= MOVES_MAX {
            return Err(Error::Conflict(format!("{MOVES_MAX} tenants are moving already: wait for one of them")));
        }
        let info = MoveInfo { state: MoveState::Copying, from, to, started_at: now_micros(), ..MoveInfo::of(&Moved::default()) };
        moves.insert(id, info.clone());
        Ok(info)
    }

    fn update(&self, id: TenantId, change: impl FnOnce(&mut MoveInfo)) {
        if let Some(info) = self.0.lock().get_mut(&id) {
            change(info);
            info.updated_at = now_micros();
        }
    }

    fn end(&self, id: TenantId, error: Option<&Error>) {
        let mut moves = self.0.lock();
        match (error, moves.get_mut(&id)) {
            (Some(error), Some(info)) => {
                info.state = MoveState::Failed;
                info.error = Some(error.to_string());
                info.updated_at = now_micros();
            }
            _ => drop(moves.remove(&id)),
        }
    }
}

impl MoveInfo {
    fn of(moved: &Moved) -> Self {
        Self {
            state: MoveState::Settled,
            from: moved.from,
            to: Tier::Embedded,
            records: moved.records,
            objects: moved.objects,
            bytes: moved.bytes,
            passes: moved.passes,
            pause_micros: (moved.passes > 0).then_some(moved.pause_micros),
            sha256: (moved.passes > 0).then(|| moved.sha256.clone()),
            started_at: moved.started_at,
            updated_at: moved.moved_at,
            error: None,
        }
    }
}

impl Operator {
    /// Orders a move to another storage tier and returns at once; [`Operator::move_info`] tells how far it is. Requests go on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a tier that the service does not have, [`Error::Conflict`] when it lives there already, is suspended, or its
    /// last move was neither finished nor taken back.
    pub async fn tenant_move(&self, name: &Name, to: Tier) -> Result<MoveInfo> {
        let row = self.named("TenantMove", name).await?;
        let id = row.id;
        self.failing("TenantMove", &resource(id), there(self.kernel(), &row, to)).await
    }

    /// How far a tenant's move is.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn move_info(&self, name: &Name) -> Result<MoveInfo> {
        let row = self.named("TenantMoveRead", name).await?;
        info(self.kernel(), &row)
    }

    /// Destroys the place where the tenant lived before its last move.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when nothing is kept.
    pub async fn move_finish(&self, name: &Name) -> Result<MoveInfo> {
        let row = self.named("TenantMoveFinish", name).await?;
        self.failing("TenantMoveFinish", &resource(row.id), finish(self.kernel(), row.id)).await
    }

    /// Orders the way back to the place that was kept, with everything that was written since, and returns at once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when nothing is kept.
    pub async fn move_rollback(&self, name: &Name) -> Result<MoveInfo> {
        let row = self.named("TenantMoveRollback", name).await?;
        self.failing("TenantMoveRollback", &resource(row.id), async { back(self.kernel(), &row) }).await
    }
}

fn info(kernel: &Kernel, row: &TenantRow) -> Result<MoveInfo> {
    let placement = Placement::parse(&row.placement)?;
    let to = placement.rows.tier();
    if let Some(known) = kernel.0.moves.0.lock().get(&row.id) {
        return Ok(known.clone());
    }
    let moved = placement.moved.unwrap_or(Moved { from: to, ..Moved::default() });
    let state = if placement.previous.is_some() { MoveState::Moved } else { MoveState::Settled };
    Ok(MoveInfo { state, to, ..MoveInfo::of(&moved) })
}

async fn there(kernel: &Kernel, row: &TenantRow, to: Tier) -> Result<MoveInfo> {
    let placement = Placement::parse(&row.placement)?;
    let from = placement.rows.tier();
    if from == to {
        return Err(Error::Conflict(format!("the tenant lives in the tier `{to}` already")));
    }
    if placement.previous.is_some() {
        return Err(Error::Conflict("finish the last move first, or take it back".to_owned()));
    }
    let rows = kernel.placement_new(row.id, to)?;
    // Between tiers of the same server the objects stay where they are.
    let stay = from != Tier::Embedded && to != Tier::Embedded;
    let objects = if stay { placement.objects.clone() } else { kernel.objects_place_new(row.id, &row.name, to).await? };
    let begun = begin(kernel, row, from, to, Way::There(Placement { objects: objects.clone(), ..rows }));
    if begun.is_err() && objects != placement.objects {
        kernel.objects_place_destroy(row.id, &objects).await?;
    }
    begun
}

fn back(kernel: &Kernel, row: &TenantRow) -> Result<MoveInfo> {
    let placement = Placement::parse(&row.placement)?;
    let Some(kept) = placement.previous else {
        return Err(Error::Conflict("there is no move to take back".to_owned()));
    };
    begin(kernel, row, placement.rows.tier(), kept.rows.tier(), Way::Back(*kept))
}

enum Way {
    There(Placement),
    Back(Placement),
}

fn begin(kernel: &Kernel, row: &TenantRow, from: Tier, to: Tier, way: Way) -> Result<MoveInfo> {
    if row.state != TenantState::Active {
        return Err(Error::Conflict("only a tenant that takes requests can move: resume it first".to_owned()));
    }
    let info = kernel.0.moves.begin(row.id, from, to)?;
    let (mut mover, started_at) = (Mover::new(kernel, row.id), info.started_at);
    tokio::spawn(async move {
        let result = mover.go(way, started_at).await;
        mover.tell(&result, from, to).await;
        mover.kernel.0.moves.end(mover.id, result.as_ref().err());
    });
    Ok(info)
}

async fn finish(kernel: &Kernel, id: TenantId) -> Result<MoveInfo> {
    let mut mover = Mover::new(kernel, id);
    let tier = mover.placement().await?.rows.tier();
    kernel.0.moves.begin(id, tier, tier)?;
    let finished = async {
        mover.settle().await?;
        mover.finish().await
    };
    let result = finished.await;
    kernel.0.moves.end(id, None);
    result?;
    let row = kernel.0.control.tenant_by_id(id).await?.ok_or(Error::NotFound("tenant"))?;
    info(kernel, &row)
}

/// What a move that died before its cut-over left half-made goes. Called when the tenant is opened.
pub(crate) fn forget_later(kernel: &Kernel, id: TenantId, placement: &Placement) {
    let tier = placement.rows.tier();
    if placement.next.is_none() || kernel.0.moves.begin(id, tier, tier).is_err() {
        return;
    }
    let mut mover = Mover::new(kernel, id);
    tokio::spawn(async move {
        let forgotten = async {
            mover.hold = mover.kernel.home(id).await?;
            mover.forget().await
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(%error, context = error.private(), "what a broken-off move left could not be destroyed yet");
        }
        mover.kernel.0.moves.end(mover.id, None);
    });
}

/// Steps, each true once it is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Noted,
    Made,
    Copied,
    Proven,
    Parted,
    CutOver,
    Left,
    /// It failed, and nothing is tidied up yet.
    Failed,
}

/// What is called between steps; refusing stops there, as a crash would.
type Between = fn(Step) -> Result<()>;

/// One tenant's move.
struct Mover {
    kernel: Kernel,
    id: TenantId,
    /// What makes this node the tenant's home while it moves; none where there is one node.
    hold: Option<Arc<Hold>>,
    between: Between,
}

impl Mover {
    fn new(kernel: &Kernel, id: TenantId) -> Self {
        Self { kernel: kernel.clone(), id, hold: None, between: |_| Ok(()) }
    }

    /// This node becomes home to the tenant: nothing of it is moved or destroyed by another one.
    async fn settle(&mut self) -> Result<()> {
        self.hold = self.kernel.seize(self.id).await?;
        Ok(())
    }

    fn fence(&self) -> Option<u64> {
        self.hold.as_ref().map(|hold| hold.fence())
    }

    async fn go(&mut self, way: Way, started_at: i64) -> Result<()> {
        if let Err(error) = self.settle().await {
            if let Way::There(target) = &way {
                self.unneeded(target).await?;
            }
            return Err(error);
        }
        match way {
            Way::There(target) => {
                self.note(&target).await?;
                let result = async {
                    (self.between)(Step::Noted)?;
                    self.kernel.rows_place_make(self.id, &target).await?;
                    (self.between)(Step::Made)?;
                    self.carry(&target, started_at).await
                };
                let result = result.await;
                if result.is_err() {
                    (self.between)(Step::Failed)?;
                    self.forget().await?;
                }
                result
            }
            Way::Back(kept) => {
                self.forget().await?;
                self.carry(&kept, started_at).await?;
                self.finish().await
            }
        }
    }

    /// From here on the control row knows what is being made. Before, nobody did.
    async fn note(&self, target: &Placement) -> Result<()> {
        let noted = async {
            self.forget().await?;
            self.change(|placement| placement.next = Some(Box::new(target.clone()))).await
        };
        if let Err(error) = noted.await {
            self.unneeded(target).await?;
            return Err(error);
        }
        Ok(())
    }

    /// Nobody knows of the bucket that was made for it.
    async fn unneeded(&self, target: &Placement) -> Result<()> {
        if target.objects != self.placement().await?.objects {
            self.kernel.objects_place_destroy(self.id, &target.objects).await?;
        }
        Ok(())
    }

    /// All of it from the place where the tenant lives to `target`.
    async fn carry(&self, target: &Placement, started_at: i64) -> Result<()> {
        let island = self.kernel.island(self.id).await?;
        let from = self.placement().await?.rows.tier();
        let mut moved = Moved { from, started_at, ..Moved::default() };
        let home = self.open(&island, target).await?;
        self.touched(target).await?;
        loop {
            let pass = self.pass(&island, &home, &mut moved).await?;
            if pass.differences <= DIFFERENCES_FEW || moved.passes >= PASSES_MAX {
                break;
            }
        }
        let filled = match home.ledger_copy() {
            Some(copy) => Some(copy.fill(&island.ledger, None).await?),
            None => None,
        };
        (self.between)(Step::Copied)?;
        let (paused, began) = (island.store.pause().await?, Instant::now());
        let mut proofs = 0;
        let pass = loop {
            let pass = self.pass(&island, &home, &mut moved).await?;
            if pass.equal() {
                break pass;
            }
            proofs += 1;
            if proofs >= PROOFS_MAX {
                return Err(Error::integrity("the new place does not keep what is written to it"));
            }
        };
        moved.sha256 = hex(&pass.sha256.0);
        island.store.conclude(&home).await?;
        (self.between)(Step::Proven)?;
        let opening = tokio::time::timeout(OPENING_WAIT_MAX, self.kernel.opening(self.id).lock_owned()).await;
        let opening = opening.map_err(|_| Error::Unavailable("the tenant is being opened or closed: move it again"))?;
        self.still_open(&island).await?;
        let left = Left { generation: island.store.parting().await?, sha256: None };
        let ledger = island.ledger_moving(&home, filled).await?;
        (self.between)(Step::Parted)?;
        moved.pause_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        moved.moved_at = now_micros();
        let changed = self.kernel.0.control.tenant_place(self.id, self.fence(), |placement| {
            // Whoever took the tenant over meanwhile has given the target up.
            let same = |place: &Placement| place.rows == target.rows && place.objects == target.objects;
            let waiting = placement.next.as_deref() == Some(target) || placement.previous.as_deref().is_some_and(same);
            if !waiting {
                return Err(Error::Conflict("another node took the tenant over while it was moved: move it again".to_owned()));
            }
            let old =
                Placement { rows: placement.rows.clone(), objects: placement.objects.clone(), left: Some(left), ..Placement::default() };
            *placement = Placement {
                rows: target.rows.clone(),
                objects: target.objects.clone(),
                previous: Some(Box::new(old)),
                moved: Some(moved),
                ..Placement::default()
            };
            Ok(())
        });
        // From here on the control row says where it lives, and the open tenant must agree: if it cannot, it is opened anew.
        let switched = match changed.await.and_then(|()| (self.between)(Step::CutOver)) {
            Ok(()) => island.store.moved(home).inspect(|_| ledger.moved()),
            Err(error) => Err(error),
        };
        if switched.is_err() {
            self.kernel.island_abandon(&island);
        }
        drop((opening, paused));
        self.leave(switched?).await
    }

    /// The island is the one everybody uses, and takes writes.
    async fn still_open(&self, island: &Arc<Island>) -> Result<()> {
        let row = self.row().await?;
        if row.state != TenantState::Active || !self.kernel.holds(island) || island.frozen() || island.torn() {
            return Err(Error::Conflict("the tenant was closed while it was moved: move it again".to_owned()));
        }
        Ok(())
    }

    async fn pass(&self, island: &Island, home: &Home, moved: &mut Moved) -> Result<Pass> {
        let pass = island.store.pass(home).await?;
        let Amount { records, objects, bytes, .. } = pass.amount;
        moved.passes += 1;
        (moved.records, moved.objects, moved.bytes) = (records, objects, bytes);
        let passes = moved.passes;
        self.kernel
            .0
            .moves
            .update(self.id, |info| (info.records, info.objects, info.bytes, info.passes) = (records, objects, bytes, passes));
        Ok(pass)
    }

    /// Opens where it is going: an empty place, or the one that was kept, which must be as it was left.
    async fn open(&self, island: &Island, target: &Placement) -> Result<Home> {
        let left = target.left.clone().unwrap_or_default();
        let clean = left.sha256.as_deref().map(|text| unhex(text).ok_or_else(|| Error::integrity("a malformed placement"))).transpose()?;
        let anchor = self.kernel.0.anchors.detached(self.id, Anchor { generation: left.generation, ledger_size: 0, clean });
        let place = self.kernel.rows_place(self.id, target, island.hold().map(|hold| hold.fence())).await?;
        let objects = self.kernel.objects_place(self.id, target)?;
        objects.ensure()?;
        Home::target(&self.kernel.tenant_dir(self.id), place, objects, &*island.store.keyring()?, anchor).await
    }

    /// The kept place is about to change: it is no longer as it was left.
    async fn touched(&self, target: &Placement) -> Result<()> {
        if target.left.as_ref().is_none_or(|left| left.sha256.is_none()) {
            return Ok(());
        }
        self.change(|placement| {
            if let Some(left) = placement.previous.as_mut().and_then(|kept| kept.left.as_mut()) {
                left.sha256 = None;
            }
        })
        .await
    }

    /// Closes the old place and notes how it was left. The move is done, whatever happens here.
    async fn leave(&self, old: &Home) -> Result<()> {
        (self.between)(Step::Left)?;
        let left = async {
            let anchor = old.leave().await?;
            let left = Left { generation: anchor.generation, sha256: anchor.clean.map(|hash| hex(&hash)) };
            self.change(|placement| {
                if let Some(kept) = &mut placement.previous {
                    kept.left = Some(left);
                }
            })
            .await
        };
        if let Err(error) = left.await {
            tracing::warn!(%error, context = error.private(), "the place a tenant moved from could not be closed in order");
        }
        Ok(())
    }

    /// Destroys what was kept. Broken off, it goes on when it is asked again, or when the tenant is next opened or moved.
    async fn finish(&self) -> Result<()> {
        let now = self.placement().await?;
        if now.previous.is_none() && now.next.is_none() {
            return Err(Error::Conflict("nothing of an earlier place is kept".to_owned()));
        }
        self.change(|placement| {
            if let Some(kept) = placement.previous.take() {
                placement.next = Some(kept);
            }
        })
        .await?;
        self.forget().await
    }

    /// Destroys what a move left half-made, or what is kept no longer.
    async fn forget(&self) -> Result<()> {
        if self.placement().await?.next.is_none() {
            return Ok(());
        }
        // Given up before it is touched: who still wants to cut over to it does not any more.
        self.change(|placement| {
            if let Some(next) = &mut placement.next {
                next.left = Some(Left::default());
            }
        })
        .await?;
        let now = self.placement().await?;
        let Some(next) = now.next.as_deref() else { return Ok(()) };
        self.hold.as_ref().map_or(Ok(()), |hold| hold.check())?;
        self.destroy(next, &now).await?;
        self.change(|placement| placement.next = None).await
    }

    /// Destroys a place, but nothing that is in use at `now` too.
    async fn destroy(&self, place: &Placement, now: &Placement) -> Result<()> {
        match place.rows {
            RowsPlace::Embedded if now.rows != RowsPlace::Embedded => {
                let dir = self.kernel.tenant_dir(self.id);
                blocking(move || ROWS_FILES.iter().try_for_each(|name| overwrite(&dir.join(name)))).await?;
            }
            RowsPlace::Embedded => {}
            _ => self.kernel.rows_place_destroy(self.id, place).await?,
        }
        if place.objects != now.objects {
            self.kernel.objects_place_destroy(self.id, &place.objects).await?;
        }
        Ok(())
    }

    async fn change(&self, change: impl FnOnce(&mut Placement)) -> Result<()> {
        let changed = |placement: &mut Placement| {
            change(placement);
            Ok(())
        };
        self.kernel.0.control.tenant_place(self.id, self.fence(), changed).await
    }

    async fn placement(&self) -> Result<Placement> {
        Placement::parse(&self.row().await?.placement)
    }

    async fn row(&self) -> Result<TenantRow> {
        self.kernel.0.control.tenant_by_id(self.id).await?.ok_or(Error::NotFound("tenant"))
    }

    /// The service's ledger knows how it ended.
    async fn tell(&self, result: &Result<()>, from: Tier, to: Tier) {
        let reason = match result {
            Ok(()) => format!("moved from {from} to {to}"),
            Err(error) => {
                tracing::error!(%error, context = error.private(), "a tenant could not be moved");
                error.code().to_owned()
            }
        };
        let outcome = if result.is_ok() { Outcome::Allowed } else { Outcome::Failed };
        let (resource, request) = (resource(self.id), RequestId::fresh());
        let told = self.kernel.0.record("service", "move", &request, "TenantMove", &resource, outcome, &reason).await;
        if let Err(error) = told {
            tracing::error!(context = error.private(), "the end of a move could not be written down");
        }
    }
}

/// Overwrites and removes a file; gone already is as good.
fn overwrite(path: &Path) -> Result<()> {
    let mut file: File = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (zeros, mut left) = (vec![0u8; OVERWRITE_BYTES], file.metadata()?.len());
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(OVERWRITE_BYTES);
        file.write_all(zeros.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    file.sync_all()?;
    Ok(std::fs::remove_file(path)?)
}

#[cfg(test)]
pub(crate) mod tests;
