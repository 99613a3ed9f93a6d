//! Policy: may this member do this act on this resource?
//!
//! The answers come from Cedar and four files in `policy/`: a schema, the cross-tenant guard, the roles, and grants on single things. They are part
//! of the binary and strictly validated when the service starts; it does not start on a policy that does not hold.
//!
//! Cedar skips a policy that fails while it is evaluated. For a permit that is safe; for the guard it would open every
//! tenant to every other. So here a question is either answered cleanly or refused: both entities are always there, built
//! from the question and checked against the schema, and any evaluation error is a refusal with its reason. And policy is
//! not the only wall: the store a permit leads to belongs to one tenant anyway.
//!
//! What is deliberately missing: a cache (an answer takes microseconds, and a cache is where a revoked role lives on),
//! context (time and address are the business of credentials and of the server), and entities from outside.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId, PolicySet, Request, RestrictedExpression, Schema,
    ValidationMode, Validator,
};
use serde::{Deserialize, Serialize};

use crate::act::{ACTS, ResourceKind};
use crate::error::{Error, Result};
use crate::name::TenantId;

const SCHEMA: &str = include_str!("../../../policy/insula.cedarschema");
const GUARD: &str = include_str!("../../../policy/guard.cedar");
const ROLES: &str = include_str!("../../../policy/roles.cedar");
const GRANTS: &str = include_str!("../../../policy/grants.cedar");
/// Most of a reason that is kept; it ends in a ledger entry.
const REASON_BYTES_MAX: usize = 200;

/// What a member is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Every act.
    Admin,
    /// Data sets, trainings, models, deployments, predictions.
    DataScientist,
    /// Sees what a data scientist makes.
    Viewer,
    /// Sees members, keys and the audit log, no content.
    Auditor,
    /// Asks deployments for predictions.
    Invoker,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Admin, Self::DataScientist, Self::Viewer, Self::Auditor, Self::Invoker];

    /// Stable word, as in `data_scientist`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::DataScientist => "data_scientist",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Invoker => "invoker",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|role| role.name() == text);
        known.ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(32).collect();
            Error::Invalid(format!("`{shown}` is not a role: give {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// What a member may do with one experiment or registered model, whatever its roles say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// Nothing.
    None,
    /// See it.
    Read,
    /// See and change it.
    Edit,
    /// See, change and remove it.
    Manage,
}

impl Grant {
    /// Stable word, as in `edit`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Edit => "edit",
            Self::Manage => "manage",
        }
    }
}

/// One question to the policy.
pub(crate) struct Question<'a> {
    /// Tenant of the principal.
    pub(crate) tenant: TenantId,
    /// Who asks.
    pub(crate) principal: &'a str,
    /// What the principal is in that tenant.
    pub(crate) roles: &'a [Role],
    /// Name of the act.
    pub(crate) act: &'a str,
    /// What the act is about.
    pub(crate) resource_kind: ResourceKind,
    /// Name of the resource; what the request names when it lists or creates, may be empty.
    pub(crate) resource_name: &'a str,
    /// Tenant of the resource.
    pub(crate) resource_tenant: TenantId,
    /// What the principal was granted on it, or on what it belongs to.
    pub(crate) grant: Option<Grant>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Whether the act may happen.
    pub(crate) allowed: bool,
    /// Ids of the policies that decided, `no policy allows it`, or why there was no clean answer.
    pub(crate) reason: String,
}

impl Decision {
    fn refused(reason: impl std::fmt::Display) -> Self {
        Self { allowed: false, reason: reason.to_string().chars().filter(|c| !c.is_control()).take(REASON_BYTES_MAX).collect() }
    }
}

/// The platform's policies, ready to be asked from any thread.
pub(crate) struct Policy {
    authorizer: Authorizer,
    policies: PolicySet,
    schema: Schema,
    /// The acts with the groups they are in.
    acts: Entities,
    types: HashMap<ResourceKind, EntityTypeName>,
    actions: HashMap<&'static str, EntityUid>,
    roles: HashMap<Role, EntityUid>,
    version: String,
}

