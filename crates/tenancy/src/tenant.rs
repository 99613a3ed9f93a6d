//! The handle on a tenant, and the small types around it that carry no data.

use std::fmt;
use std::sync::Arc;

use crate::act::{Act, ActInfo, act_by_name};
use crate::clock::now_micros;
use crate::credential::Scope;
use crate::error::{Error, Result};
use crate::island::Island;
use crate::kernel::Kernel;
use crate::ledger::{Entry, Outcome};
use crate::member::Member;
use crate::name::{Name, TenantId};
use crate::permit::{MeterHandle, Permit, PermitInner};
use crate::policy::Role;
use crate::quota::{Limits, RateLimitState};

/// Longest resource name in an entry, in bytes; what a request names may be longer and is cut there.
const RESOURCE_BYTES_MAX: usize = 160;

/// Names one request in answers, logs and the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// A random one.
    #[must_use]
    pub fn fresh() -> Self {
        let bytes: [u8; 12] = crate::seal::random().unwrap_or_default();
        Self(crate::name::hex(&bytes))
    }

    /// One that the caller chose: 1 to 64 letters, digits, `-` and `_`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks: minted only by [`Kernel::authenticate`].
#[derive(Debug)]
pub struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) principal: String,
    pub(crate) via: String,
    pub(crate) scope: Arc<Scope>,
    pub(crate) request: RequestId,
}

impl Caller {
    /// The member's name.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Id of the credential.
    #[must_use]
    pub fn via(&self) -> &str {
        &self.via
    }

    /// Groups what is asked for one tenant without naming it.
    #[must_use]
    pub fn island(&self) -> IslandToken {
        IslandToken(self.tenant)
    }
}

/// Groups what belongs to one tenant without naming it. Opaque: it can be compared and hashed, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IslandToken(TenantId);

impl IslandToken {
    pub(crate) fn new(id: TenantId) -> Self {
        Self(id)
    }
}

/// A key that belongs to one tenant: the only kind that caches, pools and queues accept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scoped<K> {
    island: TenantId,
    key: K,
}

impl<K> Scoped<K> {
    pub(crate) fn new(island: TenantId, key: K) -> Self {
        Self { island, key }
    }

    /// The tenant's own part.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Whose it is.
    pub fn island(&self) -> IslandToken {
        IslandToken(self.island)
    }
}

/// The capability to ask for one tenant in one person's name. Has no data method: ask [`Tenant::allow`].
pub struct Tenant {
    pub(crate) kernel: Kernel,
    pub(crate) island: Arc<Island>,
    pub(crate) member: Arc<Member>,
    pub(crate) via: String,
    pub(crate) scope: Arc<Scope>,
    pub(crate) request: RequestId,
    /// A lease's permits take no request slot: the job has been admitted before.
    pub(crate) admitted: bool,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").finish_non_exhaustive()
    }
}

