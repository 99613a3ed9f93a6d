//! The queue of content-free tickets: who runs next, and that nobody runs twice.

use super::*;

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
        let node = self.0.home.as_ref().map_or(node, |home| &home.cluster.node().name);
        let mut waiting = self.0.control.tickets_waiting(TICKETS_SEEN_MAX).await?;
        if let Some(home) = self.0.home.as_ref().filter(|_| !waiting.is_empty()) {
            let tenants: Vec<_> = waiting.iter().map(|ticket| ticket.tenant).collect();
            let elsewhere = home.cluster.elsewhere(&tenants).await?;
            waiting.retain(|ticket| !elsewhere.contains(&ticket.tenant));
        }
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
                Err(error) if failed >= CLAIMS_FAILED_MAX => return Err(error),
                // One tenant's trouble is not that of those behind it.
                Err(error) => {
                    failed += 1;
                    tracing::error!(tenant = %ticket.tenant.hex(), %error, context = error.private(), "a job could not be claimed");
                }
            }
        }
        Ok(None)
    }

    /// Claims the ticket if its tenant may have one more job than it has, and is at home here, or nowhere.
    async fn claim_within(&self, ticket: &TicketRow, node: &str, running: u64) -> Result<Option<Lease>> {
        let Some(row) = self.0.control.tenant_by_id(ticket.tenant).await? else { return Ok(None) };
        let limits: Limits = serde_json::from_str(&row.limits).map_err(Error::integrity)?;
        let limit = if row.state == TenantState::Active { limits.jobs_running } else { 0 };
        if running >= limit || self.0.home.as_ref().is_some_and(|home| home.cluster.is_leaving(ticket.tenant)) {
            return Ok(None);
        }
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

    /// The job is over, or its ticket had no job: the ticket goes.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn release(&self, lease: Lease) -> Result<()> {
        self.not_running(lease.tenant);
        self.0.control.ticket_delete(&lease.ticket, &lease.node).await?;
        self.0.tickets.notify_one();
        Ok(())
    }

    /// The job could not be run now: the ticket waits again.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn postpone(&self, lease: Lease) -> Result<()> {
        self.not_running(lease.tenant);
        self.0.control.ticket_release(&lease.ticket, &lease.node).await
    }

    fn not_running(&self, tenant: TenantId) {
        let mut running = self.0.running.lock();
        if let Some(count) = running.get_mut(&tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                running.remove(&tenant);
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
        let row = TicketRow {
            id: format!("{}/{id}", tenant.hex()),
            tenant,
            kind: kind.to_owned(),
            principal: principal.to_owned(),
            created_at: now_micros(),
            claimed_by: None,
            attempts: 0,
        };
        self.0.control.ticket_insert(&row).await
    }

    /// A ticket's row is committed: somebody may claim it.
    pub fn tickets_wake(&self) {
        self.0.tickets.notify_one();
    }
}