impl Policy {
    /// The policies this binary was built with.
    ///
    /// # Errors
    /// A policy that does not pass strict validation, or a schema that does not know an act or role: do not start.
    pub(crate) fn platform() -> Result<Self> {
        Self::from_sources(SCHEMA, &[GUARD, ROLES, GRANTS])
    }

    fn from_sources(schema: &str, sources: &[&str]) -> Result<Self> {
        let version = version_of(schema, sources);
        let (schema, _) = Schema::from_cedarschema_str(schema).map_err(|error| Error::internal(format!("policy schema: {error}")))?;
        let policies = named(sources)?;
        let validated = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if !validated.validation_passed_without_warnings() {
            return Err(Error::internal(format!("policy does not validate: {validated}")));
        }
        let type_of = |name: &str| EntityTypeName::from_str(&format!("Insula::{name}")).map_err(Error::internal);
        let (action, role) = (type_of("Action")?, type_of("Role")?);
        let uid = |kind: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id));
        let acts = schema.action_entities().map_err(Error::internal)?;
        Ok(Self {
            acts,
            authorizer: Authorizer::new(),
            policies,
            types: ResourceKind::ALL.into_iter().map(|kind| Ok((kind, type_of(kind.name())?))).collect::<Result<_>>()?,
            actions: ACTS.iter().map(|act| (act.name, uid(&action, act.name))).collect(),
            roles: Role::ALL.into_iter().map(|name| (name, uid(&role, name.name()))).collect(),
            schema,
            version,
        })
    }

    /// Sixteen hex digits that change with every change of the schema or a policy.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Answers. Any doubt is a refusal.
    pub(crate) fn decide(&self, question: &Question<'_>) -> Decision {
        match self.put(question) {
            Ok((request, entities)) => self.evaluate(&request, &entities),
            Err(why) => Decision::refused(why),
        }
    }

    /// The question in Cedar's terms, checked against the schema.
    fn put(&self, question: &Question<'_>) -> Result<(Request, Entities), String> {
        let home = self.uid(ResourceKind::Tenant, question.tenant.hex())?;
        let there = self.uid(ResourceKind::Tenant, question.resource_tenant.hex())?;
        let principal = self.uid(ResourceKind::Member, within(question.tenant, question.principal))?;
        let resource = match question.resource_kind {
            ResourceKind::Tenant => there.clone(),
            kind => self.uid(kind, within(question.resource_tenant, question.resource_name))?,
        };
        let action = self.actions.get(question.act).ok_or_else(|| format!("no act `{}`", question.act))?.clone();
        let roles = question.roles.iter().map(|role| self.roles.get(role).cloned().ok_or("a role is not in the schema"));
        let roles = roles.collect::<Result<HashSet<_>, _>>()?;
        let mut entities = vec![entity(&home, &home, HashSet::new(), None)?, entity(&principal, &home, roles, None)?];
        if there != home {
            entities.push(entity(&there, &there, HashSet::new(), None)?);
        }
        // A member may ask about itself, and every member about its tenant: those entities are there already.
        if resource != principal && resource != there {
            entities.push(entity(&resource, &there, HashSet::new(), question.grant)?);
        }
        let entities = self.acts.clone().add_entities(entities, Some(&self.schema)).map_err(|error| format!("entities: {error}"))?;
        let request = Request::new(principal, action, resource, Context::empty(), Some(&self.schema));
        Ok((request.map_err(|error| format!("question: {error}"))?, entities))
    }

    fn evaluate(&self, request: &Request, entities: &Entities) -> Decision {
        let response = self.authorizer.is_authorized(request, &self.policies, entities);
        if let Some(error) = response.diagnostics().errors().next() {
            return Decision::refused(format_args!("policy error: {error}"));
        }
        let mut deciding: Vec<&str> = response.diagnostics().reason().map(AsRef::as_ref).collect();
        deciding.sort_unstable();
        match response.decision() {
            cedar_policy::Decision::Allow => Decision { allowed: true, reason: deciding.join(", ") },
            cedar_policy::Decision::Deny if deciding.is_empty() => Decision::refused("no policy allows it"),
            cedar_policy::Decision::Deny => Decision::refused(deciding.join(", ")),
        }
    }

    fn uid(&self, kind: ResourceKind, id: String) -> Result<EntityUid, &'static str> {
        let kind = self.types.get(&kind).ok_or("a kind of resource is not in the schema")?;
        Ok(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)))
    }
}