impl Tenant {
    /// The tenant's name, for its own eyes.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.island.name
    }

    /// Who asks.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.member.name.as_str()
    }

    /// What it is here.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.member.roles
    }

    /// What the credential is narrowed to.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What the tenant may use.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.island.meter.limits()
    }

    /// For the `RateLimit` headers.
    #[must_use]
    pub fn rate_state(&self) -> RateLimitState {
        self.island.meter.rate_state()
    }

    /// Counts usage; holds no authority.
    #[must_use]
    pub fn meter(&self) -> MeterHandle {
        MeterHandle(Arc::clone(&self.island.meter))
    }

    /// Groups what belongs to this tenant without naming it.
    #[must_use]
    pub fn island(&self) -> IslandToken {
        IslandToken(self.island.id)
    }

    /// Asks for one act on one resource. Quota, scope, policy and ledger must all agree; a refusal leaves its
    /// entry. Of refusals by rate or concurrency only the first ten of a second have one of their own, the rest are counted in the next.
    ///
    /// `resource` is the name the request gives; empty for a collection.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the caller may not even see such resources, [`Error::Forbidden`] when it may see but not do this,
    /// [`Error::Quota`] when a rate or the concurrency is used up, [`Error::TenantState`] when the tenant takes no requests,
    /// [`Error::Unavailable`] when the ledger cannot take entries.
    pub fn allow<A: Act>(&self, resource: &str) -> Result<Permit<A>> {
        self.island.thawed()?;
        let resource = resource.get(..resource.floor_char_boundary(RESOURCE_BYTES_MAX)).unwrap_or_default();
        // Before anything else is done or written, so that a flood of refusals is bounded by the rate as well.
        let slot = match self.admitted {
            true => None,
            false => match self.island.meter.admit(A::QUOTA) {
                Ok(slot) => Some(slot),
                Err(exceeded) => {
                    if let Some(withheld) = self.island.flood(now_micros()) {
                        self.refused::<A>(resource, exceeded.limit, withheld)?;
                    }
                    return Err(Error::Quota(exceeded));
                }
            },
        };
        let (allowed, reason) = self.judge(A::NAME, A::RESOURCE, resource);
        if !allowed {
            self.refused::<A>(resource, &reason, 0)?;
            let seen = act_by_name(A::SEEN_BY).is_some_and(|see: &ActInfo| self.judge(see.name, see.resource, resource).0);
            return Err(if seen { Error::Forbidden { act: A::NAME } } else { Error::NotFound(A::RESOURCE.word()) });
        }
        if self.island.ledger.failed() {
            return Err(Error::Unavailable("the audit log cannot be written"));
        }
        Ok(Permit::new(PermitInner {
            kernel: self.kernel.clone(),
            island: Arc::clone(&self.island),
            member: Arc::clone(&self.member),
            via: self.via.clone(),
            scope: Arc::clone(&self.scope),
            request: self.request.clone(),
            act: A::NAME,
            kind: A::RESOURCE,
            resource: resource.to_owned(),
            reason,
            detail: Default::default(),
            written: Default::default(),
            _slot: slot,
        }))
    }

    /// What scope and policy say, and why.
    fn judge(&self, act: &'static str, kind: crate::act::ResourceKind, resource: &str) -> (bool, String) {
        if !self.scope.matches(act, kind, resource) {
            return (false, "outside the scope of the credential".to_owned());
        }
        let decision = self.island.decide(&self.member, act, kind, resource, self.member.grant(kind, resource));
        (decision.allowed, decision.reason.clone())
    }

    /// `withheld`: refusals by rate since the last entry that got none of their own.
    fn refused<A: Act>(&self, resource: &str, reason: &str, withheld: u64) -> Result<()> {
        let detail = (withheld > 0).then(|| ("withheld".to_owned(), withheld.to_string()));
        let entry = Entry {
            time: now_micros(),
            request: self.request.to_string(),
            actor: self.member.name.to_string(),
            via: self.via.clone(),
            act: A::NAME.to_owned(),
            resource: format!("{}:{resource}", A::RESOURCE.word()),
            outcome: Outcome::Refused,
            reason: reason.to_owned(),
            detail: detail.into_iter().collect(),
            generation: None,
        };
        self.island.ledger.append(&entry).map(|_| ()).map_err(|_| Error::Unavailable("the audit log cannot be written"))
    }
}

/// A claimed ticket: the right to resume one job. The policy is asked again when it is.
#[derive(Debug)]
pub struct Lease {
    pub(crate) ticket: String,
    /// Who claimed it.
    pub(crate) node: String,
    pub(crate) tenant: TenantId,
    pub(crate) kind: String,
    pub(crate) principal: String,
    pub(crate) attempts: u32,
}

impl Lease {
    /// What kind of job.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The job's id in the tenant's rows.
    #[must_use]
    pub fn id(&self) -> &str {
        self.ticket.split_once('/').map_or(self.ticket.as_str(), |(_, id)| id)
    }

    /// How often it was claimed, this time included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whose job, without naming it.
    #[must_use]
    pub fn island(&self) -> IslandToken {
        IslandToken(self.tenant)
    }
}
