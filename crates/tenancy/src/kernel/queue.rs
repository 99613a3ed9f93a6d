//! The queue of content-free tickets: who runs next, and that nobody runs twice.
//!
//! A tenant that deletes something has one more ticket, its *sweep*, which is due when that can no longer be restored. It is claimed and
//! given back like a job, by the tenant's home, but takes none of the places of its jobs.

use super::*;
use crate::act::{Act, RetentionSweep};
use crate::control::SWEEP;

/// A sweep's id in its ticket: there is one of each tenant.
const SWEEP_ID: &str = "deleted";

/// Tickets that cannot be claimed, for one claim: then it is not one tenant's trouble.
const CLAIMS_FAILED_MAX: usize = 8;

impl Kernel {
    /// Claims the next ticket: tenants below their number of running jobs, the one with the fewest running first, then oldest first.
    /// With several nodes only of tenants whose home is here, or nowhere, and in the name of this node, whatever `node` says.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn claim(&self, node: &str) -> Result<Option<Lease>> {
        let _one = self.0.claiming.lock().await;
        let mut waiting = self.not_elsewhere(self.0.control.tickets_waiting(TICKETS_SEEN_MAX).await?).await?;
        let running = self.0.running.lock().clone();
        let of = |ticket: &TicketRow| running.get(&ticket.tenant).copied().unwrap_or_default();
        waiting.sort_by_key(|ticket| (of(ticket), ticket.created_at));
        let mut failed = 0;
        for ticket in waiting {
            match self.claim_within(&ticket, node, of(&ticket)).await {
                Ok(Some(lease)) => {
                    *self.0.running.lock().entry(lease.tenant).or_default() += 1;
                    return Ok(Some(lease));
                }
                Ok(None) => {}
                Err(error) => pass_over(&ticket, error, &mut failed)?,
            }
        }
        Ok(None)
    }

    /// Claims the sweep that is due at `now` (Unix microseconds) and has been for longest, of tenants as in [`Kernel::claim`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn claim_sweep(&self, node: &str, now: i64) -> Result<Option<Lease>> {
        let _one = self.0.claiming.lock().await;
        let mut failed = 0;
        for ticket in self.not_elsewhere(self.0.control.sweeps_due(now, TICKETS_SEEN_MAX).await?).await? {
            match self.claim_due(&ticket, node).await {
                Ok(Some(lease)) => return Ok(Some(lease)),
                Ok(None) => {}
                Err(error) => pass_over(&ticket, error, &mut failed)?,
            }
        }
        Ok(None)
    }

    /// Without tickets of tenants that other nodes are home to.
    async fn not_elsewhere(&self, mut tickets: Vec<TicketRow>) -> Result<Vec<TicketRow>> {
        if let Some(home) = self.0.home.as_ref().filter(|_| !tickets.is_empty()) {
            let tenants: Vec<_> = tickets.iter().map(|ticket| ticket.tenant).collect();
            let elsewhere = home.cluster.elsewhere(&tenants).await?;
            tickets.retain(|ticket| !elsewhere.contains(&ticket.tenant));
        }
        Ok(tickets)
    }

    /// Claims the ticket if its tenant may have one more job than it has.
    async fn claim_within(&self, ticket: &TicketRow, node: &str, running: u64) -> Result<Option<Lease>> {
        let Some(row) = self.0.control.tenant_by_id(ticket.tenant).await? else { return Ok(None) };
        let limits: Limits = serde_json::from_str(&row.limits).map_err(Error::integrity)?;
        let limit = if row.state == TenantState::Active { limits.jobs_running } else { 0 };
        if running >= limit { Ok(None) } else { self.claim_one(ticket, node).await }
    }

    /// Claims a sweep if its tenant is served.
    async fn claim_due(&self, ticket: &TicketRow, node: &str) -> Result<Option<Lease>> {
        let row = self.0.control.tenant_by_id(ticket.tenant).await?;
        if row.is_some_and(|row| row.state == TenantState::Active) { self.claim_one(ticket, node).await } else { Ok(None) }
    }

    /// Claims the ticket if its tenant is at home here, or nowhere.
    async fn claim_one(&self, ticket: &TicketRow, node: &str) -> Result<Option<Lease>> {
        if self.0.home.as_ref().is_some_and(|home| home.cluster.is_leaving(ticket.tenant)) {
            return Ok(None);
        }
        let node = self.0.home.as_ref().map_or(node, |home| &home.cluster.node().name);
        match self.home(ticket.tenant).await {
            Err(Error::Elsewhere(_)) => return Ok(None),
            home => drop(home?),
        }
        let claimed = self.0.control.ticket_claim(&ticket.id, node).await?;
        Ok(claimed.map(|TicketRow { id, tenant, kind, principal, attempts, .. }| Lease {
            ticket: id,
            node: node.to_owned(),
            tenant,
            kind,
            principal,
            attempts,
        }))
    }

    /// Opens the tenant of a claimed sweep, for [`RetentionSweep`](crate::act::RetentionSweep) and nothing else. Nobody's request stands
    /// behind it: it is done in the name of an administrator, whose setting the tenant's retention is.
    ///
    /// # Errors
    /// As [`Kernel::open_tenant`]; [`Error::Invalid`] for a ticket of another kind.
    pub async fn resume_sweep(&self, lease: &Lease) -> Result<Tenant> {
        if lease.kind != SWEEP {
            return Err(Error::Invalid("the ticket is one of a job".to_owned()));
        }
        let island = self.island(lease.tenant).await?;
        let members = island.members();
        let administrators = members.values().filter(|member| member.is(Role::Admin));
        let member = administrators.min_by(|a, b| a.name.cmp(&b.name)).cloned().ok_or(Error::Unauthenticated)?;
        let scope = Scope::new(vec![RetentionSweep::NAME.to_owned()], vec!["*".to_owned()])?;
        let (via, request) = (format!("lease {}", lease.id()), RequestId::fresh());
        Ok(Tenant { kernel: self.clone(), island, member, via, scope: Arc::new(scope), request, admitted: true })
    }

    /// There is more to sweep, or will be: the ticket is due at `due` (Unix microseconds).
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn postpone_sweep(&self, lease: Lease, due: i64) -> Result<()> {
        self.0.control.sweep_postpone(&lease.ticket, &lease.node, due).await
    }

    pub(crate) async fn sweep_add(&self, tenant: TenantId, principal: &str, due: i64) -> Result<()> {
        self.0.control.sweep_put(&ticket_row(tenant, SWEEP, SWEEP_ID, principal, due)).await
    }

    /// The job is over, or its ticket had no job: the ticket goes.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn release(&self, lease: Lease) -> Result<()> {
        self.not_running(&lease);
        self.0.control.ticket_delete(&lease.ticket, &lease.node).await?;
        self.0.tickets.notify_one();
        Ok(())
    }

    /// The job could not be run now: the ticket waits again.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn postpone(&self, lease: Lease) -> Result<()> {
        self.not_running(&lease);
        self.0.control.ticket_release(&lease.ticket, &lease.node).await
    }

    fn not_running(&self, lease: &Lease) {
        let mut running = self.0.running.lock();
        if lease.kind != SWEEP
            && let Some(count) = running.get_mut(&lease.tenant)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                running.remove(&lease.tenant);
            }
        }
    }

    /// At start: what a dead predecessor of this node had claimed waits again. Returns how many.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn tickets_reset(&self) -> Result<u64> {
        self.0.control.tickets_release_of(self.0.home.as_ref().map(|home| home.cluster.node().name.as_str())).await
    }

    /// Wakes when a ticket was added or a job ended.
    #[must_use]
    pub fn tickets_notify(&self) -> Arc<Notify> {
        Arc::clone(&self.0.tickets)
    }

    pub(crate) async fn ticket_add(&self, tenant: TenantId, kind: &str, id: &str, principal: &str) -> Result<()> {
        if kind == SWEEP {
            // Of a bundle: what is due is found out when it is done.
            return self.sweep_add(tenant, principal, now_micros()).await;
        }
        self.0.control.ticket_insert(&ticket_row(tenant, kind, id, principal, now_micros())).await
    }

    /// A ticket's row is committed: somebody may claim it.
    pub fn tickets_wake(&self) {
        self.0.tickets.notify_one();
    }
}

fn ticket_row(tenant: TenantId, kind: &str, id: &str, principal: &str, created_at: i64) -> TicketRow {
    let (id, kind, principal) = (format!("{}/{id}", tenant.hex()), kind.to_owned(), principal.to_owned());
    TicketRow { id, tenant, kind, principal, created_at, claimed_by: None, attempts: 0 }
}

/// One tenant's trouble is not that of those who wait behind it.
fn pass_over(ticket: &TicketRow, error: Error, failed: &mut usize) -> Result<()> {
    *failed += 1;
    if *failed > CLAIMS_FAILED_MAX {
        return Err(error);
    }
    tracing::error!(tenant = %ticket.tenant.hex(), %error, context = error.private(), "a job could not be claimed");
    Ok(())
}