/// Of all sources, each with its length in front.
fn version_of(schema: &str, sources: &[&str]) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for source in std::iter::once(&schema).chain(sources) {
        context.update(&(source.len() as u64).to_be_bytes());
        context.update(source.as_bytes());
    }
    crate::name::hex(context.finish().as_ref().get(..8).unwrap_or_default())
}

/// Policies under the id of their annotation; one without, or two with the same, are an error.
fn named(sources: &[&str]) -> Result<PolicySet> {
    let mut all = PolicySet::new();
    for source in sources {
        let parsed = PolicySet::from_str(source).map_err(|error| Error::internal(format!("policy: {error}")))?;
        for policy in parsed.policies() {
            let id = policy.annotation("id").ok_or_else(|| Error::internal(format!("policy without `@id`: {policy}")))?;
            all.add(policy.new_id(PolicyId::new(id))).map_err(|error| Error::internal(format!("policy: {error}")))?;
        }
    }
    Ok(all)
}

/// Names are unique in a tenant only, so that ids carry the tenant.
fn within(tenant: TenantId, name: &str) -> String {
    format!("{}/{name}", tenant.hex())
}

fn entity(uid: &EntityUid, tenant: &EntityUid, parents: HashSet<EntityUid>, grant: Option<Grant>) -> Result<Entity, String> {
    let mut attributes = HashMap::from([("tenant".to_owned(), RestrictedExpression::new_entity_uid(tenant.clone()))]);
    attributes.extend(grant.map(|grant| ("grant".to_owned(), RestrictedExpression::new_string(grant.name().to_owned()))));
    Entity::new(uid.clone(), attributes, parents).map_err(|error| format!("entity: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::time::Instant;

    use super::*;
    use crate::act::{ActInfo, act_by_name};

    const A: TenantId = TenantId([0xaa; 16]);
    const B: TenantId = TenantId([0xbb; 16]);
    /// Validates, and fails whenever it is evaluated.
    const BROKEN_GUARD: &str = r#"@id("guard") forbid (principal, action, resource)
        unless { principal.tenant == resource.tenant && 9223372036854775807 + 1 > 0 };"#;

    fn question<'a>(roles: &'a [Role], act: &'a ActInfo, resource_tenant: TenantId) -> Question<'a> {
        Question {
            tenant: A,
            principal: "ada",
            roles,
            act: act.name,
            resource_kind: act.resource,
            resource_name: "iris",
            resource_tenant,
            grant: None,
        }
    }

    #[test]
    fn a_grant_takes_the_place_of_the_role_for_one_thing_alone() {
        let policy = Policy::platform().unwrap();
        let ask = |roles: &[Role], act: &str, grant| policy.decide(&Question { grant, ..question(roles, act_by_name(act).unwrap(), A) });
        let grants = [None, Some(Grant::None), Some(Grant::Read), Some(Grant::Edit), Some(Grant::Manage)];
        let allowed = |roles: &[Role], act: &str| grants.map(|grant| ask(roles, act, grant).allowed);
        for (see, change, remove) in [
            ("ExperimentRead", "ExperimentWrite", "ExperimentDelete"),
            ("ArtifactRead", "ArtifactWrite", "ArtifactDelete"),
            ("RunRead", "RunWrite", "RunDelete"),
            ("LoggedModelRead", "LoggedModelWrite", "LoggedModelDelete"),
            ("TraceRead", "TraceWrite", "TraceDelete"),
            ("ModelRead", "ModelWrite", "ModelDelete"),
        ] {
            for act in [see, change, remove] {
                assert_eq!(allowed(&[Role::Admin], act), [true; 5], "{act}");
            }
            assert_eq!(allowed(&[Role::DataScientist], see), [true, false, true, true, true]);
            assert_eq!(allowed(&[Role::DataScientist], change), [true, false, false, true, true]);
            assert_eq!(allowed(&[Role::DataScientist], remove), [true, false, false, false, true]);
            for roles in [&[Role::Viewer][..], &[Role::Invoker]] {
                assert_eq!(allowed(roles, see), [roles == [Role::Viewer], false, true, true, true]);
                assert_eq!(allowed(roles, change), [false, false, false, true, true]);
                assert_eq!(allowed(roles, remove), [false, false, false, false, true]);
            }
        }
        // What cannot be granted has no such attribute, and a grant does not reach over the sea.
        assert!(!ask(&[Role::Admin], "DatasetRead", Some(Grant::Read)).allowed);
        let act = act_by_name("ModelRead").unwrap();
        let foreign = policy.decide(&Question { grant: Some(Grant::Manage), ..question(&[Role::Viewer], act, B) });
        assert_eq!(foreign, Decision { allowed: false, reason: "guard".into() });
    }

    #[test]
    fn the_golden_role_matrix() {
        let policy = Policy::platform().unwrap();
        let mut table = format!("{:<20}", "act");
        Role::ALL.iter().for_each(|role| write!(table, "{:<16}", role.name()).unwrap());
        for act in ACTS {
            write!(table, "\n{:<20}", act.name).unwrap();
            for role in Role::ALL {
                let decision = policy.decide(&question(&[role], act, A));
                assert_eq!(decision.reason, if decision.allowed { role.name() } else { "no policy allows it" });
                write!(table, "{:<16}", if decision.allowed { "yes" } else { "-" }).unwrap();
            }
        }
        let table: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(table, include_str!("../tests/golden/roles.txt"), "the role matrix changed; if that is meant, edit the file by hand");
    }

    #[test]
    fn the_schema_knows_exactly_the_acts() {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        let mut found: Vec<String> = schema.request_envs().map(|env| format!("{} on {}", env.action(), env.resource())).collect();
        let mut expected: Vec<String> =
            ACTS.iter().map(|act| format!("Insula::Action::\"{}\" on Insula::{}", act.name, act.resource.name())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        // The three groups that grants speak of are no acts.
        assert_eq!(schema.actions().count(), ACTS.len() + 3);
    }

    #[test]
    fn no_role_reaches_another_tenant() {
        let policy = Policy::platform().unwrap();
        for act in ACTS {
            let decision = policy.decide(&question(&Role::ALL, act, B));
            assert_eq!(decision, Decision { allowed: false, reason: "guard".into() }, "{}", act.name);
        }
    }

    /// The test above can fail: it is the guard that holds, not something else.
    #[test]
    fn without_the_guard_roles_reach_every_tenant() {
        let policy = Policy::from_sources(SCHEMA, &[ROLES]).unwrap();
        for act in ACTS {
            let decision = policy.decide(&question(&[Role::Admin], act, B));
            assert_eq!(decision, Decision { allowed: true, reason: "admin".into() }, "{}", act.name);
        }
    }

    #[test]
    fn a_guard_that_errors_refuses_though_cedar_alone_allows() {
        let policy = Policy::from_sources(SCHEMA, &[BROKEN_GUARD, ROLES]).unwrap();
        let act = act_by_name("DatasetRead").unwrap();
        for (tenant, errs) in [(A, true), (B, false)] {
            let (request, entities) = policy.put(&question(&[Role::Admin], act, tenant)).unwrap();
            let cedar = policy.authorizer.is_authorized(&request, &policy.policies, &entities).decision();
            let ours = policy.decide(&question(&[Role::Admin], act, tenant));
            assert!(!ours.allowed);
            if errs {
                assert_eq!(cedar, cedar_policy::Decision::Allow, "what we defend against");
                assert!(ours.reason.starts_with("policy error: "), "{}", ours.reason);
            }
        }
    }

    #[test]
    fn a_missing_entity_refuses_though_cedar_alone_allows() {
        let policy = Policy::platform().unwrap();
        let act = act_by_name("DatasetRead").unwrap();
        let (request, entities) = policy.put(&question(&[Role::Admin], act, B)).unwrap();
        let resource = request.resource().unwrap().clone();
        let without = entities.remove_entities([resource]).unwrap();
        assert_eq!(policy.authorizer.is_authorized(&request, &policy.policies, &without).decision(), cedar_policy::Decision::Allow);
        let ours = policy.evaluate(&request, &without);
        assert!(!ours.allowed && ours.reason.starts_with("policy error: "), "{ours:?}");
    }

    #[test]
    fn roles_add_up_and_none_is_none() {
        let policy = Policy::platform().unwrap();
        let ledger = act_by_name("LedgerRead").unwrap();
        assert!(!policy.decide(&question(&[], ledger, A)).allowed);
        let both = [Role::Auditor, Role::Invoker];
        assert!(policy.decide(&question(&both, ledger, A)).allowed);
        assert!(policy.decide(&question(&both, act_by_name("Predict").unwrap(), A)).allowed);
        assert!(!policy.decide(&question(&both, act_by_name("DatasetRead").unwrap(), A)).allowed);
        assert_eq!(policy.decide(&question(&[Role::Admin, Role::Auditor], ledger, A)).reason, "admin, auditor");
    }

    #[test]
    fn odd_questions_are_refused() {
        let policy = Policy::platform().unwrap();
        let act = act_by_name("DatasetRead").unwrap();
        let good = || question(&[Role::Admin], act, A);
        assert!(policy.decide(&good()).allowed);
        assert_eq!(policy.decide(&Question { act: "DatasetSteal", ..good() }).reason, "no act `DatasetSteal`");
        let mismatched = policy.decide(&Question { resource_kind: ResourceKind::Model, ..good() });
        assert!(!mismatched.allowed && mismatched.reason.starts_with("question: "), "{mismatched:?}");
        // A member about itself, the empty name, names that look like an id of Cedar: plain data all of them.
        let own = act_by_name("MemberRead").unwrap();
        assert!(policy.decide(&Question { resource_name: "ada", ..question(&[Role::Admin], own, A) }).allowed);
        assert!(!policy.decide(&Question { resource_name: "ada", ..question(&[Role::Admin], own, B) }).allowed);
        for name in ["", "\" || true", "Insula::Role::\"admin\"", "../x", "\0"] {
            assert!(policy.decide(&Question { resource_name: name, ..good() }).allowed);
            assert!(!policy.decide(&Question { resource_name: name, resource_tenant: B, ..good() }).allowed);
            assert!(!policy.decide(&Question { principal: name, roles: &[Role::Viewer], act: "DatasetWrite", ..good() }).allowed);
        }
    }

    #[test]
    fn policies_that_do_not_hold_are_refused_at_start() {
        let refused = |sources: &[&str]| Policy::from_sources(SCHEMA, sources).err().map(|error| error.private().unwrap_or("").to_owned());
        assert_eq!(refused(&[GUARD, ROLES, GRANTS]), None);
        for (source, word) in [
            ("permit (principal, action, resource);", "without `@id`"),
            (r#"@id("guard") permit (principal, action, resource);"#, "duplicate"),
            (r#"@id("x") permit (principal, action == Insula::Action::"Fly", resource);"#, "validate"),
            (r#"@id("x") permit (principal in Insula::Role::"owner", action, resource);"#, "validate"),
            (r#"@id("x") permit (principal, action, resource) when { resource.owner == principal };"#, "validate"),
            (r#"@id("x") permit (principal, action, resource"#, "policy"),
        ] {
            let why = refused(&[GUARD, ROLES, source]);
            assert!(why.as_deref().is_some_and(|why| why.contains(word)), "{source}: {why:?}");
        }
        assert!(Policy::from_sources("entity", &[GUARD]).is_err());
    }

    #[test]
    fn role_words() {
        for role in Role::ALL {
            assert_eq!(role.name().parse::<Role>().unwrap(), role);
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
        assert_eq!(
            "Owner".parse::<Role>().unwrap_err().to_string(),
            "`Owner` is not a role: give admin, data_scientist, viewer, auditor, invoker"
        );
    }

    #[test]
    fn timing() {
        let policy = Policy::platform().unwrap();
        let act = act_by_name("Predict").unwrap();
        let mut micros: Vec<f64> = (0..2_000)
            .map(|_| {
                let start = Instant::now();
                assert!(policy.decide(&question(&[Role::Invoker], act, A)).allowed);
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        micros.sort_by(f64::total_cmp);
        println!("policy decision: p50 {:.1} us, p99 {:.1} us", micros[1_000], micros[1_980]);
    }
}
